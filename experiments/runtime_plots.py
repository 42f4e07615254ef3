"""A run of per-input execution in pictures: accuracy against work, and who takes how much."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.plots import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, style

PICTURE, ENDS = "runtime.png", "images.png"
_SHOWN = 10


def write(workdir: Path, found: dict[str, Any], pictures: np.ndarray) -> None:
    """Draws a finished run into its workdir.

    Args:
      workdir: holds `images.npz`.
      found: what `result.json` will hold.
      pictures: uint8[N, H, W, C], the test images.
    """
    images = np.load(workdir / "images.npz")
    draw(found, images).savefig(workdir / PICTURE, dpi=150)
    ends(found, images, pictures).savefig(workdir / ENDS, dpi=150)


def middle(found: dict[str, Any]) -> int:
    """The point whose work is nearest to the middle of what the points span."""
    shares = np.array([point["macs_share"] for point in found["points"]])
    return int(np.argmin(np.abs(shares - (shares.min() + shares.max()) / 2)))


def draw(found: dict[str, Any], images: Any) -> Figure:
    """Accuracy against work, its distribution, and what easy and hard images run.

    Args:
      found: `result.json` of `experiments.runtime`.
      images: arrays ``share``, ``hardness`` and ``labels`` of its `images.npz`.
    """
    figure = Figure(figsize=(11.5, 7.6), layout="constrained")
    figure.suptitle(
        f"{found['system']} on {found['network']}, {found['dataset']}, seed {found['seed']}",
        fontsize=12,
    )
    (curve, spread), (sites, hard) = figure.subplots(2, 2)
    index = middle(found)
    point = found["points"][index]
    _curve(curve, found)
    _distribution(spread, images["share"][index], point)
    _sites(sites, found, point)
    _hardness(hard, images["share"][index], point)
    return figure


def _curve(axes: Axes, found: dict[str, Any]) -> None:
    style(axes)
    points = sorted(found["points"], key=lambda point: point["macs_share"])
    work = [point["macs_share"] for point in points]
    for key, label, colour in (
        ("accuracy", "own decisions", ORANGE),
        ("shuffled_accuracy", "decisions of other images", BLUE),
    ):
        axes.plot(work, [p[key] for p in points], "o-", color=colour, markersize=4, label=label)
    axes.plot(
        [p["constant_macs_share"] for p in points],
        [p["constant_accuracy"] for p in points],
        "s",
        color=GREEN,
        markersize=4,
        label="one decision for all",
    )
    axes.plot(
        1.0, found["test_accuracy_backbone"], "*", color=GREY, markersize=11, label="backbone"
    )
    axes.set_xlabel("multiply-accumulates / the whole network's")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(fontsize=8, frameon=False, loc="lower right")


def _distribution(axes: Axes, share: np.ndarray, point: dict[str, Any]) -> None:
    style(axes)
    axes.hist(share, bins=40, color=PALE, edgecolor=GREY, linewidth=0.4)
    axes.axvline(point["macs_share"], color=ORANGE)
    axes.set_xlabel(f"multiply-accumulates of an image, knob {point['knob']:.3g}")
    axes.set_ylabel("test images")


def _sites(axes: Axes, found: dict[str, Any], point: dict[str, Any]) -> None:
    """Mean share of each site's channels that runs, for the easiest and the hardest fifth."""
    style(axes)
    places = np.arange(len(found["sites"]))
    for offset, (group, colour) in enumerate((("easiest", BLUE), ("hardest", PURPLE))):
        shares = [
            float(np.dot(often, widths) / widths[-1])
            for often, widths in zip(point["levels"][group], found["levels"], strict=True)
        ]
        axes.bar(
            places + 0.4 * offset - 0.2, shares, width=0.4, color=colour, label=f"{group} fifth"
        )
    axes.set_xticks(places, found["sites"], rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("channels that run")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(fontsize=8, frameon=False)


def _hardness(axes: Axes, share: np.ndarray, point: dict[str, Any]) -> None:
    style(axes)
    rows = point["by_hardness"]
    means = [row["macs_share"] for row in rows]
    axes.plot(range(1, len(rows) + 1), means, "o-", color=BLUE)
    # On the scale on which images differ, or nearly equal means would look different.
    low, high = np.quantile(share, (0.05, 0.95))
    if low < high:
        axes.set_ylim(min(low, *means), max(high, *means))
    axes.set_xticks(range(1, len(rows) + 1))
    rho = point["rank_correlation"]
    told = "" if rho["rho"] is None else f"\nrank correlation {rho['rho']:.2f}"
    axes.set_xlabel(f"fifths of the test images, easy to hard for the backbone{told}")
    axes.set_ylabel("multiply-accumulates")


def ends(found: dict[str, Any], images: Any, pictures: np.ndarray) -> Figure:
    """The test images that take the least and the most work.

    Args:
      found: `result.json`.
      images: arrays ``share`` and ``labels`` of `images.npz`.
      pictures: uint8[N, H, W, C], the test images.
    """
    names = found["class_names"]
    share = images["share"][middle(found)]
    order = np.argsort(share, kind="stable")
    figure = Figure(figsize=(11.5, 3.2), layout="constrained")
    rows = figure.subplots(2, _SHOWN, squeeze=False)
    for row, chosen, word in ((0, order[:_SHOWN], "least"), (1, order[::-1][:_SHOWN], "most")):
        for axes, image in zip(rows[row], chosen, strict=False):
            axes.imshow(pictures[image].squeeze(), cmap="gray")
            label = int(images["labels"][image])
            axes.set_title(f"{names[label] if names else label}\n{share[image]:.0%}", fontsize=7)
            axes.set_xticks([])
            axes.set_yticks([])
        rows[row][0].set_ylabel(f"{word} work", fontsize=8)
    return figure
