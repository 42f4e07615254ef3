"""Learned budgets of a run: when they are planned, from what, and what changes with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import allocate, bandit, forward
from dce_jax import channels as maps
from dce_jax.bandit import BanditState
from dce_jax.budget import Budget, from_widths
from experiments.config import SCALES
from experiments.setup import Run, forward_macs, macs_of, make_signal


def steps(run: Run) -> tuple[int, ...]:
    """The steps after which the budget is learned anew, the last one at the commit.

    Fixed by the config, so that a resumed run plans where an uninterrupted one does. A run that
    never commits does not plan at its end, where nothing would train the planned network.
    """
    if run.config.allocation != "global" or run.config.method == "dense":
        return ()
    every, count = run.config.select_every, run.config.plans
    ends = {round(run.commit_step * (i + 1) / count / every) * every for i in range(count)}
    ends.add(run.commit_step)
    return tuple(sorted(end for end in ends if 0 < end <= run.commit_step and end < run.steps))


def groups(run: Run) -> tuple[str, ...]:
    """The groups whose channels the bandit keeps account of."""
    return tuple(run.budget.full) if steps(run) else run.budget.contested


def learned(run: Run, known: BanditState) -> Budget:
    """The budget that the bandit's means suggest, at the MACs of the first, uniform one.

    Args:
      run: with its budgets so far.
      known: what the bandit has seen; a channel that never executed counts as worthless.
    """
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    count, full = macs_of(run.module, example), run.budget.full
    means = {group: np.asarray(bandit.arms(known, group).mean_C) for group in full}
    scaled = SCALES[run.config.scale](means)
    if run.config.per_cost:
        scaled = allocate.per_cost(scaled, full, count)
    first = run.plans[0][1]
    return allocate.budget(
        full,
        scaled,
        count(first.compact) / count(full),
        count,
        multiple_of=run.config.multiple_of,
        min_channels=run.config.min_channels,
    )


def planned(run: Run, budget: Budget, begin: int) -> Run:
    """The run with another budget from step ``begin`` on: narrow network, loss and step."""
    example = jax.ShapeDtypeStruct((2, *run.data.image_shape), jnp.float32)
    thin = maps.with_widths(run.module, budget.compact)
    loss = forward.classification_loss(thin)
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
    """The run with the budgets that a checkpoint names."""
    for plan in stored[len(run.plans) :]:
        run = planned(run, from_widths(run.budget.full, plan["widths"]), plan["step"])
    return run


def label(run: Run, name: str) -> str:
    """A program's name: each different budget has programs of its own, compiled once."""
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
