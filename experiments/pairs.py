"""Differences between two table rows, seed by seed, with their t interval."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import special

from experiments import pooling
from experiments.summary import Result, spread


class Row(NamedTuple):
    """One row of a table of results.

    Attributes:
      method: of its runs.
      keep: achieved, mean over the pairs.
      settings: by name, those that tell the row from others.
    """

    method: str
    keep: float
    settings: dict[str, Any]


class Comparison(NamedTuple):
    """One row minus another.

    Attributes:
      dataset: of both rows.
      network: of both rows.
      row: the subject.
      minus: the other row.
      seeds: of the pairs, ascending.
      differences: of test accuracy per pair, in points; NaN where a run has no accuracy.
      mean: of the differences; NaN if one is.
      interval: bounds of the 95 % t interval of the mean, in points; None for one pair.
      train_macs_ratio: training MACs of the row's pairs over those of the other's.
    """

    dataset: str
    network: str
    row: Row
    minus: Row
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    train_macs_ratio: float


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % t interval of a mean: mean ± t s / sqrt(n), t at n - 1 degrees of freedom.

    Args:
      differences: n numbers, independent draws of a normal distribution.

    Returns:
      Its bounds, both the mean where all numbers are equal; None for fewer than two numbers.
    """
    count = len(differences)
    if count < 2:
        return None
    quantile = float(special.stdtrit(count - 1, 0.975))
    mean, half = statistics.fmean(differences), quantile * spread(differences) / math.sqrt(count)
    return mean - half, mean + half


def compare(
    row: Sequence[Result],
    minus: Sequence[Result],
    *,
    settings: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
) -> Comparison | None:
    """One row minus another, over the seeds that both have.

    Args:
      row: runs of the subject, each seed once.
      minus: runs of the other row, each seed once.
      settings: of both rows, as labels.

    Returns:
      The comparison; None if the rows share no seed.
    """
    by_seed = [{run["seed"]: run for run in runs} for runs in (row, minus)]
    seeds = tuple(sorted(by_seed[0].keys() & by_seed[1].keys()))
    if not seeds:
        return None
    pairs = [(by_seed[0][seed], by_seed[1][seed]) for seed in seeds]
    differences = tuple(100 * (a["test_accuracy"] - b["test_accuracy"]) for a, b in pairs)
    return Comparison(
        dataset=row[0]["dataset"],
        network=row[0]["network"],
        row=_row([a for a, _ in pairs], settings[0]),
        minus=_row([b for _, b in pairs], settings[1]),
        seeds=seeds,
        differences=differences,
        mean=statistics.fmean(differences),
        interval=interval(differences),
        train_macs_ratio=sum(a["train_macs"] for a, _ in pairs)
        / sum(b["train_macs"] for _, b in pairs),
    )


def _row(runs: Sequence[Result], settings: dict[str, Any]) -> Row:
    return Row(runs[0]["method"], statistics.fmean(run["keep"] for run in runs), settings)


def subject(results: Sequence[Result]) -> str:
    """Whose rows others are taken from: the last known method of a table, so dce where it is."""
    known = {run["method"] for run in results}.intersection(pooling.METHODS)
    return max(known, key=pooling.METHODS.index, default=pooling.METHODS[-1])


def comparisons(results: Sequence[Result], method: str) -> list[Comparison]:
    """Every row of a method minus every other row of its data set and network.

    Two rows of the method itself are compared once, the earlier in the table minus the later.

    Args:
      results: objects with the keys of `result.json`.
      method: the subject.

    Returns:
      One comparison per two rows with a common seed, in the order of a table's rows.

    Raises:
      ValueError: one seed twice with the same settings.
    """
    groups = pooling.group(results)
    labels = pooling.apart(groups)
    subjects = [i for i, runs in enumerate(groups) if runs[0]["method"] == method]
    found = []
    for i in subjects:
        for j, minus in enumerate(groups):
            if not _same_task(groups[i], minus) or (j in subjects and j <= i):
                continue
            own, other = pooling.unlike(groups[i], minus)
            settings = (labels[i] | own, labels[j] | other)
            found.append(compare(groups[i], minus, settings=settings))
    return [comparison for comparison in found if comparison is not None]


def _same_task(one: Sequence[Result], other: Sequence[Result]) -> bool:
    return all(one[0][key] == other[0][key] for key in ("dataset", "network"))


def required(results: Sequence[Result], method: str) -> list[Comparison]:
    """As `comparisons`, but none at all is an error.

    Raises:
      ValueError: no row of the method shares a seed with another row, or one seed twice.
    """
    found = comparisons(results, method)
    if not found:
        methods = sorted({result["method"] for result in results})
        raise ValueError(
            f"nothing to compare: no row of method {method!r} shares a seed with another row of "
            f"its data set and network; the {len(results)} results are of: "
            f"{', '.join(methods) or 'no method'}"
        )
    return found
