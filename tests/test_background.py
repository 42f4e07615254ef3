"""Checkpoints that are written by a thread: when, in which order, of which numbers, and errors."""

import errno
import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from experiments import background, checkpoint, session, train
from experiments.session import TrainingError

TEMPLATE = {"x": jax.ShapeDtypeStruct((4096,), jnp.float32)}


@pytest.fixture
def gate(monkeypatch):
    """Orbax's writer, which waits until it is let go."""
    opened, begun, save = threading.Event(), threading.Event(), checkpoint.ocp.save

    def slow(*args):
        begun.set()
        assert opened.wait(60)
        return save(*args)

    monkeypatch.setattr(checkpoint.ocp, "save", slow)
    yield opened, begun
    opened.set()


def restored(directory):
    found = checkpoint.restore(directory, lambda _: TEMPLATE, pytest.fail)
    return None if found is None else (np.asarray(found[0]["x"]), found[1])


def test_what_is_written_is_the_state_at_the_call_though_its_buffers_are_given_away(tmp_path, gate):
    opened, begun = gate
    overwrite = partial(jax.jit, donate_argnums=(0,))(lambda s: {"x": s["x"] * 0 - 1})
    state, meta = {"x": jnp.arange(4096, dtype=jnp.float32)}, {"programs": {"a": 1}}
    with background.opened() as writer:
        checkpoint.begin(writer, tmp_path, 3, state, meta)
        meta["programs"]["b"] = 2
        assert begun.wait(60)
        for _ in range(3):
            state = jax.block_until_ready(overwrite(state))
        assert checkpoint.steps(tmp_path) == []  # it counts only when it is whole
        opened.set()
    values, meta = restored(tmp_path)
    np.testing.assert_array_equal(values, np.arange(4096))
    assert meta["programs"] == {"a": 1}


def test_numpy_arrays_are_copied_too(tmp_path, gate):
    value = np.zeros(4096, np.float32)
    with background.opened() as writer:
        checkpoint.begin(writer, tmp_path, 3, {"x": value}, {})
        value[:] = 1
        gate[0].set()
    assert not restored(tmp_path)[0].any()


def test_one_checkpoint_at_a_time_in_order(tmp_path, gate):
    opened, _ = gate
    state = {"x": jnp.ones(4096)}
    with background.opened() as writer:
        checkpoint.begin(writer, tmp_path, 1, state, {})
        second = threading.Thread(target=checkpoint.begin, args=(writer, tmp_path, 2, state, {}))
        second.start()
        second.join(0.2)
        assert second.is_alive()  # waits for the first: one copy of the state on the host
        opened.set()
        second.join(60)
        assert not second.is_alive()
        assert 1 in checkpoint.steps(tmp_path)
    assert checkpoint.steps(tmp_path) == [1, 2]


def test_leaving_waits_for_what_is_being_written(tmp_path, gate):
    opened, _ = gate
    timer = threading.Timer(0.2, opened.set)
    with pytest.raises(KeyboardInterrupt), background.opened() as writer:
        checkpoint.begin(writer, tmp_path, 1, {"x": jnp.ones(4096)}, {})
        timer.start()
        raise KeyboardInterrupt
    assert checkpoint.steps(tmp_path) == [1]
    timer.join()


def fails():
    raise OSError(errno.ENOSPC, "No space left on device")


def test_errors_are_kept_until_somebody_looks_and_told_once():
    with background.opened() as writer:
        background.begin(writer, fails)
        background.rest(writer)  # waits, tells nothing
        with pytest.raises(OSError, match="No space left"):
            background.look(writer)
        background.look(writer)
        background.settle(writer)
        background.begin(writer, fails)
        with pytest.raises(OSError, match="No space left"):
            background.settle(writer)


def test_looking_does_not_wait():
    held = threading.Event()
    with background.opened() as writer:
        background.begin(writer, lambda: held.wait(60) and None)
        background.look(writer)
        assert writer.pending
        held.set()


# The main job


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with runs.lab(tmp_path_factory.mktemp("runs")) as opened:
        yield opened


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
