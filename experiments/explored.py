"""What a run's bandit has seen so far, as its metrics tell it."""

from typing import Any

import numpy as np

from dce_jax import bandit, scores
from experiments.blocks import Exploring, Progress
from experiments.setup import Run


def line(run: Run, known: bandit.BanditState, step: int) -> dict[str, Any]:
    """Plays, means and confidence radii of every contested group."""
    # Random selection has no bound to show.
    alpha = getattr(run.pieces.score, "keywords", {}).get("alpha", 0.0)
    found: dict[str, Any] = {"step": step, "plays": {}, "means": {}, "radius": {}}
    for group in known.plays:
        arms = bandit.arms(known, group)
        plays, radius = np.asarray(arms.plays_C), np.asarray(scores.radius(arms, alpha=alpha))
        found["plays"][group] = plays.tolist()
        found["means"][group] = np.asarray(arms.mean_C).tolist()
        found["radius"][group] = [
            float(r) if n > 0 else None for r, n in zip(radius, plays, strict=True)
        ]
    return found


def share(state: Progress) -> float | None:
    """Share of the contested channels that have executed at least once."""
    if not isinstance(state, Exploring) or not state.dce.bandit.plays:
        return None
    plays = np.concatenate([np.asarray(p) for p in state.dce.bandit.plays.values()])
    return float(np.mean(plays > 0))
