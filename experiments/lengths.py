"""How long a run is, and when it commits, at equal training MACs."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from ml_collections import ConfigDict

from dce_jax.types import Array

Clock: TypeAlias = Callable[[Any], Array]
"""Count of steps -> float32[], how far the run is, counted in steps after the commit."""


class Length(NamedTuple):
    """How long a run is.

    Attributes:
      steps: of the whole run.
      commit_step: step after which its channels are fixed.
      ends: steps after which a pruning run's rounds come, the last one at the commit.
      clock: how far the run is by its training MACs, or None: by its steps.
    """

    steps: int
    commit_step: int
    ends: tuple[int, ...]
    clock: Clock | None


def length(config: ConfigDict, examples: int, cost_ratio: float) -> Length:
    """`lengths` of a run that explores, or trains one network, and its clock."""
    steps, commit_step = lengths(config, examples, cost_ratio)
    clock = macs_clock(commit_step, cost_ratio) if config.rate_over == "macs" else None
    return Length(steps, commit_step, (), clock)


def lengths(config: ConfigDict, examples: int, cost_ratio: float = 1.0) -> tuple[int, int]:
    """Steps of a run, and the step after which its channels are fixed.

    ``commit`` is a share of the training MACs. Where exploring costs more, or less, than what
    comes after it, as many more or fewer steps of exploring fit into that share.

    Args:
      config: of the run.
      examples: images of the training split.
      cost_ratio: MACs of a step while the run explores over those of a step afterwards.

    Returns:
      Steps, and the step of the commit: a multiple of ``select_every``, or the run's end.

    Raises:
      ValueError: a batch larger than the data.
    """
    steps = run_length(config, examples)
    if cost_ratio == 1.0:
        return steps, committing(config, steps)
    if config.commit >= 1.0:
        explored = max(1, round(steps / cost_ratio))
        return explored, explored
    windows = math.floor(config.commit * steps / cost_ratio / config.select_every + 0.5)
    explored = max(1, windows) * config.select_every
    return explored + max(1, steps - round(explored * cost_ratio)), explored


def macs_clock(commit_step: int, cost_ratio: float) -> Clock:
    """How many steps at the final budget would have cost what a run has cost so far.

    Args:
      commit_step: step of the commit.
      cost_ratio: MACs of a step before it over those of a step afterwards.
    """

    def spent(count: Any) -> Array:
        steps = jnp.asarray(count, jnp.float32)
        explored = jnp.minimum(steps, float(commit_step))
        return explored * jnp.float32(cost_ratio) + (steps - explored)

    return spent


def passes(config: ConfigDict) -> int:
    """MACs of a training step over those of its forward pass.

    Backward costs twice forward; where activations are computed again, forward runs twice.
    """
    return 4 if config.remat else 3


def run_length(config: ConfigDict, examples: int) -> int:
    """Steps of a run at one budget; ``epochs`` counts whole batches of the training split.

    Raises:
      ValueError: a batch larger than the data.
    """
    if config.batch_size > examples:
        raise ValueError(
            f"batch_size is {config.batch_size}, but the training split has {examples} images: "
            f"choose at most {examples}"
        )
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * (examples // config.batch_size)))


def committing(config: ConfigDict, steps: int) -> int:
    """The step of the commit: a multiple of ``select_every``, or the run's end."""
    if config.method in ("dense", "scratch", "subset"):
        return 0
    if config.commit >= 1.0:
        return steps
    blocks = max(1, math.floor(config.commit * steps / config.select_every + 0.5))
    return min(steps, blocks * config.select_every)
