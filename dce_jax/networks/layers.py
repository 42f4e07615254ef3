"""Layers with named channel axes: what every network here is made of.

Each function returns a Linen layer whose parameters carry their channel groups as logical axis
names; call them inside a compact ``__call__``. A channel axis is given by its group's name, by a
tuple of groups where they lie one after another, or by None where it is never cut.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.convolve import convolve

Axis: TypeAlias = str | tuple[str, ...] | None

MOMENTUM, EPSILON = 0.9, 1e-5
"""Of every batch norm's running statistics, and what is added to its variance."""

he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def named(initializer: Callable[..., jax.Array], axes: tuple[Axis, ...]) -> Callable[..., Any]:
    """An initializer whose parameter carries the groups along its axes."""
    names: Any = axes  # Flax's own annotation knows no sequences of groups
    return nn.with_logical_partitioning(initializer, names)


def conv(
    widths: Mapping[str, int],
    before: Axis,
    group: str,
    *,
    name: str,
    dtype: jnp.dtype,
    size: int = 3,
    stride: int = 1,
) -> nn.Conv:
    """A convolution without bias, padded so that stride 1 keeps the image's size.

    Args:
      widths: channel group -> channels.
      before: groups along its input channels.
      group: its output channels.
      name: of the layer.
      dtype: compute type.
      size: of the square kernel, odd.
      stride: in both directions.
    """
    return nn.Conv(
        widths[group],
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=size // 2,
        use_bias=False,
        conv_general_dilated=convolve,
        dtype=dtype,
        kernel_init=named(he_fan_out, (None, None, before, group)),
        name=name,
    )


def depthwise(
    widths: Mapping[str, int], group: str, *, name: str, dtype: jnp.dtype, stride: int = 1
) -> nn.Conv:
    """A 3x3 convolution of each channel alone, kernel [3, 3, 1, C]: input and output one group.

    Args:
      widths: channel group -> channels.
      group: its channels, in and out.
      name: of the layer.
      dtype: compute type.
      stride: in both directions.
    """
    return nn.Conv(
        widths[group],
        kernel_size=(3, 3),
        strides=(stride, stride),
        padding=1,
        use_bias=False,
        feature_group_count=widths[group],
        conv_general_dilated=convolve,
        dtype=dtype,
        kernel_init=named(he_fan_in, (None, None, None, group)),
        name=name,
    )


def norm(groups: Axis, *, name: str, train: bool, dtype: jnp.dtype) -> nn.BatchNorm:
    """Batch norm with momentum 0.9.

    Args:
      groups: along its channels.
      name: of the layer.
      train: normalise by the batch's statistics and update the running ones.
      dtype: compute type.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=MOMENTUM,
        epsilon=EPSILON,
        dtype=dtype,
        scale_init=named(nn.initializers.ones_init(), (groups,)),
        bias_init=named(nn.initializers.zeros_init(), (groups,)),
        name=name,
    )


def head(num_classes: int, before: Axis, *, dtype: jnp.dtype) -> nn.Dense:
    """The linear layer with bias that ends a network.

    Args:
      num_classes: outputs.
      before: groups along its inputs.
      dtype: compute type.
    """
    kernel = named(nn.initializers.lecun_normal(), (before, None))
    return nn.Dense(num_classes, dtype=dtype, kernel_init=kernel, name="head")


def logits(x: jax.Array) -> jax.Array:
    """What a network returns: at least float32, so that a loss never rounds to bfloat16.

    Args:
      x: float[B, num_classes].
    """
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def halve(x: jax.Array) -> jax.Array:
    """Mean over 2x2 positions; an odd last row or column is left out.

    Args:
      x: float[B, H, W, C].

    Returns:
      float[B, H // 2, W // 2, C].
    """
    return nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") * 0.25


def max_of_four(x: jax.Array) -> jax.Array:
    """Largest of 2x2 positions; an odd last row or column is left out.

    Written as maxima of strided slices: the backward pass of `jax.lax.reduce_window` is a
    select-and-scatter, which costs a VGG on a CPU as much as half of its convolutions. Two equal
    values, or four, share the gradient equally, where a window would give it to the first.

    Args:
      x: float[B, H, W, C].

    Returns:
      float[B, H // 2, W // 2, C].
    """
    rows, columns = 2 * (x.shape[1] // 2), 2 * (x.shape[2] // 2)
    x = jnp.maximum(x[:, 0:rows:2], x[:, 1:rows:2])
    return jnp.maximum(x[:, :, 0:columns:2], x[:, :, 1:columns:2])


def check_images(x: jax.Array, smallest: int) -> None:
    """Refuses inputs that are no images, or that the strides would use up.

    Args:
      x: float[B, H, W, D] expected.
      smallest: side of which the network leaves one position.

    Raises:
      ValueError: another rank, or a side below ``smallest``.
    """
    if x.ndim != 4:
        raise ValueError(f"images must be float[B, H, W, D], got shape {x.shape}")
    if min(x.shape[1:3]) < smallest:
        raise ValueError(
            f"nothing would be left of images of {x.shape[1]}x{x.shape[2]} behind this network's "
            f"strides: the smallest size is {smallest}x{smallest}; pad the images or choose a "
            "network with fewer stages"
        )


def scaled(size: int, width: float) -> int:
    """A published width times a multiplier, rounded down, at least 1.

    Raises:
      ValueError: a multiplier that is not positive.
    """
    if width <= 0:
        raise ValueError(f"width multiplier {width} must be positive")
    return max(1, int(size * width))


def check_name(name: str, known: Collection[str], kind: str) -> None:
    """Refuses a name that does not exist.

    Raises:
      ValueError: ``name`` is not in ``known``.
    """
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}: one of {sorted(known)}")
