"""Long runs: profiles on request, the host's times, checkpoints written beside the steps."""

import gzip
import json
import threading
import time
from types import SimpleNamespace

import pytest
import runs
from gates import fails, gate
from rich.console import Console

from experiments import (
    background,
    blocks,
    checkpoint,
    data,
    profiling,
    session,
    setup,
    summary,
    train,
    watch,
)
from experiments.profiling import Window
from experiments.session import TrainingError

__all__ = ["gate"]


# Profiles


def traced_steps(workdir):
    """Numbers of the steps that the newest trace names, in order."""
    paths = (workdir / "profile").rglob("*.trace.json.gz")
    path = max(paths, key=lambda path: path.stat().st_mtime_ns)
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [e["args"] for e in events if e.get("name") == "train" and "args" in e]
    return sorted({int(args["step_num"]) for args in steps if "step_num" in args})


@pytest.mark.parametrize(
    ("window", "expected", "lines"),
    [
        (Window(2, 5), [1, 2, 3, 4, 5], [True, False, False]),
        (Window(7, 11), [6, 7, 8, 9, 10, 11, 12], [False, True, True]),
    ],
)
def test_whole_blocks_are_traced_and_the_result_is_the_same(
    lab, tmp_path, capsys, window, expected, lines
):
    _, plain = lab.run(method="dce")
    train.train(runs.settings(lab.images, method="dce"), tmp_path / "w", window)
    runs.same_end(plain, tmp_path / "w")
    assert traced_steps(tmp_path / "w") == expected
    assert [x["profiled"] for x in runs.lines(tmp_path / "w/metrics.jsonl")] == lines
    assert not any(x["profiled"] for x in runs.lines(plain / "metrics.jsonl"))
    assert not (plain / "profile").exists()
    said = "".join(capsys.readouterr().err.split())  # long paths are folded anywhere
    assert f"profile:{tmp_path / 'w/profile'};openitsnewest*.trace.json.gzat" in said


@pytest.mark.parametrize("text", ["", "5", "5:", ":5", "a:b", "0:3", "4:3", "-1:3", "1:2:3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match=r"--profile is .*as in 101:120"):
        profiling.parse(text)


def test_a_range_is_parsed():
    assert profiling.parse("3:12") == Window(3, 12)


def test_ranges_outside_what_is_left_are_refused(lab, tmp_path):
    settings = runs.settings(lab.images, method="dce", stop_after=5)
    with pytest.raises(ValueError, match="steps 9 to 13, but those still to be taken are 1 to 12"):
        train.train(settings, tmp_path, Window(9, 13))
    assert train.train(settings, tmp_path, Window(1, 12)) is None
    assert traced_steps(tmp_path) == [1, 2, 3, 4, 5]  # what stops the run ends the trace
    settings.stop_after = None
    with pytest.raises(ValueError, match=r"steps 5 to 7, but those still .* are 6 to 12: choose"):
        train.train(settings, tmp_path, Window(5, 7))
    train.train(settings, tmp_path, Window(6, 6))
    assert traced_steps(tmp_path) == [6, 7, 8, 9, 10]
    with pytest.raises(ValueError, match="all 12 steps of this run are taken: choose another"):
        train.train(settings, tmp_path, Window(6, 6))


def test_the_flag_reaches_the_run(lab, tmp_path, monkeypatch, capsys):
    runs.flags(monkeypatch, runs.settings(lab.images), tmp_path)
    monkeypatch.setattr(train, "_PROFILE", SimpleNamespace(value="3:x"))
    assert train.main(["train"]) == 2
    assert capsys.readouterr().err.startswith("error: --profile is '3:x': give the first")


# The host's times


def test_a_run_prints_and_stores_the_hosts_times(lab):
    found, workdir = lab.run(method="dce", block=20, steps=100)
    console = Console(record=True, width=160)
    summary.print_result(found, console)
    text = console.export_text()
    for said in ("dispatching", "waiting for a batch", "between two blocks"):
        assert f"host per step, {said}, exploring / committed" in text
    for line in runs.lines(workdir / "metrics.jsonl"):
        assert line["host_ms"] > 0
        assert line["data_wait_ms"] == 0.0  # the images live on the device
        assert (line["between_ms"] is None) == (line["step"] == line["steps"])
    assert found["host_ms_median"]["commit"] > 0
    assert found["between_ms_median"]["commit"] > 0


def test_waiting_for_batches_is_told_per_block(lab, monkeypatch):
    monkeypatch.setattr("experiments.pipeline.device_memory", lambda: 1)
    config = runs.settings(lab.images, method="dense")
    run = setup.build(config, data.load(config.dataset, data_dir=None))
    slow = run.source.data_at

    def dawdling(step):
        time.sleep(0.02)
        return slow(step)

    run = run._replace(source=run.source._replace(data_at=dawdling))
    begun = blocks.start(run)
    _, line = watch.timed_block(run, train.Programs(), begun, 0, 5, ended=None, traced=False)
    # The stream's own wait is counted, not what stands around it.
    assert line["data_wait_ms"] == pytest.approx(1e3 * run.source.waited() / 5)
    assert line["data_wait_ms"] > 0


# Checkpoints beside the steps


@pytest.fixture(scope="module")
def plain(lab):
    return lab.run(method="dce")[1]


def test_steps_go_on_while_a_checkpoint_is_written(lab, plain, tmp_path, gate, monkeypatch):
    opened, begun = gate
    seen, record = [], train.record

    def watching(run, state, workdir, line):
        seen.append((line["step"], checkpoint.steps(workdir / "checkpoints")))
        if line["step"] == 10:
            assert begun.is_set()
            opened.set()
        record(run, state, workdir, line)

    monkeypatch.setattr(train, "record", watching)
    train.train(runs.settings(lab.images, method="dce"), tmp_path / "w")
    assert seen[:2] == [(5, []), (10, [])]  # the one of step 5 is not there yet
    assert checkpoint.steps(tmp_path / "w/checkpoints") == [5, 10, 12]
    runs.same_end(plain, tmp_path / "w")


def test_a_full_disk_surfaces_at_the_next_block(lab, tmp_path, monkeypatch):
    calls, save = [], checkpoint.ocp.save
    looked, record = session.look, train.record

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            fails()
        return save(*args)

    def resting(writer, workdir):
        background.rest(writer)  # however slow the disk, it has refused before the block ends
        looked(writer, workdir)

    def recording(run, state, workdir, line):
        steps.append(line["step"])
        record(run, state, workdir, line)

    steps = []
    monkeypatch.setattr(checkpoint.ocp, "save", failing)
    monkeypatch.setattr(session, "look", resting)
    monkeypatch.setattr(train, "record", recording)
    config = runs.settings(lab.images, method="dce", block=2, select_every=2)
    with pytest.raises(TrainingError, match=r"the disk is full\. Make room and start") as caught:
        train.train(config, tmp_path)
    assert "the last good checkpoint, of step 2, is kept" in str(caught.value)
    assert checkpoint.steps(tmp_path / "checkpoints") == [2]
    assert steps == [2, 4]
    monkeypatch.setattr(checkpoint.ocp, "save", save)
    train.train(config, tmp_path)
    _, plain = lab.run(method="dce", block=2, select_every=2)
    runs.same_end(plain, tmp_path)


@pytest.mark.parametrize(("stop", "call", "kept"), [(5, 1, []), (None, 3, [5, 10])])
def test_the_last_checkpoint_that_cannot_be_written_is_told(
    lab, tmp_path, monkeypatch, stop, call, kept
):
    calls, save = [], checkpoint.ocp.save

    def failing(*args):
        calls.append(args)
        return fails() if len(calls) == call else save(*args)

    monkeypatch.setattr(checkpoint.ocp, "save", failing)
    config = runs.settings(lab.images, method="dce", stop_after=stop)
    with pytest.raises(TrainingError, match="the disk is full"):
        train.train(config, tmp_path)
    assert checkpoint.steps(tmp_path / "checkpoints") == kept
    assert not (tmp_path / "result.json").exists()


def test_a_run_that_stops_waits_for_its_last_checkpoint(lab, tmp_path, gate):
    opened, _ = gate
    timer = threading.Timer(0.3, opened.set)
    timer.start()
    config = runs.settings(lab.images, method="dce", stop_after=5)
    assert train.train(config, tmp_path) is None
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]
    timer.join()
