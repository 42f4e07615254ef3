r"""Tables of results: Markdown for documents, Rich for the terminal.

    python -m experiments.tables runs/                     # print a table of the runs below runs/
    python -m experiments.tables --readme README.md        # write every table of README.md anew
    python -m experiments.tables --readme README.md --check  # exit 1 if one of them is stale

A document says itself what its tables hold: paths, relative to the document, in a marker.

    <!-- table:digits experiments/results/digits -->
    <!-- /table:digits -->

A marker `paired:` in place of `table:` holds the differences of `experiments.paired` instead,
`ranks:` how many different features the layers of each row's compact models have, `peers:` the same
networks' steps in PyTorch and what whole workflows take (`experiments.benchmark --peers`),
`signals:` how well signals tell what channels are worth (`experiments.signals --study`), `dead:`
what removing units costs, plainly and with their means folded (`experiments.dead`), `runtime:`
systems that decide per input at equal work (`experiments.runtime`), `latency:` how long they take
(`experiments.latency`), `settling:` when selections stop moving (`experiments.settling`),
`recalibration:` what images a compact model's statistics are of (`experiments.recalibration`).
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import (
    cost_rows,
    dead_tables,
    latency_tables,
    markers,
    paired,
    peer_tables,
    pooling,
    recalibration,
    records,
    redundancy,
    runtime_tables,
    settling,
    study_tables,
)
from experiments.summary import (
    MIB,
    NONE,
    Result,
    interval,
    judged_on,
    markdown,
    mean_and_spread,
    print_result,
    si,
    step_ms,
)

__all__ = ["benchmark_table", "main", "print_result", "result_table", "tables"]


def _average(values: Sequence[float | None], pattern: str = "{:.1f}") -> str:
    known = [value for value in values if value is not None]
    return pattern.format(statistics.fmean(known)) if known else NONE


def _minutes(runs: Sequence[Result]) -> str:
    known = [run["train_s"] / 60 for run in runs if run.get("train_s") is not None]
    seeds = f" ({len(known)} of {len(runs)})" if 0 < len(known) < len(runs) else ""
    return _average(known) + seeds


def _result_row(runs: Sequence[Result], *, timed: bool) -> list[str]:
    first = runs[0]
    explore, commit = zip(*(step_ms(run) for run in runs), strict=True)
    peak = [None if run["peak_bytes"] is None else run["peak_bytes"] / MIB for run in runs]
    return [
        first["dataset"],
        first["network"],
        first["method"],
        f"{statistics.fmean(run['keep'] for run in runs):.3g}",
        f"{mean_and_spread([run['test_accuracy'] for run in runs])} ({len(runs)})",
        mean_and_spread([run["test_accuracy_raw"] for run in runs]),
        si(statistics.fmean(run["params_compact"] for run in runs)),
        si(statistics.fmean(run["macs_compact"] for run in runs)),
        _average([run["train_macs"] / run["train_macs_dense"] for run in runs], "{:.3f}"),
        *([_minutes(runs)] if timed else []),
        f"{_average(explore)} / {_average(commit)}",
        _average(peak),
    ]


def result_table(results: Sequence[Result]) -> str:
    """A Markdown table of runs, one row per data set, network, method, keep and settings.

    Runs are pooled over seeds only where nothing else differs; where rows would else look alike, a
    column names the settings that set them apart.

    Args:
      results: objects with the keys of `result.json`.

    Returns:
      Markdown; accuracies in per cent, mean ± sample standard deviation over n seeds.

    Raises:
      ValueError: no results, or one seed twice with the same settings.
    """
    if not results:
        raise ValueError("no results to tabulate: give at least one result.json")
    groups, timed = pooling.group(results), any(run.get("train_s") for run in results)
    heads = [
        *("data set", "network", "method", "keep", f"{judged_on(results)} accuracy (n seeds)"),
        *("without recalibration", "parameters", "MACs", "train MACs / dense"),
        *(("training, minutes",) if timed else ()),
        *("step ms, explore / commit", "peak MiB"),
    ]
    rows = [_result_row(runs, timed=timed) for runs in groups]
    notes = pooling.differences(groups)
    if any(notes):
        heads.insert(4, "settings")
        rows = [[*row[:4], note or NONE, *row[4:]] for row, note in zip(rows, notes, strict=True)]
    return markdown(heads, rows, left=5 if any(notes) else 4)


def _benchmark_row(row: Result, rows: Sequence[Result]) -> list[str]:
    images = row.get("images_per_s")
    return [
        cost_rows.label(row, rows),
        NONE if row["keep"] is None else f"{row['keep']:g}",
        NONE if row["select_every"] is None else str(row["select_every"]),
        f"{row['ms_median']:.1f} [{row['ms_min']:.1f}, {row['ms_max']:.1f}]",
        NONE if images is None else f"{images:.0f}",
        interval(row, "vs_narrow"),
        interval(row, "vs_dense"),
        cost_rows.memory_text(row),
        NONE if row["compile_s"] is None else f"{row['compile_s']:.1f}",
    ]


def benchmark_table(benchmark: Mapping[str, Any]) -> str:
    """Markdown tables of step costs, one per network and batch size.

    Args:
      benchmark: what `experiments.benchmark --json` wrote.

    Returns:
      Markdown: a line that names network, batch, device and versions, then the table.

    Raises:
      ValueError: no rows.
    """
    if not benchmark["rows"]:
        raise ValueError("the benchmark holds no rows: run experiments.benchmark again")
    versions = ", ".join(f"{name} {version}" for name, version in benchmark["versions"].items())
    heads = [
        *("variant", "keep", "select every", "ms per step, median [min, max]", "images / s"),
        *("time / narrow [95 %]", "time / dense [95 %]", "temporary MiB (peak / narrow)"),
        "compile s",
    ]
    tables: dict[tuple[str, int], list[Result]] = {}
    for row in benchmark["rows"]:
        tables.setdefault((row["network"], row["batch"]), []).append(row)
    return "\n\n".join(
        f"{network}, batch {batch}, on {benchmark['device']} ({versions}):\n\n"
        + markdown(heads, [_benchmark_row(row, rows) for row in rows], left=1)
        for (network, batch), rows in tables.items()
    )


def tables(paths: Sequence[Path]) -> str:
    """All tables that files and directories hold, as Markdown: results first, then benchmarks."""
    found = records.gather(paths)
    parts = [result_table(found.results)] if found.results else []
    return "\n\n".join([*parts, *map(benchmark_table, found.benchmarks)])


KINDS: dict[str, markers.Maker] = {
    "table": tables,
    "paired": paired.differences,
    "ranks": redundancy.table,
    "peers": peer_tables.tables,
    "signals": study_tables.tables,
    "dead": dead_tables.tables,
    "runtime": runtime_tables.tables,
    "latency": latency_tables.tables,
    "settling": settling.tables,
    "recalibration": recalibration.tables,
}
"""Kind of a marker -> what it makes of its paths."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 1 a table is stale (--check), 2 wrong input.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        help="result.json files, files of experiments.benchmark, or directories that hold them",
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="Markdown file whose tables are written anew"
    )
    parser.add_argument(
        "--marker",
        metavar="NAME",
        help="only the tables of this name; with PATHS, they hold those from now on",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a table of --readme is stale"
    )
    arguments = parser.parse_args(argv)
    if arguments.readme is None and (arguments.marker or arguments.check):
        parser.error("--marker and --check speak of a document: name it with --readme FILE")
    if arguments.readme is None and not arguments.paths:
        parser.error("nothing to tabulate: give PATHS to print a table, or --readme FILE")
    if arguments.readme is not None and arguments.paths and not arguments.marker:
        parser.error("PATHS with --readme need --marker NAME: which of its tables holds them?")
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    if arguments.readme is None:
        print(tables(arguments.paths))
        return 0
    readme: Path = arguments.readme
    if not readme.is_file():
        raise FileNotFoundError(f"{readme} does not exist: give an existing file with --readme")
    old = readme.read_text(encoding="utf-8")
    new = markers.rewrite(
        old, KINDS, base=readme.parent, only=arguments.marker, paths=arguments.paths
    )
    if old == new:
        print(f"{readme}: every table is up to date")
        return 0
    if arguments.check:
        print(
            f"{readme}: tables differ from the stored results; write them with "
            f"`python -m experiments.tables --readme {readme}`",
            file=sys.stderr,
        )
        return 1
    readme.write_text(new, encoding="utf-8")
    print(f"{readme}: tables written")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = _arguments(argv)
    try:
        return _run(arguments)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
