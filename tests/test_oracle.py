"""Penalties measured channel by channel: literal loops over networks that are really cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, example, quick_jit
from flax.core import FrozenDict
from nets import ConvNet, FlattenNet, batch, channel_map, cross_entropy, split, variables

from dce_jax import channels, compact, forward, networks
from dce_jax.budget import from_widths
from dce_jax.networks import gates
from dce_jax.pruning import oracle
from dce_jax.signals import Scene

SMALL = ConvNet(FrozenDict({"a": 3, "b": 4}))
LENET = networks.LeNet(2, FrozenDict({"conv0": 2, "conv1": 3, "dense0": 4}), 3)
NETS = {"conv": SMALL, "lenet": LENET, "padding": TINY["padding"]}
LOOKED_AT = {"conv": ("a", "b"), "lenet": ("conv1",), "padding": ("stage0",)}
SHAPES = {"lenet": jax.ShapeDtypeStruct((2, 16, 16, 1), jnp.float32)}


@functools.cache
def given(name):
    module = NETS[name]
    shape = SHAPES.get(name) or example(name)
    params, state = split(variables(module, shape))
    batches = [batch(seed, size=5, shape=shape.shape[1:]) for seed in (0, 1)]
    return Scene(module, channel_map(module, shape), params, state), batches


@functools.cache
def penalties(name, replacement):
    return oracle.penalties(*given(name), replacement=replacement)


def loss(module, params, state, batches):
    run = quick_jit(lambda p, s, x: forward.apply(module, p, s, x, train=False)[0])
    each = [cross_entropy(run(params, state, b["image"]), b["label"]) for b in batches]
    return float(np.mean(each))


@pytest.mark.parametrize("name", NETS)
def test_a_removal_penalty_is_the_loss_of_the_network_that_is_really_cut(name):
    (module, found, params, state, _), batches = given(name)
    before, widths = loss(module, params, state, batches), found.full
    values = penalties(name, "zero")
    assert {group: len(each) for group, each in values.items()} == widths
    for group in LOOKED_AT[name]:
        width = widths[group]
        narrow = {**widths, group: width - 1}
        thin = channels.with_widths(module, narrow)
        for channel in (0, width - 1):
            rest = np.delete(np.arange(width), channel).astype(np.int32)
            cut = compact.extract(
                found, from_widths(widths, narrow), {"params": params, **state}, {group: rest}
            ).variables
            after = loss(thin, *split(cut), batches)
            np.testing.assert_allclose(values[group][channel], after - before, atol=2e-6)


@pytest.mark.parametrize("name", ["conv", "lenet"])
def test_a_mean_replacement_penalty_is_the_loss_with_the_units_mean_in_its_place(name):
    (module, _, params, state, _), batches = given(name)
    values = penalties(name, "mean")
    group, width = ("b", 4) if name == "conv" else ("conv1", 3)

    def run(images, tap):
        with gates.tapping(tap):
            return forward.apply(module, params, state, images, train=False)[0]

    seen = []

    def look(path, parts, y):
        seen.extend([np.asarray(y)] if group in parts else [])
        return y

    for each in batches:
        run(each["image"], look)
    mean = np.concatenate(seen).mean(axis=(0, 1, 2))

    def swap(channel, path, parts, y):
        return y.at[..., channel].set(mean[channel]) if group in parts else y

    def total(tap):
        return np.mean([cross_entropy(run(b["image"], tap), b["label"]) for b in batches])

    for channel in range(width):
        expected = total(functools.partial(swap, channel)) - total(look)
        np.testing.assert_allclose(values[group][channel], expected, atol=2e-6)


def test_replacing_a_constant_unit_by_its_mean_costs_nothing_removing_it_does():
    scene, batches = given("conv")
    params = jax.tree.map(lambda leaf: leaf, scene.params)
    scale = params["norm_b"]["scale"].at[1].set(0.0)
    params["norm_b"] = {"scale": scale, "bias": params["norm_b"]["bias"].at[1].set(2.0)}
    scene = scene._replace(params=params)
    mean = oracle.penalties(scene, batches, replacement="mean")
    zero = oracle.penalties(scene, batches)
    assert abs(mean["b"][1]) < 1e-6
    assert abs(zero["b"][1]) > 1e-3
    assert np.abs(mean["b"][0]) > 1e-5


def test_means_weigh_examples_alike_whatever_the_chunks():
    scene, batches = given("conv")
    whole = jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)
    chunks = [jax.tree.map(lambda a: a[:3], whole), jax.tree.map(lambda a: a[3:], whole)]
    one = oracle.unit_means(scene, [whole])
    two = oracle.unit_means(scene, chunks)
    for path in one:
        np.testing.assert_allclose(one[path], two[path], atol=1e-6)
    for replacement in ("zero", "mean"):
        values = oracle.penalties(scene, chunks, replacement=replacement)
        for group, expected in penalties("conv", replacement).items():
            np.testing.assert_allclose(values[group], expected, atol=1e-6)


def test_one_program_serves_every_channel_and_progress_is_told(monkeypatch):
    told, traced, examine = [], [], oracle._examine

    def counted(*args):
        traced.append(1)
        return examine(*args)

    monkeypatch.setattr(oracle, "_PROGRAM", jax.jit(counted, static_argnums=(0, 1)))
    oracle.penalties(*given("conv"), report=lambda *each: told.append(each))
    assert told == [(done, 7) for done in range(1, 8)]
    assert len(traced) == 1


def test_what_is_judged_is_told_of_every_example():
    scene, batches = given("conv")
    module, _, params, state, _ = scene
    judged = oracle.judge(scene, batches)
    logits = np.concatenate(
        [forward.apply(module, params, state, b["image"], train=False)[0] for b in batches]
    )
    labels = np.concatenate([b["label"] for b in batches])
    all_there = judged({"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)})
    np.testing.assert_array_equal(all_there.right_N, logits.argmax(axis=-1) == labels)
    gone = judged({"a": np.ones(3, np.float32), "b": np.zeros(4, np.float32)})
    only_bias = np.tile(params["head"]["bias"], (10, 1))
    expected = jax.nn.logsumexp(only_bias, axis=-1) - only_bias[np.arange(10), labels]
    np.testing.assert_allclose(gone.loss_N, expected, rtol=1e-5)


def test_bad_input_is_refused():
    scene, batches = given("conv")
    with pytest.raises(ValueError, match="at least one batch"):
        oracle.penalties(scene, [])
    with pytest.raises(ValueError, match=r"'median' is unknown.*zero or mean"):
        oracle.penalties(scene, batches, replacement="median")
    bare = FlattenNet()
    tree = variables(bare)
    with pytest.raises(ValueError, match=r"no units of group 'a'.*networks.gate"):
        scene = Scene(bare, channel_map(bare), tree["params"], {})
        oracle.penalties(scene, batches, replacement="mean")
