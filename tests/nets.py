"""Small networks and helpers that several test files share."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from dce_jax import forward, probe
from dce_jax.networks import gate
from dce_jax.types import Evidence

named = nn.with_logical_partitioning
lecun = nn.initializers.lecun_normal()

IMAGES = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
VECTORS = jax.ShapeDtypeStruct((4, 5), jnp.float32)
CLASSES = 3


def conv(features, axes, name, dtype=jnp.float32, **options):
    options = {"use_bias": False, "dtype": dtype, "kernel_size": (3, 3), **options}
    kernel = named(lecun, (None, None, *axes))
    return nn.Conv(features, kernel_init=kernel, name=name, **options)


def dense(features, axes, name, dtype=jnp.float32):
    kernel, bias = named(lecun, axes), named(nn.initializers.zeros_init(), axes[1:])
    return nn.Dense(features, kernel_init=kernel, bias_init=bias, name=name, dtype=dtype)


def batch_norm(group, name, train, dtype=jnp.float32):
    scale, bias = nn.initializers.ones_init(), nn.initializers.zeros_init()
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        dtype=dtype,
        scale_init=named(scale, (group,)),
        bias_init=named(bias, (group,)),
        name=name,
    )


class ConvNet(nn.Module):
    """Two convolutions with batch norm, an activation and a gate each, and a linear layer."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 6})
    activation: Callable = nn.relu
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        before = None
        for group, width in self.widths.items():
            x = conv(width, (before, group), f"conv_{group}", self.dtype)(x)
            x = batch_norm(group, f"norm_{group}", train, self.dtype)(x)
            x = gate(self, self.activation(x), group)
            before = group
        return dense(CLASSES, (before, None), "head", self.dtype)(x.mean(axis=(1, 2)))

    def reward_norms(self):
        return {group: ((f"norm_{group}",),) for group in self.widths}


class ConcatNet(nn.Module):
    """Two branches, concatenated, and a residual stream that both reads and writes one group."""

    widths: FrozenDict = FrozenDict({"a": 3, "b": 4, "c": 5})

    @nn.compact
    def __call__(self, x):
        w = self.widths
        a = nn.relu(dense(w["a"], (None, "a"), "first")(x))
        b = nn.relu(dense(w["b"], (None, "b"), "second")(x))
        c = dense(w["c"], (("a", "b"), "c"), "both")(jnp.concatenate([a, b], axis=-1))
        c = c + dense(w["c"], ("c", "c"), "stream")(nn.relu(c))
        return dense(CLASSES, ("c", None), "head")(c)


class FlattenNet(nn.Module):
    """A convolution, flattened position by position before a dense layer."""

    widths: FrozenDict = FrozenDict({"a": 3})

    @nn.compact
    def __call__(self, x):
        x = nn.relu(conv(self.widths["a"], (None, "a"), "conv", strides=(4, 4))(x))
        axes = (("a",) * (x.shape[1] * x.shape[2]), None)
        return dense(CLASSES, axes, "head")(x.reshape(x.shape[0], -1))


class MixNet(nn.Module):
    """A dense net with a layer of choice between its two groups."""

    widths: FrozenDict = FrozenDict({"a": 4, "b": 4})
    mix: str = "batch"
    axes: tuple = ((None, "a"), ("a", "b"), ("b", None))

    @nn.compact
    def __call__(self, x, *, train=False):
        w = self.widths
        x = dense(w["a"], self.axes[0], "one")(x)
        x = nn.relu(self.between(x, train))
        x = nn.relu(dense(w["b"], self.axes[1], "two")(x))
        return dense(CLASSES, self.axes[2], "head")(x)

    def between(self, x, train):
        vectors = {
            "scale_init": named(nn.initializers.ones_init(), ("a",)),
            "bias_init": named(nn.initializers.zeros_init(), ("a",)),
        }
        if self.mix == "softmax":
            return nn.softmax(x)
        if self.mix == "layer":
            return nn.LayerNorm(name="norm", **vectors)(x)
        if self.mix == "group":
            return nn.GroupNorm(num_groups=1, name="norm", **vectors)(x)
        return batch_norm("a", "norm", train)(x)


class DepthwiseNet(nn.Module):
    """Norm, then a per-channel map, then a second train-mode norm of the same group."""

    widths: FrozenDict = FrozenDict({"a": 4})

    @nn.compact
    def __call__(self, x, *, train=False):
        width = self.widths["a"]
        x = conv(width, (None, "a"), "expand")(x)
        x = nn.relu(batch_norm("a", "early", train)(x))
        x = conv(width, (None, "a"), "depthwise", feature_group_count=width)(x)
        x = nn.relu(batch_norm("a", "late", train)(x))
        return dense(CLASSES, ("a", None), "head")(x.mean(axis=(1, 2)))


@functools.cache
def channel_map(module, example=IMAGES):
    return probe.channel_map(module, example)


@functools.cache
def variables(module, example=IMAGES, seed=0):
    """Random variables; drawn on the host, which compiles nothing."""
    draw = np.random.default_rng(seed)

    def one(path, leaf):
        if path[0].key == "links":  # the parameter-free shortcut's: new channels on both sides
            before, after = leaf.shape
            return jnp.asarray(np.eye(before, after, (after - before) // 2), leaf.dtype)
        if leaf.ndim > 1:
            values = draw.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif "bias" in jax.tree_util.keystr(path) or "mean" in jax.tree_util.keystr(path):
            values = draw.normal(size=leaf.shape) * 0.3
        else:
            values = draw.uniform(0.6, 1.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    shapes = nn.unbox(forward.shapes(module, example))
    return jax.tree_util.tree_map_with_path(one, shapes)


def batch(seed=0, size=6, shape=(8, 8, 3)):
    draw = np.random.default_rng(100 + seed)
    return {
        "image": jnp.asarray(draw.normal(size=(size, *shape)), jnp.float32),
        "label": jnp.asarray(draw.integers(0, CLASSES, size), jnp.int32),
    }


def split(tree):
    """Parameters and model state of a network's variables, as copies that may be donated."""
    copy = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), tree)
    return copy["params"], {k: v for k, v in copy.items() if k != "params"}


@functools.cache
def compiled(module, train):
    """``(params, state, x) -> (output, new state)``, compiled once per module and mode."""

    def run(params, state, x):
        return forward.apply(module, params, state, x, train=train)

    return jax.jit(run)


def evidence(module, tree, data, *, train=True):
    """Evidence of the batch-mean loss, with unit gates."""
    params, state = split(tree)
    size = data["image"].shape[0]
    shapes = forward.gate_shapes(module, data["image"])
    gates = jax.tree.map(lambda g: jnp.ones((size, *g.shape[1:]), g.dtype), shapes)
    grads, gate_grads = differentiated(module, train)(params, gates, state, data)
    by_group = {}
    for path, value in jax.tree_util.tree_leaves_with_path(gate_grads):
        group = path[-1].key.removeprefix("gate:")
        by_group[group] = (*by_group.get(group, ()), value)
    return Evidence(params, grads, by_group)


@functools.cache
def differentiated(module, train):
    """Gradients of the batch-mean loss in parameters and gates, compiled once."""

    def loss(params, gates, state, data):
        logits, _ = forward.apply(module, params, state, data["image"], train=train, gates=gates)
        return cross_entropy(logits, data["label"])

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def x64() -> AbstractContextManager:
    """Double precision, by whichever name this jax has for it."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64

    return enable_x64(True)


def mask(names, selection, full, shape):
    """Which entries of a leaf a selection touches, by plain NumPy."""
    if not names.axes:
        return np.ones(shape, bool)
    rows = []
    for size, groups in zip(shape, names.axes, strict=True):
        rows.append(np.arange(size) if not groups else positions(groups, selection, full))
    found = np.zeros(shape, bool)
    found[np.ix_(*rows)] = True
    return found


def positions(groups, selection, full):
    parts, offset = [], 0
    for group in groups:
        chosen = selection.get(group, range(full[group]))
        parts += [offset + int(i) for i in chosen]
        offset += full[group]
    return np.asarray(parts, int)


def bits(array):
    """An array as raw bytes, so that NaN equals itself and 0.0 differs from -0.0."""
    array = np.ascontiguousarray(np.asarray(array))
    return array.view(np.uint8)


def same_bits(one, other):
    """Asserts that two trees hold the same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(bits(a), bits(b))
