"""The picture of a benchmark: bars at one keep; over several, time against keep up to dense."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import cost_rows
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style

Row = dict[str, Any]

_COLOURS = {"committed": GREEN, "masked": PURPLE}
_BAR_COLOURS = {"dense": GREY, "narrow": INK, "slab": ORANGE, **_COLOURS}
_SLAB_COLOURS = (ORANGE, BLUE, "#E69F00", "#56B4E9", "#882255", "#44AA99")


def step_times(rows: Sequence[Row], *, device: str) -> Figure:
    """Draws medians over rounds, and the range of all rounds as whiskers.

    Args:
      rows: of one network and batch size, as the benchmark's JSON holds them.
      device: for the title.

    Returns:
      The figure.
    """
    keeps = {row["keep"] for row in rows if row["variant"] == "narrow"}
    figure = _at_one_keep(rows) if len(keeps) == 1 else _over_keeps(rows)
    share = f", keep {keeps.pop():g}" if len(keeps) == 1 else ""
    title = f"{rows[0]['network']}, batch {rows[0]['batch']}{share}, {device}"
    figure.axes[0].set_title(title, loc="left", fontsize=11, color=INK)
    return figure


def _at_one_keep(rows: Sequence[Row]) -> Figure:
    """A bar per variant, slowest first, with its share of the dense step."""
    figure = Figure(figsize=(8, 0.8 + 0.36 * len(rows)), layout="constrained")
    axes = style(figure.add_subplot(), grid="x")
    ordered = sorted(rows, key=lambda row: float(row["ms_median"]))  # bars are drawn upwards
    names = [_name(row, rows) for row in ordered]
    colours = [_BAR_COLOURS[row["variant"]] for row in ordered]
    times = [row["ms_median"] for row in ordered]
    axes.barh(names, times, xerr=_whiskers(ordered), color=colours, ecolor=GREY, capsize=2)
    for place, row in enumerate(ordered):
        time = f"{row['ms_median']:.{0 if row['ms_median'] >= 100 else 1}f}"
        told = f"  {time} ms, {row['vs_dense']:.2f} of dense"
        axes.text(row["ms_max"], place, told, va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1.45 * max(row["ms_max"] for row in rows))
    axes.set_xlabel("milliseconds per training step", color=INK)
    return figure


def _name(row: Row, rows: Sequence[Row]) -> str:
    every = row["select_every"]
    often = "" if every is None else f", a selection every {_steps(every)}"
    return f"{cost_rows.label(row, rows)}{often}"


def _over_keeps(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = style(figure.add_subplot())
    dense, narrow = _find(rows, "dense", None)[0], _find(rows, "narrow", None)
    axes.axhline(dense["ms_median"], color=GREY, linewidth=1, linestyle="--", label="dense")
    # At keep 1 the narrow network is the dense one, so the limit ends there.
    limit = narrow if narrow[-1]["keep"] == 1.0 else [*narrow, dense]
    keeps = [row["keep"] for row in limit]
    times = [row["ms_median"] for row in limit]
    axes.plot(keeps, times, color=INK, linewidth=1.5, marker="o", label="narrow network: the limit")
    slabs = [row for row in rows if row["variant"] == "slab"]
    several = len({row.get("signal") for row in slabs}) > 1
    kinds = dict.fromkeys((row["select_every"], row.get("signal")) for row in slabs)
    for i, (every, signal) in enumerate(kinds):
        name = f"slab, a selection every {_steps(every)}" + (f", {signal}" if several else "")
        chosen = [row for row in _find(slabs, "slab", every) if row.get("signal") == signal]
        _bars(axes, chosen, label=name, colour=_SLAB_COLOURS[i % len(_SLAB_COLOURS)])
    for variant, colour in _COLOURS.items():
        _bars(axes, _find(rows, variant, None), label=variant, colour=colour)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("keep: share of every group's channels that execute", color=INK)
    axes.set_ylabel("milliseconds per training step", color=INK)
    axes.legend(frameon=False, fontsize=9, loc="center left")
    return figure


def _find(rows: Sequence[Row], variant: str, every: int | None) -> list[Row]:
    found = [row for row in rows if (row["variant"], row["select_every"]) == (variant, every)]
    return sorted(found, key=lambda row: row["keep"])


def _steps(every: int) -> str:
    return "step" if every == 1 else f"{every} steps"


def _bars(axes: Axes, rows: Sequence[Row], *, label: str, colour: str) -> None:
    axes.errorbar(
        [row["keep"] for row in rows],
        [row["ms_median"] for row in rows],
        yerr=_whiskers(rows),
        label=label,
        color=colour,
        marker="s",
        markersize=4,
        linewidth=1,
        elinewidth=0.8,
        capsize=2,
        alpha=0.8,
    )


def _whiskers(rows: Sequence[Row]) -> list[list[float]]:
    """From the median down to the fastest round, and up to the slowest."""
    below = [row["ms_median"] - row["ms_min"] for row in rows]
    return [below, [row["ms_max"] - row["ms_median"] for row in rows]]
