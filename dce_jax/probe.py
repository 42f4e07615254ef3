"""The probe: proves on random numbers that a channel map means what its names say.

At random parameters, inputs and a random selection, the narrow network on gathered variables must
give what the full network gives when every consumer's rows of unselected channels are zero, in
inference and in training mode. Layers that mix a group's channels (LayerNorm, GroupNorm, softmax)
and wrong names fail it, whatever their shapes.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import channels as maps
from dce_jax import forward, masks, slab
from dce_jax.channels import ChannelMap, Leaf
from dce_jax.types import Array, PyTree, Selection

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest output (or 1)."""


def channel_map(module: nn.Module, example: Any) -> ChannelMap:
    """Builds, checks and proves the channel map of a network.

    Args:
      module: Linen module with an attribute ``widths: FrozenDict[str, int]`` whose parameters name
        their axes; its ``__call__`` takes inputs and optionally ``train``.
      example: float[B, ...] inputs or their `jax.ShapeDtypeStruct`; two examples are enough.

    Returns:
      The proved map.

    Raises:
      ValueError: whatever cannot be proved, naming the leaf or the group and the remedy.
    """
    channels = maps.build(module, forward.shapes(module, example))
    narrow = _narrow_widths(channels)
    maps.check_shapes(channels, narrow, _narrow_shapes(module, example, channels, narrow))
    differences = _differences(module, example, channels, narrow)
    if not _close(differences):
        _refuse(module, example, channels, narrow, differences)
    return channels


def _narrow_widths(channels: ChannelMap) -> dict[str, int]:
    # Neighbouring groups get unlike budgets, so that a swapped name shows in the shapes.
    return {
        group: max(1, width // 2 - index % 3) if width > 1 else 1
        for index, (group, width) in enumerate(channels.widths)
    }


def _narrow_shapes(
    module: nn.Module, example: Any, channels: ChannelMap, narrow: dict[str, int]
) -> PyTree:
    try:
        return nn.unbox(forward.shapes(maps.with_widths(module, narrow), example))
    except Exception as error:  # whatever it is: at full width the network ran
        tied = [g for g in narrow if not _traces(module, example, {**channels.full, g: narrow[g]})]
        raise ValueError(
            f"the network does not run when channels of {tied or list(narrow)} are left out "
            f"({error}). Groups that are added together, or share a layer, must share a name; "
            "nothing else may fix their sizes"
        ) from error


def _traces(module: nn.Module, example: Any, widths: dict[str, int]) -> bool:
    try:
        forward.shapes(maps.with_widths(module, widths), example)
    except Exception:
        return False
    return True


def _refuse(
    module: nn.Module,
    example: Any,
    channels: ChannelMap,
    narrow: dict[str, int],
    differences: dict[str, float],
) -> None:
    guilty = []
    for group, width in narrow.items():
        if not _holds(module, example, channels, {**channels.full, group: width}):
            guilty.append(group)
    worst = max(differences, key=lambda mode: differences[mode])
    raise ValueError(
        f"the network's meaning changes when channels of {guilty or list(narrow)} are left out: "
        f"{worst} differs by {differences[worst]:.2g} (limit {TOLERANCE}) from the full network "
        "with the consumers' rows of those channels set to zero. Either a layer mixes the group's "
        "channels (LayerNorm, GroupNorm, softmax or a mean over channels: use BatchNorm, or keep "
        "that layer's group out of `widths`), or an axis carries the wrong group's name"
    )


def _holds(module: nn.Module, example: Any, channels: ChannelMap, narrow: dict[str, int]) -> bool:
    try:
        return _close(_differences(module, example, channels, narrow))
    except Exception:  # names that foretell other shapes than the network has at these widths
        return False


def _close(differences: dict[str, float]) -> bool:
    return all(value <= TOLERANCE for value in differences.values())


def _differences(
    module: nn.Module, example: Any, channels: ChannelMap, narrow: dict[str, int]
) -> dict[str, float]:
    module = module.clone(dtype=jnp.float32) if hasattr(module, "dtype") else module
    thin = maps.with_widths(module, narrow)
    # Numbers from the host: compiling hundreds of device draws would cost more than the probe.
    draw = np.random.default_rng(1)
    x = draw.normal(size=example.shape).astype(example.dtype)
    variables = _random_variables(draw, channels)
    selection = _random_selection(draw, channels, narrow)
    run = jax.jit(lambda *args: _compare(module, thin, channels, *args))
    with jax.default_matmul_precision("highest"):
        gaps = run(x, variables, selection, masks.of(selection, channels.full))
        return {mode: float(gap) for mode, gap in gaps.items()}


def _compare(
    module: nn.Module,
    thin: nn.Module,
    channels: ChannelMap,
    x: Array,
    variables: PyTree,
    selection: Selection,
    seen: masks.Masks,
) -> dict[str, Array]:
    names = {name: channels.names(name, tree) for name, tree in variables.items()}
    masked = {n: masks.unread(tree, names[n], seen) for n, tree in variables.items()}
    cut = {
        name: slab.gather(tree, names[name], selection, channels.full)
        for name, tree in variables.items()
    }
    found = {}
    for train in (False, True):
        wide_y, wide_state = _run(module, masked, x, train)
        thin_y, thin_state = _run(thin, cut, x, train)
        mode = "training" if train else "inference"
        found[f"output in {mode} mode"] = _distance(wide_y, thin_y)
        for name, tree in wide_state.items():
            kept = slab.gather(tree, names[name], selection, channels.full)
            found[f"{name} in {mode} mode"] = _distance(kept, thin_state[name])
    return found


def _run(module: nn.Module, variables: PyTree, x: Array, train: bool) -> tuple[PyTree, PyTree]:
    state = {name: tree for name, tree in variables.items() if name != "params"}
    with nn.intercept_methods(_without_dropout):
        return forward.apply(
            module, variables["params"], state, x, train=train, key=jax.random.key(0)
        )


def _without_dropout(
    method: Callable[..., Any], args: tuple, kwargs: dict, context: nn.module.InterceptorContext
) -> Any:
    # Dropout draws a mask of the width's shape: two widths never draw the same one.
    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0]
    return method(*args, **kwargs)


def _random_variables(draw: np.random.Generator, channels: ChannelMap) -> PyTree:
    # Initial biases, norms and statistics are constants, which would hide a wrong name.
    variables: dict[str, Any] = {}
    for leaf in channels.leaves:
        tree = variables.setdefault(leaf.collection, {})
        for name in leaf.path[:-1]:
            tree = tree.setdefault(name, {})
        tree[leaf.path[-1]] = _random_leaf(draw, leaf)
    return variables


def _random_leaf(draw: np.random.Generator, leaf: Leaf) -> np.ndarray:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    if len(leaf.shape) < 2:
        return draw.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    fan_in = np.prod(leaf.shape[:-1])
    return (draw.normal(size=leaf.shape) * np.sqrt(2.0 / fan_in)).astype(leaf.dtype)


def _random_selection(
    draw: np.random.Generator, channels: ChannelMap, narrow: dict[str, int]
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    latest: dict[tuple[int, int], np.ndarray] = {}
    for group, width in channels.widths:
        count = narrow[group]
        if count == width:
            continue
        chosen = np.sort(draw.permutation(width)[:count]).astype(np.int32)
        # Two small groups of one width would often draw alike, and hide that their names are
        # swapped.
        if np.array_equal(chosen, latest.get((width, count), chosen[:0])):
            chosen = np.sort((chosen + 1) % width)
        found[group] = latest[width, count] = chosen
    return found


def _distance(a: PyTree, b: PyTree) -> Array:
    gaps = [
        jnp.max(jnp.abs(x - y)) / jnp.maximum(1.0, jnp.max(jnp.abs(x)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return jnp.max(jnp.stack([jnp.where(jnp.isnan(gap), np.inf, gap) for gap in gaps]))
