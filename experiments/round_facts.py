"""What a pruning run's rounds left and cost, for people and for `result.json`."""

from typing import Any

import jax
import jax.numpy as jnp

from dce_jax import channels as maps
from dce_jax.budget import Budget
from dce_jax.pruning import costs
from experiments import pruners, rounds, scoring
from experiments.ranking import scored_macs
from experiments.setup import Run


def line(run: Run) -> str:
    """A round in words, after it."""
    pace, (begin, budget) = rounds.pace_of(run), run.plans[-1]
    share = costs.total(pace.macs, budget.compact) / costs.total(pace.macs, budget.full)
    channels = f"{sum(budget.compact.values())} of {sum(budget.full.values())} channels"
    number = f"round {len(run.plans) - 1} of {pace.pruner.rounds}"
    return f"{number} after step {begin}: {channels}, {share:.1%} of dense MACs"


def records(run: Run) -> list[dict[str, Any]]:
    """What every round left, for `result.json`."""
    pace = rounds.pace_of(run)
    pairs = zip(run.plans, run.plans[1:], strict=False)
    return [
        {
            "step": begin,
            "removed": {g: w - after.compact[g] for g, w in before.compact.items()},
            "macs": costs.total(pace.macs, after.compact),
        }
        for (_, before), (begin, after) in pairs
    ]


def extra_macs(run: Run) -> int:
    """MACs that a pruning run takes beside its steps: all but training the network itself."""
    if run.pace is None:
        return 0
    pace, size, total = run.pace, run.config.batch_size, 0
    for stage, end in enumerate(run.ends):
        begin, budget = run.plans[stage]
        watched = min(pace.pruner.watch, end - begin)
        passes = watched or pace.pruner.scoring
        total += passes * _pass_macs(run, budget)
        folded = pruners.fold_batches(pace.pruner)
        total += folded * size * costs.total(pace.macs, budget.compact)
    total += pace.searches * size * costs.total(pace.macs, run.budget.full)
    if run.config.distill:
        taught = run.steps - run.ends[0]
        total += taught * size * costs.total(pace.macs, run.budget.full)
    return total


def _pass_macs(run: Run, budget: Budget) -> int:
    """MACs that reading the criterion off one batch took at a budget."""
    pruner = rounds.pace_of(run).pruner
    signal = scoring.unscaled(run, pruner.criterion, budget)
    if pruner.watch and not signal.own_pass:
        return 0
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    thin = maps.with_widths(run.module, budget.compact)
    return scored_macs(signal, thin, example, run.config.batch_size)
