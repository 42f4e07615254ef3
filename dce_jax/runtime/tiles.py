"""Kernels in tiles: what a site needs for one image at some of its widths, read where it lies.

The first channels of a kernel do not lie side by side, so a convolution at some of its widths
copies its part of the kernel first. Where a large kernel meets few positions, as at the end of a
VGG that sees one image, copies are a good part of the time (docs/runtime.md), and a branch makes
them on one core however many there are. There a kernel is held in tiles as well: a matrix per step
that the widths of the inputs take and step that those of the outputs take. A branch is a product
per tile that it needs, and copies nothing. As many multiply-accumulates, equal up to rounding.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, pairwise
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.convolve import LARGE_BYTES
from dce_jax.runtime.chain import TILES, Chain, Link, variables_of
from dce_jax.taps import patches
from dce_jax.types import Array, PyTree

MOST_POSITIONS = 64
"""Of outputs, over the batch: an image of 8x8. More of them pay for the copy (our choice)."""

_CONV = "conv"

_T = TypeVar("_T")

Tiles: TypeAlias = tuple[tuple[Array, ...], ...]
"""Per step of the inputs' widths and step of the outputs' float[kh * kw * d, c]."""


def tiled(
    chain: Chain,
    levels: Sequence[Sequence[int]],
    variables: PyTree,
    inputs: Sequence[jax.ShapeDtypeStruct],
) -> dict[str, PyTree]:
    """Variables of a network with the kernels of some sites in tiles too: these are held twice.

    Of sites whose inputs are a site's, whose kernel has at least `convolve.LARGE_BYTES`, and which
    put out at most `MOST_POSITIONS` positions. Branches of nested choices then run on tiles.

    Args:
      chain: the network.
      levels: per site the widths at which it may run.
      variables: collection -> tree, of the network.
      inputs: what every link sees (`execute.inputs`).
    """
    found = {}
    for index, (link, x) in enumerate(zip(chain.sites, inputs[1:-1], strict=True)):
        kernel = _kernel(link, variables)
        if kernel is not None and x.size // x.shape[-1] <= MOST_POSITIONS:
            found[link.name] = _cut(kernel, levels[index - 1], levels[index])
    return {**variables, TILES: found}


def _kernel(link: Link, variables: PyTree) -> Array | None:
    # A site of a single convolution keeps its image's size: a pool comes behind.
    if link.reads is None or _CONV not in dict(link.parts):
        return None
    kernel: Array = variables_of(link, variables)["params"][_CONV]["kernel"]
    return kernel if kernel.size * kernel.dtype.itemsize >= LARGE_BYTES else None


def _cut(kernel: Array, reads: Sequence[int], widths: Sequence[int]) -> Tiles:
    return tuple(
        tuple(
            jnp.asarray(kernel[:, :, start:end, first:last]).reshape(-1, last - first)
            for first, last in pairwise((0, *widths))
        )
        for start, end in pairwise((0, *reads))
    )


def of(link: Link, variables: Mapping[str, PyTree]) -> Tiles | None:
    """A link's tiles, where it has some."""
    found: Tiles | None = variables.get(TILES, {}).get(link.name)
    return found


def instead(tiles: Tiles) -> AbstractContextManager[None]:
    """While it lasts, a convolution that is called multiplies by tiles, and needs no kernel.

    The channels that it is given and those that it is built for tell which tiles.

    Args:
      tiles: of the one convolution that is called, stride 1.
    """

    def intercept(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        conv = context.module
        if not isinstance(conv, nn.Conv):
            return call(*args, **kwargs)
        return _multiplied(tiles, conv, args[0])

    return nn.intercept_methods(intercept)


def _multiplied(tiles: Tiles, conv: nn.Conv, x: Array) -> Array:
    size, padding = conv.kernel_size, conv.padding
    assert not isinstance(size, int) and isinstance(padding, int)
    area = math.prod(size)
    rows = _first(tiles, [row[0].shape[0] // area for row in tiles], x.shape[-1])
    count = len(_first(rows[0], [tile.shape[1] for tile in rows[0]], conv.features))
    splits = list(accumulate(row[0].shape[0] // area for row in rows))[:-1]
    read = [
        patches(part, size, (1, 1), ((padding, padding),) * 2)
        for part in jnp.split(x, splits, axis=-1)
    ]
    columns = [
        sum(jnp.dot(p, row[at].astype(p.dtype)) for p, row in zip(read, rows, strict=True))
        for at in range(count)
    ]
    return jnp.concatenate(columns, axis=-1)


def _first(items: Sequence[_T], sizes: Sequence[int], total: int) -> Sequence[_T]:
    """The items before a running total of their sizes."""
    ends = list(accumulate(sizes))
    return items[: ends.index(total) + 1]
