"""Smaller tensors in the middle of training: what stays, what is added up, what is taught."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from families import TINY, example, rows
from flax.core import FrozenDict
from nets import (
    VECTORS,
    ConcatNet,
    ConvNet,
    batch,
    bits,
    channel_map,
    compiled,
    positions,
    same_bits,
    split,
    variables,
)
from signal_nets import Stack

from dce_jax import channels, forward, pruning, saliency, signals, training
from dce_jax.training import whole_batch

NETS = {"conv": ConvNet(), "concat": ConcatNet(), **{f: TINY[f] for f in ("padding", "dense")}}
ADAM = optax.adam(0.01)


def shape_of(name):
    return {"concat": VECTORS}.get(name) or example(name)


def dropped(widths, seed):
    """Positions that stay of a third of the groups' channels or all of them; never none."""
    draw = np.random.default_rng(seed)
    found = {}
    for place, (group, width) in enumerate(widths.items()):
        size = width if place % 3 == seed % 3 else max(1, width - 1 - place % 2)
        found[group] = np.sort(draw.choice(width, size, replace=False)).astype(np.int32)
    return found


@functools.cache
def shrunk(name):
    """Full-width loop with moments, the loop after two rounds, names, and original indices."""
    module, shape = NETS[name], shape_of(name)
    found = channels.build(module, forward.shapes(module, shape))
    params, state = split(variables(module, shape))
    loop = training.start(params, state, ADAM, jax.random.key(0))
    draw = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda a: jnp.asarray(draw.normal(size=a.shape), a.dtype) if a.ndim else a + 7,
        loop.opt_state,
    )
    loop = loop._replace(opt_state=noisy)
    names = pruning.names(found, params, state, ADAM)
    small, selection, widths = loop, pruning.whole(found.full), found.full
    for seed in (0, 1):
        kept = dropped(widths, seed)
        small = jax.jit(functools.partial(pruning.shrink, names=names, widths=widths))(
            small, kept=kept
        )
        selection = pruning.compose(selection, kept)
        widths = {group: len(each) for group, each in kept.items()}
    return loop, small, names, {g: np.asarray(s) for g, s in selection.items()}, found


def unread(tree, names, selection, full):
    """A tree whose consumers read nothing of channels that are not selected, by plain NumPy."""

    def one(leaf, name):
        leaf = np.array(leaf)
        for axis, groups in enumerate(name.axes[:-1]):
            if groups:
                gone = np.setdiff1d(np.arange(leaf.shape[axis]), positions(groups, selection, full))
                leaf[(slice(None),) * axis + (gone,)] = 0
        return jnp.asarray(leaf)

    return jax.tree.map(one, tree, names)


@pytest.mark.parametrize("name", NETS)
def test_a_shrunk_network_is_the_full_one_without_the_removed_channels(name):
    loop, small, names, selection, found = shrunk(name)
    assert 0 < sum(map(len, selection.values())) < sum(found.full.values())
    thin = channels.with_widths(NETS[name], {g: len(s) for g, s in selection.items()})
    x = batch(3, size=4, shape=shape_of(name).shape[1:])["image"]
    output, _ = compiled(thin, False)(small.params, small.model_state, x)
    silent = unread(loop.params, names.params, selection, found.full)
    state = {
        collection: unread(tree, names.model_state[collection], selection, found.full)
        for collection, tree in loop.model_state.items()
    }
    expected, _ = compiled(NETS[name], False)(silent, state, x)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(output)) > 1e-2


@pytest.mark.parametrize("name", NETS)
def test_what_stays_keeps_its_bits_moments_included(name):
    loop, small, names, selection, found = shrunk(name)
    cut = 0
    for before, after, name_tree in (
        (loop.params, small.params, names.params),
        (loop.model_state, small.model_state, names.model_state),
        (loop.opt_state, small.opt_state, names.opt_state),
    ):
        leaves = zip(*map(jax.tree.leaves, (before, after, name_tree)), strict=True)
        for old, new, axes in leaves:
            literal = np.asarray(old)[np.ix_(*rows(axes, old.shape, selection, found.full))]
            np.testing.assert_array_equal(bits(literal), bits(new))
            cut += literal.shape != old.shape
    assert cut > 6
    assert small.opt_state[0].count == loop.opt_state[0].count == 7


# --- watching


def stack_run(tx):
    module = Stack(widths=FrozenDict({"a": 3, "b": 2}))
    shape = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)
    params, state = split(variables(module, shape))
    loop = training.start(params, state, tx, jax.random.key(0))
    return module, shape, loop


def test_watching_changes_no_step_and_adds_up_the_fisher_signal_of_each():
    tx = optax.sgd(0.1)
    module, shape, loop = stack_run(tx)
    loss, gates = forward.classification_loss(module), forward.gate_shapes(module, shape)
    plain = jax.jit(functools.partial(training.plain, tx, loss, whole_batch))
    watch = jax.jit(
        functools.partial(pruning.watch, tx, loss, whole_batch, saliency.fisher(), gates)
    )
    found = channel_map(module, shape)
    literal = signals.parse("units.taylor.sqr_sum.none")
    state, expected = pruning.start(loop, module.widths), {}
    with pytest.raises(ValueError, match="no training step was watched"):
        pruning.means(state)
    for number in range(2):
        data = batch(number, size=5, shape=(4, 4, 2))
        scene = signals.Scene(module, found, loop.params, loop.model_state, data)
        for group, values in signals.value(literal, scene).items():
            expected[group] = expected.get(group, 0) + 0.5 * np.asarray(values) / 2
        loop, metrics = plain(loop, data)
        state, same = watch(state, data)
        assert float(metrics["loss"]) == pytest.approx(float(same["loss"]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(loop.params), jax.tree.leaves(state.loop.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    means = pruning.means(state)
    for group, values in expected.items():
        np.testing.assert_allclose(means[group], values, rtol=1e-4)
        assert np.min(values) > 0


def test_a_signal_that_says_nothing_of_a_group_is_refused():
    tx = optax.sgd(0.1)
    module, _, loop = stack_run(tx)
    loss = forward.classification_loss(module)
    blind = saliency.fisher()._replace(needs_gates=False, value=lambda _: {"a": jnp.ones(3)})
    watch = functools.partial(pruning.watch, tx, loss, whole_batch, blind, None)
    data = batch(0, size=2, shape=(4, 4, 2))
    with pytest.raises(ValueError, match=r"no value for groups \['b'\]"):
        jax.eval_shape(watch, pruning.start(loop, module.widths), data)


# --- distillation


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_teacher_s_outputs_are_a_share_of_the_loss():
    module, shape, loop = stack_run(optax.sgd(0.1))
    wide = Stack(widths=FrozenDict({"a": 4, "b": 5}))
    teacher = variables(wide, shape, seed=1)
    data = batch(0, size=5, shape=(4, 4, 2))
    made = pruning.taught(whole_batch, wide)((data, teacher), jnp.int32(0), jax.random.key(0))
    logits, _ = compiled(wide, False)(*split(teacher), data["image"])
    np.testing.assert_allclose(made[pruning.distill.TEACHER], logits, rtol=1e-5, atol=1e-6)
    same_bits(made["image"], data["image"])
    own, _ = compiled(module, True)(loop.params, loop.model_state, data["image"])
    log = np.log(softmax(np.asarray(own, np.float64)))
    hard = -np.mean(log[np.arange(5), data["label"]])
    soft = -np.mean(np.sum(softmax(np.asarray(logits, np.float64)) * log, axis=1))
    for share in (0.0, 0.9, 1.0):
        given = (loop.params, loop.model_state, {}, made, jax.random.key(0))
        value, (_, metrics) = pruning.distilled(module, share)(*given)
        assert float(value) == pytest.approx((1 - share) * hard + share * soft, rel=1e-5)
        assert metrics["accuracy"] == np.mean(np.argmax(own, axis=1) == data["label"])
    with pytest.raises(ValueError, match=r"share of the loss is 1\.5"):
        pruning.distilled(module, 1.5)
