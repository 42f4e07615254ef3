"""Mean replacement: what removed units gave on average stays in their consumers' biases."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import TINY, example
from flax.core import FrozenDict
from nets import (
    CLASSES,
    VECTORS,
    ConcatNet,
    ConvNet,
    batch,
    batch_norm,
    compiled,
    conv,
    dense,
    same_bits,
    split,
    variables,
)

from dce_jax import channels as maps
from dce_jax import compact, forward, networks, pruning
from dce_jax.budget import from_widths
from dce_jax.networks import gate
from dce_jax.pruning import folding
from dce_jax.signals import Scene

LENET = networks.LeNet(2, FrozenDict({"conv0": 3, "conv1": 4, "dense0": 5}), CLASSES)
PICTURES = jax.ShapeDtypeStruct((2, 20, 20, 2), jnp.float32)


class NormNet(nn.Module):
    """Convolutions without padding or bias, each with a norm: means go into running means."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 5})

    @nn.compact
    def __call__(self, x, *, train=False):
        before = None
        for group, width in self.widths.items():
            x = conv(width, (before, group), f"conv_{group}", padding="VALID")(x)
            x = gate(self, nn.relu(batch_norm(group, f"norm_{group}", train)(x)), group)
            before = group
        return dense(CLASSES, (before, None), "head")(x.mean(axis=(1, 2)))


class TwiceNet(nn.Module):
    """One layer that runs twice."""

    widths: FrozenDict = FrozenDict({"a": 4})

    @nn.compact
    def __call__(self, x):
        head = dense(CLASSES, ("a", None), "head")
        a = dense(self.widths["a"], (None, "a"), "one")(x)
        return head(nn.relu(a)) + head(nn.tanh(a))


class SharedNormNet(nn.Module):
    """One norm behind two convolutions."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 3})

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(conv(self.widths["a"], (None, "a"), "conv")(x))
        norm = batch_norm("b", "norm", train)
        x = sum(nn.relu(norm(conv(self.widths["b"], ("a", "b"), n)(x))) for n in ("one", "two"))
        return dense(CLASSES, ("b", None), "head")(x.mean(axis=(1, 2)))


def shape_of(module):
    return {LENET: PICTURES, ConcatNet(): VECTORS, TwiceNet(): VECTORS}.get(module) or example("")


def mapped(module):
    return maps.build(module, forward.shapes(module, shape_of(module)))


def constant(params, layer, channels, value, kind="kernel"):
    """Parameters in which some channels of a layer give the same number everywhere."""
    own = dict(params[layer])
    own[kind] = own[kind].at[..., channels].set(0.0)
    own["bias"] = own["bias"].at[channels].set(value)
    return {**params, layer: own}


def cut(module, params, state, kept):
    found = mapped(module)
    chosen = {g: np.asarray(kept.get(g, range(c)), np.int32) for g, c in found.full.items()}
    narrow = {g: len(each) for g, each in chosen.items()}
    trees = {"params": params, **state}
    model = compact.extract(found, from_widths(found.full, narrow), trees, chosen)
    return maps.with_widths(module, narrow), *split(model.variables)


def logits(module, params, state, images):
    return compiled(module, False)(params, state, images)[0]


def folded(module, params, state, images, kept):
    found = mapped(module)
    kept = {group: np.asarray(each, np.int32) for group, each in kept.items()}
    return pruning.fold(Scene(module, found, params, state), images, kept)


@functools.cache
def given(module):
    shape = shape_of(module)
    params, state = split(variables(module, shape))
    return params, state, [batch(seed, size=3, shape=shape.shape[1:])["image"] for seed in (0, 1)]


CONSTANT = {
    "biases, positions of a flattened image": (
        LENET,
        (
            ("conv0", [1], 0.7, "kernel"),
            ("conv1", [0, 3], 1.2, "kernel"),
            ("dense0", [2], 2.0, "kernel"),
        ),
        {"conv0": [0, 2], "conv1": [1, 2], "dense0": [0, 1, 3, 4]},
    ),
    "running means of norms": (
        NormNet(),
        (("norm_a", [0, 2], 0.9, "scale"), ("norm_b", [4], 1.5, "scale")),
        {"a": [1, 3], "b": [0, 1, 2, 3]},
    ),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_constant_units_are_removed_without_a_trace(case):
    module, dead, kept = CONSTANT[case]
    params, state, images = given(module)
    for layer, channels, value, kind in dead:
        params = constant(params, layer, jnp.asarray(channels), value, kind)
    before = np.concatenate([logits(module, params, state, x) for x in images])
    thin = cut(module, *folded(module, params, state, images, kept), kept)
    after = np.concatenate([logits(*thin, x) for x in images])
    plain = np.concatenate([logits(*cut(module, params, state, kept), x) for x in images])
    np.testing.assert_allclose(after, before, atol=2e-5)
    assert np.abs(plain - before).max() > 0.1


def test_each_consumer_gets_the_mean_of_what_it_reads_itself():
    module = ConcatNet()
    params, state, images = given(module)
    new, _ = folded(module, params, state, images, {"b": [0, 3], "c": [0, 1, 2, 4]})
    whole, params = np.concatenate(images), jax.tree.map(np.asarray, params)
    a = np.maximum(whole @ params["first"]["kernel"] + params["first"]["bias"], 0)
    b = np.maximum(whole @ params["second"]["kernel"] + params["second"]["bias"], 0)
    c = np.concatenate([a, b], 1) @ params["both"]["kernel"] + params["both"]["bias"]
    stream = np.maximum(c, 0) @ params["stream"]["kernel"] + params["stream"]["bias"]
    read = {
        "both": (b[:, [1, 2]], [4, 5]),  # behind three channels of a
        "stream": (np.maximum(c, 0)[:, [3]], [3]),
        "head": ((c + stream)[:, [3]], [3]),
    }
    for layer, (x, rows) in read.items():
        shift = x.mean(axis=0) @ params[layer]["kernel"][np.array(rows)]
        expected = params[layer]["bias"] + shift
        np.testing.assert_allclose(new[layer]["bias"], expected, rtol=1e-5, atol=1e-6)
        same_bits(new[layer]["kernel"], params[layer]["kernel"])
    same_bits(new["first"], params["first"])


def test_behind_padding_the_mean_output_stays():
    module = ConvNet()
    params, state, images = given(module)

    def second(params, state, thin):
        _, seen = thin.apply(
            {"params": params, **state},
            images[0],
            capture_intermediates=lambda m, _: m.name == "norm_b",
            mutable=["intermediates"],
        )
        return np.asarray(seen["intermediates"]["norm_b"]["__call__"][0])

    kept = {"a": [0, 2]}
    before = second(params, state, module)
    thin, *after = cut(module, *folded(module, params, state, images[:1], kept), kept)
    plain = second(*cut(module, params, state, kept)[1:], thin)
    gap, lost = second(*after, thin) - before, plain - before
    np.testing.assert_allclose(gap.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    assert np.abs(lost.mean(axis=(0, 1, 2))).max() > 0.01
    # The best constant there is: outputs at the borders read less of what is gone than the others.
    assert np.square(gap).mean() < np.square(lost).mean()
    assert np.abs(gap).max() > 1e-3


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv(3, (3, 3), padding="SAME"),
        nn.Conv(3, (3, 2), strides=(2, 1), padding="SAME"),
        nn.Conv(3, (2, 2), padding=((0, 1), (2, 0)), kernel_dilation=2),
        nn.Conv(3, (3, 3), padding="CIRCULAR"),
        nn.Conv(3, (3, 3), padding="VALID", dtype=jnp.bfloat16),
        nn.Dense(3),
    ],
    ids=str,
)
def test_what_a_window_reads_on_average_gives_the_mean_output(layer):
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 4)) + 0.5
    kernel = nn.unbox(layer.init(jax.random.key(2), x))["params"]["kernel"]
    found = folding._mean_read(layer, x)
    assert found.shape == kernel.shape[:-1] and found.dtype == jnp.float32
    plain = layer.clone(dtype=jnp.float32, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(
        jnp.tensordot(found, kernel, found.ndim), plain.mean(axis=(0, 1, 2)), rtol=2e-5, atol=2e-6
    )


def test_examples_weigh_alike_and_channels_that_stay_change_nothing():
    params, state, images = given(LENET)
    kept = {"conv1": [1, 3]}
    whole = jnp.concatenate(images)
    one = folded(LENET, params, state, [whole], kept)
    two = folded(LENET, params, state, [whole[:1], whole[1:]], kept)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    same_bits(folded(LENET, params, state, images, {"conv0": [0, 1, 2]}), (params, state))


@pytest.mark.parametrize(
    ("module", "kept", "message"),
    [
        (
            TINY["preact"],
            {"stage0_block0_conv1": [0]},
            r"layer stage0_block0/conv2 .* no bias.*recal",
        ),
        (TINY["padding"], {"stage0": [0, 1]}, r"links leaf .*shortcut.* no kernel.*recalibrate"),
        (SharedNormNet(), {"a": [0]}, r"layer one reads .* straight into no batch norm.*recal"),
        (TwiceNet(), {"a": [0]}, r"params leaf head/kernel .* runs once.*recalibrate"),
    ],
)
def test_a_mean_that_can_go_nowhere_is_refused(module, kept, message):
    params, state, images = given(module)
    with pytest.raises(ValueError, match=message):
        folded(module, params, state, images, kept)


def test_folding_without_inputs_is_refused():
    params, state, _ = given(LENET)
    with pytest.raises(
        ValueError, match="what layers read are means over batches, but there was none"
    ):
        folded(LENET, params, state, [], {"conv1": [0]})


def test_an_unknown_group_is_refused():
    with pytest.raises(ValueError, match="'conv7'"):
        folded(LENET, *given(LENET), {"conv7": [0]})


def test_an_inverted_residual_folds_everywhere():
    module = TINY["mobile"]
    found = mapped(module)
    ways = folding.routes(module, found, example("mobile"), found.full)
    assert {way.into[1] for way in ways if way.layer == ("conv1",)} == {("norm1", "mean")}
    assert {way.layer for way in ways} >= {("head",), ("stage1_block0", "conv2")}
