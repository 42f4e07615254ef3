"""Time against multiply-accumulates of what is decided, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dce_jax.runtime import MASKED
from experiments import latency_tables
from experiments.latency_forms import FULL
from experiments.plots import BLUE, GREEN, GREY, ORANGE, style


def draw(found: Mapping[str, Any]) -> Figure:
    """Ratios of times against ratios of multiply-accumulates, one panel per batch size.

    Args:
      found: the JSON of `experiments.latency`.
    """
    about, batches = found["subject"], list(dict.fromkeys(row["batch"] for row in found["latency"]))
    figure = Figure(figsize=(1.5 + 4.2 * len(batches), 4.8), layout="constrained")
    figure.suptitle(
        f"{latency_tables.network(about)}, {found['device']}: what is decided per image, and its "
        "time",
        fontsize=11,
    )
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        _panel(axes, [row for row in found["latency"] if row["batch"] == batch], batch)
    return figure


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], batch: int) -> None:
    axes.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="time = MACs")
    axes.plot(1, 1, "o", color=GREY, markersize=5, label="whole network")
    skipping = iter((BLUE, GREEN))
    for form in dict.fromkeys(row["form"] for row in rows if row["form"] != FULL):
        mine = sorted((row for row in rows if row["form"] == form), key=lambda row: row["share"])
        heights = [row["ratio"] for row in mine]
        axes.errorbar(
            [row["share"] for row in mine],
            heights,
            yerr=[
                [row["ratio"] - row["ratio_low"] for row in mine],
                [row["ratio_high"] - row["ratio"] for row in mine],
            ],
            marker="o",
            markersize=4,
            linewidth=1.5,
            capsize=2,
            color=ORANGE if form == MASKED.name else next(skipping),
            label=form,
        )
    style(axes).set_title(f"batch {batch}", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("mean MACs / whole network, decision network included", fontsize=10)
    axes.set_ylabel("time / whole network", fontsize=10)
    axes.legend(fontsize=9, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
