r"""Systems that decide per input side by side: accuracy at equal work, as a table and a picture.

    python -m experiments.runtime_compare runs/ --plot compare.png
    python -m experiments.runtime_compare experiments/results/runtime/cifar10_resnet20

Reads every `result.json` of `experiments.runtime` below the directories, and those of
`experiments.train` for the static networks of the same architecture. The table is that of
`runtime:` markers in documents (docs/runtime.md explains its columns). In the picture a line is the
mean over seeds wherever all of them have points on both sides; dots are single runs. It ends 12
points below the best accuracy; the table holds everything.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments import arguments, runtime_tables
from experiments.plots import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, style

STATIC = "static"
_DEPTH = 0.12  # below the best accuracy; what has collapsed would flatten the rest
_COLOURS = {"rnp": PURPLE, "l": GREEN, "c": BLUE, "lc": ORANGE, "fbs": GREY, STATIC: INK}

Curve = list[tuple[float, float]]


def draw(paths: Sequence[Path]) -> Figure:
    """Accuracy against work, a panel per data set and network.

    Args:
      paths: directories of results.

    Raises:
      FileNotFoundError: as `runtime_tables.tables`.
      ValueError: a file that is not JSON.
    """
    groups = runtime_tables.grouped(paths)
    figure = Figure(figsize=(1.0 + 6.5 * len(groups), 4.8), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((dataset, network, _), runs) in zip(panels, groups.items(), strict=True):
        _panel(axes, curves(*runs))
        axes.set_title(f"{network} on {dataset}", fontsize=10)
    return figure


def curves(dynamic: Sequence[Any], static: Sequence[Any]) -> dict[str, list[Curve]]:
    """System -> per seed its (work, accuracy), by work; the static networks last.

    Args:
      dynamic: results of ``experiments.runtime``.
      static: results of ``experiments.train``.
    """
    found: dict[str, list[Curve]] = {}
    for run in dynamic:
        found.setdefault(run["system"], []).append(runtime_tables.curve(run, "accuracy"))
    still = list(runtime_tables.still(static).values())
    return {**found, STATIC: still} if still else found


def mean(seeds: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """(work, mean accuracy) where every seed has points on both sides; empty where none has.

    Args:
      seeds: per seed (work, accuracy), by work.
    """
    low = max(points[0][0] for points in seeds)
    high = min(points[-1][0] for points in seeds)
    work = np.linspace(low, high, 60) if low <= high else np.empty(0)
    lines = [np.interp(work, *np.asarray(points).T) for points in seeds]
    return work, np.mean(lines, axis=0)


def _panel(axes: Axes, systems: Mapping[str, Sequence[Curve]]) -> None:
    style(axes)
    for name, seeds in systems.items():
        colour, line = _COLOURS[name], "--" if name == STATIC else "-"
        axes.plot(*mean(seeds), line, color=colour, label=f"{name} ({len(seeds)})")
        for points in seeds:
            axes.plot(*np.asarray(points).T, "o", color=colour, markersize=3, alpha=0.5)
    heights = [height for seeds in systems.values() for points in seeds for _, height in points]
    axes.set_ylim(bottom=max(min(heights), max(heights) - _DEPTH) - 0.01)
    axes.set_xlabel("mean multiply-accumulates / the whole network's", fontsize=10)
    axes.set_ylabel("test accuracy", fontsize=10)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.legend(fontsize=9, frameon=False, loc="lower right", title="system (seeds)")


def _run(words: argparse.Namespace) -> None:
    print(runtime_tables.tables(words.paths))
    if words.plot is not None:
        draw(words.paths).savefig(words.plot, dpi=150)
        print(f"\npicture: {words.plot}")


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 2 and a line on stderr where its input is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.runtime_compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw here: .png or .svg")
    found = parser.parse_args(words)
    return arguments.status(lambda: _run(found))


if __name__ == "__main__":
    sys.exit(main())
