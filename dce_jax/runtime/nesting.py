"""Channels in an order of their own, so that the first ones are those to keep."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dce_jax import channels as maps
from dce_jax.channels import ChannelMap
from dce_jax.runtime.chain import Chain, taken
from dce_jax.types import Array, PyTree


def by_norm(chain: Chain, variables: PyTree) -> dict[str, Array]:
    """Channels of every site, those with the largest l2 norm of their filters first.

    A reimplementation of Lin et al. 2017 by others nests channel groups by the mean norm of their
    filters; whether the authors do is not known to us.

    Args:
      chain: the network.
      variables: of it.

    Returns:
      Group -> int32[C].
    """
    found = {}
    for link in chain.sites:
        assert link.group is not None
        square = np.zeros(chain.width(link))
        for path in maps.producers(chain.channels)[link.group]:
            leaf = variables["params"]
            for name in path:
                leaf = leaf[name]
            square += np.square(np.asarray(leaf, np.float64)).sum(tuple(range(leaf.ndim - 1)))
        found[link.group] = jnp.asarray(np.argsort(-square, kind="stable"), jnp.int32)
    return found


def reordered(
    channels: ChannelMap, variables: PyTree, orders: Mapping[str, Array]
) -> dict[str, PyTree]:
    """A network's variables with channels in another order; what it computes stays the same.

    Args:
      channels: the network's map.
      variables: collection -> tree.
      orders: group -> int32[C], a permutation.
    """
    return {
        name: taken(tree, channels.names(name, tree), orders) for name, tree in variables.items()
    }
