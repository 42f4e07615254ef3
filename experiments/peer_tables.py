"""The peers of a benchmark in Markdown: their steps, and what whole workflows would take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments import records
from experiments.summary import NONE, interval, markdown

Row = Mapping[str, Any]

STEPS = 10_000
"""Training steps of a workflow."""

TUNING = 1 / 3
"""Fine-tuning after a cut, in shares of `STEPS`."""

EXPLORING = 0.03
"""Share of `STEPS` before the commit: the default of `experiments.train`."""


class Workflow(NamedTuple):
    """A way to a compact model.

    Attributes:
      framework: whose step times it is computed from.
      name: what is done.
      seconds: of `STEPS` steps, and what the workflow adds.
    """

    framework: str
    name: str
    seconds: float


def tables(paths: Sequence[Path]) -> str:
    """Markdown tables of the peers in benchmarks.

    Args:
      paths: files of `experiments.benchmark --peers`, or directories that hold them.

    Raises:
      ValueError: none of them has peers.
    """
    found = [one for one in records.gather(paths).benchmarks if one.get("peers")]
    if not found:
        raise ValueError(
            f"no peers in {', '.join(map(str, paths))}: run experiments.benchmark with --peers"
        )
    return "\n\n".join(f"{_steps(one)}\n\n{_workflows(one)}" for one in found)


def _steps(benchmark: Mapping[str, Any]) -> str:
    first = benchmark["peers"][0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    heads = [
        *("step in PyTorch", "keep", "memory layout", "parameters"),
        *("ms per step, median [min, max]", "/ our narrow step", "/ PyTorch's dense step"),
        "s to prune",
    ]
    rows = [
        [
            row["variant"],
            f"{row['keep']:g}",
            row["layout"],
            f"{row['params']:,}",
            f"{row['ms_median']:.1f} [{row['ms_min']:.1f}, {row['ms_max']:.1f}]",
            interval(row, "vs_narrow"),
            interval(row, "vs_torch_dense"),
            NONE if row["prune_s"] is None else f"{row['prune_s']:.1f}",
        ]
        for row in benchmark["peers"]
    ]
    return (
        f"{first['network']}, batch {first['batch']}, on {benchmark['device']}, "
        f"{first['threads']} threads, {first['rounds']} rounds ({versions}); ratios are medians of "
        f"rounds with 95 % intervals:\n\n" + markdown(heads, rows, left=3)
    )


def _workflows(benchmark: Mapping[str, Any]) -> str:
    keeps = sorted({row["keep"] for row in benchmark["peers"] if row["variant"] == "pruned"})
    rows = []
    for keep in keeps:
        found = workflows(benchmark, keep)
        base = found[0].seconds
        rows += [
            [
                one.name,
                one.framework,
                f"{keep:g}",
                f"{one.seconds / 3600:.2f}",
                f"{one.seconds / base:.2f}x",
            ]
            for one in found
        ]
    caption = (
        f"What {STEPS:,} steps would take, computed from the medians of the steps, not run. "
        f"Assumed: tuning after a cut takes {TUNING:.0%} of the steps on top; `dce` commits after "
        f"{EXPLORING:.0%} of them; cutting is free in JAX (a gather); compiling, data and "
        "evaluation are left out. Nothing is said about accuracy:"
    )
    heads = ["workflow", "framework", "keep", "hours", "time / dce"]
    return f"{caption}\n\n{markdown(heads, rows, left=2)}"


def workflows(benchmark: Mapping[str, Any], keep: float) -> list[Workflow]:
    """Ways to a compact model and their times, `dce` first.

    Args:
      benchmark: what `experiments.benchmark --peers` wrote.
      keep: fraction of every group's channels.
    """
    ours = _seconds(benchmark["rows"], keep)
    torch = _seconds(benchmark["peers"], keep)
    cutting = sum(row["prune_s"] or 0.0 for row in _of(benchmark["peers"], keep, "pruned"))
    slab = max(_of(benchmark["rows"], keep, "slab"), key=lambda row: row["select_every"])
    every, exploring = slab["select_every"], slab["ms_median"] / 1e3

    mixed = EXPLORING * exploring + (1 - EXPLORING) * ours["committed"]
    dce = Workflow("JAX", f"dce, a selection every {every} steps", STEPS * mixed)
    return [
        dce,
        *_rivals("JAX", ours, tuned=ours["committed"], cutting=0.0),
        *_rivals("PyTorch", torch, tuned=torch["pruned"], cutting=cutting),
    ]


def _rivals(
    framework: str, seconds: Mapping[str, float], *, tuned: float, cutting: float
) -> list[Workflow]:
    dense = STEPS * (seconds["dense"] + TUNING * tuned) + cutting
    return [
        Workflow(framework, "train dense, cut, tune", dense),
        Workflow(framework, "masks from the start; stays at full width", STEPS * seconds["masked"]),
        Workflow(framework, "narrow from the start", STEPS * seconds["narrow"]),
    ]


def _of(rows: Sequence[Row], keep: float, variant: str) -> list[Row]:
    return [row for row in rows if row["variant"] == variant and row["keep"] == keep]


def _seconds(rows: Sequence[Row], keep: float) -> dict[str, float]:
    return {
        row["variant"]: row["ms_median"] / 1e3
        for row in rows
        if row["variant"] == "dense" or row["keep"] == keep
    }
