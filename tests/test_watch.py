"""What the host does about a step: the three times, and how a result shows them."""

import time

import pytest

from experiments import journal, result, summary, train, watch
from experiments.watch import Marks


def test_times_are_per_step():
    begun, dispatched = Marks(100.0, 7.0, 3.0), Marks(108.0, 7.5, 3.25)
    assert watch.per_step(begun, dispatched, steps=10, ended=99.0) == {
        "host_ms": 50.0,
        "data_wait_ms": 25.0,
        "between_ms": 100.0,
    }
    assert watch.per_step(begun, dispatched, steps=10, ended=None)["between_ms"] is None


def test_waiting_is_no_work():
    begun = watch.mark(lambda: 0.0)
    time.sleep(0.05)
    waited = watch.mark(lambda: 0.0)
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    worked = watch.mark(lambda: 1.5)
    assert waited.wall - begun.wall >= 0.05
    assert waited.work - begun.work < 0.05  # of 0.05 s of sleep, processor time is next to nothing
    assert worked.work - waited.work >= 0.02
    assert worked.waited == 1.5


@pytest.fixture
def lines(tmp_path):
    def line(ms, host, *, phase="explore", steps=20, between=1.0, wait=0.5, **changes):
        row = {"steps": steps, "phase": phase, "ms_per_step": ms, "compile_s": 0.0}
        times = {"host_ms": host, "between_ms": between, "data_wait_ms": wait}
        return {**row, **times, "profiled": False, **changes}

    for row in [
        line(900.0, 90.0, between=None, compile_s=3.0),
        *(line(ms, ms / 10, between=ms) for ms in (4.0, 5.0, 9.0)),
        *(line(80.0, 70.0, profiled=True) for _ in range(4)),  # slowed down by the profiler
        line(1.0, 0.1, phase="commit", steps=19),
        line(2.0, 0.3, phase="commit", between=None, wait=0.0),
    ]:
        journal.append(tmp_path / "metrics.jsonl", row)
    return tmp_path


def test_medians_are_of_long_warm_blocks_without_a_profile(lines):
    times = result._timings(train.Programs(), lines)
    assert times["step_ms_median"] == {"explore": 5.0, "commit": 2.0}
    assert times["host_ms_median"] == {"explore": 0.5, "commit": 0.3}
    assert times["between_ms_median"] == {"explore": 5.0, "commit": None}
    assert times["data_wait_ms_median"] == {"explore": 0.5, "commit": 0.0}


def test_lines_of_an_earlier_version_have_no_times(tmp_path):
    old = {"steps": 20, "phase": "commit", "ms_per_step": 2.0, "compile_s": 0.0}
    journal.append(tmp_path / "metrics.jsonl", old)
    times = result._timings(train.Programs(), tmp_path)
    assert times["step_ms_median"] == {"explore": None, "commit": 2.0}
    assert times["host_ms_median"] == {"explore": None, "commit": None}


def test_the_table_shows_them_and_results_without_them_have_no_rows():
    known = {"host_ms_median": {"explore": 0.5, "commit": None}}
    assert summary.host(known) == [
        ("host per step, dispatching, exploring / committed", "0.50 ms / -", "-")
    ]
    assert summary.host({}) == []
