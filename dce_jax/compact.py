"""Compact models: cut out, recalibrate, save, load. Plain files, no pickle.

A saved model is a directory of two files: ``weights.safetensors`` and ``structure.json`` (widths,
the original indices of every channel, and the network's plain attributes).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dce_jax import forward, slab
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.types import Array, PyTree, Selection

WEIGHTS, STRUCTURE, FORMAT = "weights.safetensors", "structure.json", 1

_KEYS = ("network", "attributes", "needed", "widths", "full_widths", "channels", "leaves")

_NOT_PLAIN = object()

Network = TypeVar("Network", bound=nn.Module)


class Compact(NamedTuple):
    """A compact model.

    Attributes:
      variables: collection -> tree: ``params`` and model state, at the budget's widths.
      budget: full and compact widths.
      selection: group -> int32[K], the channels' original indices; whole groups included.
    """

    variables: PyTree
    budget: Budget
    selection: dict[str, np.ndarray]


def extract(
    channels: ChannelMap, budget: Budget, variables: PyTree, selection: Selection
) -> Compact:
    """Cuts a full-width network down to a selection.

    Args:
      channels: the proved map.
      budget: K per group.
      variables: full-width collections.
      selection: group -> int32[K] for every group with K < C.

    Raises:
      ValueError: a budget of another network, or a selection that does not fit it.
    """
    if budget.full != channels.full:
        raise ValueError(f"the budget is for widths {budget.full}, the network has {channels.full}")
    slab.check_selection(selection, budget)
    cut = {
        name: slab.gather(tree, channels.names(name, tree), selection, channels.full)
        for name, tree in variables.items()
    }
    return Compact(cut, budget, whole_selection(budget, selection))


def whole_selection(budget: Budget, selection: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """A selection with the whole groups spelled out, as host arrays in the budget's order."""
    return {
        group: np.asarray(selection.get(group, np.arange(width)), np.int32)
        for group, width in budget.full.items()
    }


def recalibrate(module: nn.Module, variables: PyTree, batches: Iterable[Array]) -> PyTree:
    """Replaces running batch statistics by exact ones over the given inputs.

    Each norm's mean and variance are pooled over all batches (equal sizes), with every layer
    normalising by its own batch, as in training. Parameters are untouched.

    Args:
      module: the network at the widths of ``variables``.
      variables: collections; without ``batch_stats`` they are returned as they are.
      batches: float[B, ...] inputs.

    Raises:
      ValueError: no batches.
    """
    if "batch_stats" not in variables:
        return variables
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}
    moments = jax.jit(_batch_moments, static_argnums=0)
    total, count = None, 0
    for x in batches:
        found = moments(module, params, state, x)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        count += 1
    if total is None:
        raise ValueError("recalibration needs at least one batch of inputs, got none")
    return {**variables, "batch_stats": _pooled(jax.tree.map(lambda t: t / count, total))}


def _batch_moments(module: nn.Module, params: PyTree, state: PyTree, x: Array) -> PyTree:
    # Statistics move as m old + (1 - m) new: two different olds give both m and the new ones. The
    # second old is large beside the new ones, so that m survives the subtraction in float32.
    def after(old: PyTree) -> PyTree:
        return forward.apply(
            module, params, {**state, "batch_stats": old}, x, train=True, key=jax.random.key(0)
        )[1]["batch_stats"]

    low = after(jax.tree.map(jnp.zeros_like, state["batch_stats"]))
    large = jax.tree.map(lambda a: 1024.0 * (1.0 + jnp.abs(a)), low)
    high = after(large)
    new = jax.tree.map(lambda a, b, old: a / (1.0 - (b - a) / old), low, high, large)
    return _with_squares(new)


def _with_squares(stats: PyTree) -> PyTree:
    # A pooled variance needs E[x^2] = var + mean^2 of every batch.
    if "mean" in stats and "var" in stats:
        return {**stats, "var": stats["var"] + jnp.square(stats["mean"])}
    return {k: _with_squares(v) if isinstance(v, Mapping) else v for k, v in stats.items()}


def _pooled(stats: PyTree) -> PyTree:
    if "mean" in stats and "var" in stats:
        variance = jnp.maximum(stats["var"] - jnp.square(stats["mean"]), 0.0)
        return {**stats, "var": variance}
    return {k: _pooled(v) if isinstance(v, Mapping) else v for k, v in stats.items()}


def save(directory: Path | str, module: nn.Module, model: Compact) -> None:
    """Writes ``weights.safetensors`` and ``structure.json``, over an older model or anew.

    Both are on the disk before either takes its name: where writing fails, an older model stays.

    Args:
      directory: made if it is missing.
      module: the network at any widths; its plain attributes are stored beside the widths.
      model: what `extract` gave.

    Raises:
      OSError: a full disk, or a directory that cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {
        "/".join(path): np.asarray(value, order="C")  # np.ascontiguousarray adds an axis to scalars
        for path, value in flatten_dict(jax.device_get(model.variables)).items()
    }
    plain, needed = _attributes(module)
    structure = {
        "format": FORMAT,
        "network": type(module).__name__,
        "attributes": plain,
        "needed": needed,
        "widths": model.budget.compact,
        "full_widths": model.budget.full,
        "channels": {group: chosen.tolist() for group, chosen in model.selection.items()},
        "leaves": {name: list(value.shape) for name, value in arrays.items()},
    }
    parts = {name: directory / f"{name}.part" for name in (WEIGHTS, STRUCTURE)}
    try:
        save_file(arrays, parts[WEIGHTS])
        structure["sha256"] = _digest(parts[WEIGHTS])
        parts[STRUCTURE].write_text(json.dumps(structure, indent=1) + "\n")
        for part in parts.values():
            _sync(part)
        for name, part in parts.items():
            part.replace(directory / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def load(
    directory: Path | str, network: type[Network], **attributes: Any
) -> tuple[Network, Compact]:
    """Reads a compact model back; only the network's class is needed.

    Args:
      directory: what `save` wrote.
      network: the class of the saved network.
      attributes: constructor arguments that are not plain data (activations; needed where they
        are not the class's default), or overrides.

    Returns:
      The network at compact widths, and the model.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: another class, another format, a needed attribute missing, damaged files, or
        files of two models.
    """
    directory = Path(directory)
    structure = _read_structure(directory / STRUCTURE)
    if structure["network"] != network.__name__:
        raise ValueError(
            f"{directory} holds a {structure['network']}, not a {network.__name__}: pass that class"
        )
    missing = [name for name in structure["needed"] if name not in attributes]
    if missing:
        raise ValueError(
            f"attributes {missing} of the saved {network.__name__} are no plain data and were not "
            "stored: pass them to load"
        )
    arrays = _read_weights(directory / WEIGHTS, structure)
    variables = unflatten_dict({tuple(name.split("/")): v for name, v in arrays.items()})
    stored = {name: _from_plain(value) for name, value in structure["attributes"].items()}
    module = network(**{**stored, **attributes, "widths": FrozenDict(structure["widths"])})
    entries = tuple(
        (group, width, structure["widths"][group])
        for group, width in structure["full_widths"].items()
    )
    budget = Budget(entries)
    chosen = {g: np.asarray(indices, np.int32) for g, indices in structure["channels"].items()}
    try:
        slab.check_selection(chosen, budget)
    except ValueError as error:
        raise _damaged(directory / STRUCTURE, error) from error
    return module, Compact(jax.tree.map(jnp.asarray, variables), budget, chosen)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged ({why}): extract the model again")


def _read_structure(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no compact model here: {path} is missing")
    try:
        structure = json.loads(path.read_text())
    except ValueError as error:
        raise _damaged(path, error) from error
    found = structure.get("format") if isinstance(structure, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found}, this version reads {FORMAT}")
    if lacking := [key for key in _KEYS if key not in structure]:
        raise _damaged(path, f"it lacks {', '.join(lacking)}")
    return structure


def _read_weights(path: Path, structure: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"the compact model's weights are missing: {path}")
    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    found = {name: list(value.shape) for name, value in arrays.items()}
    if found != structure["leaves"]:
        raise ValueError(f"{path} does not hold the leaves that {STRUCTURE} names")
    told = structure.get("sha256")  # models of earlier versions have none
    if told is not None and told != _digest(path):
        raise _damaged(path, f"it is not the file that {STRUCTURE} was written with")
    return arrays


def _attributes(module: nn.Module) -> tuple[dict[str, Any], list[str]]:
    """Plain attributes, and the names of those that are neither plain data nor the default."""
    plain, needed = {}, []
    for field in fields(module):
        if field.name in ("parent", "name", "widths") or not field.init:
            continue
        value = getattr(module, field.name, None)
        encoded = _to_plain(value)
        if encoded is not _NOT_PLAIN:
            plain[field.name] = encoded
        elif value is not field.default:
            needed.append(field.name)
    return plain, needed


def _to_plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        encoded = [_to_plain(v) for v in value]
        return _NOT_PLAIN if any(v is _NOT_PLAIN for v in encoded) else encoded
    if isinstance(value, np.dtype) or _is_scalar_type(value):
        return {"dtype": jnp.dtype(value).name}
    return _NOT_PLAIN


def _is_scalar_type(value: Any) -> bool:
    """Whether it names a dtype; other classes may have an attribute ``dtype``, too."""
    numpy_type = isinstance(value, type) and issubclass(value, np.generic)
    return numpy_type or isinstance(value, type(jnp.float32)) or value in (bool, int, float)


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return jnp.dtype(value["dtype"])
    return tuple(_from_plain(v) for v in value) if isinstance(value, list) else value
