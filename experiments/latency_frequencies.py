"""Decisions drawn as often as a trained system made them, from its results alone."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from dce_jax.runtime import System
from experiments import records
from experiments.latency_decisions import (
    POOL,
    Chances,
    Pool,
    check_sites,
    expected,
    parts_of,
    sampled,
)


class Point(NamedTuple):
    """How a system decided at one setting of its knob.

    Attributes:
      knob: the setting.
      chances: per site how often each of its levels was chosen.
    """

    knob: float
    chances: tuple[Chances, ...]


class Frequencies(NamedTuple):
    """What a result tells about decisions.

    Attributes:
      points: of the knob, at least one.
      system: which system decided.
      parts: at how many widths a site's channels may run.
      command: that made the result.
    """

    points: tuple[Point, ...]
    system: str
    parts: int
    command: str


def read(path: Path) -> Frequencies:
    """How often each level was chosen, of all test images.

    Args:
      path: ``result.json`` of `experiments.runtime`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a result of another program.
    """
    found = records.read_json(path)
    if "points" not in found:
        raise ValueError(f"{path} is no result of experiments.runtime: name the result.json of one")
    points = [Point(each["knob"], _chances(each["levels"]["all"])) for each in found["points"]]
    return Frequencies(tuple(points), found["system"], parts_of(found["levels"]), found["command"])


def drawn(found: Frequencies, system: System, target: float) -> Pool:
    """Levels of the two points between which a target lies, as often as they were chosen there.

    An image is of the one point or the other, so often that their mean work is the target; each of
    its sites draws by itself: which levels go together a result does not tell.

    Args:
      found: of a system that decides about a network of the same layers, at any width.
      system: the network that runs, its widths and costs.
      target: mean share of its multiply-accumulates, without those of the decision network.

    Raises:
      ValueError: decisions about other layers, or a target that the points do not enclose.
    """
    check_sites(system, len(found.points[0].chances))
    points = sorted(found.points, key=lambda point: expected(system, point.chances))
    shares = [expected(system, point.chances) for point in points]
    if not shares[0] <= target <= shares[-1]:
        raise ValueError(
            f"--macs {target:g}: at the points of this result's knob the network runs "
            f"{shares[0]:.4g} to {shares[-1]:.4g} of its MACs"
        )
    above = int(np.searchsorted(shares, target))
    below = max(0, above - 1)
    wide = shares[above] - shares[below]
    part = (target - shares[below]) / wide if wide else 1.0
    draw = np.random.default_rng(0)
    dearer = draw.random(POOL) < part
    cheap, dear = (sampled(draw, points[place].chances) for place in (below, above))
    facts = {
        "drawn": "each site by itself, as often as at one of two points of the knob",
        "frequencies": found.command,
        "target": target,
        "knobs": [points[below].knob, points[above].knob],
        "share_of_second": part,
    }
    return Pool(np.where(dearer[:, None], dear, cheap), facts)


def _chances(frequencies: list[list[float]]) -> tuple[Chances, ...]:
    # Counts of finitely many images, rounded, need not add up to 1 exactly.
    return tuple(np.asarray(site) / np.sum(site) for site in frequencies)
