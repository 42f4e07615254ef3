"""bfloat16 computes, float32 remembers: weights, moments, statistics, rewards and the bandit."""

import functools

import families
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from steps import halves, host

from dce_jax import budget, channels, compact, networks, slab, step, training
from dce_jax.networks.stages import group_widths

NETS = {
    "vgg": networks.VGG((1, 1), FrozenDict({"conv0": 4, "conv1": 6}), 3),
    "resnet": networks.ResNet((1, 1), group_widths((1, 1), (4, 6)), 3),
}
NARROW = {name: f"{name} in bfloat16" for name in NETS}
WIDE = {name: f"{name} in float32" for name in NETS}
EPSILON = 2.0**-8  # of bfloat16


@pytest.fixture(autouse=True)
def _nets(monkeypatch):
    for name, net in NETS.items():
        monkeypatch.setitem(families.TINY, NARROW[name], net.clone(dtype=jnp.bfloat16))
        monkeypatch.setitem(families.TINY, WIDE[name], net)
    with jax.numpy_dtype_promotion("standard"):  # Flax's batch norm promotes silently
        yield


@functools.cache
def one_step(family):
    """A run before and after a step on half of every group's channels, and the slab in between."""
    pieces, state = families.pieces_and_state(family, halves(families.TINY[family]))

    @families.quick_jit
    def run(state, images):
        inside, metrics = step.observe(pieces, step.enter(pieces, state), images)
        return inside, step.leave(pieces, state, inside)[0], metrics

    return pieces, state, *run(state, families.data(family))


def floats(tree):
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", NETS)
def test_everything_that_is_kept_is_float32(name):
    _, before, inside, after, metrics = one_step(NARROW[name])
    for tree in (before, inside, after, metrics):
        assert {str(leaf.dtype) for leaf in floats(tree)} == {"float32"}
    assert len(floats(after)) == len(floats(before)) > 20


@pytest.mark.parametrize("name", NETS)
def test_a_step_and_its_rewards_are_float32s_up_to_bfloat16s_rounding(name):
    _, before, narrow, after, metrics = one_step(NARROW[name])
    _, _, wide, expected, exact = one_step(WIDE[name])
    np.testing.assert_allclose(metrics["loss"], exact["loss"], rtol=4 * EPSILON)
    old, ours, theirs = (flat(each.loop.params) for each in (before, after, expected))
    assert np.linalg.norm(theirs - old) > 1e-2
    assert np.linalg.norm(ours - theirs) < 16 * EPSILON * np.linalg.norm(theirs - old)
    for group, rewards in wide.rewards.items():
        np.testing.assert_allclose(narrow.rewards[group], rewards, atol=16 * EPSILON)


@pytest.mark.parametrize("name", NETS)
def test_steps_below_bfloat16s_resolution_add_up(name):
    family = NARROW[name]
    pieces, state = families.pieces_and_state(family, budget.full(NETS[name].widths))
    tx = optax.sgd(1e-6)
    params, data = state.loop.params, families.data(family)
    loop = training.start(params, state.loop.model_state, tx, jax.random.key(0))
    run = families.quick_jit(
        functools.partial(training.plain, tx, pieces.loss, training.whole_batch)
    )
    once, _ = run(loop, data)
    twice, _ = run(once, data)
    old, one, two = (flat(each.params) for each in (loop, once, twice))
    assert np.mean(one.astype(jnp.bfloat16) == old.astype(jnp.bfloat16)) > 0.9  # they would stand
    assert np.mean(one != old) > 0.5
    assert np.linalg.norm(two - old) > 1.8 * np.linalg.norm(one - old)


@pytest.mark.parametrize("name", NETS)
def test_the_full_budget_is_the_dense_step(name):
    families.check_full_budget(NARROW[name], rtol=0, atol=4 * EPSILON)


@pytest.mark.parametrize("name", NETS)
def test_what_is_not_selected_keeps_its_bits_and_the_rest_is_the_slabs(name):
    pieces, before, inside, after, _ = one_step(NARROW[name])
    families.check_parts(pieces, pieces.budget, *map(host, (before, inside, after)))


@pytest.mark.parametrize("name", NETS)
def test_the_compact_model_is_the_slab(name):
    pieces, _, inside, after, _ = one_step(NARROW[name])
    thin = channels.with_widths(families.TINY[NARROW[name]], pieces.budget.compact)
    chosen = compact.whole_selection(pieces.budget, inside.selection)
    images = families.data(NARROW[name])["image"]

    @families.quick_jit
    def logits(params, model_state):
        return thin.apply({"params": params, **model_state}, images)

    def extracted(tree, names):
        return slab.gather(tree, names, chosen, pieces.full)

    params = extracted(after.loop.params, pieces.params_names)
    state = extracted(after.loop.model_state, pieces.state_names)
    ours = logits(inside.loop.params, inside.loop.model_state)
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(host(logits(params, state)), host(ours))
