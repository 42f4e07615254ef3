"""Where a channel group lies on norms that several groups share (concatenations)."""

from dce_jax import channels as maps
from dce_jax.types import Parts, Widths


def norm_parts(channels: maps.ChannelMap, widths: Widths) -> Parts:
    """Finds the groups of every parameter vector that holds more than one, or one repeatedly.

    Args:
      channels: the map of the full-width network.
      widths: of the network whose vectors will be read: group -> K for a slab's.

    Returns:
      Norm path -> group -> ``(start, size)`` of each of its places, in the vector's order.
    """
    found: dict[tuple[str, ...], dict[str, tuple[tuple[int, int], ...]]] = {}
    for leaf in channels.leaves:
        if leaf.collection != "params" or len(leaf.shape) != 1 or len(leaf.names.axes[0]) < 2:
            continue
        places: dict[str, tuple[tuple[int, int], ...]] = {}
        start = 0
        for group in leaf.names.axes[0]:
            places[group] = (*places.get(group, ()), (start, widths[group]))
            start += widths[group]
        found[leaf.path[:-1]] = places
    return found
