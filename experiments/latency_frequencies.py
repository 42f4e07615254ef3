"""Decisions drawn as often as a trained system made them, from its results alone."""

from pathlib import Path

import numpy as np

from experiments import records
from experiments.latency_decisions import POOL, File, Levels, Pool


def of_result(path: Path, target: float) -> File:
    """Levels of the two points of a knob between which a target lies, as often as they were chosen.

    An image is of the one point or the other, so often that their mean work is the target; each of
    its sites draws by itself: which levels go together a result does not tell.

    Args:
      path: ``result.json`` of `experiments.runtime`.
      target: mean share of the whole network's multiply-accumulates.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a result of another program, or a target that its points do not enclose.
    """
    found = records.read_json(path)
    if "points" not in found:
        raise ValueError(f"{path} is no result of experiments.runtime: name the result.json of one")
    points = sorted(found["points"], key=lambda point: float(point["macs_share"]))
    shares = [float(point["macs_share"]) for point in points]
    if not shares[0] <= target <= shares[-1]:
        raise ValueError(
            f"--macs {target:g}: the points of {path} span {shares[0]:.4g} to {shares[-1]:.4g} of "
            "the network's MACs"
        )
    above = next(place for place, share in enumerate(shares) if share >= target)
    below = max(0, above - 1)
    wide = shares[above] - shares[below]
    part = (target - shares[below]) / wide if wide else 1.0
    draw = np.random.default_rng(0)
    dearer = draw.random(POOL) < part
    drawn = [_drawn(draw, points[place]["levels"]["all"]) for place in (below, above)]
    facts = {
        "drawn": "each site by itself, as often as at one of two points of the knob",
        "frequencies": found["command"],
        "target": target,
        "knobs": [points[place]["knob"] for place in (below, above)],
        "share_of_second": part,
    }
    levels = np.where(dearer[:, None], drawn[1], drawn[0]).astype(np.int32)
    parts = sum(width > 0 for width in found["levels"][0])
    return File(Pool(levels, facts), found["system"], parts)


def _drawn(draw: np.random.Generator, frequencies: list[list[float]]) -> Levels:
    """int32[POOL, sites]; what was counted of finitely many images need not add up to 1 exactly."""
    chances = [np.asarray(site) / np.sum(site) for site in frequencies]
    sites = [draw.choice(len(site), size=POOL, p=site) for site in chances]
    return np.stack(sites, axis=1).astype(np.int32)
