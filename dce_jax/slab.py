"""Gather and scatter: the way into slab space and back, an exact inverse pair.

Both work on any tree that has a names tree (`ChannelMap.names`, `moments.optimizer_names`):
parameters, optimizer moments and model state alike. Either of two lookups carries them, bit for
bit the same (`dce_jax.lookups`): by index, or as a product with a one-hot matrix.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import lookups
from dce_jax.budget import Budget, check_group
from dce_jax.channels import AxisNames
from dce_jax.lookups import Lookup
from dce_jax.types import Array, PyTree, Selection, Widths


def gather(
    tree: PyTree, names: PyTree, selection: Selection, full: Widths, *, lookup: Lookup = "index"
) -> PyTree:
    """Cuts every leaf down to the selected channels.

    Args:
      tree: full-width arrays.
      names: `AxisNames` per leaf of ``tree``.
      selection: group -> int32[K]; groups that are absent stay whole.
      full: group -> C.
      lookup: how entries are found; the slab's bits are the same.

    Returns:
      The slab, of the same structure and dtypes.
    """

    def one(leaf: Array, name: AxisNames) -> Array:
        # The last axis first: its entries lie side by side, so the pass over the whole leaf is
        # cheap.
        for axis, chosen in reversed(_cuts(name, selection, full)):
            leaf = lookups.take(jnp.asarray(leaf), chosen, axis, lookup, unique=True)
        return leaf

    return jax.tree.map(one, tree, names)


def scatter(
    tree: PyTree,
    slab: PyTree,
    names: PyTree,
    selection: Selection,
    full: Widths,
    *,
    lookup: Lookup = "index",
) -> PyTree:
    """Writes a slab back; entries that were not selected keep their bits.

    Args:
      tree: full-width arrays.
      slab: what `gather` gave for the same selection, updated.
      names: as in `gather`.
      selection: as in `gather`.
      full: as in `gather`.
      lookup: as in `gather`.

    Returns:
      The full-width tree with the slab's values in the selected places.
    """

    def one(leaf: Array, part: Array, name: AxisNames) -> Array:
        return _scatter(leaf, part, _cuts(name, selection, full), lookup)

    return jax.tree.map(one, tree, slab, names)


def check_selection(selection: Mapping[str, Array | np.ndarray], budget: Budget) -> None:
    """Refuses a selection that does not fit a budget; needs concrete arrays.

    Raises:
      ValueError: unknown or missing group, wrong shape or dtype, indices out of range, unsorted
        or repeated.
    """
    for group in selection:
        check_group(group, budget.full)
    for group in budget.contested:
        if group not in selection:
            raise ValueError(f"the selection lacks group {group!r}, whose K < C")
    for group, chosen in selection.items():
        indices, wide, size = np.asarray(chosen), budget.full[group], budget.compact[group]
        if indices.shape != (size,) or indices.dtype != np.int32:
            raise ValueError(
                f"selection of {group!r} must be int32[{size}], got "
                f"{indices.dtype}{list(indices.shape)}"
            )
        if np.any(np.diff(indices) <= 0) or indices[0] < 0 or indices[-1] >= wide:
            raise ValueError(
                f"selection of {group!r} must be sorted, distinct and in 0..{wide - 1}, got "
                f"{indices.tolist()}"
            )


def _axis_indices(groups: Sequence[str], selection: Selection, full: Widths) -> Array | None:
    # None: the axis is whole. Offsets keep the concatenation sorted and distinct.
    if not any(group in selection for group in groups):
        return None
    parts, offset = [], 0
    for group in groups:
        chosen = selection.get(group)
        if chosen is None:
            chosen = jnp.arange(full[group], dtype=jnp.int32)
        parts.append(chosen + jnp.int32(offset))
        offset += full[group]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _cuts(name: AxisNames, selection: Selection, full: Widths) -> list[tuple[int, Array]]:
    indices = [_axis_indices(groups, selection, full) for groups in name.axes]
    return [(axis, chosen) for axis, chosen in enumerate(indices) if chosen is not None]


def _scatter(leaf: Array, part: Array, cuts: list[tuple[int, Array]], lookup: Lookup) -> Array:
    # Written as a gather and a choice between old and new: on a donated buffer XLA fuses it into
    # one in-place pass, where its scatter of the same entries goes one by one on a CPU.
    if not cuts:
        return part
    part = jnp.asarray(part)
    chosen_here = jnp.ones((1,) * leaf.ndim, bool)
    for axis, chosen in reversed(cuts):
        hit = lookups.hits(chosen, leaf.shape[axis], lookup)
        # Indices are sorted, so the n-th hit is entry n of the slab.
        source = jnp.maximum(jnp.cumsum(hit, dtype=jnp.int32) - 1, 0)
        part = lookups.take(part, source, axis, lookup, unique=False)
        along = tuple(-1 if i == axis else 1 for i in range(leaf.ndim))
        chosen_here = chosen_here & hit.reshape(along)
    return jnp.where(chosen_here, part, leaf)
