"""A study of signals as a picture: who agrees with the oracle, and what each ranking lets go."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dce_jax.signals.algebra import REDUCTIONS, SCALINGS
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style
from experiments.study import ABSOLUTE, RANDOM
from experiments.summary import asked_on

_NAMED = (
    (ABSOLUTE, "oracle", INK),
    ("units.taylor.abs_sum.l2", "Taylor, behind the ReLU", GREEN),
    ("units.taylor.sqr_sum.none", "Fisher, behind the ReLU", PURPLE),
    ("weights.x.l1.none", "L1 norm", BLUE),
    (f"{RANDOM} 0", "random", GREY),
)
_COLOURS = {"activations": BLUE, "weights": ORANGE}


def draw(found: Mapping[str, Any]) -> Figure:
    """Two panels: every formula's rank correlation by its parts, and removal curves.

    Args:
      found: of ``experiments.signals --study``.
    """
    about = found["subject"]
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    figure.suptitle(
        f"{about['network']} on {about['dataset']}: what {found['channels']} channels are worth",
        fontsize=11,
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _formulas(left, found["signals"])
    _curves(right, found)
    return figure


def _formulas(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """A dot per formula: scalings side by side, reductions within them."""
    step, ticks = len(REDUCTIONS) + 2, []
    for place, scaling in enumerate(SCALINGS):
        ticks.append(place * step + (len(REDUCTIONS) - 1) / 2)
        for shift, reduction in enumerate(REDUCTIONS):
            for side, (base, colour) in enumerate(_COLOURS.items()):
                heights = [
                    row["across"]
                    for row in rows
                    if row["across"] is not None
                    and row["name"].startswith(f"{base}.")
                    and row["name"].endswith(f".{reduction}.{scaling}")
                ]
                x = place * step + shift + 0.3 * (side - 0.5)
                axes.plot([x] * len(heights), heights, "o", color=colour, markersize=3.5, alpha=0.7)
    style(axes).set_ylabel("Spearman with |loss change|, all layers together", fontsize=10)
    axes.set_xticks(ticks, [name.replace("_", "\n") for name in SCALINGS], fontsize=9)
    axes.set_xlabel(f"scaling; within it, from left to right: {', '.join(REDUCTIONS)}", fontsize=9)
    axes.axhline(0, color=GREY, linewidth=0.8)
    for base, colour in _COLOURS.items():
        axes.plot([], [], "o", color=colour, markersize=4, label=base)
    axes.legend(fontsize=9, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _curves(axes: Axes, found: Mapping[str, Any]) -> None:
    curves, channels = found["curves"], found["channels"]
    for curve in curves.values():
        axes.plot(*_line(curve, channels), color="#DDDDDD", linewidth=0.8)
    best = next(row["name"] for row in found["signals"] if row["name"].count(".") == 3)
    known = any(name == best for name, *_ in _NAMED)
    for name, label, colour in _NAMED if known else ((best, best, ORANGE), *_NAMED):
        if name in curves:
            line = _line(curves[name], channels)
            axes.plot(*line, color=colour, linewidth=1.6, label=label)
    top = max(curve["accuracy"][0] for curve in curves.values())
    axes.axhline(top - 0.01, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_ylim(top - 0.12, top + 0.01)
    said = f"{asked_on(found)} accuracy, not retrained (dashed: 1 % less)"
    style(axes).set_ylabel(said, fontsize=10)
    axes.set_xlabel("channels gone", fontsize=10)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _line(curve: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    return [removed / channels for removed in curve["removed"]], curve["accuracy"]
