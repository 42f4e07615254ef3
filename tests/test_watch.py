"""What the host does about a step: the three times, and how a result shows them."""

import time

import pytest
import runs

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


def test_training_takes_its_blocks_and_what_lies_between_them(lines):
    explored = 900.0 + sum(2 * ms for ms in (4.0, 5.0, 9.0)) + 4 * (80.0 + 1.0)
    seconds = (20 * explored + 19 * (1.0 + 1.0) + 20 * 2.0) / 1e3
    assert result._timings(train.Programs(), lines)["train_s"] == pytest.approx(seconds)
    assert summary.wall({"train_s": 754.2}) == [("training, wall clock", "12.6 min", "-")]
    assert summary.wall({}) == []


def test_the_wall_clock_of_a_run_holds_its_training(lab):
    begun = time.perf_counter()
    found, workdir = lab.run(method="l1", seed=3)
    took = time.perf_counter() - begun
    steps = sum(x["steps"] * x["ms_per_step"] for x in runs.lines(workdir / "metrics.jsonl")) / 1e3
    assert steps < found["train_s"] < took  # a round of pruning lies between two blocks


def test_the_table_shows_them_and_results_without_them_have_no_rows():
    known = {"host_ms_median": {"explore": 0.5, "commit": None}}
    assert summary.host(known) == [
        ("host per step, dispatching, exploring / committed", "0.50 ms / -", "-")
    ]
    assert summary.host({}) == []
