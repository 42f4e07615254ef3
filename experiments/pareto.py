"""Accuracy against cost: one point a table row, one line a method."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from experiments import pooling
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style
from experiments.summary import Result

COLOURS = {"dense": INK, "scratch": GREY, "subset": GREEN, "random": PURPLE, "dce": ORANGE}
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
        for name, groups in lines.items():
            _line(axes, name, groups, cost, several=several)
        style(axes).set_xlabel(label, fontsize=10)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.xaxis.set_minor_formatter(EngFormatter(sep=" "))
        axes.tick_params(which="minor", labelsize=8, colors=INK)
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
) -> None:
    dataset, network, method = name
    accuracies = [[run["test_accuracy"] for run in runs] for runs in groups]
    axes.errorbar(
        [statistics.fmean(run[cost] for run in runs) for runs in groups],
        [statistics.fmean(values) for values in accuracies],
        yerr=[statistics.stdev(v) if len(v) > 1 else 0.0 for v in accuracies],
        color=COLOURS.get(method, BLUE),
        label=f"{method}, {network} on {dataset}" if several else method,
        marker="o",
        markersize=5,
        linewidth=1.2,
        capsize=3,
    )
