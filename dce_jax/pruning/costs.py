"""What a network costs at any widths, as a table that many widths are read off quickly.

`dce_jax.cost` traces the network for one number; a greedy choice asks for thousands, because what
a channel saves changes with every neighbour that shrinks. Products and convolutions cost so much
per element of their kernel, whatever its size: the table holds that, taken from the counter, and is
checked against the counter at other widths before it is used.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import numpy.typing as npt

from dce_jax import channels as maps
from dce_jax import cost, forward
from dce_jax.channels import ChannelMap, Leaf
from dce_jax.types import Widths

Counts = npt.NDArray[np.int64]


class Costs(NamedTuple):
    """Cost of a network as a sum over leaves: ``each_T * prod over axes of that axis's size``.

    Letters: ``T`` leaves, ``X`` axes, ``G`` channel groups.

    Attributes:
      groups: in the network's order.
      each_T: int64[T], cost per element of a leaf, times its axes that are never cut.
      times_TXG: int64[T, X, G], how often a group lies along an axis.
      fixed_TX: int64[T, X], 1 where an axis is never cut, else 0.
    """

    groups: tuple[str, ...]
    each_T: Counts
    times_TXG: Counts
    fixed_TX: Counts


def macs(module: nn.Module, channels: ChannelMap, example: Any) -> Costs:
    """Multiply-accumulates of one forward pass of one example.

    Args:
      module: the network at full width.
      channels: its map.
      example: inputs or their `jax.ShapeDtypeStruct`; the first axis counts as one example.

    Raises:
      ValueError: work that is no kernel's, so that no table foretells it.
    """
    counted = {layer.name: layer.macs for layer in _layers(module, example)}
    leaves = [leaf for leaf in channels.leaves if leaf.collection == "params" and leaf.shape[1:]]
    each: list[tuple[Leaf, int]] = []
    for name, count in counted.items():
        own = [leaf for leaf in leaves if maps.show(leaf.path[:-1]) == name]
        if len(own) != 1 or count % _size(own[0]):
            raise ValueError(
                f"{count:,} multiply-accumulates of layer {name or '(the network itself)'!r} do "
                f"not follow from one kernel ({len(own)} there): give every product and "
                "convolution a layer of its own"
            )
        each.append((own[0], count // _size(own[0])))
    found = _table(channels, each)
    for narrow in _others(channels.full):
        exact = sum(layer.macs for layer in _layers(maps.with_widths(module, narrow), example))
        if total(found, narrow) != exact:
            raise ValueError(
                f"the network costs {exact:,} multiply-accumulates at widths {narrow}, where its "
                f"kernels foretell {total(found, narrow):,}: products of activations, whose cost "
                "is not in proportion to a kernel, cannot be pruned by cost"
            )
    return found


def parameters(channels: ChannelMap) -> Costs:
    """Number of parameters."""
    return _table(channels, [(leaf, 1) for leaf in channels.leaves if leaf.collection == "params"])


def total(costs: Costs, widths: Widths) -> int:
    """Cost at widths.

    Args:
      costs: the table.
      widths: group -> channels, of every group.
    """
    return int(np.sum(costs.each_T * np.prod(_sizes(costs, _counts(costs, widths)), axis=1)))


def savings(costs: Costs, widths: Widths, fewer: Widths) -> Counts:
    """What each group would save alone, at these widths of all the others.

    Args:
      costs: the table.
      widths: group -> channels, of every group.
      fewer: group -> channels that it would lose.

    Returns:
      int64[G], in the order of ``costs.groups``; neighbours' input slices included.
    """
    sizes_TX = _sizes(costs, _counts(costs, widths))
    before_T = np.prod(sizes_TX, axis=1)
    less_TXG = costs.times_TXG * _counts(costs, fewer)
    after_TG = np.prod(sizes_TX[:, :, None] - less_TXG, axis=1)
    found: Counts = np.sum(costs.each_T[:, None] * (before_T[:, None] - after_TG), axis=0)
    return found


def _counts(costs: Costs, widths: Widths) -> Counts:
    return np.array([widths[group] for group in costs.groups], np.int64)


def _sizes(costs: Costs, widths_G: Counts) -> Counts:
    found: Counts = costs.times_TXG @ widths_G + costs.fixed_TX
    return found


def _layers(module: nn.Module, example: Any) -> tuple[cost.LayerCost, ...]:
    one = jax.ShapeDtypeStruct((1, *example.shape[1:]), example.dtype)
    variables = nn.unbox(forward.shapes(module, one))
    return cost.layers(lambda v, x: module.apply(v, x), variables, one)


def _size(leaf: Leaf) -> int:
    return int(np.prod(leaf.shape))


def _table(channels: ChannelMap, each: Iterable[tuple[Leaf, int]]) -> Costs:
    each, groups = list(each), tuple(channels.full)
    axes = max(len(leaf.shape) for leaf, _ in each)
    times = np.zeros((len(each), axes, len(groups)), np.int64)
    fixed, factor = np.ones((len(each), axes), np.int64), np.zeros(len(each), np.int64)
    for row, (leaf, count) in enumerate(each):
        factor[row] = count
        for axis, (size, names) in enumerate(zip(leaf.shape, leaf.names.axes, strict=True)):
            if not names:
                factor[row] *= size
                continue
            fixed[row, axis] = 0
            for name in names:
                times[row, axis, groups.index(name)] += 1
    return Costs(groups, factor, times, fixed)


def _others(full: Widths) -> list[dict[str, int]]:
    """Two other widths at which a table must hold: half of every group, and unlike shares."""
    half = {group: max(1, width // 2) for group, width in full.items()}
    unlike = {g: max(1, w * (1 + i % 3) // 4) for i, (g, w) in enumerate(full.items())}
    return [half, unlike]
