"""Layers that run on some of their channels, as pure functions of a slab and full-size parameters.

For networks written by hand and for selections made inside the forward pass: the indices may be
traced, only their number K is static. Each function gathers the rows and columns of its
parameters that the slab needs and computes at that width, so its result equals that of the full
layer with the other channels zeroed, and its time and memory are those of a layer of width K.
A gradient with respect to the full parameters is exactly zero where nothing was selected.

Channels are the last axis (NHWC). A layer computes in the dtype of its input.
"""

from collections.abc import Sequence
from typing import TypeAlias, overload

import jax.numpy as jnp
from jax import lax

from dce_jax.convolve import convolve
from dce_jax.slots import (
    Slab,
    channels,
    checked_indices,
    checked_slab,
    described,
    distinct,
    moved,
    slot_of,
    take,
)
from dce_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]


def select(x: Array, indices: Array) -> Slab:
    """Takes channels out of a full activation.

    Args:
      x: float[..., C].
      indices: int32[K], as in ``Slab``.

    Returns:
      Slab of K channels.

    Raises:
      ValueError: the indices are not int32[K] with 1 <= K <= C.
    """
    if not x.ndim:
        raise ValueError("select needs float[..., C], got a scalar")
    indices = checked_indices(indices, x.shape[-1])
    return Slab(take(x, indices, axis=-1), indices)


@overload
def conv(
    x: Slab | Array,
    kernel: Array,
    outputs: Array,
    *,
    bias: Array | None = None,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
) -> Slab: ...
@overload
def conv(
    x: Slab | Array,
    kernel: Array,
    outputs: None = None,
    *,
    bias: Array | None = None,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
) -> Array: ...
def conv(
    x: Slab | Array,
    kernel: Array,
    outputs: Array | None = None,
    *,
    bias: Array | None = None,
    strides: tuple[int, int] = (1, 1),
    padding: Padding = "SAME",
    dilation: tuple[int, int] = (1, 1),
) -> Slab | Array:
    """Convolves the executed channels.

    Args:
      x: slab of float[B, H, W, K] out of D channels, or all of them as float[B, H, W, D].
      kernel: float[kernel height, kernel width, D, F], the full layer's.
      outputs: int32[K'] channels to compute, as in ``Slab``; None for all F.
      bias: float[F] of the full layer, or None.
      strides: window strides along H and W.
      padding: "SAME", "VALID" or ((low, high), (low, high)).
      dilation: kernel dilation along H and W.

    Returns:
      Slab of float[B, H', W', K'] at ``outputs``, or float[B, H', W', F] where that is None.

    Raises:
      ValueError: ranks or widths of the arguments do not fit each other.
    """
    values, small, small_bias = _gathered(x, kernel, outputs, bias, kernel_rank=4)
    if values.ndim != 4:
        raise ValueError(f"conv needs float[B, H, W, channels], got shape {values.shape}")
    pads = padding if isinstance(padding, str) else tuple(padding)
    y = convolve(values, small, strides, pads, rhs_dilation=dilation)
    y = y if small_bias is None else y + small_bias
    return y if outputs is None else Slab(y, jnp.asarray(outputs))


@overload
def dense(x: Slab | Array, kernel: Array, outputs: Array, *, bias: Array | None = None) -> Slab: ...
@overload
def dense(
    x: Slab | Array, kernel: Array, outputs: None = None, *, bias: Array | None = None
) -> Array: ...
def dense(
    x: Slab | Array, kernel: Array, outputs: Array | None = None, *, bias: Array | None = None
) -> Slab | Array:
    """Multiplies the executed features by their part of a matrix.

    Args:
      x: slab of float[..., K] out of D features, or all of them as float[..., D].
      kernel: float[D, F], the full layer's.
      outputs: int32[K'] features to compute, as in ``Slab``; None for all F.
      bias: float[F] of the full layer, or None.

    Returns:
      Slab of float[..., K'] at ``outputs``, or float[..., F] where that is None.

    Raises:
      ValueError: ranks or widths of the arguments do not fit each other.
    """
    values, small, small_bias = _gathered(x, kernel, outputs, bias, kernel_rank=2)
    y = jnp.matmul(values, small)
    y = y if small_bias is None else y + small_bias
    return y if outputs is None else Slab(y, jnp.asarray(outputs))


def batch_norm(
    x: Slab,
    scale: Array,
    bias: Array,
    mean: Array,
    var: Array,
    *,
    train: bool,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
) -> tuple[Slab, tuple[Array, Array]]:
    """Normalises the executed channels (Ioffe & Szegedy 2015, arXiv 1502.03167).

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias``, in float32 or wider. In training, mean
    and variance are those of the batch (not corrected for its size), over every axis but the last.

    Args:
      x: slab of float[..., K] out of C channels.
      scale: float[C].
      bias: float[C].
      mean: float[C], running mean.
      var: float[C], running variance.
      train: normalise by the batch and update the running statistics, or normalise by these.
      momentum: what stays of a running statistic in one update, in [0, 1].
      epsilon: added to the variance, > 0.

    Returns:
      The normalised slab, and (running mean, running variance) of all C channels, of which only
      the executed ones were updated; the others are bit-identical.

    Raises:
      ValueError: the vectors differ in shape, K > C, or a number is out of its range.
    """
    _check_norm(scale, bias, mean, var, momentum, epsilon)
    indices = checked_slab(x, scale.shape[0])
    dtype = x.values.dtype
    values = x.values.astype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)
    if train:
        axes = tuple(range(values.ndim - 1))
        mean_K = jnp.mean(values, axis=axes, keepdims=True)
        var_K = jnp.mean(jnp.square(values - mean_K), axis=axes, keepdims=True)
        mean = moved(mean, mean_K.reshape(-1), indices, momentum)
        var = moved(var, var_K.reshape(-1), indices, momentum)
    else:
        mean_K, var_K = (channels(v, indices, values) for v in (mean, var))
    scale_K, bias_K = (channels(v, indices, values) for v in (scale, bias))
    y = scale_K * ((values - mean_K) * lax.rsqrt(var_K + epsilon)) + bias_K
    return Slab(y.astype(dtype), indices), (mean, var)


def add(a: Slab, b: Slab, *, width: int | None = None) -> Slab:
    """Adds two slabs of the same channel group.

    Args:
      a: slab of float[..., K].
      b: slab of float[..., K'], like ``a`` but for its channels.
      width: number of channels of the group, for slabs of different channels. None states that
        both have the same channels in the same order, which must show: they carry one and the
        same array of indices. This costs nothing, the union costs two gathers.

    Returns:
      With ``width``, the union of the channels in ascending order: min(width, K + K') slots, those
      not needed empty and last. Without, K slots.

    Raises:
      ValueError: values differ in shape or dtype, or ``width`` is None and the indices are not
        the same array.
    """
    if a.values.shape[:-1] != b.values.shape[:-1] or a.values.dtype != b.values.dtype:
        raise ValueError(f"add: {described(a)} and {described(b)} must be alike but for channels")
    if width is None:
        if a.indices is not b.indices:
            raise ValueError(
                "add without width needs slabs that carry one and the same array of indices: "
                "pass width= for the union, or compute both with the same indices"
            )
        return Slab(a.values + b.values, a.indices)
    slots_a, slots_b = (slot_of(checked_slab(s, width), width) for s in (a, b))
    absent_a, absent_b = a.indices.shape[0], b.indices.shape[0]
    channel = jnp.arange(width, dtype=jnp.int32)
    present = (slots_a < absent_a) | (slots_b < absent_b)
    union = jnp.sort(jnp.where(present, channel, channel + width))[: absent_a + absent_b]
    # An empty slot of the union looks up channel >= width and finds no slot in either.
    found_a = take(slots_a, union, axis=0, fill=absent_a)
    found_b = take(slots_b, union, axis=0, fill=absent_b)
    return Slab(
        take(a.values, distinct(found_a, absent_a), axis=-1)
        + take(b.values, distinct(found_b, absent_b), axis=-1),
        union,
    )


def concatenate(slabs: Sequence[Slab], widths: Sequence[int]) -> Slab:
    """Joins slabs of several channel groups along the channels.

    Args:
      slabs: slabs of float[..., K_i], alike but for their channels.
      widths: number of channels of each group.

    Returns:
      Slab of sum(K_i) out of sum(widths) channels; those of group i are offset by the widths
      before it.

    Raises:
      ValueError: no slab, not one width per slab, or values that differ in shape or dtype.
    """
    if not slabs or len(slabs) != len(widths):
        raise ValueError(f"concatenate: {len(slabs)} slabs and {len(widths)} widths, need one each")
    if len({(s.values.shape[:-1], s.values.dtype) for s in slabs}) > 1:
        found = ", ".join(described(s) for s in slabs)
        raise ValueError(f"concatenate: slabs must be alike but for channels, got {found}")
    total, offset, indices = sum(widths), 0, []
    for slab, width in zip(slabs, widths, strict=True):
        own = checked_slab(slab, width)
        indices.append(jnp.where(own < width, own + offset, total))
        offset += width
    joined = jnp.concatenate([s.values for s in slabs], axis=-1)
    return Slab(joined, distinct(jnp.concatenate(indices), total))


def expand(x: Slab, width: int) -> Array:
    """Puts a slab back into its full width.

    Args:
      x: slab of float[..., K].
      width: number of channels C of the group, at least K.

    Returns:
      float[..., C], zero where no channel was executed.

    Raises:
      ValueError: K > C.
    """
    absent = x.indices.shape[0]
    return take(x.values, distinct(slot_of(checked_slab(x, width), width), absent), axis=-1)


def _gathered(
    x: Slab | Array, kernel: Array, outputs: Array | None, bias: Array | None, *, kernel_rank: int
) -> tuple[Array, Array, Array | None]:
    """The values to compute on; what they and the outputs need of kernel and bias, like them."""
    if kernel.ndim != kernel_rank:
        raise ValueError(f"kernel must have rank {kernel_rank}, got shape {kernel.shape}")
    D, F = kernel.shape[-2:]
    values = x.values if isinstance(x, Slab) else x
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"input must be floating, got {values.dtype}: cast it first")
    if bias is not None and bias.shape != (F,):
        raise ValueError(f"bias must be float[{F}] like the kernel's outputs, got {bias.shape}")
    if isinstance(x, Slab):
        kernel = take(kernel, checked_slab(x, D), axis=-2)
    elif x.shape[-1] != D:
        raise ValueError(f"input of {x.shape[-1]} channels, but the kernel takes {D}")
    if outputs is not None:
        outputs = checked_indices(outputs, F)
        kernel = take(kernel, outputs, axis=-1)
    if bias is not None:
        bias = channels(bias, outputs, values)
    return values, kernel.astype(values.dtype), bias


def _check_norm(
    scale: Array, bias: Array, mean: Array, var: Array, momentum: float, epsilon: float
) -> None:
    shapes = [v.shape for v in (scale, bias, mean, var)]
    if scale.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"scale, bias, mean and var must be float[C] alike, got {shapes}")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"momentum = {momentum} must be in [0, 1]")
    if not epsilon > 0.0:
        raise ValueError(f"epsilon = {epsilon} must be positive: a channel may be constant")
