r"""A sweep: every method, keep, seed and network of a table, one training run each.

    python -m experiments.sweep --config experiments/configs/cifar10_small.py \
        --out experiments/results/cifar10_small --seeds 0,1,2 --set data_dir=DIR

Runs what is missing in OUT, one JSON file per run, and goes on where it was stopped: a finished run
is not run again, a killed one continues from its last checkpoint. Ends with `table.md` (all rows,
then dce, or else the last method, minus each rival, seed by seed) and `pareto.png`, over everything
that OUT holds. The same methods with other settings go into the same OUT under a label:

    ... --methods scratch --set init_scale=0.7071 --label rescaled
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments import (
    cells,
    paired,
    pairs,
    pareto,
    pooling,
    records,
    result,
    tables,
    workers,
)
from experiments.arguments import list_of
from experiments.cells import Cell
from experiments.summary import Result

METHODS = ("dense", "slimming", "scratch", "subset", "random", "dce")
"""What a table of `dce` needs beside it; every other method is asked for by name."""
TABLE, PICTURE = "table.md", "pareto.png"
INTERRUPTED = 130


def missing(
    wanted: Sequence[Cell], config_file: Path, changes: Sequence[str], out: Path
) -> list[Cell]:
    """The cells that have no result yet; all configs are checked before anything runs.

    Raises:
      ValueError: a config that cannot run, two cells that would be one run, or a stored result of
        another config.
    """
    asked = {cell: cells.settings(cells.words(cell, config_file, changes)) for cell in wanted}
    cells.check_distinct(asked)
    return [c for c, own in asked.items() if not cells.done(out / f"{c.name}.json", own)]


def job(cell: Cell, config_file: Path, changes: Sequence[str], runs: Path) -> workers.Job:
    """The process that runs one cell."""
    workdir = runs / cell.name
    command = [sys.executable, "-m", "experiments.train"]
    command += [*cells.words(cell, config_file, changes), f"--workdir={workdir}"]
    return workers.Job(cell.name, tuple(command), runs / f"{cell.name}.log", workdir)


def collect(out: Path, finished: workers.Job) -> None:
    """Copies a finished run's result into the table's directory; it appears whole or not at all."""
    partial_copy = out / f"{finished.name}.json.part"
    shutil.copyfile(finished.workdir / result.RESULT, partial_copy)
    partial_copy.replace(out / f"{finished.name}.json")


def text(results: Sequence[Result]) -> str:
    """The table of results and, where rows share seeds, its subject minus each other row."""
    subject = pairs.subject(results)
    found = pairs.comparisons(results, subject)
    below = [paired.heading(subject), paired.table(found)] if found else []
    return "\n\n".join([tables.result_table(results), *below])


def summarise(out: Path) -> None:
    """Writes the tables and the picture of everything that OUT holds by now."""
    found = records.gather([out]).results
    (out / TABLE).write_text(text(found) + "\n", encoding="utf-8")
    pareto.pareto(found).savefig(out / PICTURE, dpi=120)


def sweep(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Runs the missing cells; returns the exit status."""
    cells.check_changes(arguments.set)
    wanted = cells.grid(
        arguments.networks or [_network(arguments)],
        arguments.methods,
        arguments.keeps,
        arguments.seeds,
    )
    if arguments.widths_of:
        wanted = cells.at_learned_widths(wanted, arguments.widths_of, arguments.widths_by)
    if arguments.label is not None:
        wanted = cells.labelled(wanted, arguments.label)
    todo = missing(wanted, arguments.config, arguments.set, arguments.out)
    say(f"{len(wanted)} cells, {len(todo)} to run")
    if arguments.list:
        say("\n".join(cell.name for cell in todo))
        return 0
    for directory in (arguments.out, arguments.runs):
        directory.mkdir(parents=True, exist_ok=True)
    jobs = [job(cell, arguments.config, arguments.set, arguments.runs) for cell in todo]
    outcome = workers.run(jobs, count=arguments.workers, finished=partial(collect, arguments.out))
    if any(arguments.out.glob("*.json")):
        summarise(arguments.out)
        say(f"table: {arguments.out / TABLE}\npicture: {arguments.out / PICTURE}")
    for failed in outcome.failed:
        say(f"failed: {failed.name}, see {failed.log}")
    if outcome.interrupted:
        say("interrupted; the same command goes on from there")
        return INTERRUPTED
    return 1 if outcome.failed else 0


def _network(arguments: argparse.Namespace) -> str:
    return cells.settings([f"--config={arguments.config}"]).network


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 all done, 1 a run failed, 2 wrong input, 130 interrupted.",
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="config file that every run starts from"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the results, the table, the picture"
    )
    parser.add_argument(
        "--methods",
        type=list_of(str),
        default=METHODS,
        help=f"of {','.join(pooling.METHODS)}; default {','.join(METHODS)}",
    )
    parser.add_argument("--keeps", type=list_of(float), default=(0.5,), help="default 0.5")
    parser.add_argument("--seeds", type=list_of(int), default=(0,), help="default 0")
    parser.add_argument("--networks", type=list_of(str), help="default: the config's")
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="a config field for every run, such as data_dir=DIR; may be repeated",
    )
    parser.add_argument(
        "--label",
        metavar="WORD",
        help="put into the names of these runs, so that OUT can hold others of the same methods, "
        "keeps and seeds",
    )
    parser.add_argument(
        "--widths-of",
        metavar="DIR",
        type=Path,
        help="run scratch or subset at the widths that another sweep's runs ended with; in a table "
        "of both sweeps' results all its seeds are one row",
    )
    parser.add_argument(
        "--widths-by",
        metavar="METHOD",
        default="dce",
        help="with --widths-of: of which method's runs, such as compensated (default dce)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/sweep"),
        help="where the runs live; default %(default)s",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="runs at a time; on a CPU at most one a core, each then has its own (default 1)",
    )
    parser.add_argument("--list", action="store_true", help="print what is missing; run nothing")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        return sweep(_parser().parse_args(argv), print)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
