"""Figures of what the bandit did with every channel: which ran when, and what it thought of them.

Plain data in, a `matplotlib.figure.Figure` out, as in `experiments.plots`.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.plots import BLUE, INK, ORANGE, PALE, Row, column, style

MAX_TIME_ROWS = 40  # a finer heat map has rows thinner than a pixel
MAX_SHARP_WIDTH = 800  # a wider group has channels thinner than a pixel: they are averaged


def shares(
    blocks: Sequence[Row], group: str, *, select_every: int = 1, discount: float = 1.0
) -> np.ndarray:
    """Share of each block's selections in which each channel of a group ran.

    Args:
      blocks: rows with `step` and cumulative `plays` (group -> C counts), in order of steps.
      group: which channel group.
      select_every: steps that one selection serves.
      discount: factor on the counts before each selection's plays are added; 1.0 for plain counts.

    Returns:
      float64[blocks, C] in [0, 1]; with a discount, later selections of a block weigh more.

    Raises:
      ValueError: counts that fall, which cumulative counts cannot.
    """
    plays = np.array([block["plays"][group] for block in blocks], dtype=np.float64)
    selections = np.ceil(column(blocks, "step") / select_every)
    counts = np.diff(selections, prepend=0.0)[:, None]
    keep = discount**counts
    before = np.vstack([np.zeros_like(plays[:1]), plays[:-1]])
    played = plays - keep * before
    if np.any(played < -1e-3 * (1.0 + before)):
        raise ValueError(
            f"the plays of group {group!r} fall from one block to the next: log cumulative counts, "
            f"or give the bandit's discount (given: {discount})"
        )
    weight = counts if discount == 1.0 else (1.0 - keep) / (1.0 - discount)
    return np.clip(played / np.maximum(weight, 1e-12), 0.0, 1.0)


def _mark_chosen(axes: Axes, chosen: Sequence[int] | None) -> None:
    """Draws a strip above a channel axis, orange where a channel was chosen."""
    if chosen:
        spans = [(channel - 0.5, 1.0) for channel in chosen]
        axes.broken_barh(
            spans,
            (1.03, 0.12),
            transform=axes.get_xaxis_transform(),
            color=ORANGE,
            linewidth=0,
            clip_on=False,
        )


def channels_over_time(
    blocks: Sequence[Row], layers: Sequence[Row], *, select_every: int = 1, discount: float = 1.0
) -> Figure:
    """Heat map per group of the channels that ran: channels from left to right, time downwards.

    Args:
      blocks: rows with `step` and cumulative `plays`, in order of steps.
      layers: rows with `group`, `width` (C) and `chosen` (indices or null), in network order.
      select_every: steps that one selection serves.
      discount: see `shares`.

    Returns:
      One tall figure, a panel per group; more than `MAX_TIME_ROWS` blocks are drawn in larger ones.

    Raises:
      ValueError: no blocks, or counts that fall.
    """
    if not blocks:
        raise ValueError("no blocks to draw: the run logged no channels")
    stride = math.ceil(len(blocks) / MAX_TIME_ROWS)
    # Counts are cumulative, so leaving rows out makes longer blocks and loses nothing. The last
    # row always stays.
    thin = blocks[(len(blocks) - 1) % stride :: stride]
    figure = Figure(figsize=(10, 1.1 + 1.2 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    images = []
    for axes, layer in zip(panels, layers, strict=True):
        heat = shares(thin, layer["group"], select_every=select_every, discount=discount)
        image = axes.imshow(
            heat,
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=1,
            interpolation="nearest" if layer["width"] <= MAX_SHARP_WIDTH else "auto",
            extent=(-0.5, layer["width"] - 0.5, len(thin), 0),
        )
        images.append(image)
        _mark_chosen(style(axes, grid=None), layer["chosen"])
        axes.set_yticks([0, len(thin)], ["0", f"{thin[-1]['step']:,}"])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
        axes.set_ylabel("step", fontsize=9, labelpad=-8)
        axes.set_title(layer["group"], fontsize=10, loc="left", pad=14, color=INK)
    panels[-1].set_xlabel("channel", fontsize=10)
    bar = figure.colorbar(
        images[0], ax=list(panels), location="top", aspect=50, shrink=0.6, fraction=0.02, pad=0.01
    )
    bar.ax.tick_params(labelsize=9)
    bar.set_label("share of selections in which the channel ran", fontsize=10)
    return figure


def _draw_means(axes: Axes, block: Row, layer: Row) -> None:
    """Draws one group's means by rank, with bounds where an arm has been played."""
    group = layer["group"]
    mean = np.array(block["means"][group], dtype=np.float64)
    radius = np.array([math.nan if r is None else r for r in block["radius"][group]])
    played = np.array(block["plays"][group], dtype=np.float64) > 0
    radius[~played] = math.nan
    order = np.lexsort((-mean, ~played))
    chosen = np.isin(order, layer["chosen"] or [])
    mean, radius, played = mean[order], radius[order], played[order]
    rank = np.arange(len(order))
    upper = float(np.nanmax(np.append(mean + radius, mean.max())))
    axes.fill_between(
        rank, np.maximum(mean - radius, 0), mean + radius, color=PALE, linewidth=0, step="mid"
    )
    size = 12 if len(order) <= 128 else 5
    for picked, colour in ((False, BLUE), (True, ORANGE)):
        show = played & (chosen == picked)
        axes.scatter(rank[show], mean[show], s=size, color=colour, linewidths=0, zorder=3)
    axes.scatter(rank[~played], mean[~played], s=14, color=INK, marker="x", linewidths=0.8)
    # Rewards end at 1, and a radius far above all means would squash them: the frame cuts it.
    top = max(min(upper, 4 * float(mean.max()), 1.0), 1e-6)
    axes.set_ylim(-0.04 * top, 1.05 * top)


def channel_means(block: Row, layers: Sequence[Row]) -> Figure:
    """Mean reward and confidence bounds of every channel, sorted by mean, one panel per group.

    Args:
      block: a row with `means`, `radius` (null where never played) and `plays`, group -> C numbers.
      layers: rows with `group` and `chosen` (indices or null), in network order.

    Returns:
      A figure with up to four panels a row.
    """
    columns = min(4, len(layers))
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(max(2.7 * columns, 6.0), 0.8 + 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, layer in zip(panels, layers, strict=False):
        _draw_means(style(axes), block, layer)
        axes.set_title(layer["group"], fontsize=10, loc="left", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.tick_params(labelsize=8)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    figure.supxlabel("channels, sorted by mean reward (rank)", fontsize=10)
    figure.supylabel("mean reward", fontsize=10)
    names = (("chosen", ORANGE, "o"), ("not chosen", BLUE, "o"), ("never ran", INK, "x"))
    handles = [
        panels[0].scatter([], [], s=22, color=colour, marker=marker, label=name)
        for name, colour, marker in names
    ]
    handles.append(panels[0].fill_between([], [], color=PALE, label="mean ± confidence radius"))
    figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=9, frameon=False)
    return figure
