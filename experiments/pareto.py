"""Accuracy against cost: one point a table row, one line a method."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from experiments import pooling
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style
from experiments.summary import Result, spread

COLOURS = {
    "dense": INK,
    "slimming": BLUE,
    "scratch": GREY,
    "subset": GREEN,
    "random": PURPLE,
    "dce": ORANGE,
}
_COSTS = (
    ("macs_compact", "MACs of the compact model, forward, one example"),
    ("train_macs", "MACs of the whole training"),
)


def pareto(results: Sequence[Result]) -> Figure:
    """Test accuracy against inference MACs and against training MACs.

    Runs that differ in their seed alone are one point: mean, and sample standard deviation as a
    bar. Points of one network and method are joined by a line over the keeps.

    Args:
      results: objects with the keys of `result.json`.

    Returns:
      A figure of two panels that share the accuracy axis.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError("no results to draw: give at least one result.json")
    lines: dict[tuple[str, str, str], list[list[Result]]] = {}
    for runs in pooling.group(results):
        first = runs[0]
        key = (first["dataset"], first["network"], first["method"])
        lines.setdefault(key, []).append(runs)
    several = len({(dataset, network) for dataset, network, _ in lines}) > 1
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, label) in zip(panels, _COSTS, strict=True):
        for place, (name, groups) in enumerate(lines.items()):
            # Methods of one budget cost the same: a few points apart, their bars stay legible.
            shift = ScaledTranslation(5 / 72 * (place - len(lines) / 2), 0, figure.dpi_scale_trans)
            _line(axes, name, groups, cost, several=several, shift=shift)
        style(axes).set_xlabel(label, fontsize=10)
        axes.set_xlim(0, 1.08 * max(run[cost] for run in results))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    # Shifted lines are none that matplotlib would scale the axes by.
    bounds = [bound for runs in pooling.group(results) for bound in _bounds(runs)]
    bounds = [bound for bound in bounds if math.isfinite(bound)] or [0.0, 1.0]
    margin = 0.08 * (max(bounds) - min(bounds)) or 0.01
    panels[0].set_ylim(min(bounds) - margin, max(bounds) + margin)
    panels[0].set_ylabel("test accuracy", fontsize=10)
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1, symbol=" %"))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    return figure


def _line(
    axes: Axes,
    name: tuple[str, str, str],
    groups: Sequence[Sequence[Result]],
    cost: str,
    *,
    several: bool,
    shift: Transform,
) -> None:
    dataset, network, method = name
    accuracies = [_mean_and_spread(runs) for runs in groups]
    axes.errorbar(
        [statistics.fmean(run[cost] for run in runs) for runs in groups],
        [mean for mean, _ in accuracies],
        yerr=[spread for _, spread in accuracies],
        color=COLOURS.get(method, BLUE),
        label=f"{method}, {network} on {dataset}" if several else method,
        marker="o",
        markersize=5,
        linewidth=1.2,
        capsize=3,
        transform=axes.transData + shift,
    )


def _mean_and_spread(runs: Sequence[Result]) -> tuple[float, float]:
    values = [run["test_accuracy"] for run in runs]
    return statistics.fmean(values), spread(values)


def _bounds(runs: Sequence[Result]) -> tuple[float, float]:
    mean, spread = _mean_and_spread(runs)
    return mean - spread, mean + spread
