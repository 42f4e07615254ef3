"""How long per-input execution takes, in rows and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from experiments import records, timing
from experiments.latency_decisions import Draws
from experiments.latency_forms import FULL, Form, computed
from experiments.latency_subject import Subject
from experiments.summary import interval, markdown

Row = Mapping[str, Any]

_HEADS = (
    *("batch", "form", "MACs decided / full", "computed / full", "ms, median"),
    *("time / full [95 %]", "compile s"),
)


def rows(
    subject: Subject,
    entrants: Sequence[tuple[Form, Draws]],
    times_RC: npt.NDArray[np.float64],
    first_RC: npt.NDArray[np.float64],
    *,
    chunk: int,
) -> list[dict[str, Any]]:
    """The JSON's rows.

    Args:
      subject: network and system.
      entrants: what was timed, the whole network first, and its decisions.
      times_RC: float64[rounds, entrants], ms.
      first_RC: of the same rounds, when they were made for the first time.
      chunk: images in a chunk.
    """
    found = []
    for i, (form, draws) in enumerate(entrants):
        ratio, low, high = timing.ratio_of_means(times_RC[:, i], times_RC[:, 0])
        paired = timing.ratio(times_RC[:, i], times_RC[:, 0])
        found.append(
            {
                "batch": draws.levels_RSB.shape[2],
                "form": form.name,
                "share": draws.share if form.execution else 1.0,
                "share_computed": computed(subject, form, draws, chunk),
                "decisions": draws.facts if form.execution else None,
                "rounds": len(times_RC),
                "ms_median": float(np.median(times_RC[:, i])),
                "ms_mean": float(times_RC[:, i].mean()),
                "ms_min": float(times_RC[:, i].min()),
                "ms_max": float(times_RC[:, i].max()),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "ratio_paired_median": paired.median,
                "ratio_first": timing.ratio_of_means(first_RC[:, i], first_RC[:, 0])[0],
                "compile_s": form.program.seconds,
            }
        )
    return found


def table(found: Mapping[str, Any]) -> Table:
    """Rows for a terminal.

    Args:
      found: the JSON of `experiments.latency`.
    """
    shown = Table(
        title=_title(found),
        title_justify="left",
        caption="MACs: mean over the decisions timed, with the decision network's; "
        "time: ratio of means over rounds",
        caption_justify="left",
    )
    for head in _HEADS:
        shown.add_column(head, justify="left" if head == "form" else "right")
    for row in found["latency"]:
        shown.add_row(*_cells(row))
    return shown


def tables(paths: Sequence[Path]) -> str:
    """Markdown tables, one per file.

    Args:
      paths: JSON files of ``experiments.latency``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that holds no latencies.
    """
    return "\n\n".join(map(_markdown, paths))


def network(about: Mapping[str, Any]) -> str:
    """Name and width of the network.

    Args:
      about: ``subject`` in the JSON of `experiments.latency`.
    """
    width = "as trained" if about["width"] is None else f"width {about['width']:g}"
    return f"{about['network']}, {width}"


def _markdown(path: Path) -> str:
    found = records.read_json(path)
    if not {"subject", "latency"} <= set(found):
        raise ValueError(
            f"{path} holds no latencies: name a file that `python -m experiments.latency --json` "
            "wrote"
        )
    return f"{_title(found)}:\n\n" + markdown(_HEADS, list(map(_cells, found["latency"])), left=2)


def _title(found: Mapping[str, Any]) -> str:
    about, versions = found["subject"], found["versions"]
    return (
        f"{network(about)}, {len(about['levels'])} sites of "
        f"{len(about['levels'][0])} widths, {about['system']}; {found['device']}, jax "
        f"{versions['jax']}"
    )


def _cells(row: Row) -> list[str]:
    return [
        str(row["batch"]),
        row["form"],
        "1" if row["form"] == FULL else f"{row['share']:.3f}",
        "1" if row["form"] == FULL else f"{row['share_computed']:.3f}",
        f"{row['ms_median']:.1f}",
        "1" if row["form"] == FULL else interval(row, "ratio"),
        f"{row['compile_s']:.1f}",
    ]
