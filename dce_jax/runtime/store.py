"""Systems on disk: the network as a compact model, what decides beside it."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dce_jax import compact
from dce_jax.budget import Budget
from dce_jax.probe import channel_map
from dce_jax.runtime import chain as chains
from dce_jax.runtime import systems
from dce_jax.runtime.systems import System
from dce_jax.types import PyTree

NETWORK, DECIDING, SYSTEM = "network", "deciding.safetensors", "system.json"


def save(
    directory: Path | str, system: System, module: nn.Module, variables: PyTree, params: PyTree
) -> None:
    """Writes a trained system.

    Args:
      directory: made if it is missing.
      system: the system.
      module: its network.
      variables: of the network, collection -> tree.
      params: of what decides.
    """
    directory = Path(directory)
    full = system.chain.channels.full
    budget = Budget(tuple((group, width, width) for group, width in full.items()))
    model = compact.Compact(variables, budget, compact.whole_selection(budget, {}))
    compact.save(directory / NETWORK, module, model)
    flat = flatten_dict(jax.device_get(params), sep="/")
    save_file(
        {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}, directory / DECIDING
    )
    facts = {
        "system": system.name,
        "parts": sum(width > 0 for width in system.levels[0]),
        "span": list(system.span),
    }
    (directory / SYSTEM).write_text(json.dumps(facts, indent=1) + "\n")


def load(
    directory: Path | str, network: type[nn.Module], example: jax.ShapeDtypeStruct
) -> tuple[System, PyTree, PyTree]:
    """Reads a system back.

    Args:
      directory: what `save` wrote.
      network: class of the network.
      example: float[1, H, W, D], one image.

    Returns:
      The system, the network's variables, and the parameters of what decides.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or of another network.
    """
    directory = Path(directory)
    module, model = compact.load(directory / NETWORK, network)
    facts = _facts(directory / SYSTEM)
    two = jax.ShapeDtypeStruct((2, *example.shape[1:]), example.dtype)
    system = systems.build(
        facts["system"],
        chains.chain(module, channel_map(module, two)),
        model.variables,
        example,
        parts=facts["parts"],
        span=tuple(facts["span"]),
    )
    try:
        flat = load_file(directory / DECIDING)
    except SafetensorError as error:
        raise ValueError(f"{directory / DECIDING} is damaged ({error}): train it again") from error
    params = unflatten_dict({name: jnp.asarray(leaf) for name, leaf in flat.items()}, sep="/")
    return system, model.variables, params


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no system here: {path} is missing")
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): train the system again") from error
