"""A network for signals, and its signals computed slowly and literally."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from nets import CLASSES, dense, lecun, named

from dce_jax import channels, forward
from dce_jax.networks import gate
from dce_jax.signals import Scene

FULL = FrozenDict({"a": 4, "b": 5})


class Stack(nn.Module):
    """Convolutions with bias and an activation each, a gate behind it, and a linear layer."""

    widths: FrozenDict = FULL
    activation: Callable = nn.tanh
    size: int = 3
    bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        before = None
        for group, width in self.widths.items():
            x = nn.Conv(
                width,
                (self.size, self.size),
                use_bias=self.bias,
                kernel_init=named(lecun, (None, None, before, group)),
                bias_init=named(nn.initializers.zeros_init(), (group,)),
                dtype=self.dtype,
                name=f"conv_{group}",
            )(x)
            x, before = gate(self, self.activation(x), group), group
        return dense(CLASSES, (before, None), "head", self.dtype)(x.mean(axis=(1, 2)))


def image(dtype, side=4):
    return jax.ShapeDtypeStruct((2, side, side, 2), dtype)


def scene(module=None, *, active=None, seed=0, size=3, side=4, scale=1.5):
    """A network of random numbers at its active widths, with labelled examples.

    Args:
      module: at full width.
      active: group -> channels; None: all.
      seed: of all numbers.
      size: examples.
      side: of the images.
      scale: multiplies the parameters.
    """
    module, draw = module or Stack(), np.random.default_rng(seed)
    found = channels.build(module, forward.shapes(module, image(module.dtype, side)))
    thin = channels.with_widths(module, active or module.widths)
    shapes = nn.unbox(forward.shapes(thin, image(module.dtype, side)))

    def one(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        values = draw.normal(size=leaf.shape) * (scale / np.sqrt(fan_in) if leaf.ndim > 1 else 0.3)
        return jnp.asarray(values, module.dtype)

    params = jax.tree.map(one, shapes["params"])
    batch = {
        "image": jnp.asarray(draw.normal(size=(size, side, side, 2)), module.dtype),
        "label": jnp.asarray(draw.integers(0, CLASSES, size), jnp.int32),
    }
    return Scene(thin, found, params, {}, batch)


# The literal reference. It shares nothing with the package but the parameters.


def logits(module, params, picture, bumps, behind=False):
    """Logits of one example with something added to every convolution's output; and the outputs.

    Args:
      behind: add behind the activation function, and give what is there.
    """
    x, outputs = picture[None], {}
    for group in module.widths:
        layer = params[f"conv_{group}"]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if module.bias:
            x = x + layer["bias"].reshape(1, 1, 1, -1)
        x = module.activation(x) if behind else x
        outputs[group] = x[0]
        x = x + bumps[group][None]
        x = x if behind else module.activation(x)
    x = x.mean(axis=(1, 2))[0]
    return x @ params["head"]["kernel"] + params["head"]["bias"], outputs


def kernels(params, groups):
    return {group: params[f"conv_{group}"]["kernel"] for group in groups}


def derivatives(given, base):
    """x, g and the exact h of every example: lists of ``{group: float64[..., C]}``."""
    module, params, groups = given.module, given.params, list(given.module.widths)
    side = given.batch["image"].shape[1]
    zeros = {g: jnp.zeros((side, side, c), module.dtype) for g, c in module.widths.items()}
    point = kernels(params, groups) if base == "weights" else zeros

    def loss(point, picture, label):
        weights = params
        if base == "weights":
            weights = {
                **params,
                **{f"conv_{g}": {**params[f"conv_{g}"], "kernel": point[g]} for g in groups},
            }
        bumps = zeros if base == "weights" else point
        value = logits(module, weights, picture, bumps, base in ("units", "centred_units"))[0]
        return jax.nn.logsumexp(value) - value[label]

    @jax.jit
    def one(picture, label):
        x = logits(module, params, picture, zeros, base in ("units", "centred_units"))[1]
        x = point if base == "weights" else x
        g = jax.grad(loss)(point, picture, label)
        flat, back = jax.flatten_util.ravel_pytree(point)
        matrix = jax.hessian(lambda u: loss(back(u), picture, label))(flat)
        return x, g, back(jnp.diag(matrix))

    each = [one(*example) for example in zip(*given.batch.values(), strict=True)]
    each = [jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found) for found in each]
    if base.startswith("centred"):
        middle = {g: np.mean([x[g] for x, _, _ in each], axis=(0, 1, 2)) for g in groups}
        each = [({g: x[g] - middle[g] for g in groups}, g1, h) for x, g1, h in each]
    return each


POINTWISE = {
    "x": lambda x, *_: x,
    "g": lambda _, g, __: g,
    "taylor": lambda x, g, _: -x * g,
    "hessian_diag": lambda x, _, h: x**2 * h / 2,
    "hessian_diag_approx2": lambda x, g, _: x**2 * g**2 / 2,
    "taylor_2nd": lambda x, g, h: -x * g + x**2 * h / 2,
    "taylor_2nd_approx2": lambda x, g, _: -x * g + x**2 * g**2 / 2,
}
REDUCTION = {
    "sum": lambda f: np.sum(f),
    "l1": lambda f: np.sum(np.abs(f)),
    "l2": lambda f: np.sum(f**2),
    "abs_sum": lambda f: abs(np.sum(f)),
    "sqr_sum": lambda f: np.sum(f) ** 2,
}
SCALINGS = ("none", "l1", "l2", "cardinality", "active_cardinality", "weights_removed")


def divisor(given, base, group, scaling, values):
    if scaling == "none":
        return 1
    if scaling == "l1":
        return np.sum(np.abs(values))
    if scaling == "l2":
        return np.sqrt(np.sum(values**2))
    active, taps = given.module.widths, given.module.size**2
    if scaling == "weights_removed":
        bias = int(given.module.bias)
        inputs, outputs = (2, active["b"] * taps) if group == "a" else (active["a"], CLASSES)
        return inputs * taps + bias + outputs
    full = given.channels.full if scaling == "cardinality" else active
    inputs = 2 if group == "a" else full["a"]
    return inputs * (taps if base == "weights" else given.batch["image"].shape[1] ** 2)


def reference(given, bases):
    """``{name: {group: float64[C]}}`` of all 210 spellings of every base."""
    found = {}
    for base in bases:
        each = derivatives(given, base)
        for pointwise, reduction in itertools.product(POINTWISE, REDUCTION):
            for group in given.module.widths:
                values = channel_means(each, group, POINTWISE[pointwise], REDUCTION[reduction])
                for scaling in SCALINGS:
                    name = f"{base}.{pointwise}.{reduction}.{scaling}"
                    by = divisor(given, base, group, scaling, values)
                    found.setdefault(name, {})[group] = values / by
    return found


def channel_means(each, group, f, reduce):
    """Mean over examples of a channel's reduced elements, one number at a time."""
    width = each[0][0][group].shape[-1]
    return np.array(
        [
            np.mean([reduce(f(*(part[group][..., c] for part in example))) for example in each])
            for c in range(width)
        ]
    )


def flat(values):
    """All groups of a signal one after another."""
    return np.concatenate([np.asarray(values[group], np.float64) for group in values])
