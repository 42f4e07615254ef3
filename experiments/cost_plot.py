"""The picture of a benchmark: time per step against keep, with the narrow network as the limit."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style

Row = dict[str, Any]

_COLOURS = {"committed": GREEN, "masked": PURPLE}
_SLAB_COLOURS = (ORANGE, BLUE, "#E69F00", "#56B4E9", "#882255", "#44AA99")


def step_times(rows: Sequence[Row], *, device: str) -> Figure:
    """Draws medians over rounds, with the range of all rounds as bars.

    Args:
      rows: of one network and batch size, as the benchmark's JSON holds them.
      device: for the title.

    Returns:
      The figure.
    """
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
    title = f"{dense['network']}, batch {dense['batch']}, {device}"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(frameon=False, fontsize=9, loc="center left")
    return figure


def _find(rows: Sequence[Row], variant: str, every: int | None) -> list[Row]:
    found = [row for row in rows if (row["variant"], row["select_every"]) == (variant, every)]
    return sorted(found, key=lambda row: row["keep"])


def _steps(every: int) -> str:
    return "step" if every == 1 else f"{every} steps"


def _bars(axes: Axes, rows: Sequence[Row], *, label: str, colour: str) -> None:
    below = [row["ms_median"] - row["ms_min"] for row in rows]
    above = [row["ms_max"] - row["ms_median"] for row in rows]
    axes.errorbar(
        [row["keep"] for row in rows],
        [row["ms_median"] for row in rows],
        yerr=[below, above],
        label=label,
        color=colour,
        marker="s",
        markersize=4,
        linewidth=1,
        elinewidth=0.8,
        capsize=2,
        alpha=0.8,
    )
