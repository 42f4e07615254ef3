"""Accuracy at equal work: systems that decide per input against their controls, seed by seed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import pairs, records
from experiments.summary import NONE, markdown, mean_and_spread

TARGETS = (0.4, 0.5, 0.6, 0.7, 0.8)
"""Mean multiply-accumulates, as shares of the whole network's, at which accuracies are read off."""

Subject = tuple[str, str, float]
"""Data set, network, and the multiply-accumulates of the whole network."""

_HEADS = (
    *("system", "MACs", "accuracy (n seeds)", "less shuffled [95 %]", "less one decision [95 %]"),
    *("less static [95 %]", "harder images, rank correlation"),
)


def tables(paths: Sequence[Path]) -> str:
    """A Markdown table per data set and network.

    Accuracies between two points of a run lie on a straight line; nothing is read off outside of
    what a run's points span. Static networks are runs of `experiments.train`, narrower ones of the
    same backbone.

    Args:
      paths: directories that hold results of ``experiments.runtime`` and of ``experiments.train``.

    Raises:
      FileNotFoundError: no such directory, or no result of ``experiments.runtime`` in it.
      ValueError: a file that is not JSON.
    """
    return "\n\n".join(_table(dynamic, static) for dynamic, static in grouped(paths).values())


def grouped(paths: Sequence[Path]) -> dict[Subject, tuple[list[Any], list[Any]]]:
    """Subject -> (results of ``experiments.runtime``, those of ``experiments.train``).

    A network of another width is another subject: shares are of the whole network's work.

    Args:
      paths: directories.

    Raises:
      FileNotFoundError: no such directory, or no result of ``experiments.runtime`` in it.
      ValueError: a file that is not JSON.
    """
    files = [file for path in paths for file in _files(path)]
    found = [records.read_json(file) for file in files]
    dynamic = [each for each in found if "points" in each]
    static = [each for each in found if "macs_compact" in each]
    if not dynamic:
        raise FileNotFoundError(f"no result of experiments.runtime in {[str(p) for p in paths]}")
    groups: dict[Subject, tuple[list[Any], list[Any]]] = {
        _subject(run): ([], []) for run in dynamic
    }
    for place, runs in enumerate((dynamic, static)):
        for run in runs:
            if _subject(run) in groups:
                groups[_subject(run)][place].append(run)
    return groups


def _subject(run: Mapping[str, Any]) -> Subject:
    return run["dataset"], run["network"], float(run["macs_full"])


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: name a directory of results")
    return sorted(path.rglob("*.json")) if path.is_dir() else [path]


def curve(run: Mapping[str, Any], key: str, work: str = "macs_share") -> list[tuple[float, float]]:
    """(work, accuracy) of a run's points, by work; equal work as its mean accuracy.

    Args:
      run: `result.json` of ``experiments.runtime``.
      key: of the accuracy.
      work: key of the work.
    """
    together: dict[float, list[float]] = {}
    for point in run["points"]:
        together.setdefault(point[work], []).append(point[key])
    return [(share, statistics.fmean(found)) for share, found in sorted(together.items())]


def at(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Accuracy at some work, on the line between two points; None outside of them."""
    if not points or not points[0][0] <= target <= points[-1][0]:
        return None
    work, accuracy = np.asarray(points).T
    return float(np.interp(target, work, accuracy))


def _table(dynamic: Sequence[Any], static: Sequence[Any]) -> str:
    rows = []
    narrow = still(static)
    for system in dict.fromkeys(run["system"] for run in dynamic):
        runs = {run["seed"]: run for run in dynamic if run["system"] == system}
        for target in TARGETS:
            row = _row(system, target, runs, narrow)
            if row is not None:
                rows.append(row)
    for target in TARGETS:
        found = [at(points, target) for points in narrow.values()]
        known = [each for each in found if each is not None]
        if known:
            cells = [f"{mean_and_spread(known)} ({len(known)})", *[NONE] * 4]
            rows.append(["static", f"{target:.0%}", *cells])
    first = dynamic[0]
    return f"{first['network']} on {first['dataset']}:\n\n" + markdown(_HEADS, rows, left=1)


def still(static: Sequence[Any]) -> dict[int, list[tuple[float, float]]]:
    """Seed -> (work, accuracy) of static networks, by work.

    Args:
      static: results of ``experiments.train``.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for run in static:
        share = run["macs_compact"] / run["macs_full"]
        found.setdefault(run["seed"], []).append((share, run["test_accuracy"]))
    return {seed: sorted(points) for seed, points in found.items()}


def _row(
    system: str,
    target: float,
    runs: Mapping[int, Any],
    narrow: Mapping[int, list[tuple[float, float]]],
) -> list[str] | None:
    own = {seed: at(curve(run, "accuracy"), target) for seed, run in runs.items()}
    known = {seed: value for seed, value in own.items() if value is not None}
    if not known:
        return None
    controls = (
        {seed: at(curve(runs[seed], "shuffled_accuracy"), target) for seed in known},
        {
            seed: at(curve(runs[seed], "constant_accuracy", "constant_macs_share"), target)
            for seed in known
        },
        {seed: at(narrow.get(seed, []), target) for seed in known},
    )
    return [
        system,
        f"{target:.0%}",
        f"{mean_and_spread(list(known.values()))} ({len(known)})",
        *(_less(known, control) for control in controls),
        _harder(target, [runs[seed] for seed in known]),
    ]


def _less(own: Mapping[int, float], other: Mapping[int, float | None]) -> str:
    """Mean difference in points over the seeds that both have, with its t interval.

    Their number is told where it is not that of the system's own column.
    """
    differences = [
        100 * (value - beside)
        for seed, value in own.items()
        if (beside := other.get(seed)) is not None
    ]
    if not differences:
        return NONE
    mean, bounds = statistics.fmean(differences), pairs.interval(differences)
    inside = "" if bounds is None else f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"
    count = "" if len(differences) == len(own) else f" ({len(differences)})"
    return f"{mean:+.2f}{inside}{count}"


def _harder(target: float, runs: Sequence[Any]) -> str:
    """Rank correlation at the point whose work is nearest, mean over seeds."""
    found = []
    for run in runs:
        point = min(run["points"], key=lambda point: abs(point["macs_share"] - target))
        if point["rank_correlation"]["rho"] is not None:
            found.append(point["rank_correlation"])
    if not found:
        return NONE
    rho, low, high = (
        statistics.fmean(each[key] for each in found) for key in ("rho", "low", "high")
    )
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]"
