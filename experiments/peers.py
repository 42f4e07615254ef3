"""What a user would pick instead: the benchmark's networks, trained in PyTorch.

PyTorch is an extra of its own (`pip install -e '.[training,peers]'`); nothing here imports it.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
from rich.table import Table

from dce_jax import networks
from dce_jax.networks.resnet import PADDING
from experiments import machine
from experiments.composed import Times, Variant
from experiments.cost_rows import Row, against
from experiments.summary import interval
from experiments.timing import Contender

PACKAGES = {"torch": "torch", "torch-pruning": "torch_pruning"}
"""Name of a package -> what is imported."""


class Peer(NamedTuple):
    """A peer's training step.

    Attributes:
      variant: ``dense``, ``narrow``, ``masked`` or ``pruned``.
      keep: fraction of every group's channels.
      params: numbers that it trains.
      layout: ``contiguous`` or ``channels_last``, the faster one in the trials.
      trials: layout -> median ms per step in the trials.
      prune_s: seconds that masking or cutting takes, once; None where nothing is pruned.
      contender: what is timed.
    """

    variant: str
    keep: float
    params: int
    layout: str
    trials: dict[str, float]
    prune_s: float | None
    contender: Contender


def check(module: nn.Module, network: str) -> None:
    """Refuses what the peers cannot be compared on, before anything is compiled.

    Args:
      module: the network of the benchmark.
      network: its name.

    Raises:
      ValueError: PyTorch or Torch-Pruning is missing, another device than the CPU, or a network
        that has no counterpart.
    """
    missing = [name for name, imported in PACKAGES.items() if find_spec(imported) is None]
    if missing:
        raise ValueError(
            f"--peers needs {' and '.join(missing)}: pip install -e '.[training,peers]'"
        )
    if jax.default_backend() != "cpu":
        raise ValueError(
            f"--peers on {jax.default_backend()}: the peers are timed on a CPU's cores only; "
            "leave the flag out, or set JAX_PLATFORMS=cpu"
        )
    if not isinstance(module, networks.VGG | networks.ResNet):
        raise ValueError(
            f"--peers --network {network}: only the VGGs and ResNets have a counterpart in PyTorch"
        )
    if isinstance(module, networks.ResNet) and module.shortcut == PADDING:
        raise ValueError(
            f"--peers --network {network}: Torch-Pruning keeps the channels that a shortcut pads, "
            f"so its networks are wider; take --network {network}-projection"
        )


def rows(
    peers: Sequence[Peer],
    variants: Sequence[Variant],
    times_RV: Times,
    *,
    network: str,
    batch: int,
) -> list[Row]:
    """One row per peer, with the keys of the benchmark's JSON (`records.PEER_KEYS`).

    Args:
      peers: their columns come last; the first of them is dense.
      variants: the benchmark's own, whose columns come first.
      times_RV: float64[rounds, variants + peers], ms per step.
      network: name.
      batch: examples per step.
    """
    narrow = {one.keep: i for i, one in enumerate(variants) if one.variant == "narrow"}
    only = next(iter(narrow.values())) if len(narrow) == 1 else None
    shared = {
        "network": network,
        "batch": batch,
        "framework": "torch",
        "versions": machine.versions(tuple(PACKAGES)),
        "threads": machine.cores(),
        "rounds": len(times_RV),
    }
    made = []
    for i, one in enumerate(peers, start=len(variants)):
        partner = only if one.variant == "dense" else narrow[one.keep]
        made.append(
            {
                **shared,
                "variant": one.variant,
                "keep": one.keep,
                "params": one.params,
                "ms_median": float(np.median(times_RV[:, i])),
                "ms_min": float(times_RV[:, i].min()),
                "ms_max": float(times_RV[:, i].max()),
                **against("narrow", times_RV, i, partner),
                **against("torch_dense", times_RV, i, len(variants)),
                "layout": one.layout,
                "layout_trial_ms": one.trials,
                "prune_s": one.prune_s,
            }
        )
    return made


def table(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    made = Table(
        title=f"the same network in PyTorch ({versions}), {first['threads']} threads",
        title_justify="left",
        caption="/ narrow: our narrow network's step; / dense: PyTorch's own dense step",
        caption_justify="left",
    )
    for head in ("step", "keep", "layout"):
        made.add_column(head)
    for head in ("parameters", "ms", "min .. max", "/ narrow", "/ dense"):
        made.add_column(head, justify="right", style="bold" if head == "/ narrow" else None)
    for row in rows:
        made.add_row(
            row["variant"],
            f"{row['keep']:g}",
            row["layout"],
            f"{row['params']:,}",
            f"{row['ms_median']:.1f}",
            f"{row['ms_min']:.1f} .. {row['ms_max']:.1f}",
            interval(row, "vs_narrow"),
            interval(row, "vs_torch_dense"),
        )
    return made
