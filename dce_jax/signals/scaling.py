"""Scalings: what the values of a channel group are divided by.

All but l1 and l2 divide by a count that is one number per group. ``elements`` is ours: it makes a
channel's sum the mean over its elements. Cardinalities are coded as in the
scripts of Persand et al. (arXiv 1906.04675): a kernel counts its inputs times its positions, an
activation the inputs of its layer times its own positions.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp

from dce_jax import channels as maps
from dce_jax.channels import ChannelMap, Leaf
from dce_jax.signals import sites
from dce_jax.signals.sites import Scene
from dce_jax.types import Array, Rewards, Widths


def scaled(values: Rewards, scaling: str, counts: Mapping[str, int]) -> Rewards:
    """Values divided as a scaling says; a group whose divisor is 0 stays as it is.

    Args:
      values: group -> float[C].
      scaling: name of the scaling.
      counts: what `counts` gave for it.
    """
    if scaling == "none":
        return values
    if scaling == "l1":
        return {group: _divided(v, jnp.sum(jnp.abs(v))) for group, v in values.items()}
    if scaling == "l2":
        # Over the largest first: squares of very small or large values leave float32's range.
        ratios = {g: _divided(v, jnp.max(jnp.abs(v))) for g, v in values.items()}
        return {g: _divided(v, jnp.sqrt(jnp.sum(jnp.square(v)))) for g, v in ratios.items()}
    return {group: _divided(v, jnp.asarray(counts[group], v.dtype)) for group, v in values.items()}


def counts(scene: Scene, base: str, scaling: str, signal: str) -> dict[str, int]:
    """What a scaling divides by, where that is a count; {} for the others.

    Args:
      scene: the network, at the widths that are active.
      base: name of the base.
      scaling: name of the scaling.
      signal: for messages.

    Raises:
      ValueError: see `dce_jax.signals.sites`.
    """
    active = maps.module_widths(scene.module)
    if scaling == "weights_removed":
        return {group: weights_removed(scene.channels, active, group) for group in active}
    if scaling == "cardinality":
        return cardinality(scene, base, scene.channels.full, signal)
    if scaling == "elements":
        return elements(scene, base, active, signal)
    if scaling == "active_cardinality":
        return cardinality(scene, base, active, signal)
    return {}


def elements(scene: Scene, base: str, widths: Widths, signal: str) -> dict[str, int]:
    """How many numbers a channel of every group is, for one example: all its sites together.

    Args:
      scene: the network.
      base: name of the base.
      widths: group -> channels that count as inputs of a kernel.
      signal: for messages.
    """
    if base == "weights":
        return cardinality(scene, base, widths, signal)
    found = dict.fromkeys(widths, 0)
    for site in sites.checked(scene, base, signal).values():
        for group in site.places:
            found[group] += math.prod(site.shape[:-1])
    return found


def cardinality(scene: Scene, base: str, widths: Widths, signal: str) -> dict[str, int]:
    """Elements per channel of every group, all its producing layers together.

    Args:
      scene: the network.
      base: ``weights``, or anything else for activations.
      widths: group -> channels that count as inputs: all, or those that are active.
      signal: for messages.
    """
    leaves = {leaf.path: leaf for leaf in scene.channels.leaves if leaf.collection == "params"}
    paths = sites.kernels(scene.channels, signal)
    shapes = {
        path: leaves[path].names.cut(leaves[path].shape, scene.channels.full, widths)
        for each in paths.values()
        for path in each
    }
    if base == "weights":
        sizes = {path: math.prod(shape[:-1]) for path, shape in shapes.items()}
    else:
        found = sites.checked(scene, "activations", signal)
        sizes = {p: s[-2] * math.prod(found[p[:-1]].shape[:-1]) for p, s in shapes.items()}
    return {group: sum(sizes[path] for path in each) for group, each in paths.items()}


def weights_removed(channels: ChannelMap, widths: Widths, group: str) -> int:
    """Parameters that disappear with one channel, its consumers' input slices included.

    Args:
      channels: the map of the full-width network.
      widths: group -> channels that are active.
      group: whose channel.
    """
    fewer = {**widths, group: widths[group] - 1}
    leaves = [leaf for leaf in channels.leaves if leaf.collection == "params"]
    return sum(_size(leaf, channels, widths) - _size(leaf, channels, fewer) for leaf in leaves)


def _size(leaf: Leaf, channels: ChannelMap, widths: Widths) -> int:
    return math.prod(leaf.names.cut(leaf.shape, channels.full, widths))


def _divided(values: Array, by: Array) -> Array:
    return values / jnp.where(by == 0, jnp.ones_like(by), by)
