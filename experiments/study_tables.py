"""Studies of signals in Markdown: the best, the published and random ones, or every one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import records
from experiments.study import ABSOLUTE, RANDOM, SIGNED
from experiments.summary import NONE, asked_on, markdown

Row = Mapping[str, Any]

BEST = 10
"""Signals of the algebra in the short table, beside the published ones."""

KEYS = ("command", "device", "versions", "subject", "channels", "sizes", "signals", "curves")

_HEADS = (
    *("rank", "signal", "published as", "per layer", "across layers"),
    *("across, signed oracle", "channels gone at 1 % loss"),
)


def tables(paths: Sequence[Path]) -> str:
    """Short tables of studies, one per file.

    Args:
      paths: JSON files of ``experiments.signals --study``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that holds no study.
    """
    return "\n\n".join(table(read(path), everything=False) for path in paths)


def read(path: Path) -> dict[str, Any]:
    """A study's JSON file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds no study.
    """
    found = records.read_json(path)
    missing = [key for key in KEYS if key not in found]
    if missing:
        raise ValueError(
            f"{path} is no study of signals, it has no {missing}: name a file that "
            "`python -m experiments.signals --study` wrote"
        )
    return dict(found)


def table(found: Mapping[str, Any], *, everything: bool) -> str:
    """A study's signals, the best first.

    Args:
      found: the study.
      everything: all signals; else the best of the algebra, the published and random ones.

    Returns:
      Markdown: a line that says what was asked and how, then the table.
    """
    about, sizes, images = found["subject"], found["sizes"], asked_on(found)
    first = (
        f"{about['network']} on {about['dataset']}, {about['test_accuracy']:.2%} {images} "
        f"accuracy, {found['channels']} channels; {sizes['examples']:,} training images, "
        f"{sizes['test_examples']:,} {images} images; {found['device']}, "
        f"jax {found['versions']['jax']}. Channels gone at 1 % loss by the oracle's own orders: "
        f"{_gone(found['curves'][ABSOLUTE])} by the size of the loss change, "
        f"{_gone(found['curves'][SIGNED])} by the change itself."
    )
    ranked = list(enumerate(found["signals"], 1))
    shown = ranked if everything else _short(ranked)
    rows = [_row(rank, row, found["curves"].get(row["name"])) for rank, row in shown]
    return f"{first}\n\n{markdown(_HEADS, rows, left=3)}"


def _short(ranked: Sequence[tuple[int, Row]]) -> list[tuple[int, Row]]:
    """The best formulas, those that agree alike once, and all that stand outside the algebra."""
    found: list[tuple[int, Row]] = []
    seen: set[tuple[float | None, ...]] = set()
    for rank, row in ranked:
        alike = (row["per_layer"], row["across"], row["across_signed"])
        if row["published"] or row["name"].startswith(RANDOM):
            found.append((rank, row))
        elif len(seen) < BEST and alike not in seen:
            found.append((rank, row))
            seen.add(alike)
    return found


def _row(rank: int, row: Row, curve: Mapping[str, Any] | None) -> list[str]:
    return [
        str(rank),
        f"`{row['name']}`",
        row["published"] or NONE,
        *(_number(row[key]) for key in ("per_layer", "across", "across_signed")),
        _gone(curve),
    ]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _gone(curve: Mapping[str, Any] | None) -> str:
    return NONE if curve is None else str(curve["at_1_percent"])
