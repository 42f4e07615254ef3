"""Reductions: from the elements of a channel to one number per example.

A channel's elements may lie in several layers (a residual stream is written by many). Three sums
over them are additive, layer by layer; every reduction is a function of those.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from dce_jax.types import Array


class Sums(NamedTuple):
    """Sums over the elements of each channel, float[..., C].

    Attributes:
      total: ``sum f``.
      absolute: ``sum |f|``.
      square: ``sum f^2``.
    """

    total: Array
    absolute: Array
    square: Array


def sums(f: Array) -> Sums:
    """The three sums over all axes but the last.

    Args:
      f: float[..., C], pointwise values of one layer for one example.

    Returns:
      float[C] each, at least in single precision.
    """
    f = precise(f)
    axes = tuple(range(f.ndim - 1))
    return Sums(
        jnp.sum(f, axis=axes), jnp.sum(jnp.abs(f), axis=axes), jnp.sum(jnp.square(f), axis=axes)
    )


def precise(values: Array) -> Array:
    """At least single precision."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def plain(sums: Sums) -> Array:
    """``sum f``; called NONE in the authors' scripts."""
    return sums.total


def l1(sums: Sums) -> Array:
    """``sum |f|``."""
    return sums.absolute


def l2(sums: Sums) -> Array:
    """``sum f^2``, without a root."""
    return sums.square


def abs_sum(sums: Sums) -> Array:
    """``|sum f|``."""
    return jnp.abs(sums.total)


def sqr_sum(sums: Sums) -> Array:
    """``(sum f)^2``."""
    return jnp.square(sums.total)


BY_NAME: dict[str, Callable[[Sums], Array]] = {
    "sum": plain,
    "l1": l1,
    "l2": l2,
    "abs_sum": abs_sum,
    "sqr_sum": sqr_sum,
}

OF_THE_TOTAL = frozenset({"sum", "abs_sum", "sqr_sum"})
"""Reductions that need ``sum f`` alone."""
