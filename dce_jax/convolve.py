"""`lax.conv_general_dilated` as layers here call it, without seven slow paths of XLA's CPU backend.

Where the kernel is larger than the image: a 3x3 convolution of 512 channels at 2x2, gradients
included, takes forty times as long there as the same work as one matrix product, so it is one.
Where a large kernel meets few positions, as one image does at the end of a network: on CPUs that is
one product too, and so is every 1x1 convolution, which with both gradients then takes 0.2 to 0.7 of
the time. Where a batch does not fit the cache, the kernel's gradient is faster as a sum over
parts of the batch that do, and on CPUs it is that sum: a layer with both gradients then takes half
to two thirds of the time. Where a width lies a little below a power of two, a convolution takes up
to twice as long as one of that power: on CPUs it gets zeros up to it, and takes as long. Where
channels are few, products are too small to be fast: on CPUs neighbouring columns become channels
(`dce_jax.bands`). Where each channel is convolved alone, it takes ten times and more as long as a
sum over the kernel's taps: on CPUs it is one (`experiments.widths`, with and without `--plain`;
docs/hardware.md).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from dce_jax import bands, taps
from dce_jax.types import Array

CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")

FEW_POSITIONS = 16
"""Of outputs, over the batch: so few that a large kernel is better read as a matrix."""

LARGE_BYTES = 2**20
"""Of a large kernel."""

FILLED = {8: 7, 16: 13, 32: 25, 64: 49, 128: 120}
"""Width -> the least one that gets zeros up to it."""

PART_BYTES = 2**20
"""Of inputs and outputs together: what one part of a batch may need. Many cores' caches hold it."""


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

    Where channels are last and nothing is dilated or grouped, an image smaller than the kernel
    becomes one product of its patches and the kernel. On a CPU so do few positions under a large
    kernel and, in float32 and wider, any positions under a 1x1 kernel; the gradient of a larger
    kernel becomes a sum over parts of a large batch, slow widths get zeros, columns become channels
    where these are few, and a convolution of each channel alone becomes a sum over taps.
    `cost.macs` counts none of that; where all is finite, it is equal up to rounding, and the same
    function under every derivative.

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
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    last = numbers == lax.conv_dimension_numbers(x.shape, kernel.shape, CHANNELS_LAST)
    flat = last and x.ndim == 4 and _ones(lhs_dilation) and _ones(rhs_dilation)
    whole = partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )
    if flat and feature_group_count == 1:
        return _plain(whole, _Places(strides, padding, precision), x, kernel)
    if flat and feature_group_count == x.shape[3] == kernel.shape[3]:
        return _depthwise(whole, strides, padding, x, kernel)
    return whole(x, kernel)


class _Places(NamedTuple):
    """What a kernel reads where, and the precision of products."""

    strides: Sequence[int]
    padding: Any
    precision: Any


def _depthwise(
    whole: Callable[..., Array], strides: Sequence[int], padding: Any, x: Array, kernel: Array
) -> Array:
    """``whole(x, kernel)``, of each channel alone."""
    places = {"strides": strides, "padding": padding}
    forward = partial(_by_platform, partial(taps.depthwise, **places), whole)
    for_kernel = partial(_by_platform, partial(taps.depthwise_in_blocks, **places), whole)
    return _two_ways(forward, for_kernel, x, kernel)


def _plain(whole: Callable[..., Array], places: _Places, x: Array, kernel: Array) -> Array:
    """``whole(x, kernel)``, neither dilated nor grouped, by the fastest way of a platform."""
    if _tiny(x, kernel):
        return _product(places, x, kernel)
    if kernel.shape[:2] == (1, 1):
        return _pointwise(whole, places, x, kernel)
    if _few(whole, x, kernel):
        return _by_platform(partial(_product, places), whole, x, kernel)
    widths = tuple(map(_filled, kernel.shape[2:]))
    if widths != kernel.shape[2:]:
        return _by_platform(partial(_with_zeros, whole, places, widths), whole, x, kernel)
    return _each_way(whole, places, x, kernel)


def _pointwise(whole: Callable[..., Array], places: _Places, x: Array, kernel: Array) -> Array:
    """``whole(x, kernel)`` of a 1x1 kernel: one product of all positions."""
    if not _wide(x):
        return whole(x, kernel)
    return _by_platform(partial(_product, places), whole, x, kernel)


def _wide(x: Array) -> bool:
    """Whether branches by platform may be chosen between: what one returns is rounded to its type.

    XLA keeps float32 between narrower layers on CPUs.
    """
    return x.dtype.itemsize >= 4


def _filled(width: int) -> int:
    return next((full for full, least in FILLED.items() if least <= width < full), width)


def _with_zeros(
    whole: Callable[..., Array],
    places: _Places,
    widths: tuple[int, ...],
    x: Array,
    kernel: Array,
) -> Array:
    """``whole(x, kernel)``, computed at larger widths."""
    inputs, outputs = (full - own for full, own in zip(widths, kernel.shape[2:], strict=True))
    wide = jnp.pad(x, (*((0, 0),) * 3, (0, inputs)))
    full = jnp.pad(kernel, ((0, 0), (0, 0), (0, inputs), (0, outputs)))
    return _each_way(whole, places, wide, full)[..., : kernel.shape[3]]


def _each_way(whole: Callable[..., Array], places: _Places, x: Array, kernel: Array) -> Array:
    """``whole(x, kernel)``: forwards and for the inputs in bands, for the kernel in parts."""
    forward = for_kernel = whole
    columns = 1
    if _wide(x):
        columns = bands.columns(x.shape, kernel.shape, places.strides, places.padding)
    if columns > 1:
        banded = partial(bands.convolve, count=columns, **places._asdict())
        forward = partial(_by_platform, banded, whole)
    parts = _parts(whole, x, kernel)
    if parts > 1:
        for_kernel = partial(_by_platform, partial(_in_parts, whole, parts), whole)
    if columns == parts == 1:
        return whole(x, kernel)
    return _two_ways(forward, for_kernel, x, kernel)


def _parts(whole: Callable[..., Array], x: Array, kernel: Array) -> int:
    """Into how many parts of equal size a batch falls: the fewest that are small.

    As the batch may be sharded, every device can have as many images of a part as any other.
    """
    both = x.size + jax.eval_shape(whole, x, kernel).size
    wanted = both * x.dtype.itemsize / PART_BYTES
    batch, devices = x.shape[0], jax.device_count()
    counts = [n for n in range(1, batch // devices + 1) if batch % (n * devices) == 0] or [1]
    return next((count for count in counts if count >= wanted), counts[-1])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _two_ways(
    whole: Callable[..., Array], for_kernel: Callable[..., Array], x: Array, kernel: Array
) -> Array:
    """``whole(x, kernel)``, whose derivative by the kernel goes as that of ``for_kernel``."""
    del for_kernel
    return whole(x, kernel)


def _tangent(
    whole: Callable[..., Array],
    for_kernel: Callable[..., Array],
    primals: tuple[Array, Array],
    tangents: tuple[Array | SymbolicZero, Array | SymbolicZero],
) -> tuple[Array, Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(whole(dx, kernel))
    if not isinstance(dkernel, SymbolicZero):
        terms.append(for_kernel(x, dkernel))
    return _two_ways(whole, for_kernel, x, kernel), sum(terms[1:], start=terms[0])


_two_ways.defjvp(_tangent, symbolic_zeros=True)


def _by_platform(
    cpu: Callable[..., Array], default: Callable[..., Array], x: Array, kernel: Array
) -> Array:
    # Checkpoints keep the arguments for the backward pass, and nothing that a platform makes of
    # them: it would be kept, and counted, beside what the other platforms keep.
    once = partial(jax.checkpoint, prevent_cse=False)
    found: Array = lax.platform_dependent(x, kernel, cpu=once(cpu), default=once(default))
    return found


def _in_parts(whole: Callable[..., Array], count: int, x: Array, kernel: Array) -> Array:
    # Every count-th image: a batch that is sharded over devices stays so in each part.
    stacked = x.reshape(-1, count, *x.shape[1:])
    y = jnp.stack([whole(stacked[:, part], kernel) for part in range(count)], axis=1)
    return y.reshape(-1, *y.shape[2:])


def _ones(dilation: Sequence[int] | None) -> bool:
    return dilation is None or all(each == 1 for each in dilation)


def _tiny(x: Array, kernel: Array) -> bool:
    return any(side < size for side, size in zip(x.shape[1:3], kernel.shape[:2], strict=True))


def _few(whole: Callable[..., Array], x: Array, kernel: Array) -> bool:
    if kernel.size * kernel.dtype.itemsize < LARGE_BYTES:
        return False
    shape = jax.eval_shape(whole, x, kernel).shape
    return math.prod(shape[:3]) <= FEW_POSITIONS


def _product(places: _Places, x: Array, kernel: Array) -> Array:
    rows = kernel.reshape(-1, kernel.shape[-1])
    reads = taps.patches(x, kernel.shape[:2], places.strides, places.padding)
    # Flat: a kernel's gradient over several axes would be a product of transposed copies.
    flat = jnp.dot(reads.reshape(-1, rows.shape[0]), rows, precision=places.precision)
    return flat.reshape(*reads.shape[:-1], rows.shape[1])
