"""Networks that are trained already, for runs that begin with one: read, checked and paid for."""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dce_jax import compact
from dce_jax.channels import path_names
from dce_jax.types import PyTree
from experiments import records

MODEL, RESULT = "compact", "result.json"
_SEED = "{seed}"


class Pretrained(NamedTuple):
    """A finished run whose network another run begins with.

    Attributes:
      variables: its collections at full width, statistics recalibrated.
      result: its ``result.json``.
    """

    variables: PyTree
    result: dict[str, Any]


def given(config: ConfigDict, module: nn.Module, shapes: PyTree) -> Pretrained | None:
    """The trained network that a config names; None where it names none.

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
    _, model = compact.load(workdir / MODEL, type(module))
    if result["network"] != config.network or result["config"]["width"] != config.width:
        raise ValueError(
            f"pretrained {workdir} is a {result['network']} of width {result['config']['width']}, "
            f"this run is of {config.network}, width {config.width}: set network and width alike"
        )
    gone = {g: f"{k} of {model.budget.full[g]}" for g, k in model.budget.compact.items()}
    gone = {g: text for g, text in gone.items() if g in model.budget.contested}
    if gone:
        raise ValueError(
            f"pretrained {workdir} is a compact model, with {gone} channels left: runs begin with "
            "a whole network, as --config.method=dense trains it"
        )
    _check_shapes(workdir, model.variables, shapes)
    return Pretrained(model.variables, result)


def directory(config: ConfigDict) -> Path:
    """The workdir that a config names; ``{seed}`` in it stands for the run's own seed."""
    return Path(config.pretrained.replace(_SEED, str(config.seed)))


def train_macs(found: Pretrained | None) -> int:
    """What training it took before the run began."""
    return 0 if found is None else int(found.result["train_macs"])


def train_seconds(found: Pretrained | None) -> float | None:
    """Wall seconds of that training; None where an earlier version did not write them down."""
    if found is None:
        return 0.0
    seconds = found.result.get("train_s")
    return None if seconds is None else float(seconds)


def facts(found: Pretrained) -> dict[str, Any]:
    """What a result says of the network that its run began with."""
    kept = ("test_accuracy", "train_macs", "seed", "command")
    return {key: found.result[key] for key in kept}


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
