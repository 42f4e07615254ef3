"""The rule for idle channels, against a loop that decays them at every step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from nets import ConvNet, batch, bits, mask, same_bits, variables
from steps import halves, setup

from dce_jax import idle, step

MODULE = ConvNet()
HALF = halves(MODULE)
DECAY, STEPS = 0.5, 12
SCHEDULE = optax.cosine_decay_schedule(0.05, STEPS)


@pytest.fixture(autouse=True)
def _promotion():
    # Optax's Lion and Adam raise a float to the power of their int32 count.
    with jax.numpy_dtype_promotion("standard"):
        yield


def kernels(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


TX = optax.lion(SCHEDULE, weight_decay=DECAY, mask=kernels)


def rule():
    decayed = kernels(variables(MODULE)["params"])
    return idle.catch_up(SCHEDULE, DECAY, steps=STEPS, decayed=decayed)


@functools.cache
def programs():
    pieces, _ = setup(MODULE, HALF, TX, catch_up=rule())
    names = ("enter", "observe", "leave", "settle")
    return pieces, {n: jax.jit(functools.partial(getattr(step, n), pieces)) for n in names}


def decay_idle(pieces, params, selection, at):
    """What each step does to kernels' idle entries, by plain NumPy."""

    def one(leaf, name):
        touched = mask(name, selection, pieces.full, leaf.shape)
        factor = 1.0 - float(SCHEDULE(at)) * DECAY if leaf.ndim > 1 else 1.0
        return np.where(touched, leaf, leaf * factor).astype(np.float32)

    return jax.tree.map(one, params, pieces.params_names)


def test_catch_up_equals_decaying_idle_elements_at_every_step():
    pieces, run = programs()
    frozen = pieces._replace(catch_up=None)
    _, state = setup(MODULE, HALF, TX, catch_up=rule())
    cut, leave = (jax.jit(functools.partial(f, frozen)) for f in (step.cut, step.leave))
    reference = state._replace(last=None)
    for i in range(4):
        # The same selection and batches for both, three steps each.
        inside = run["enter"](state)
        other = cut(reference, inside.selection)
        chosen = jax.tree.map(np.array, inside.selection)
        for r in range(3):
            inside, _ = run["observe"](inside, batch(3 * i + r))
            other, _ = run["observe"](other, batch(3 * i + r))
        state, _ = run["leave"](state, inside)
        reference, _ = leave(reference, other)
        params = jax.tree.map(np.asarray, reference.loop.params)
        for r in range(3):
            params = decay_idle(pieces, params, chosen, 3 * i + r)
        params = jax.tree.map(jnp.asarray, params)
        reference = reference._replace(loop=reference.loop._replace(params=params))
    settled = run["settle"](state)
    moved = 0.0
    for ours, late, expected in zip(
        *map(jax.tree.leaves, (settled.loop.params, state.loop.params, reference.loop.params)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
        moved += float(np.max(np.abs(ours - late)))
    assert moved > 1e-3  # before settling, idle elements do lag behind
    same_bits(run["settle"](settled).loop.params, settled.loop.params)
    assert all(int(leaf.min()) == STEPS for leaf in jax.tree.leaves(settled.last))


def test_last_updates_are_those_of_the_selected_elements():
    pieces, run = programs()
    _, state = setup(MODULE, HALF, TX, catch_up=rule())
    inside, _ = run["observe"](run["enter"](state), batch())
    after, _ = run["leave"](state, inside)
    names = jax.tree.leaves(pieces.params_names)
    for last, name in zip(jax.tree.leaves(after.last), names, strict=True):
        touched = mask(name, inside.selection, pieces.full, last.shape)
        np.testing.assert_array_equal(last, touched.astype(np.int32))


def test_freeze_keeps_bits_and_carries_no_counts():
    pieces, state = setup(MODULE, HALF, TX)
    assert state.last is None
    assert step.settle(pieces, state) is state
    inside = jax.jit(functools.partial(step.enter, pieces))(state)
    late = inside._replace(loop=inside.loop._replace(step=jnp.int32(9)))
    after, _ = jax.jit(functools.partial(step.leave, pieces))(state, late)
    same_bits(after.loop.params, state.loop.params)


def test_forgetting_zeroes_the_moments_of_what_idles_and_nothing_else():
    pieces, state = setup(MODULE, HALF, TX)
    forget = pieces._replace(forget=True)
    enter, observe = (jax.jit(functools.partial(f, pieces)) for f in (step.enter, step.observe))
    kept, forgot = (jax.jit(functools.partial(step.leave, p)) for p in (pieces, forget))
    # After the first selection channels hold moments that the second one could keep or zero.
    inside, _ = observe(enter(state), batch())
    state, _ = kept(state, inside)
    inside, _ = observe(enter(state), batch(1))
    plain, _ = kept(state, inside)
    ours, _ = forgot(state, inside)
    same_bits(ours.bandit, plain.bandit)
    same_bits(ours.loop.params, plain.loop.params)
    same_bits(ours.loop.model_state, plain.loop.model_state)
    lost = 0.0
    leaves = (ours.loop.opt_state, plain.loop.opt_state, pieces.opt_names)
    for got, before, name in zip(*map(jax.tree.leaves, leaves), strict=True):
        touched = mask(name, inside.selection, pieces.full, before.shape)
        np.testing.assert_array_equal(bits(got), bits(jnp.where(touched, before, 0)))
        lost += float(jnp.sum(jnp.abs(jnp.where(touched, 0, before))))
    assert lost > 0


def test_forgetting_gives_back_what_the_optimizer_starts_with():
    # Schedule-free SGD keeps weights in its state: zeroing them would be another network.
    tx = optax.contrib.schedule_free_sgd(1e-2)
    pieces, state = setup(MODULE, HALF, tx, forget=True)
    inside = step.enter(pieces, state)
    after, _ = step.leave(pieces, state, inside)
    same_bits(after.loop.opt_state.z, state.loop.params)


def test_a_rate_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"decay factors .* nan"):
        idle.catch_up(float("nan"), 0.1, steps=3, decayed={})


def test_settling_by_hand():
    params = {"w": jnp.asarray([[1.0, 2.0, 3.0]]), "b": jnp.asarray([4.0])}
    last = {"w": jnp.asarray([[0, 2, 3]], jnp.int32), "b": jnp.zeros(1, jnp.int32)}
    table = idle.catch_up(0.5, 0.5, steps=5, decayed={"w": True, "b": False})
    got = idle.settle(table, params, last, jnp.int32(3))
    np.testing.assert_allclose(got["w"], [[0.75**3, 2 * 0.75, 3.0]], rtol=1e-6)
    np.testing.assert_array_equal(bits(got["b"]), bits(params["b"]))
    # What missed nothing keeps its bits.
    np.testing.assert_array_equal(bits(got["w"][:, 2]), bits(params["w"][:, 2]))


def test_counts_are_four_bytes_an_element():
    params = variables(MODULE)["params"]
    counts = idle.init(params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(counts)} == {"int32"}
    assert jax.tree.map(jnp.shape, counts) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(
    ("rate", "decay", "steps", "message"),
    [
        (0.1, 0.1, 0, r"steps is 0: a run has at least one"),
        (0.5, 2.0, 3, r"decay factors 1 - lr \* 2\.0 reach from 0 to 0: .* lower weight_decay"),
        (0.5, -0.1, 3, r"factors 1 - lr \* -0\.1 reach from 1\.05 to 1\.05"),
        (lambda s: 1.0 * s, 0.5, 4, r"reach from -0\.5 to 1: they must lie in \(0, 1\]"),
    ],
)
def test_decay_that_makes_no_sense_is_refused(rate, decay, steps, message):
    with pytest.raises(ValueError, match=message):
        idle.catch_up(rate, decay, steps=steps, decayed={})
