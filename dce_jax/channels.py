"""The channel map: which axis of which leaf belongs to which channel groups.

A network names the axes of its parameters with `flax.linen.with_logical_partitioning`; an axis
with a group's name is cut with that group. A name may also be a tuple of groups: the axis is
their concatenation (DenseNet), or the same group repeated (an image flattened before a dense
layer, position by position). The map is built from `jax.eval_shape`, checked at full and narrow
widths, and proved by a probe on numbers (`dce_jax.probe`) before anything is trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
from flax.core import FrozenDict

from dce_jax import budget as budgets
from dce_jax.types import Path, PyTree, Widths


@dataclass(frozen=True)
class AxisNames:
    """Channel groups of every axis of one leaf; itself a leaf of a names tree.

    Attributes:
      axes: per axis the groups whose channels lie along it, one after another; () = never cut.
    """

    axes: tuple[tuple[str, ...], ...] = ()

    @property
    def groups(self) -> frozenset[str]:
        """All groups that cut this leaf."""
        return frozenset(group for axis in self.axes for group in axis)

    def cut(self, shape: tuple[int, ...], full: Widths, narrow: Widths) -> tuple[int, ...]:
        """The shape that a leaf of full-width ``shape`` has at ``narrow`` widths."""
        if not self.axes:
            return shape
        return tuple(
            sum(narrow.get(g, full[g]) for g in axis) if axis else size
            for size, axis in zip(shape, self.axes, strict=True)
        )


@dataclass(frozen=True)
class Leaf:
    """One named leaf of the network's variables.

    Attributes:
      collection: ``params`` or the name of a state collection, such as ``batch_stats``.
      path: where it stands in its collection.
      shape: at full width.
      dtype: of its elements.
      names: groups per axis.
    """

    collection: str
    path: Path
    shape: tuple[int, ...]
    dtype: Any
    names: AxisNames


@dataclass(frozen=True)
class ChannelMap:
    """All leaves and channel groups of a network.

    Attributes:
      widths: ``(group, C)`` in the network's order.
      leaves: every leaf of params and model state, cut or not.
    """

    widths: tuple[tuple[str, int], ...]
    leaves: tuple[Leaf, ...]

    @property
    def full(self) -> dict[str, int]:
        """Group -> C."""
        return dict(self.widths)

    def names(self, collection: str, tree: PyTree) -> PyTree:
        """The names tree of a collection: like ``tree``, an `AxisNames` for every leaf.

        Raises:
          ValueError: a leaf that the map does not know.
        """
        known = {leaf.path: leaf.names for leaf in self.leaves if leaf.collection == collection}

        def look_up(path: Any, _: Any) -> AxisNames:
            if path_names(path) not in known:
                raise ValueError(
                    f"{collection} leaf {show(path_names(path))} is not in the map: it is of "
                    "another network, or still in its box (flax.linen.unbox)"
                )
            return known[path_names(path)]

        return jax.tree_util.tree_map_with_path(look_up, tree)

    def table(self) -> str:
        """Groups, widths and the axes they cut, as text for people."""
        lines = []
        for group, width in self.widths:
            lines.append(f"{group}  C={width}")
            for place in places(self, group):
                lines.append(f"    {place['path']}  axis {place['axis']}  offset {place['offset']}")
        return "\n".join(lines)


def build(module: nn.Module, variables: PyTree) -> ChannelMap:
    """Builds the channel map from boxed shapes; shapes are not checked yet (`check_shapes`).

    Args:
      module: a Linen module with an attribute ``widths``.
      variables: ``jax.eval_shape`` of its ``init``, metadata boxes kept.

    Raises:
      ValueError: no ``widths``, an unknown name, an axis whose size is not its groups' sum, or a
        group that nobody produces or consumes; the leaf or group is named with the remedy.
    """
    widths = module_widths(module)
    boxed = jax.tree_util.tree_leaves_with_path(variables["params"], is_leaf=_is_box)
    leaves = [_named_leaf("params", path_names(path), box, widths) for path, box in boxed]
    by_path = {leaf.path: leaf for leaf in leaves}
    state = [
        _state_leaf(collection, path_names(path), value, widths, by_path)
        for collection, tree in variables.items()
        if collection != "params"
        for path, value in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box)
    ]
    _check_ends(leaves, widths)
    return ChannelMap(tuple(widths.items()), tuple(leaves + state))


def check_shapes(channels: ChannelMap, narrow: Widths, variables: PyTree) -> None:
    """Proves that the network at ``narrow`` widths has exactly the shapes that the map foretells.

    Args:
      channels: the map of the full-width network.
      narrow: group -> width, at most C.
      variables: shapes of the network's variables at those widths, unboxed.

    Raises:
      ValueError: a leaf that appears, vanishes, or has another shape, named with the remedy.
    """
    found = {
        (collection, path_names(path)): value.shape
        for collection, tree in variables.items()
        for path, value in jax.tree_util.tree_leaves_with_path(tree)
    }
    expected = {
        (leaf.collection, leaf.path): leaf.names.cut(leaf.shape, channels.full, narrow)
        for leaf in channels.leaves
    }
    for key in found.keys() ^ expected.keys():
        raise ValueError(
            f"{key[0]} leaf {show(key[1])} exists at only one of the full and the narrow widths: "
            "a network's tree must not depend on its widths"
        )
    for (collection, path), shape in expected.items():
        if found[collection, path] != shape:
            raise ValueError(
                f"{collection} leaf {show(path)} has shape {found[collection, path]} at narrow "
                f"widths, where its axis names foretell {shape}: name each axis that follows a "
                "group's width with nn.with_logical_partitioning, and only those (running "
                "statistics take the names of their norm's scale or bias: it needs one of the two)"
            )


def places(channels: ChannelMap, group: str) -> list[dict[str, Any]]:
    """Where a group's channels lie: ``{path, axis, offset}`` per leaf axis, params first.

    Raises:
      ValueError: unknown group.
    """
    budgets.check_group(group, channels.full)
    found = []
    for leaf in channels.leaves:
        for axis, groups in enumerate(leaf.names.axes):
            offset = 0
            for name in groups:
                if name == group:
                    path = show((leaf.collection, *leaf.path))
                    found.append({"path": path, "axis": axis, "offset": offset})
                offset += channels.full[name]
    return found


def producers(channels: ChannelMap) -> dict[str, tuple[Path, ...]]:
    """Group -> paths of the kernels whose last axis it is alone on."""
    return {
        group: tuple(
            leaf.path
            for leaf in channels.leaves
            if leaf.collection == "params"
            and len(leaf.shape) > 1
            and leaf.names.axes[-1] == (group,)
        )
        for group, _ in channels.widths
    }


def module_widths(module: nn.Module) -> dict[str, int]:
    """The ``widths`` attribute of a network.

    Raises:
      ValueError: the module has none, or it is not a non-empty mapping of positive integers.
    """
    widths = getattr(module, "widths", None)
    if not isinstance(widths, Mapping) or not widths:
        raise ValueError(
            f"{type(module).__name__} has no `widths`: a network takes its widths as data, as an "
            "attribute `widths: FrozenDict[str, int]` that maps each channel group to its size"
        )
    for group, width in widths.items():
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"width {width!r} of group {group!r} must be an integer >= 1")
    return dict(widths)


def with_widths(module: nn.Module, widths: Widths) -> nn.Module:
    """The same network class at other widths."""
    return module.clone(widths=FrozenDict(widths))


def path_names(path: Any) -> Path:
    """A JAX key path as plain strings."""
    return tuple(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def show(path: Path) -> str:
    """A path as people write it."""
    return "/".join(path)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.meta.AxisMetadata)


def _named_leaf(collection: str, path: Path, box: Any, widths: Widths) -> Leaf:
    value = nn.unbox(box)
    given = getattr(box, "names", (None,) * value.ndim) if _is_box(box) else (None,) * value.ndim
    if len(given) != value.ndim:
        raise ValueError(
            f"leaf {show(path)} of shape {value.shape} is given {len(given)} axis names {given}: "
            "give one per axis, None for an axis that is never cut"
        )
    axes = tuple(() if n is None else (n,) if isinstance(n, str) else tuple(n) for n in given)
    for axis, groups in enumerate(axes):
        for group in groups:
            try:
                budgets.check_group(group, widths)
            except ValueError as error:
                raise ValueError(f"leaf {show(path)}, axis {axis}: {error}") from error
        total = sum(widths[group] for group in groups)
        if groups and total != value.shape[axis]:
            raise ValueError(
                f"leaf {show(path)} has {value.shape[axis]} entries on axis {axis}, but its groups "
                f"{groups} have {total} channels together: the name is wrong, or two sizes share it"
            )
    return Leaf(collection, path, value.shape, value.dtype, AxisNames(axes))


def _state_leaf(
    collection: str, path: Path, value: Any, widths: Widths, params: dict[Path, Leaf]
) -> Leaf:
    if _is_box(value):
        return _named_leaf(collection, path, value, widths)
    # Initializers of running statistics carry no names, so the norm's own vectors lend theirs.
    for sibling in ("scale", "bias"):
        leaf = params.get((*path[:-1], sibling))
        if leaf is not None and leaf.shape == value.shape:
            return Leaf(collection, path, value.shape, value.dtype, leaf.names)
    return Leaf(collection, path, value.shape, value.dtype, AxisNames(((),) * value.ndim))


def _check_ends(leaves: list[Leaf], widths: Widths) -> None:
    # A channel is produced on the last axis of a leaf and consumed on an earlier axis of a kernel.
    made = {group for leaf in leaves if leaf.names.axes for group in leaf.names.axes[-1]}
    read = {group for leaf in leaves for axis in leaf.names.axes[:-1] for group in axis}
    for group in widths:
        if group not in made:
            raise ValueError(
                f"group {group!r} names no output axis of any parameter: nothing produces it; "
                "name its kernel's last axis, or drop it from `widths`"
            )
        if group not in read:
            raise ValueError(
                f"group {group!r} names no input axis of any kernel: nobody consumes it, so its "
                "channels would reach the output uncut; name each consumer's input axis, or hold "
                "the layer out of `widths`"
            )
