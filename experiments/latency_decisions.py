"""Decisions whose latency is measured: of images that a system decided about, or drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from scipy import optimize

from dce_jax.runtime import Choice, System, costs, systems
from experiments import records

POOL = 10_000
"""Images that decisions are drawn for where no file gives any."""

_STEEP = 60.0
"""At this steepness the other levels' probabilities are below float64's rounding."""

Levels = npt.NDArray[np.int32]
Chances = npt.NDArray[np.float64]


class Pool(NamedTuple):
    """Decisions of many images.

    Attributes:
      levels_NS: int32[N, sites], index into each site's widths.
      facts: where they come from, for results.
    """

    levels_NS: Levels
    facts: dict[str, Any]


class Draws(NamedTuple):
    """Decisions of the images that are timed.

    Attributes:
      levels_RSB: int32[rounds, sites, B].
      share: their mean multiply-accumulates as a share of the whole network's, those of the
        decision network included.
      facts: where they come from, for results.
    """

    levels_RSB: Levels
    share: float
    facts: dict[str, Any]


class File(NamedTuple):
    """What a file of decisions holds.

    Attributes:
      pool: the decisions.
      system: which system decided.
      parts: at how many widths a site's channels may run.
    """

    pool: Pool
    system: str
    parts: int


def read(path: Path) -> File:
    """Decisions from a JSON file, ``{"levels": [[level of site 0, ...], ...], ...}``.

    Args:
      path: the file; beside ``levels`` it may hold ``parts`` (else the largest level tells),
        ``system`` (else runtime neural pruning), ``knob`` and ``share``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no decisions in it, rows of several lengths, or levels that are none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name a JSON file of decisions")
    found = records.read_json(path)
    rows = found.get("levels") if isinstance(found, Mapping) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise ValueError(f"{path} holds no decisions: {{'levels': [[0, 2, 3], ...]}}, one row each")
    sizes = {len(row) for row in rows}
    if len(sizes) > 1 or sizes == {0}:
        raise ValueError(
            f"{path}: rows of {sorted(sizes)} levels, but every image has one level per site"
        )
    if not all(type(level) is int and level >= 0 for row in rows for level in row):
        raise ValueError(f"{path}: levels are indices into a site's widths, 0, 1, 2, ...")
    levels, system = np.asarray(rows, np.int32), found.get("system", systems.RNP)
    skip = int(system in (systems.L, systems.LC))  # level 0 is then a branch that is skipped
    parts = found.get("parts", max(1, int(levels.max()) + 1 - skip))
    if type(parts) is not int or parts + skip <= levels.max():
        raise ValueError(f"{path}: level {levels.max()} does not exist with parts = {parts!r}")
    facts = {key: found[key] for key in ("knob", "system", "share") if key in found}
    return File(Pool(levels, {"file": path.name, **facts}), system, parts)


def of_run(workdir: Path, target: float) -> File:
    """What a finished run of `experiments.runtime` decided about its test images.

    Args:
      workdir: of the run.
      target: of the points of its knob, the one whose mean work is nearest is taken.

    Raises:
      FileNotFoundError: no finished run there.
      ValueError: a result of another program.
    """
    found = records.read_json(workdir / "result.json")
    if "points" not in found:
        raise ValueError(f"{workdir} is no run of experiments.runtime: name the workdir of one")
    images = np.load(workdir / "images.npz")
    nearest = int(np.argmin(np.abs(images["share"].mean(axis=1) - target)))
    facts = {
        "run": found["command"],
        "network": found["network"],
        "knob": float(images["knobs"][nearest]),
        "share": float(images["share"][nearest].mean()),
        "accuracy": float(images["right"][nearest].mean()),
    }
    levels = images["levels"][nearest].astype(np.int32)
    return File(Pool(levels, facts), found["system"], parts_of(found["levels"]))


def drawn(system: System, target: float) -> Pool:
    """Levels drawn at each site of each image by itself, of a given mean cost.

    Level i has probability proportional to ``exp(steepness * i)``, at all sites alike; the
    steepness is solved for, so that the network's mean multiply-accumulates, without those of the
    decision network, are the target.

    Args:
      system: the network, its widths and costs.
      target: mean share of the whole network's multiply-accumulates.

    Raises:
      ValueError: a target that no decisions reach.
    """
    low, high = _mean(system, -_STEEP), _mean(system, _STEEP)
    if not low <= target <= high:
        raise ValueError(
            f"--macs {target:g}: with {len(system.levels[0])} widths per site this network's "
            f"decisions span {low:.4g} to {high:.4g} of its MACs"
        )
    found = optimize.brentq(lambda steep: _mean(system, steep) - target, -_STEEP, _STEEP)
    chances = [_chances(len(widths), found) for widths in system.levels]
    levels = sampled(np.random.default_rng(0), chances)
    facts = {
        "drawn": "each site by itself, level i with probability ~ exp(steepness * i)",
        "target": target,
        "steepness": found,
        "probabilities": chances[0].tolist(),
    }
    return Pool(levels, facts)


def sampled(draw: np.random.Generator, chances: Sequence[Chances]) -> Levels:
    """Levels of `POOL` images, drawn at each site by itself: int32[POOL, sites].

    Args:
      draw: draws.
      chances: per site.
    """
    sites = [draw.choice(len(mine), size=POOL, p=mine) for mine in chances]
    return np.stack(sites, axis=1).astype(np.int32)


def expected(system: System, chances: Sequence[Chances]) -> float:
    """Mean share of the whole network's multiply-accumulates, without the decision network's.

    Args:
      system: the network, its widths and costs.
      chances: of the levels of each site; neighbouring sites are independent.
    """
    before = [np.ones(1), *chances[:-1]]
    found = system.costs.always
    for table, reads, mine in zip(system.costs.sites, before, chances, strict=True):
        found += float((reads if len(table) > 1 else np.ones(1)) @ table @ mine)
    return found / system.costs.full


def draws(system: System, pool: Pool, *, rounds: int, batch: int) -> Draws:
    """Decisions for every round: evenly spread over a pool, from its cheapest to its dearest.

    Few images drawn at random would have another mean cost than all; every n-th of those sorted by
    cost has the same, and the same spread. They are shuffled over rounds.

    Args:
      system: the network, its widths and costs.
      pool: the decisions.
      rounds: how many batches.
      batch: B.

    Raises:
      ValueError: decisions for another number of sites, or more levels than the sites have.
    """
    levels = pool.levels_NS
    check_sites(system, levels.shape[1])
    if (levels.max(axis=0) >= [len(widths) for widths in system.levels]).any():
        raise ValueError(
            f"level {levels.max()} is decided where a site has {len(system.levels[0])} widths: "
            "name parts in the file"
        )
    order = np.argsort(shares(system, levels), kind="stable")
    count = rounds * batch
    places = ((np.arange(count) + 0.5) * len(order) / count).astype(int)
    chosen = levels[np.random.default_rng(0).permutation(order[places])]
    share = float(shares(system, chosen).mean())
    by_round = chosen.reshape(rounds, batch, -1).transpose(0, 2, 1)
    return Draws(by_round, share, {**pool.facts, "images_in_pool": len(levels)})


def check_sites(system: System, sites: int) -> None:
    """Refuses decisions about another network's layers.

    Args:
      system: the network.
      sites: that decisions are about.

    Raises:
      ValueError: the network has another number of sites.
    """
    if sites != len(system.levels):
        raise ValueError(
            f"decisions about {sites} sites for a network of {len(system.levels)}: take "
            "those of a network with the same layers, at any width"
        )


def parts_of(levels: Sequence[Sequence[int]]) -> int:
    """At how many widths a site's channels may run; skipping its branch is none.

    Args:
      levels: per site its widths, as results hold them.
    """
    return sum(width > 0 for width in levels[0])


def shares(system: System, levels_NS: Levels) -> npt.NDArray[np.float64]:
    """Multiply-accumulates per image, as a share of the whole network's: float64[N].

    Args:
      system: the network and its costs; those of the decision network are included.
      levels_NS: int32[N, sites].
    """
    choices = [Choice(jnp.asarray(levels)) for levels in levels_NS.T]
    return np.asarray(costs.share(system.costs, choices, system.deciding), np.float64)


def _chances(count: int, steepness: float) -> Chances:
    weights = np.exp(steepness * np.arange(count) - max(0.0, steepness * (count - 1)))
    return np.asarray(weights / weights.sum(), np.float64)


def _mean(system: System, steepness: float) -> float:
    return expected(system, [_chances(len(widths), steepness) for widths in system.levels])
