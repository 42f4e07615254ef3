"""What removing units costs, plainly and with their means folded, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.dead_tables import Row, curves, ways
from experiments.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, style
from experiments.summary import asked_on

_COLOURS = {
    "removal score": ORANGE,
    "mean replacement score": GREEN,
    "l1 norm": BLUE,
    "measured removal": PURPLE,
    "measured mean replacement": SKY,
    "random": GREY,
}
_HOW = {"plain": "--", "folded": "-"}


def draw(found: Mapping[str, Any]) -> Figure:
    """Loss and accuracy against the share of units that are gone.

    Args:
      found: the JSON of `experiments.dead`.
    """
    about = found["subject"]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    figure.suptitle(
        f"{about['network']} on {about['dataset']}: its {found['units']} units go, not retrained",
        fontsize=11,
    )
    left, right = figure.subplots(1, 2)
    points = curves(found["curves"])
    _panel(left, points, found["units"], "loss", asked_on(found))
    _panel(right, points, found["units"], "accuracy", asked_on(found))
    left.set_yscale("log")
    right.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    for name in points:
        right.plot([], [], color=_COLOURS[name], label=name)
    for how in ways(points):
        line = _HOW[how]
        right.plot([], [], line, color=GREY, label=f"{how} removal" if how == "plain" else how)
    figure.legend(fontsize=9, frameon=False, loc="outside lower center", ncols=4)
    return figure


def _panel(
    axes: Axes, points: Mapping[str, Sequence[Row]], units: int, key: str, images: str
) -> None:
    for name, rows in points.items():
        share = [row["removed"] / units for row in rows]
        for how in ways(points):
            heights = [row[how][key] for row in rows]
            axes.plot(share, heights, _HOW[how], color=_COLOURS[name], linewidth=1.6)
    style(axes).set_ylabel(f"{images} {key}", fontsize=10)
    axes.set_xlabel("units gone", fontsize=10)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
