"""What the taps of a kernel read, and convolutions written with it."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from dce_jax.types import Array

BLOCKS = 8
"""Of rows, at most, that `depthwise_in_blocks` adds up before anything else."""


def pads(
    image: Sequence[int], size: Sequence[int], strides: Sequence[int], padding: Any
) -> list[tuple[int, int]]:
    """Zeros before and after, in both directions.

    Args:
      image: shape of the inputs, (B, H, W, D).
      size: of the kernel, (kh, kw).
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.
    """
    if isinstance(padding, str):
        return lax.padtype_to_pads(image[1:3], size, strides, padding)
    return [(before, after) for before, after in padding]


def reads(x: Array, size: Sequence[int], strides: Sequence[int], padding: Any) -> list[Array]:
    """What each tap of a kernel reads, at all output positions.

    Args:
      x: float[B, H, W, D].
      size: of the kernel, (kh, kw).
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.

    Returns:
      kh * kw times float[B, H', W', D], row by row.
    """
    padded = jnp.pad(x, ((0, 0), *pads(x.shape, size, strides, padding), (0, 0)))
    batch, height, width, depth = padded.shape
    # A padded image that is still too small for the kernel has no output positions, and the taps
    # that lie beyond it read nothing at its end.
    rows, columns = max(0, height - size[0] + 1), max(0, width - size[1] + 1)
    # Not by indexing, which older releases of JAX turn into a gather where strides are above one.
    return [
        lax.slice(padded, (0, i, j, 0), (batch, i + rows, j + columns, depth), (1, *strides, 1))
        for i in np.minimum(range(size[0]), height - rows)
        for j in np.minimum(range(size[1]), width - columns)
    ]


def patches(x: Array, size: Sequence[int], strides: Sequence[int], padding: Any) -> Array:
    """What each output position reads.

    Args:
      x: float[B, H, W, D].
      size: of the kernel, (kh, kw).
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.

    Returns:
      float[B, H', W', kh * kw * D], as the kernel's rows lie.
    """
    return jnp.concatenate(reads(x, size, strides, padding), axis=-1)


def depthwise(x: Array, kernel: Array, *, strides: Sequence[int], padding: Any) -> Array:
    """A convolution of each channel alone, as a sum over taps.

    Args:
      x: float[B, H, W, C].
      kernel: float[kh, kw, 1, C].
      strides: in both directions.
      padding: as `lax.conv_general_dilated` takes it.

    Returns:
      float[B, H', W', C], added up in float32 at least.
    """
    found, taps = _pairs(x, kernel, strides, padding)
    return lax.optimization_barrier(_dot(found, taps).astype(x.dtype))


def depthwise_in_blocks(x: Array, kernel: Array, *, strides: Sequence[int], padding: Any) -> Array:
    """`depthwise`, with a gradient of the kernel that is fast on a CPU.

    Its blocks of rows share one copy of the kernel, spread over their positions. Backwards the
    blocks are added up, which is vectorised, and one product with ones sums over positions: a sum
    over all positions but the last axis is not vectorised there.

    Args and returns as `depthwise`.
    """
    found, taps = _pairs(x, kernel, strides, padding)
    batch, rows, columns, channels = found[0].shape
    count = next(n for n in range(BLOCKS, 0, -1) if rows % n == 0)
    block = (batch, rows // count, columns, channels)
    ones = jnp.ones((batch * block[1] * columns, 1), taps[0].dtype)
    spread = [
        jnp.dot(ones, tap.reshape(1, -1), precision=lax.Precision.HIGHEST).reshape(block)
        for tap in taps
    ]
    blocks = [
        _dot([each[:, n * block[1] : (n + 1) * block[1]] for each in found], spread)
        for n in range(count)
    ]
    return lax.optimization_barrier(jnp.concatenate(blocks, axis=1).astype(x.dtype))


def _pairs(
    x: Array, kernel: Array, strides: Sequence[int], padding: Any
) -> tuple[list[Array], list[Array]]:
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    taps = list(kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]).astype(wide))
    # Barriers: each tap would compute again, forwards and backwards, what is fused with it.
    x = lax.optimization_barrier(x)
    return reads(x.astype(wide), kernel.shape[:2], strides, padding), taps


def _dot(left: list[Array], right: list[Array]) -> Array:
    first, *others = (one * other for one, other in zip(left, right, strict=True))
    return sum(others, start=first)
