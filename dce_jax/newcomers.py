"""Newcomers that join quietly: a channel that never executed starts with consumers that ignore it.

An untrained channel between trained ones is noise to whoever reads it. Where its rows in its
consumers' kernels start at zero, the network computes at first what it did without the channel,
as when a network is widened without changing its function (Chen, Goodfellow and Shlens, ICLR 2016),
and the gradient decides what it is to be read for.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dce_jax.bandit import BanditState
from dce_jax.channels import AxisNames
from dce_jax.types import Array, PyTree, Selection, Widths


def unplayed(state: BanditState, selection: Selection) -> dict[str, Array]:
    """Which channels of a selection execute for the first time, beside others that have before.

    Where all of a group are new, as at the first selection, none counts as a newcomer: consumers
    that ignore a whole layer would have nothing to learn from.

    Args:
      state: the bandit, before the selection is booked.
      selection: group -> int32[K]; groups of the bandit that are absent execute whole.

    Returns:
      Group -> bool[K].
    """
    plays = {
        group: plays_C[selection[group]] if group in selection else plays_C
        for group, plays_C in state.plays.items()
    }
    return {g: (plays_K == 0) & jnp.any(plays_K > 0) for g, plays_K in plays.items()}


def quieted(
    params: PyTree, names: PyTree, newcomers: Mapping[str, Array], narrow: Widths
) -> PyTree:
    """Parameters in which no consumer reads a newcomer.

    Args:
      params: parameters of the slab.
      names: `AxisNames` per leaf.
      newcomers: group -> bool[K].
      narrow: group -> K, of every group.

    Returns:
      The parameters; rows of newcomers are zero, all others keep their bits.
    """

    def one(leaf: Array, name: AxisNames) -> Array:
        # A kernel's last axis is what it produces; it consumes along the others.
        for axis, groups in enumerate(name.axes[:-1]):
            if not any(group in newcomers for group in groups):
                continue
            known = [newcomers.get(g, jnp.zeros(narrow[g], bool)) for g in groups]
            along = tuple(-1 if i == axis else 1 for i in range(leaf.ndim))
            leaf = jnp.where(jnp.concatenate(known).reshape(along), 0, leaf)
        return leaf

    return jax.tree.map(one, params, names)
