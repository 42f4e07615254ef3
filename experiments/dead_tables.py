"""What removing units costs, plainly and with their means folded, in tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments import records
from experiments.summary import asked_on, markdown

Row = Mapping[str, Any]


def tables(paths: Sequence[Path]) -> str:
    """Markdown tables of accuracy as units go, one per network: means over its files.

    Args:
      paths: JSON files of ``experiments.dead``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that holds no such curves, or files of one network that do not fit.
    """
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for found in map(_read, paths):
        about = found["subject"]
        alike.setdefault((about["network"], about["dataset"]), []).append(found)
    return "\n\n".join(_markdown(_together(each)) for each in alike.values())


def _together(each: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What several seeds of a network say on average."""
    names = [list(found["curves"]) for found in each]
    removed = [[row["removed"] for row in next(iter(f["curves"].values()))] for f in each]
    if names.count(names[0]) < len(each) or removed.count(removed[0]) < len(each):
        raise ValueError(
            f"files of {each[0]['subject']['network']} differ in orders or in units removed: make "
            "all of them by one command"
        )
    curves = {name: _mean([found["curves"][name] for found in each]) for name in names[0]}
    return {"units": each[0]["units"], "curves": curves}


def _read(path: Path) -> Mapping[str, Any]:
    found = records.read_json(path)
    if not {"units", "curves", "subject"} <= set(found):
        raise ValueError(
            f"{path} holds no curves of units removed: name a file that "
            "`python -m experiments.dead --json` wrote"
        )
    return found


def _markdown(found: Mapping[str, Any]) -> str:
    names, rows = _cells(found, "accuracy")
    return markdown(["units gone", *names], rows, left=1)


def table(found: Mapping[str, Any], key: str) -> Table:
    """The same for a terminal.

    Args:
      found: the JSON of `experiments.dead`.
      key: "loss" or "accuracy".
    """
    shown = Table(
        title=f"{asked_on(found)} {key}: {' / '.join(ways(found['curves']))}",
        title_justify="left",
        caption="nothing is retrained; random is a mean over draws",
        caption_justify="left",
    )
    names, rows = _cells(found, key)
    for name in ("units gone", *names):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


def _cells(found: Mapping[str, Any], key: str) -> tuple[list[str], list[list[str]]]:
    """Names of orders; per number of units that went: that, then each way of removal by order."""
    points = curves(found["curves"])
    form = "{:.1%}" if key == "accuracy" else "{:.3f}"
    cells = []
    for rows in zip(*points.values(), strict=True):
        gone = rows[0]["removed"]
        pairs = [[form.format(row[how][key]) for how in ways(points)] for row in rows]
        cells.append([f"{gone} ({gone / found['units']:.0%})", *map(" / ".join, pairs)])
    return list(points), cells


def ways(found: Mapping[str, Sequence[Row]]) -> tuple[str, ...]:
    """How units were removed: plainly, and with their means folded where the network can fold.

    Args:
      found: of `replacing.curve`, by order.
    """
    first = next(iter(found.values()))[0]
    return tuple(how for how in ("plain", "folded") if how in first)


def curves(found: Mapping[str, Sequence[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Curves by score, the random ones as their mean.

    Args:
      found: of `replacing.curve`, by order.
    """
    together: dict[str, list[Sequence[Row]]] = {}
    for name, rows in found.items():
        together.setdefault(name.rstrip(" 0123456789"), []).append(rows)
    return {name: _mean(each) for name, each in together.items()}


def _mean(each: Sequence[Sequence[Row]]) -> list[dict[str, Any]]:
    """Point by point the mean of several curves."""
    return [
        {
            "removed": rows[0]["removed"],
            **{
                how: {
                    key: float(np.mean([row[how][key] for row in rows]))
                    for key in ("loss", "accuracy")
                }
                for how in ("plain", "folded")
                if how in rows[0]
            },
        }
        for rows in zip(*each, strict=True)
    ]
