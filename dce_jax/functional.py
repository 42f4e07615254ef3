"""Layers that run on some of their channels, as pure functions of a slab and full-size parameters.

For networks written by hand and for selections made inside the forward pass: the indices may be
traced, only their number K is static. Each function gathers the rows and columns of its
parameters that the slab needs and computes at that width, so its result equals that of the full
layer with the other channels zeroed, and its time and memory are those of a layer of width K.
A gradient with respect to the full parameters is exactly zero where nothing was selected.

Channels are the last axis (NHWC). A layer computes in the dtype of its input.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, overload

import jax.numpy as jnp
from jax import lax

from dce_jax.types import Array

Padding: TypeAlias = str | Sequence[tuple[int, int]]


class Slab(NamedTuple):
    """Some channels of an activation.

    Attributes:
      values: float[..., K].
      indices: int32[K], which channel of the full width each value belongs to: distinct, never
        negative, in any order. An index of ``width`` or more marks an empty slot: its values
        are zero where it is made, and no function here lets them reach a channel.
    """

    values: Array
    indices: Array


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
    indices = _checked_indices(indices, x.shape[-1])
    return Slab(_take(x, indices, axis=-1), indices)


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
    y = lax.conv_general_dilated(
        values,
        small,
        strides,
        padding if isinstance(padding, str) else tuple(padding),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
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
    indices = _checked_slab(x, scale.shape[0])
    dtype = x.values.dtype
    values = x.values.astype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)
    if train:
        axes = tuple(range(values.ndim - 1))
        mean_K = jnp.mean(values, axis=axes, keepdims=True)
        var_K = jnp.mean(jnp.square(values - mean_K), axis=axes, keepdims=True)
        mean = _moved(mean, mean_K.reshape(-1), indices, momentum)
        var = _moved(var, var_K.reshape(-1), indices, momentum)
    else:
        mean_K, var_K = (_channels(v, indices, values) for v in (mean, var))
    scale_K, bias_K = (_channels(v, indices, values) for v in (scale, bias))
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
        raise ValueError(f"add: {_described(a)} and {_described(b)} must be alike but for channels")
    if width is None:
        if a.indices is not b.indices:
            raise ValueError(
                "add without width needs slabs that carry one and the same array of indices: "
                "pass width= for the union, or compute both with the same indices"
            )
        return Slab(a.values + b.values, a.indices)
    slots_a, slots_b = (_slots(_checked_slab(s, width), width) for s in (a, b))
    absent_a, absent_b = a.indices.shape[0], b.indices.shape[0]
    channel = jnp.arange(width, dtype=jnp.int32)
    present = (slots_a < absent_a) | (slots_b < absent_b)
    union = jnp.sort(jnp.where(present, channel, channel + width))[: absent_a + absent_b]
    # An empty slot of the union looks up channel >= width and finds no slot in either.
    found_a = _take(slots_a, union, axis=0, fill=absent_a)
    found_b = _take(slots_b, union, axis=0, fill=absent_b)
    return Slab(
        _take(a.values, _distinct(found_a, absent_a), axis=-1)
        + _take(b.values, _distinct(found_b, absent_b), axis=-1),
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
        described = ", ".join(_described(s) for s in slabs)
        raise ValueError(f"concatenate: slabs must be alike but for channels, got {described}")
    total, offset, indices = sum(widths), 0, []
    for slab, width in zip(slabs, widths, strict=True):
        own = _checked_slab(slab, width)
        indices.append(jnp.where(own < width, own + offset, total))
        offset += width
    joined = jnp.concatenate([s.values for s in slabs], axis=-1)
    return Slab(joined, _distinct(jnp.concatenate(indices), total))


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
    return _take(x.values, _distinct(_slots(_checked_slab(x, width), width), absent), axis=-1)


def _take(x: Array, indices: Array, *, axis: int, fill: int = 0) -> Array:
    # Indices are distinct, empty slots included, so the gradient is a scatter without collisions.
    return jnp.take(x, indices, axis=axis, mode="fill", fill_value=fill, unique_indices=True)


def _slots(indices: Array, width: int) -> Array:
    """int32[C]: the slot of each channel, K where the channel is in none."""
    K = indices.shape[0]
    absent = jnp.full((width,), K, jnp.int32)
    slots = jnp.arange(K, dtype=jnp.int32)
    return absent.at[indices].set(slots, mode="drop", unique_indices=True)


def _distinct(indices: Array, width: int) -> Array:
    """Gives every empty slot a number of its own, beyond the channels."""
    beyond = jnp.arange(indices.shape[0], dtype=jnp.int32) + width
    return jnp.where(indices < width, indices, beyond)


def _channels(vector: Array, indices: Array | None, like: Array) -> Array:
    """The executed entries of a vector, in the dtype of ``like`` and ready to broadcast to it."""
    if indices is not None:
        vector = _take(vector, indices, axis=0)
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def _moved(running: Array, batch: Array, indices: Array, momentum: float) -> Array:
    old = _take(running, indices, axis=0)
    new = momentum * old + (1.0 - momentum) * batch.astype(running.dtype)
    return running.at[indices].set(new, mode="drop", unique_indices=True)


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
        kernel = _take(kernel, _checked_slab(x, D), axis=-2)
    elif x.shape[-1] != D:
        raise ValueError(f"input of {x.shape[-1]} channels, but the kernel takes {D}")
    if outputs is not None:
        outputs = _checked_indices(outputs, F)
        kernel = _take(kernel, outputs, axis=-1)
    if bias is not None:
        bias = _channels(bias, outputs, values)
    return values, kernel.astype(values.dtype), bias


def _checked_slab(x: Slab, width: int) -> Array:
    K = x.values.shape[-1] if x.values.ndim else 0
    if x.indices.shape != (K,):
        raise ValueError(f"{_described(x)} needs one index per value of its last axis")
    return _checked_indices(x.indices, width)


def _checked_indices(indices: Array, width: int) -> Array:
    indices = jnp.asarray(indices)
    if indices.ndim != 1 or indices.dtype != jnp.int32:
        raise ValueError(f"indices must be int32[K], got {indices.dtype}{list(indices.shape)}")
    if not 1 <= indices.shape[0] <= width:
        raise ValueError(f"K = {indices.shape[0]} indices must be between 1 and the width {width}")
    return indices


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


def _described(x: Slab) -> str:
    return f"slab of {x.values.dtype}{list(x.values.shape)} with indices {list(x.indices.shape)}"
