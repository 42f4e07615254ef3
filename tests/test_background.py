"""Checkpoints that are written by a thread: when, in which order, of which numbers, and errors."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gates import fails, gate

from experiments import background, checkpoint

__all__ = ["gate"]

TEMPLATE = {"x": jax.ShapeDtypeStruct((4096,), jnp.float32)}


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
