"""Figures of a run's course and cost, drawn from plain data; nothing here touches a file.

Every function returns a `matplotlib.figure.Figure` of its own: no pyplot, so no global state and
no display. Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart;
orange always marks the channels that were chosen for the compact model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

Row = Mapping[str, Any]

INK, GREY, PALE = "#333333", "#8C8C8C", "#D9D9D9"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#B5588F"
SKY = "#56B4E9"
MARK_COLOURS = (ORANGE, GREEN, PURPLE, GREY)


def style(axes: Axes, *, grid: Literal["x", "y"] | None = "y") -> Axes:
    """Removes the box's upper and right sides, and sets legible sizes. Returns `axes`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=9, colors=INK)
    if grid is not None:
        axes.grid(axis=grid, color=PALE, linewidth=0.6)
        axes.set_axisbelow(True)
    return axes


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Heights for labels of `values`, in the same order, at least `gap` apart where there is room.

    Args:
      values: where each label would like to be.
      gap: smallest distance between two labels.
      low: lowest allowed height.
      high: highest allowed height; the labels may leave it only if they do not fit at all.

    Returns:
      One height per value; labels keep the order of their values.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [0.0] * len(values)
    floor = low
    for i in order:
        placed[i] = max(values[i], floor)
        floor = placed[i] + gap
    ceiling = high
    for i in reversed(order):
        placed[i] = max(min(placed[i], ceiling), low)
        ceiling = placed[i] - gap
    return placed


def column(rows: Sequence[Row], key: str) -> np.ndarray:
    """float64[rows]: the values under `key`; nulls become NaN, which is drawn as a gap."""
    return np.array([math.nan if row[key] is None else row[key] for row in rows], dtype=np.float64)


def _mark_tests(axes: Axes, test_accuracies: Mapping[str, float]) -> None:
    """Draws one labelled horizontal mark per test accuracy at the right edge of `axes`."""
    low, high = axes.get_ylim()
    values = list(test_accuracies.values())
    heights = spread(values, gap=(high - low) * 0.085, low=low, high=high)
    edge = axes.get_yaxis_transform()  # x in shares of the panel's width, y in data
    for i, (name, height) in enumerate(zip(test_accuracies, heights, strict=True)):
        colour, value = MARK_COLOURS[i % len(MARK_COLOURS)], values[i]
        axes.axhline(value, color=colour, linewidth=1, linestyle=(4 * i, (4, 8)))
        axes.plot(
            [1, 1.025], [value, height], transform=edge, color=colour, linewidth=1, clip_on=False
        )
        label = f"{100 * value:.1f} %  {name}"
        axes.text(1.03, height, label, transform=edge, color=colour, fontsize=9, va="center")


def learning_curves(
    metrics: Sequence[Row], *, commit_step: int | None, test_accuracies: Mapping[str, float]
) -> Figure:
    """Loss and training accuracy over the steps, the commit, and the final test accuracies.

    Args:
      metrics: one row per block of steps with `step`, `loss` and `accuracy` (a fraction in [0, 1]).
      commit_step: step at which the selection was fixed; None or 0 marks nothing.
      test_accuracies: label -> fraction in [0, 1], drawn as horizontal marks.

    Returns:
      A figure of two panels that share the step axis.

    Raises:
      ValueError: no metrics.
    """
    if not metrics:
        raise ValueError("no metrics to draw: at least one block of steps must have been logged")
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    steps, dots = column(metrics, "step"), "o" if len(metrics) < 30 else None
    for axes, key in ((top, "loss"), (bottom, "accuracy")):
        style(axes).plot(
            steps, column(metrics, key), color=BLUE, linewidth=1.6, marker=dots, markersize=3
        )
    top.set_ylabel("loss (training batches)", fontsize=10)
    bottom.set_ylabel("accuracy (training batches)", fontsize=10)
    bottom.set_xlabel("training step", fontsize=10)
    top.set_xlim(0, steps[-1])
    top.set_ylim(bottom=0)
    shown = np.concatenate([column(metrics, "accuracy"), list(test_accuracies.values())])
    low = float(np.nanmin(shown)) if np.isfinite(shown).any() else 0.0
    bottom.set_ylim(max(0.0, low - 0.05), 1.02)
    bottom.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    if commit_step and commit_step < steps[-1]:
        for axes in (top, bottom):
            axes.axvspan(0, commit_step, color=PALE, alpha=0.5, linewidth=0)
            axes.axvline(commit_step, color=INK, linewidth=1)
        label = f"shaded: exploring; committed at step {commit_step:,}"
        top.set_title(label, fontsize=9, color=INK, loc="left")
    _mark_tests(bottom, test_accuracies)
    return figure


def layer_costs(layers: Sequence[Row]) -> Figure:
    """Widths, MACs and parameters of every layer, full and compact, as paired bars.

    Args:
      layers: rows with `group`, `width`, `budget`, `macs_full`, `macs_compact` (forward, one
        example), `params_full` and `params_compact`, in network order.

    Returns:
      A figure of three panels that share the layer axis.
    """
    figure = Figure(figsize=(max(9.0, 1.5 + 0.5 * len(layers)), 7.2), layout="constrained")
    place = np.arange(len(layers))
    rows = (
        ("channels", "width", "budget"),
        ("MACs per example", "macs_full", "macs_compact"),
        ("parameters", "params_full", "params_compact"),
    )
    panels = figure.subplots(3, 1, sharex=True)
    for axes, (label, full_key, compact_key) in zip(panels, rows, strict=True):
        full, compact = column(layers, full_key), column(layers, compact_key)
        style(axes)
        axes.bar(place - 0.2, full, 0.4, color=GREY, label="full width")
        axes.bar(place + 0.2, compact, 0.4, color=BLUE, label="compact")
        axes.set_ylabel(label, fontsize=10)
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_ylim(0, 1.08 * float(full.max()))
    names = [layer["group"] for layer in layers]
    room = 13 * figure.get_figwidth() / len(names)  # letters of this size that fit side by side
    turn: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, names)) > room else {}
    panels[-1].set_xticks(place, names, **turn)
    figure.align_ylabels(panels)
    panels[-1].set_xlabel("channel group, in network order", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, fontsize=10, frameon=False)
    return figure
