"""Means over batches, of which one may be smaller than the others."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from dce_jax.types import PyTree


def over(parts: Iterable[tuple[PyTree, int]], what: str) -> PyTree:
    """The mean over all examples of what each batch has the mean of.

    Args:
      parts: (arrays of one structure, how many examples they are the mean of).
      what: for the message.

    Raises:
      ValueError: no batches.
    """
    total, count = None, 0
    for tree, size in parts:
        weighed = jax.tree.map(lambda leaf, size=size: leaf * size, tree)
        total = weighed if total is None else jax.tree.map(jnp.add, total, weighed)
        count += size
    if total is None:
        raise ValueError(f"{what} are means over batches, but there was none: give at least one")
    return jax.tree.map(lambda leaf: leaf / count, total)
