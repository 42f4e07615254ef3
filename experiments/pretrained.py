"""Networks that are trained already, for runs that begin with one: read, checked and paid for."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dce_jax import compact
from dce_jax.channels import path_names
from dce_jax.compact import Compact
from dce_jax.types import PyTree
from experiments import records
from experiments.subject import COMPACT, RESULT
from experiments.summary import Result

_SEED = "{seed}"


def given(config: ConfigDict, module: nn.Module, shapes: PyTree) -> Result | None:
    """The ``result.json`` of the run that a config names, its network checked; None: names none.

    Args:
      config: of the run.
      module: its network at full width.
      shapes: of that network's collections, unboxed.

    Raises:
      FileNotFoundError: no finished run there.
      ValueError: another network, one that is no longer whole, or a damaged one.
    """
    if not config.pretrained:
        return None
    workdir = directory(config)
    result = records.read_result(workdir / RESULT)
    if result["network"] != config.network or result["config"]["width"] != config.width:
        raise ValueError(
            f"pretrained {workdir} is a {result['network']} of width {result['config']['width']}, "
            f"this run is of {config.network}, width {config.width}: set network and width alike"
        )
    model = _model(config, module)
    full, left = model.budget.full, model.budget.compact
    gone = {g: f"{left[g]} of {full[g]}" for g in model.budget.contested}
    if gone:
        raise ValueError(
            f"pretrained {workdir} is a compact model, with {gone} channels left: runs begin with "
            "a whole network, as --config.method=dense trains it"
        )
    _check_shapes(workdir, model.variables, shapes)
    return result


def variables(config: ConfigDict, module: nn.Module) -> PyTree:
    """Collections of the network that a config names, statistics recalibrated.

    Args:
      config: that `given` found a network for.
      module: the network at full width.
    """
    return _model(config, module).variables


def directory(config: ConfigDict) -> Path:
    """The workdir that a config names; ``{seed}`` in it stands for the run's own seed."""
    return Path(config.pretrained.replace(_SEED, str(config.seed)))


def train_macs(found: Result | None) -> int:
    """What training it took before the run began."""
    return 0 if found is None else int(found["train_macs"])


def train_seconds(found: Result | None) -> float | None:
    """Wall seconds of that training; None where an earlier version did not write them down."""
    return 0.0 if found is None else found.get("train_s")


def facts(found: Result) -> dict[str, Any]:
    """What a result says of the network that its run began with."""
    return {key: found[key] for key in ("test_accuracy", "train_macs", "seed", "command")}


def _model(config: ConfigDict, module: nn.Module) -> Compact:
    _, model = compact.load(directory(config) / COMPACT, type(module))
    return model


def _check_shapes(workdir: Path, variables: PyTree, shapes: PyTree) -> None:
    found, wanted = (
        {"/".join(path_names(path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(t)}
        for t in (variables, shapes)
    )
    for name in sorted(found.keys() | wanted.keys()):
        here, there = (_said(leaves.get(name)) for leaves in (wanted, found))
        if here != there:
            raise ValueError(
                f"pretrained {workdir} does not fit: {name} is {there} there and {here} in this "
                "run; train it on a data set of as many classes and image channels"
            )


def _said(leaf: Any) -> str:
    return "missing" if leaf is None else f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
