"""Accuracy against cost: one point a table row, one line a method."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from matplotlib.transforms import ScaledTranslation, Transform

from experiments import pooling
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style
from experiments.summary import Result, judged_on, spread

COLOURS = {
    "dense": INK,
    "slimming": BLUE,
    "scratch": GREY,
    "subset": GREEN,
    "random": PURPLE,
    "dce": ORANGE,
}
_MARKERS = "o^sDvP"
_ALONG = frozenset({"macs", "widths", "target", "epochs", "steps", "commit_step"})
"""Settings in which points of one line may differ: how large, and for how long."""

Look: TypeAlias = tuple[str, str]
"""Colour and marker."""
_COSTS = (
    ("macs_compact", "MACs of the compact model, forward, one example"),
    ("train_macs", "MACs of the whole training"),
)


_NEAR = 0.02  # costs that differ by less are drawn side by side
_BESIDE = 30  # letters of a label beside the panels; longer ones would squeeze them
_STEP = 5.0  # points from one line to the next that is drawn beside it
_ROOM = 4.0  # points that a marker needs on either side
_PANEL = 200.0  # points; every panel is at least as wide


def pareto(results: Sequence[Result]) -> Figure:
    """Test accuracy against inference MACs and against training MACs.

    Runs that differ in their seed alone are one point: mean, and sample standard deviation as a
    bar. Points of one network and method are joined by a line over the budgets; other settings in
    which they differ make lines of their own.

    Args:
      results: objects with the keys of `result.json`.

    Returns:
      A figure of two panels that share the accuracy axis.

    Raises:
      ValueError: no results.
    """
    if not results:
        raise ValueError("no results to draw: give at least one result.json")
    lines = _lines(results)
    looks = _looks([line.method for line in lines])
    several = len({(line.dataset, line.network) for line in lines}) > 1
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (cost, label) in zip(panels, _COSTS, strict=True):
        places = _beside(lines, cost)
        for line, look, place in zip(lines, looks, places, strict=True):
            shift = ScaledTranslation(_STEP / 72 * place, 0, figure.dpi_scale_trans)
            _draw(axes, line, cost, look=look, several=several, shift=shift)
        told = "\n(equal costs are drawn side by side)" if any(places) else ""
        style(axes).set_xlabel(label + told, fontsize=10)
        axes.set_xlim(_limits(lines, places, cost))
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    # Shifted lines are none that matplotlib would scale the axes by.
    bounds = [bound for runs in pooling.group(results) for bound in _bounds(runs)]
    bounds = [bound for bound in bounds if math.isfinite(bound)] or [0.0, 1.0]
    margin = 0.08 * (max(bounds) - min(bounds)) or 0.01
    panels[0].set_ylim(min(bounds) - margin, max(bounds) + margin)
    panels[0].set_ylabel(f"{judged_on(results)} accuracy", fontsize=10)
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1, symbol=" %"))
    handles, labels = panels[0].get_legend_handles_labels()
    if max(len(str(label)) for label in labels) <= _BESIDE:
        figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    else:
        figure.set_figheight(figure.get_figheight() + 0.2 * len(labels))
        figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False)
    return figure


class Line(NamedTuple):
    """Rows of a table that are joined.

    Attributes:
      dataset: of all of them.
      network: of all of them.
      method: of all of them.
      settings: as text, those in which another line of the method differs; '' for none.
      groups: the rows.
    """

    dataset: str
    network: str
    method: str
    settings: str
    groups: list[list[Result]]


def _lines(results: Sequence[Result]) -> list[Line]:
    groups = pooling.group(results)
    found: dict[tuple[str, str, str, str], list[list[Result]]] = {}
    for runs, settings in zip(groups, pooling.apart(groups, any_keep=True), strict=True):
        first, own = runs[0], {k: v for k, v in settings.items() if k not in _ALONG}
        key = (first["dataset"], first["network"], first["method"], pooling.words(own))
        found.setdefault(key, []).append(runs)
    return [Line(*key, rows) for key, rows in found.items()]


def _looks(methods: Sequence[str]) -> list[Look]:
    """A look for each line: the first of a known method has its colour, others what is left."""
    looks: list[Look | None] = [
        (COLOURS[method], _MARKERS[0])
        if method in COLOURS and method not in methods[:place]
        else None
        for place, method in enumerate(methods)
    ]
    every = ((colour, marker) for marker in _MARKERS for colour in COLOURS.values())
    free = itertools.cycle([look for look in every if look not in looks])
    return [look or next(free) for look in looks]


def _beside(lines: Sequence[Line], cost: str) -> list[float]:
    """How many places each line moves aside, so that bars at about equal costs stay legible."""
    costs = [[_mean(runs, cost) for runs in line.groups] for line in lines]

    def meet(one: Sequence[float], other: Sequence[float]) -> bool:
        return any(math.isclose(a, b, rel_tol=_NEAR) for a in one for b in other)

    found = []
    for own, mine in enumerate(costs):
        near = [place for place, theirs in enumerate(costs) if meet(mine, theirs)]
        found.append(near.index(own) - (len(near) - 1) / 2)
    return found


def _limits(lines: Sequence[Line], places: Sequence[float], cost: str) -> tuple[float, float]:
    """Limits from 0 to the largest cost, widened where a line that moved aside would leave them."""
    marks = [
        (_mean(runs, cost), _STEP * place)
        for line, place in zip(lines, places, strict=True)
        for runs in line.groups
    ]
    high = max(max(1.08 * at, at / (1 - _share(aside))) for at, aside in marks)
    low = min((at - _share(-aside) * high) / (1 - _share(-aside)) for at, aside in marks)
    return min(0.0, low), high


def _share(aside: float) -> float:
    """Of a panel's width, what a mark that moved so many points needs beyond its cost."""
    return min((_ROOM + aside) / _PANEL, 0.5)


def _mean(runs: Sequence[Result], cost: str) -> float:
    return statistics.fmean(run[cost] for run in runs)


def _draw(
    axes: Axes, line: Line, cost: str, *, look: Look, several: bool, shift: Transform
) -> None:
    accuracies = [_mean_and_spread(runs) for runs in line.groups]
    place = f"{line.network} on {line.dataset}" if several else ""
    axes.errorbar(
        [_mean(runs, cost) for runs in line.groups],
        [mean for mean, _ in accuracies],
        yerr=[spread for _, spread in accuracies],
        color=look[0],
        label=", ".join(filter(None, (line.method, line.settings, place))),
        marker=look[1],
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
