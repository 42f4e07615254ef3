"""How a pruning run is paced: when channels go, how many, and the steps that its MACs allow.

All rounds are placed by shares of the training MACs, those that the narrow network would take for
its ordinary run, so that every method costs the same. What a step costs is known for the stages
that were, and foretold for those to come; the fine-tuning at the end takes what remains.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from dce_jax import budget as budgets
from dce_jax.budget import Budget
from dce_jax.pruning import Costs, Order, check_target, costs
from dce_jax.types import Widths
from experiments import lengths, pruners
from experiments.config import parse_groups
from experiments.lengths import Clock, Length
from experiments.pruners import Pruner


class Pace(NamedTuple):
    """What a pruning run's stages rest on.

    Attributes:
      pruner: the method.
      macs: of the network, at any widths.
      counted: the cost that the target is about: MACs or parameters.
      target: the budget asked for: its widths, or what it costs.
      least: group -> channels that stay at least.
      scored: MACs of a batch's scoring over those of its forward pass.
      searches: forward passes of a batch at full width that the first round takes to find latents.
    """

    pruner: Pruner
    macs: Costs
    counted: Costs
    target: Budget
    least: dict[str, int]
    scored: float
    searches: int


class Timetable(NamedTuple):
    """When what happens.

    Attributes:
      ends: steps after which channels go, one a round.
      steps: length of the run.
      spent: training MACs by each end and by the last step, in steps at the final widths.
    """

    ends: tuple[int, ...]
    steps: int
    spent: tuple[float, ...]


def build(
    config: ConfigDict, macs: Costs, parameters: Costs, target: Budget, scored: float
) -> Pace:
    """Checks what a config asks of a pruning run against its network.

    Args:
      config: of the run.
      macs: of the network.
      parameters: of the network.
      target: the budget asked for.
      scored: as in `Pace`.

    Raises:
      ValueError: a target below the floor, or rounding that fits nowhere.
    """
    pruner, full = pruners.of(config), target.full
    floor = budgets.from_wishes(
        full,
        dict.fromkeys(full, 0.0),
        multiple_of=config.multiple_of,
        min_channels=config.min_channels,
        floor=config.floor,
        whole=parse_groups(config.whole),
    )
    counted = macs if config.target == "macs" else parameters
    pace = Pace(pruner, macs, counted, target, floor.compact, scored, pruners.search_passes(config))
    if pruner.allocation == "global":
        aim = goal(pace, pruner.rounds)
        check_target(counted, full, target=aim, least=pace.least, multiple_of=config.multiple_of)
    return pace


def goal(pace: Pace, done: int) -> float:
    """Cost that the network may have after a round: every round leaves the same share of it."""
    # A share computed from integers may, multiplied back, fall just short of what it came from.
    return _between(pace.counted, pace, done) * (1 + 1e-12)


def widths_after(pace: Pace, config: ConfigDict, done: int) -> dict[str, int]:
    """Widths after a round where the target names them: every round leaves the same share."""
    share, target = done / pace.pruner.rounds, pace.target
    if share == 1.0:  # widths of the user's own need not be multiples
        return target.compact
    wanted = {g: c * (target.compact[g] / c) ** share for g, c in target.full.items()}
    rounded = budgets.from_wishes(
        target.full,
        wanted,
        multiple_of=config.multiple_of,
        min_channels=config.min_channels,
        whole=parse_groups(config.whole),
    )
    return {g: max(width, target.compact[g]) for g, width in rounded.compact.items()}


def order(pace: Pace) -> Order:
    """Which channel goes first; a penalty is for the cost that the method counts in."""
    full = pace.target.full
    channels = sum(full.values()) if pace.pruner.unit == "channel" else 1
    whole = costs.total(pace.counted, full)
    return Order(pace.pruner.penalty * channels / whole, pace.pruner.per_cost)


def timetable(pace: Pace, config: ConfigDict, nominal: int, known: Sequence[Widths]) -> Timetable:
    """Places the rounds.

    Args:
      pace: of the run.
      config: of the run.
      nominal: steps that the narrow network would take for the same training MACs.
      known: widths of the stages so far, the dense one first.

    Raises:
      ValueError: nothing is left to fine-tune with, before the run began.
    """
    macs: list[float] = [costs.total(pace.macs, widths) for widths in known]
    macs += [_foretold(pace, config, n) for n in range(len(known), pace.pruner.rounds + 1)]
    budget = nominal * lengths.passes(config) * costs.total(pace.macs, pace.target.compact)
    ends, spent, done, points = [], 0.0, 0, []
    least = 1 if config.prune_until else 0  # before the first step only where that is asked for
    for number, share in enumerate(_shares(pace.pruner.rounds, config)):
        each = _step_macs(config, macs, number)
        steps = max(least, round((share * budget - spent) / each))
        done += steps
        spent += steps * each + _round_macs(pace, steps, macs[number])
        spent += 0 if number else pace.searches * macs[0]
        ends.append(done)
        points.append(spent)
    each = _step_macs(config, macs, len(ends))
    rest = round((budget - spent) / each)
    if rest < 1 and len(known) == 1:
        raise ValueError(
            f"{nominal} steps' worth of training MACs are spent after {done} steps and "
            f"{len(ends)} rounds of pruning: train longer, lower prune_until (now "
            f"{config.prune_until}), score on fewer batches, or search less (search_evaluations, "
            "search_examples, or latents of another run)"
        )
    rest = max(1, rest)
    points.append(spent + rest * each)
    return Timetable(tuple(ends), done + rest, tuple(point / each for point in points))


def length(pace: Pace, config: ConfigDict, examples: int, known: Sequence[Widths]) -> Length:
    """The length of a run as it is known by now; see `timetable`.

    Args:
      pace: of the run.
      config: of the run.
      examples: images of the training split.
      known: widths of the stages so far.

    Raises:
      ValueError: a batch larger than the data, or nothing left to fine-tune with.
    """
    table = timetable(pace, config, lengths.run_length(config, examples), known)
    ticking = clock(table) if config.rate_over == "macs" else None
    return Length(table.steps, table.ends[-1], table.ends, ticking)


def clock(table: Timetable) -> Clock:
    """How far a run is by its MACs, counted in steps at the final widths."""
    steps = jnp.asarray([0, *table.ends, table.steps], jnp.float32)
    spent = jnp.asarray([0.0, *table.spent], jnp.float32)
    return lambda count: jnp.interp(jnp.asarray(count, jnp.float32), steps, spent)


def _shares(rounds: int, config: ConfigDict) -> list[float]:
    """Shares of the training MACs after which channels go."""
    if rounds == 1:
        return [config.prune_until]
    apart = (1.0 - config.prune_dense) / (rounds - 1)
    return [config.prune_until * (config.prune_dense + i * apart) for i in range(rounds)]


def _between(counted: Costs, pace: Pace, done: int) -> float:
    full = costs.total(counted, pace.target.full)
    last = costs.total(counted, pace.target.compact)
    return float(full * (last / full) ** (done / pace.pruner.rounds))


def _foretold(pace: Pace, config: ConfigDict, done: int) -> float:
    if pace.pruner.allocation == "global":
        return _between(pace.macs, pace, done)
    return costs.total(pace.macs, widths_after(pace, config, done))


def _step_macs(config: ConfigDict, macs: Sequence[float], stage: int) -> float:
    teacher = macs[0] if config.distill and stage else 0.0
    return lengths.passes(config) * macs[stage] + teacher


def _round_macs(pace: Pace, steps: int, macs: float) -> float:
    batches = min(pace.pruner.watch, steps) if pace.pruner.watch else pace.pruner.scoring
    return (batches * pace.scored + pruners.fold_batches(pace.pruner)) * macs
