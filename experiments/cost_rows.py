"""Rows of the benchmark: times of all rounds -> medians and paired ratios, and their table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from experiments.composed import Times, Variant
from experiments.summary import MIB, NONE, interval
from experiments.timing import ratio

Row = dict[str, Any]


def rows(variants: Sequence[Variant], times_RV: Times, *, network: str, batch: int) -> list[Row]:
    """One row per variant, with the keys of the benchmark's JSON.

    ``vs_narrow`` compares with the narrow network at the same keep; dense has no such partner and
    is compared with the narrow network of the only keep, or null where there are several.
    ``peak_vs_narrow`` leaves out what a slab must hold besides: the full parameters and moments.

    Args:
      variants: in the order of the columns; the first is dense.
      times_RV: float64[rounds, variants], ms per step.
      network: name.
      batch: examples per step.
    """
    narrow = {one.keep: i for i, one in enumerate(variants) if one.variant == "narrow"}
    only = next(iter(narrow.values())) if len(narrow) == 1 else None
    made = []
    for i, one in enumerate(variants):
        partner = only if one.variant == "dense" else narrow[one.keep]
        made.append(
            {
                "network": network,
                "batch": batch,
                "variant": one.variant,
                "keep": one.keep,
                "select_every": one.select_every,
                "ms_median": float(np.median(times_RV[:, i])),
                "ms_min": float(times_RV[:, i].min()),
                "ms_max": float(times_RV[:, i].max()),
                **against("narrow", times_RV, i, partner),
                **against("dense", times_RV, i, 0),
                "images_per_s": 1e3 * batch / float(np.median(times_RV[:, i])),
                "signal": one.signal,
                "macs": one.macs,
                "rounds": len(times_RV),
                "temp_bytes": one.temp_bytes,
                "peak_bytes": one.peak_bytes,
                "peak_vs_narrow": _peak_ratio(one, None if partner is None else variants[partner]),
                "compile_s": one.compile_s,
            }
        )
    return made


def against(name: str, times_RV: Times, i: int, partner: int | None) -> Row:
    """``vs_<name>`` of a row: the paired ratio of two columns and its interval, or nulls.

    Args:
      name: of the partner.
      times_RV: float64[rounds, variants], ms per step.
      i: column of the row.
      partner: column that it is divided by; None where it has no partner.
    """
    keys = (f"vs_{name}", f"vs_{name}_low", f"vs_{name}_high")
    if partner is None:
        return dict.fromkeys(keys)
    return dict(zip(keys, ratio(times_RV[:, i], times_RV[:, partner]), strict=True))


def _peak_ratio(one: Variant, narrow: Variant | None) -> float | None:
    """Peak besides a slab's full state, over the narrow network's peak."""
    if narrow is None or narrow.peak_bytes is None or one.peak_bytes is None:
        return None
    return (one.peak_bytes - one.outside_bytes) / narrow.peak_bytes


def table(rows: Sequence[Row], *, device: str) -> Table:
    """The rows as a table for the terminal.

    Args:
      rows: of one network and batch size.
      device: for the title.
    """
    first = rows[0]
    made = Table(
        title=f"{first['network']}, batch {first['batch']}, on {device}, {first['rounds']} rounds",
        title_justify="left",
        caption="ratios: median of rounds [95 % interval]; memory: temporaries, MiB, and peak over "
        "the narrow network's, without a slab's full parameters and moments",
        caption_justify="left",
    )
    for head in ("step", "keep", "R"):
        made.add_column(head)
    heads = ("ms", "min .. max", "images/s", "/ narrow", "/ dense", "memory", "compile s")
    for head in heads:
        made.add_column(head, justify="right", style="bold" if head == "/ narrow" else None)
    for row in rows:
        made.add_row(
            label(row, rows),
            f"{row['keep']:g}",
            NONE if row["select_every"] is None else str(row["select_every"]),
            f"{row['ms_median']:.1f}",
            f"{row['ms_min']:.1f} .. {row['ms_max']:.1f}",
            f"{row['images_per_s']:.0f}",
            interval(row, "vs_narrow"),
            interval(row, "vs_dense"),
            memory_text(row),
            f"{row['compile_s']:.1f}",
        )
    return made


def label(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A row's name: its variant, and its reward where the rows differ in it."""
    rewards = {other.get("signal") for other in rows} - {None}
    signal = row.get("signal")
    return f"{row['variant']}, {signal}" if signal and len(rewards) > 1 else row["variant"]


def memory_text(row: Mapping[str, Any]) -> str:
    """Temporaries in MiB, and the peak over the narrow network's, as in ``158 (1.04x)``."""
    if row["temp_bytes"] is None:
        return NONE
    against = row.get("peak_vs_narrow")
    times = "" if against is None else f" ({against:.2f}x)"
    return f"{row['temp_bytes'] / MIB:.0f}{times}"
