"""`lax.conv_general_dilated` as layers here call it: convolutions of tiny images are products.

XLA's CPU backend is slow where the kernel is larger than the image: a 3x3 convolution of 512
channels at 2x2, gradients included, takes forty times as long there as the same work as one matrix
product (`experiments.widths --image_size 2`, with and without `--plain`; docs/hardware.md).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from dce_jax.types import Array

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Any,
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = CHANNELS_LAST,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """Convolves; the arguments are those of `jax.lax.conv_general_dilated`.

    An image smaller than the kernel becomes, where channels are last and nothing is dilated or
    grouped, one product of its patches and the kernel: as many multiply-accumulates, equal up to
    rounding, and the same function under every derivative.

    Args:
      x: float[B, H, W, D].
      kernel: float[kh, kw, D, C].
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.
      lhs_dilation: of ``x``.
      rhs_dilation: of the kernel.
      dimension_numbers: of input, kernel and output.
      feature_group_count: of a grouped convolution.
      precision: of products.

    Returns:
      float[B, H', W', C].
    """
    plain = feature_group_count == 1 and _ones(lhs_dilation) and _ones(rhs_dilation)
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    last = numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, CHANNELS_LAST)
    if plain and last and _tiny(x, kernel):
        patches = _patches(x, kernel.shape[:2], strides, padding)
        rows = kernel.reshape(-1, kernel.shape[-1])
        return jnp.dot(patches, rows, precision=precision)
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )


def _ones(dilation: Sequence[int] | None) -> bool:
    return dilation is None or all(each == 1 for each in dilation)


def _tiny(x: Array, kernel: Array) -> bool:
    return x.ndim == 4 and any(
        side < size for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True)
    )


def _patches(x: Array, size: Sequence[int], strides: Sequence[int], padding: Any) -> Array:
    """What each output position reads: float[B, H', W', kh * kw * D], as the kernel's rows lie."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], size, strides, padding)
    padded = jnp.pad(x, ((0, 0), *map(tuple, padding), (0, 0)))
    # A padded image that is still too small for the kernel has no output positions.
    ends = [max(0, side - length + 1) for side, length in zip(padded.shape[1:3], size, strict=True)]
    taps = [
        padded[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
        for i in range(size[0])
        for j in range(size[1])
    ]
    return jnp.concatenate(taps, axis=-1)
