"""A convolution of few channels as one of many: neighbouring columns become channels.

A row of W columns of D channels is, as it lies in memory, one of W / n columns of n D channels. A
kernel that reads those holds the taps of the n columns that it writes, each set one column further
to the right, and zeros around: a band. The products grow n times; CPUs make them so much faster in
many channels than in few that it pays (docs/hardware.md).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from dce_jax import taps
from dce_jax.types import Array

CHANNELS = 32
"""At most so many channels, in and out, does a convolution in bands get."""

PRODUCTS = 32 * 32
"""Of channels in and out: fewer than that, for from there on nothing is won."""


def columns(
    image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Any
) -> int:
    """How many columns of the output pay as channels of one; 1: none do.

    Args:
      image: shape of the inputs, (B, H, W, D).
      kernel: its shape, (kh, kw, D, C).
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.

    Returns:
      A power of two.
    """
    width, step = image[2], strides[1]
    written = _written(image, kernel, strides, padding)
    inputs, outputs = kernel[2] * step, kernel[3]
    count = 1
    while (
        2 * count * max(inputs, outputs) <= CHANNELS
        and 4 * count**2 * inputs * outputs < PRODUCTS
        and width % (2 * count * step) == 0 == written % (2 * count)
    ):
        count *= 2
    return count


def convolve(
    x: Array,
    kernel: Array,
    *,
    count: int,
    strides: Sequence[int],
    padding: Any,
    precision: Any = None,
) -> Array:
    """A convolution with ``count`` columns of its output as channels of one.

    Equal to `lax.conv_general_dilated` up to rounding, where everything is finite: a zero of a band
    meets what the kernel does not read.

    Args:
      x: float[B, H, W, D].
      kernel: float[kh, kw, D, C].
      count: as `columns` gives it.
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.
      precision: of products.

    Returns:
      float[B, H', W', C].
    """
    batch, height, width, _ = x.shape
    rows, (before, _) = taps.pads(x.shape, kernel.shape[:2], strides, padding)
    written = _written(x.shape, kernel.shape, strides, padding)
    read = count * strides[1]
    left = -(-before // read)
    right = ((count - 1) * strides[1] + kernel.shape[1] - 1 - before) // read
    y = lax.conv_general_dilated(
        x.reshape(batch, height, width // read, -1),
        _band(kernel, count, strides[1], left * read - before, (left + right + 1) * read),
        (strides[0], 1),
        (rows, (left, written // count + right - width // read)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
    return y.reshape(batch, y.shape[1], written, -1)


def _band(kernel: Array, count: int, stride: int, first: int, length: int) -> Array:
    """A kernel for each of ``count`` columns, the first one's taps from column ``first`` on."""
    rows, width, inputs, outputs = kernel.shape
    none = (0, 0)
    shifted = [
        jnp.pad(kernel, (none, (start, length - width - start), none, none))
        for start in range(first, first + count * stride, stride)
    ]
    read = count * stride
    return jnp.stack(shifted, axis=-2).reshape(rows, length // read, read * inputs, count * outputs)


def _written(
    image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], padding: Any
) -> int:
    """Columns of the output."""
    before, after = taps.pads(image, kernel[:2], strides, padding)[1]
    return (image[2] + before + after - kernel[1]) // strides[1] + 1
