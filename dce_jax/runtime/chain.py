"""Networks as chains of links, between which something may be decided per input.

The first link sees the image and the last one gives the logits; both always run whole. Each link
between them is a *site*: how many of a channel group's channels it computes, which ones, and, where
it has a shortcut, whether its branch runs at all, is decided from what comes in.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.channels import AxisNames, ChannelMap
from dce_jax.networks.resnet import Block, ResNet
from dce_jax.networks.vgg import VGG
from dce_jax.runtime.links import Head, Unit
from dce_jax.types import Array, PyTree

TILES = "tiles"
"""Variable collection beside the network's own: kernels in tiles (`runtime.tiles`), by link."""

Build: TypeAlias = Callable[[FrozenDict[str, int]], nn.Module]
"""Makes a link's module at given widths, channel group -> channels."""


class Link(NamedTuple):
    """A part of a network that runs between two decisions.

    Attributes:
      name: for people.
      build: its module at given widths; ``__call__(x, train=...)``.
      parts: name of a submodule -> its name in the network; empty: all of the network's ``name``.
      group: of the channels that a site chooses from; None for the first and the last link.
      reads: group of what comes in, where a site before it chose from it; else None.
      skippable: whether there is a shortcut around the branch.
    """

    name: str
    build: Build
    parts: tuple[tuple[str, str], ...] = ()
    group: str | None = None
    reads: str | None = None
    skippable: bool = False


class Chain(NamedTuple):
    """A network cut into links.

    Attributes:
      links: in the order in which they run.
      channels: the network's proved channel map.
    """

    links: tuple[Link, ...]
    channels: ChannelMap

    @property
    def sites(self) -> tuple[Link, ...]:
        """The links where something is decided."""
        return self.links[1:-1]

    def width(self, link: Link) -> int:
        """How many channels a site chooses from."""
        assert link.group is not None
        return self.channels.full[link.group]


def chain(module: nn.Module, channels: ChannelMap) -> Chain:
    """Cuts a network into links.

    In a VGG the first convolution always runs whole and each other one is a site. In a residual
    network with basic blocks each block is a site that chooses among its inner channels, and may
    be skipped.

    Args:
      module: a VGG, or a ResNet of basic blocks, at any widths: full, or those of a compact model.
      channels: its map.

    Raises:
      ValueError: another network.
    """
    if isinstance(module, VGG):
        return Chain(_vgg(module), channels)
    if isinstance(module, ResNet) and not (module.bottleneck or module.large):
        return Chain(_resnet(module), channels)
    kind = type(module).__name__
    raise ValueError(
        f"{kind} cannot be cut into links: per-input execution knows VGG and the ResNets for small "
        "images (resnet20, 32, 56, 110)"
    )


def _vgg(module: VGG) -> tuple[Link, ...]:
    ends = {last - 1 for last in accumulate(module.depths)}
    groups = tuple(f"conv{index}" for index in range(sum(module.depths)))

    def unit(index: int) -> Link:
        before, group = groups[index - 1] if index else None, groups[index]
        return Link(
            name=group,
            build=partial(Unit, before=before, group=group, dtype=module.dtype, pool=index in ends),
            parts=(("conv", f"conv{index}"), ("norm", f"norm{index}")),
            group=group if index else None,
            reads=before if index > 1 else None,
        )

    head = _head(groups[-1], module)
    return (*map(unit, range(len(groups))), head)


def _resnet(module: ResNet) -> tuple[Link, ...]:
    places = tuple(module.places())
    first = places[0].before
    stem = Link(
        "stem",
        partial(Unit, before=None, group=first, dtype=module.dtype),
        (("conv", "conv"), ("norm", "norm")),
    )
    blocks = [
        Link(
            place.name,
            partial(Block, place=place, shortcut=module.shortcut, dtype=module.dtype),
            group=place.inner[0],
            skippable=True,
        )
        for place in places
    ]
    return (stem, *blocks, _head(places[-1].after, module))


def _head(before: str, module: VGG | ResNet) -> Link:
    def build(widths: FrozenDict[str, int]) -> nn.Module:
        del widths
        return Head(before, module.num_classes, module.dtype)

    return Link("head", build, (("head", "head"),))


def variables_of(link: Link, variables: PyTree) -> dict[str, PyTree]:
    """A link's own variables, collection -> tree, out of the network's; tiles are none of them."""
    return {
        collection: _own(link, tree)
        for collection, tree in variables.items()
        if collection != TILES and _own(link, tree) is not None
    }


def _own(link: Link, tree: Mapping[str, Any]) -> PyTree | None:
    if not link.parts:
        return tree.get(link.name)
    found = {own: tree[name] for own, name in link.parts if name in tree}
    return found or None


def merged(link: Link, tree: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A collection of the network with a link's own part of it replaced."""
    if not link.parts:
        return {**tree, link.name: own}
    return {**tree, **{name: own[mine] for mine, name in link.parts if mine in own}}


def cut(
    chain: Chain, link: Link, variables: PyTree, kept: Mapping[str, int | Array]
) -> dict[str, PyTree]:
    """A link's variables at some of its channels.

    Args:
      chain: the network.
      link: one of its links.
      variables: the network's, collection -> tree.
      kept: group -> how many of its channels, the first ones; or which, int32[K] in any order.
    """
    own = variables_of(link, variables)
    names = variables_of(link, {name: chain.channels.names(name, variables[name]) for name in own})
    return {name: taken(tree, names[name], kept) for name, tree in own.items()}


def taken(tree: PyTree, names: PyTree, kept: Mapping[str, int | Array]) -> PyTree:
    """Some channels of every leaf, in any order.

    Args:
      tree: arrays.
      names: `AxisNames` per leaf.
      kept: group -> how many, the first ones; or which, int32[K]; absent groups stay whole.
    """

    def one(leaf: Array, names: AxisNames) -> Array:
        for axis, groups in enumerate(names.axes):
            chosen = kept.get(groups[0]) if len(groups) == 1 else None
            if isinstance(chosen, int):
                leaf = jax.lax.slice_in_dim(leaf, 0, chosen, axis=axis)
            elif chosen is not None:
                leaf = jnp.take(leaf, chosen, axis=axis, unique_indices=True, mode="clip")
        return leaf

    return jax.tree.map(one, tree, names)


def levels(chain: Chain, parts: int, *, skip: bool = False) -> tuple[tuple[int, ...], ...]:
    """Equal shares of each site's channels: the widths at which it may run.

    Args:
      chain: the network.
      parts: how many widths; the last is the full one.
      skip: whether a site may also run at width 0.

    Returns:
      Per site its widths, rising.

    Raises:
      ValueError: more parts than a site has channels, or a site without shortcut to be skipped.
    """
    found = []
    for link in chain.sites:
        width = chain.width(link)
        if not 1 <= parts <= width:
            raise ValueError(
                f"{parts} widths asked of {link.name}, which has {width} channels: choose 1 to "
                f"{width}"
            )
        shares = [-(-width * part // parts) for part in range(1, parts + 1)]
        found.append((0, *shares) if skip else tuple(shares))
    return checked(chain, found)


def checked(chain: Chain, levels: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Refuses widths at which a network cannot run.

    Args:
      chain: the network.
      levels: per site its widths.

    Raises:
      ValueError: not one set per site; a set that does not rise or lacks the full width; width 0
        at a site without shortcut.
    """
    if len(levels) != len(chain.sites):
        raise ValueError(f"{len(levels)} sets of widths for {len(chain.sites)} sites: one per site")
    found = tuple(map(tuple, levels))
    for link, widths in zip(chain.sites, found, strict=True):
        full = chain.width(link)
        if list(widths) != sorted(set(widths)) or widths[-1:] != (full,) or widths[0] < 0:
            raise ValueError(
                f"widths {widths} of {link.name} must rise from 0 or more to its full width "
                f"{full}, where images that need everything run"
            )
        if widths[0] == 0 and not link.skippable:
            raise ValueError(
                f"{link.name} has no shortcut, so nothing is left of it at width 0: choose a "
                "network of residual blocks, or widths from 1"
            )
    return found
