"""Budgets of a run: when they are planned anew, from what, and what changes with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import allocate, bandit, forward
from dce_jax import channels as maps
from dce_jax.allocate import CostFn
from dce_jax.bandit import BanditState
from dce_jax.budget import Budget, from_widths
from dce_jax.types import Rewards
from experiments import placement as placing
from experiments import rounds
from experiments.budgeting import forward_macs, macs_of, params_of, rounding
from experiments.choices import SCALES
from experiments.fields import SELECTING
from experiments.ranking import make_signal
from experiments.setup import Run


def steps(run: Run) -> tuple[int, ...]:
    """The steps after which the budget is planned anew, the last one at the commit.

    Only the commit, where the channels alone are to be found, or the widths are known beforehand.

    Fixed by the config, so that a resumed run plans where an uninterrupted one does. A run that
    never commits does not plan at its end, where nothing would train the planned network.
    """
    if run.pace is not None:
        return run.ends
    if not _plans(run):
        return ()
    every = run.config.select_every
    count = 1 if run.config.allocation == "uniform" else run.config.plans
    ends = {round(run.commit_step * (i + 1) / count / every) * every for i in range(count)}
    ends.add(run.commit_step)
    return tuple(sorted(end for end in ends if 0 < end <= run.commit_step and end < run.steps))


def _plans(run: Run) -> bool:
    if run.config.method not in SELECTING:
        return False
    wider = run.config.explore_keep is not None or run.config.grow < 1.0
    return run.config.allocation == "global" or wider or scored(run)


def scored(run: Run) -> bool:
    """Whether plans and the final channels rest on the whole network, not on the bandit's means."""
    return run.config.scoring > 0


def groups(run: Run) -> tuple[str, ...]:
    """The groups whose channels the bandit keeps account of."""
    return tuple(run.budget.full) if steps(run) else run.budget.contested


def means(run: Run, known: BanditState) -> Rewards:
    """The bandit's mean rewards; a channel that never executed counts as worthless."""
    return {group: bandit.arms(known, group).mean_C for group in run.budget.full}


def cost_of(run: Run) -> CostFn:
    """What a learned budget keeps within: MACs or parameters as a function of widths."""
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    return (macs_of if run.config.target == "macs" else params_of)(run.module, example)


def learned(run: Run, saliencies: Rewards, at: int) -> Budget:
    """The budget of the steps that follow a plan.

    Args:
      run: with its budgets so far.
      saliencies: group -> float32[C] of every group; ignored by a uniform allocation.
      at: step of the plan. Until the commit a plan costs what exploring does, from the commit on
        what the budget asked for does.
    """
    settings = run.config
    limit = run.target if at == run.commit_step else run.plans[0][1]
    if settings.allocation == "uniform":
        return limit
    count, full = cost_of(run), run.budget.full
    scaled = SCALES[settings.scale]({g: np.asarray(v) for g, v in saliencies.items()})
    if settings.per_cost:
        scaled = allocate.per_cost(scaled, full, count)
    return allocate.budget(
        full,
        scaled,
        count(limit.compact) / count(full),
        count,
        floor=settings.floor,
        **rounding(settings, full, settings.dtype),
    )


def planned(run: Run, budget: Budget, begin: int) -> Run:
    """The run with another budget from step ``begin`` on: narrow network, loss and step."""
    example = jax.ShapeDtypeStruct((2, *run.data.image_shape), jnp.float32)
    thin = maps.with_widths(run.module, budget.compact)
    loss = placing.loss(run.placement, forward.classification_loss(thin))
    pieces = run.pieces._replace(
        budget=budget,
        loss=loss,
        signal=make_signal(run.config.signal, run.module, run.channels, budget),
        gate_shapes=forward.gate_shapes(thin, example),
    )
    plans = (*run.plans, (begin, budget))
    return run._replace(budget=budget, thin=thin, loss=loss, pieces=pieces, plans=plans)


def store(run: Run) -> list[dict[str, Any]]:
    """All budgets so far as plain data: first step and widths of each."""
    return [{"step": begin, "widths": budget.compact} for begin, budget in run.plans]


def recall(run: Run, stored: list[dict[str, Any]]) -> Run:
    """The run with the budgets that a checkpoint names.

    Raises:
      ValueError: it began with another budget, as ``multiple_of=0`` makes on another device.
    """
    if stored and stored[0]["widths"] != run.plans[0][1].compact:
        raise ValueError(
            f"the run began at widths {stored[0]['widths']}, this device asks for "
            f"{run.plans[0][1].compact}: go on where it began, or give multiple_of a number"
        )
    if run.pace is not None:
        full = run.budget.full
        return rounds.at(run, [(p["step"], from_widths(full, p["widths"])) for p in stored])
    for plan in stored[len(run.plans) :]:
        run = planned(run, from_widths(run.budget.full, plan["widths"]), plan["step"])
    return run


def label(run: Run, name: str) -> str:
    """A program's name: each different budget has programs of its own, compiled once."""
    if run.pace is not None:  # its loss and rate change with every round, too
        place = len(run.plans) - 1
        return f"{name}, budget {place + 1}" if place else name
    different = list(dict.fromkeys(budget for _, budget in run.plans))
    place = different.index(run.budget)
    return f"{name}, budget {place + 1}" if place else name


def train_steps_macs(run: Run) -> int:
    """Forward MACs of one example, added up over all training steps and the budgets they ran at."""
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    ends = [*(begin for begin, _ in run.plans[1:]), run.steps]
    return sum(
        (end - begin) * forward_macs(maps.with_widths(run.module, budget.compact), example)
        for (begin, budget), end in zip(run.plans, ends, strict=True)
    )
