"""Lookups along one axis of an array: by index, or as a product with a one-hot matrix.

A TPU gathers slowly along the two minor-most dimensions of an array (jax-ml/jax#10140), where a
kernel's channels lie, and multiplies matrices fast. Both ways give the same bits, those of NaN
and of infinities included.
"""

from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from jax import lax

from dce_jax.types import Array

Lookup: TypeAlias = Literal["index", "one_hot"]
"""How entries are found: XLA's gather, or products with one-hot matrices."""


def check(lookup: str) -> None:
    """Refuses a lookup that does not exist.

    Raises:
      ValueError: ``lookup`` is no `Lookup`.
    """
    if lookup not in get_args(Lookup):
        raise ValueError(f"unknown lookup {lookup!r}: one of {', '.join(get_args(Lookup))}")


def take(x: Array, indices: Array, axis: int, lookup: Lookup, *, unique: bool) -> Array:
    """Entries of one axis.

    Args:
      x: any[..., C, ...]; bools and complex numbers are always found by index.
      indices: int32[K], sorted and in 0..C-1.
      axis: where C is.
      lookup: the way.
      unique: whether no index is there twice, which a gather may make use of.

    Returns:
      any[..., K, ...].
    """
    if lookup == "one_hot" and not (x.dtype == bool or jnp.iscomplexobj(x)):
        return _product(x, indices, axis)
    return x.at[(*(slice(None),) * axis, indices)].get(
        indices_are_sorted=True, unique_indices=unique, mode="promise_in_bounds"
    )


def hits(indices: Array, width: int, lookup: Lookup) -> Array:
    """Which of ``width`` places are named by sorted, distinct ``indices`` int32[K]: bool[C]."""
    if lookup == "one_hot":
        return jnp.any(_one_hot(indices, width), axis=0)
    none = jnp.zeros(width, bool)
    return none.at[indices].set(
        True, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )


def _one_hot(indices: Array, width: int) -> Array:
    return jnp.asarray(indices)[:, None] == jnp.arange(width, dtype=jnp.int32)[None, :]


def _product(x: Array, indices: Array, axis: int) -> Array:
    # Byte by byte: bfloat16, which a TPU multiplies in, holds 0 to 255 exactly and every sum has
    # one term that is not zero. So one pass is exact, and no NaN or infinity meets a zero.
    matrix = _one_hot(indices, x.shape[axis]).astype(jnp.float32)
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    found = jnp.zeros((), bits.dtype)
    for shift in range(0, 8 * x.dtype.itemsize, 8):
        byte = ((bits >> shift) & 255).astype(jnp.float32)
        picked = lax.dot_general(
            byte, matrix, (((axis,), (1,)), ((), ())), precision=lax.Precision.DEFAULT
        )
        byte = jnp.moveaxis(picked, -1, axis).astype(jnp.int32).astype(bits.dtype)
        found = found | (byte << shift)
    return lax.bitcast_convert_type(found, x.dtype)
