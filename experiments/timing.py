"""Interleaved timing: in every round each contender runs once, so that all meet the same noise.

Two numbers of one round were taken seconds apart; their ratio is free of what slows the whole
machine down for minutes. The median over rounds and a bootstrap interval are of those ratios.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from dce_jax import cost
from dce_jax.types import PyTree

RESAMPLES = 2000
"""Bootstrap samples per interval."""

_ENDS = (0.025, 0.975)
"""Quantiles of its ends."""

SHORTEST = 0.25
"""Seconds that one measurement lasts at least: short steps are repeated, or waking up the waiting
host would be a visible part of some contenders' time and not of others'."""

Clock = Callable[[], float]


class Program(NamedTuple):
    """A program compiled ahead of time.

    Attributes:
      call: runs it; takes arrays of one set of shapes only.
      seconds: lowering and compiling.
      memory: XLA's account of its buffers, or None where the backend keeps none.
    """

    call: Callable[..., Any]
    seconds: float
    memory: cost.Memory | None


class Contender(NamedTuple):
    """Something to be timed.

    Attributes:
      name: for messages.
      run: ``(state, data) -> (state, metrics)``; gives up the buffers of ``state``. Metrics hold
        ``loss`` where it trains.
      start: makes the state before the first run; nobody else holds its arrays.
      data: the same at every run.
      steps: training steps in one run.
    """

    name: str
    run: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Any]]]
    start: Callable[[], PyTree]
    data: PyTree
    steps: int


class Ratio(NamedTuple):
    """A paired ratio of two contenders' times.

    Attributes:
      median: over rounds, of the ratio within a round.
      low: lower end of the median's 95 % bootstrap interval.
      high: its upper end.
    """

    median: float
    low: float
    high: float


def compiled(function: Callable[..., Any], *args: Any, donate: bool = True) -> Program:
    """Compiles a function ahead of time.

    Args:
      function: pure function of ``args``.
      *args: arrays or `jax.ShapeDtypeStruct` trees.
      donate: the buffers of the first argument are given up at every call.
    """
    begun = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=(0,) if donate else ())
    executable = jitted.lower(*args).compile()
    return Program(executable, time.perf_counter() - begun, cost.memory(executable))


def order(turn: int, count: int) -> list[int]:
    """Who runs when in a round: rotated by one each round, and every other round backwards.

    Without the reversal each contender would always follow the same one.
    """
    rotated = [(turn + place) % count for place in range(count)]
    return rotated[::-1] if turn % 2 else rotated


def interleave(
    contenders: Sequence[Contender],
    *,
    least: int,
    until: float,
    report: Callable[[int, int], None],
    shortest: float = SHORTEST,
    clock: Clock = time.perf_counter,
) -> npt.NDArray[np.float64]:
    """Times all contenders in rounds, after one run of each to warm up and to fix repetitions.

    Args:
      contenders: what to time.
      least: rounds that are made in any case.
      until: time of ``clock`` after which no further round should end.
      report: told (rounds done, rounds expected in all) after every round.
      shortest: seconds that one measurement lasts at least.
      clock: seconds.

    Returns:
      float64[rounds, contenders], milliseconds per step.

    Raises:
      ValueError: fewer than one round, or a loss that is not finite.
    """
    if least < 1:
        raise ValueError(f"rounds is {least}: at least 1 is needed for a figure")
    states = [one.start() for one in contenders]
    repeats = [1] * len(contenders)
    for i, one in enumerate(contenders):
        states[i], seconds = _timed(one, states[i], 1, clock)
        repeats[i] = max(1, math.ceil(shortest / seconds)) if seconds > 0 else 1
    rounds: list[list[float]] = []
    begun, longest = clock(), 0.0
    while len(rounds) < least or clock() + longest < until:
        start = clock()
        row = [0.0] * len(contenders)
        for i in order(len(rounds), len(contenders)):
            one, times = contenders[i], repeats[i]
            states[i], seconds = _timed(one, states[i], times, clock)
            row[i] = 1e3 * seconds / (times * one.steps)
        rounds.append(row)
        longest = max(longest, clock() - start)
        mean = (clock() - begun) / len(rounds)
        more = int(max(0.0, until - clock()) / mean) if mean > 0 else 0
        report(len(rounds), max(least, len(rounds) + more))
    return np.array(rounds, np.float64)


def _timed(one: Contender, state: PyTree, times: int, clock: Clock) -> tuple[PyTree, float]:
    start = clock()
    for _ in range(times):
        state, metrics = one.run(state, one.data)
    jax.block_until_ready((state, metrics))
    seconds = clock() - start
    if "loss" in metrics and not np.all(np.isfinite(metrics["loss"])):
        raise ValueError(
            f"{one.name}: the loss became {np.asarray(metrics['loss'])}, and steps on NaN are no "
            "training steps; lower --learning_rate"
        )
    return state, seconds


def ratio(numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]) -> Ratio:
    """Median of paired ratios, with a percentile bootstrap interval (Efron 1979) over rounds.

    Args:
      numerator: float64[rounds], ms of one contender.
      denominator: float64[rounds], ms of another in the same rounds.
    """
    paired = numerator / denominator
    low, high = np.quantile(np.median(paired[_resampled(len(paired))], axis=1), _ENDS)
    return Ratio(float(np.median(paired)), float(low), float(high))


def ratio_of_means(
    numerator: npt.NDArray[np.float64], denominator: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Ratio of two contenders' mean times where rounds differ in work, not in noise alone.

    Args:
      numerator: float64[rounds], ms of one contender.
      denominator: float64[rounds], ms of another in the same rounds.

    Returns:
      The ratio and the ends of its percentile bootstrap interval, of rounds drawn as pairs.
    """
    draws = _resampled(len(numerator))
    low, high = np.quantile(numerator[draws].mean(axis=1) / denominator[draws].mean(axis=1), _ENDS)
    return float(numerator.mean() / denominator.mean()), float(low), float(high)


def _resampled(rounds: int) -> npt.NDArray[np.int64]:
    # A fixed seed: the same times give the same interval.
    return np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))


def overtaken(
    times_RV: npt.NDArray[np.float64], costs: Sequence[int]
) -> list[tuple[int, Ratio] | None]:
    """For each contender, the costliest one that it is not measurably faster than.

    Args:
      times_RV: float64[rounds, contenders], as `interleave` returns them.
      costs: of each contender, such as its MACs.

    Returns:
      Per contender the place of the costliest other whose paired ratio, this one over that one,
      has an interval that reaches 1, and the ratio; None where it is faster than all of them.
    """
    found: list[tuple[int, Ratio] | None] = []
    for i, cost_i in enumerate(costs):
        larger = sorted((c, j) for j, c in enumerate(costs) if c > cost_i)
        ratios = [(j, ratio(times_RV[:, i], times_RV[:, j])) for _, j in larger]
        found.append(next((one for one in reversed(ratios) if one[1].high >= 1.0), None))
    return found
