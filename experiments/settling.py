"""Has the selection settled, or the budget? Where runs would commit by themselves, from their logs.

    python -m experiments.settling runs/A runs/B --json settling.json

At the end of every logged block the K channels with the best mean rewards of each group make a
mask. The rule is that of early-bird tickets (You et al., ICLR 2020): commit once masks that follow
each other have differed by less than a threshold several times running. The distance of two masks
is the share of all channels that belong to one of them alone. Runs must have explored (`dce`,
`random`) for several blocks; the blocks of their logs are the rule's rhythm.

Of runs with learned budgets (allocation=global) the widths are followed instead, from plan to plan,
as Shen et al. (CVPR 2022) watch the architecture of the sub-network that would remain. The distance
of two shapes is the mean over the groups of ``|K - K'| / (K + K')``; that distance is our choice.
"""

import argparse
import itertools
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import output, records, report
from experiments.arguments import status
from experiments.summary import NONE, judged_on, markdown, mean_and_spread

THRESHOLD, TIMES = 0.1, 5
_KEPT = ("method", "network", "dataset", "seed", "keep", "steps", "commit_step", "test_accuracy")
_ORIGIN = ("command", "device", "versions", "config")


def mask(block: Mapping[str, Any], budget: Mapping[str, int]) -> np.ndarray:
    """The channels that a commit would keep now.

    Args:
      block: a line of `channels.jsonl`.
      budget: group -> K.

    Returns:
      bool[channels of all groups]; the K best means of each group, never played channels last,
      the lower index at a tie.
    """
    parts = []
    for group, k in budget.items():
        plays, means = np.asarray(block["plays"][group]), np.asarray(block["means"][group])
        order = np.argsort(-np.where(plays > 0, means, -np.inf), kind="stable")
        part = np.zeros(len(means), bool)
        part[order[:k]] = True
        parts.append(part)
    return np.concatenate(parts)


def shape_distance(before: Mapping[str, int], after: Mapping[str, int]) -> float:
    """How far two budgets are apart, in [0, 1): relative differences, averaged over the groups."""
    return statistics.fmean(abs(k - after[g]) / (k + after[g]) for g, k in before.items())


def settled(distances: Sequence[float], threshold: float, times: int) -> int | None:
    """Index of the first distance that ends `times` in a row below `threshold`, or None."""
    row = 0
    for i, distance in enumerate(distances):
        row = row + 1 if distance < threshold else 0
        if row == times:
            return i
    return None


def follow(workdir: Path, threshold: float = THRESHOLD, times: int = TIMES) -> dict[str, Any]:
    """A run's masks or widths: how far each is from the one before, where the rule would commit.

    Args:
      workdir: of a finished run that explored.
      threshold: of the distance of two masks.
      times: how many distances in a row must be below it.

    Raises:
      FileNotFoundError: not the workdir of a finished run.
      ValueError: a corrupt log, or fewer than two blocks of exploration or learned budgets.
    """
    run = report.read(workdir)
    learned = run.result["allocation"] == "global"
    steps, distances = (_of_widths if learned else _of_masks)(workdir, run)
    at = settled(distances, threshold, times)
    return {
        **{key: run.result[key] for key in _KEPT},
        "first_mask": steps[0],
        "distances": dict(zip(map(str, steps[1:]), distances, strict=True)),
        "settled_at": None if at is None else steps[at + 1],
        **{key: run.result[key] for key in _ORIGIN if key in run.result},
    }


def _of_masks(workdir: Path, run: report.Run) -> tuple[list[int], list[float]]:
    if len(run.channels) < 2:
        raise ValueError(
            f"{workdir} logged {len(run.channels)} blocks of exploration, and two masks make a "
            "distance: explore for longer (commit), or in shorter blocks (block)"
        )
    budget = {row["group"]: row["budget"] for row in run.layers}
    masks = [mask(block, budget) for block in run.channels]
    distances = [float(np.mean(a != b)) for a, b in itertools.pairwise(masks)]
    return [block["step"] for block in run.channels], distances


def _of_widths(workdir: Path, run: report.Run) -> tuple[list[int], list[float]]:
    learned = [plan for plan in run.result["plans"] if plan["step"]]  # at 0: the one asked for
    if len(learned) < 2:
        raise ValueError(
            f"{workdir} learned {len(learned)} budgets, and two make a distance: plan more often "
            "(plans)"
        )
    shapes = [plan["widths"] for plan in learned]
    distances = [shape_distance(a, b) for a, b in itertools.pairwise(shapes)]
    return [plan["step"] for plan in learned], distances


def tables(paths: Sequence[Path]) -> str:
    """Markdown: a row per method, its mean distances step by step, and where its runs settle.

    Args:
      paths: JSON files of this command.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file of something else, or of runs that were logged at different steps.
    """
    return "\n\n".join(map(_table, map(_read, paths)))


def _read(path: Path) -> Mapping[str, Any]:
    found = records.read_json(path)
    if not isinstance(found, dict) or not {"threshold", "times", "runs"} <= set(found):
        raise ValueError(
            f"{path} holds no masks that settle: name a file that "
            "`python -m experiments.settling --json` wrote"
        )
    return found


def _table(found: Mapping[str, Any]) -> str:
    runs: Sequence[Mapping[str, Any]] = found["runs"]
    steps = list(runs[0]["distances"])
    if any(list(run["distances"]) != steps for run in runs):
        raise ValueError(
            "the runs were logged at different steps: follow runs of the same steps, commit and "
            "block together, the others apart"
        )
    methods = dict.fromkeys(run["method"] for run in runs)
    rows = [_row(method, [r for r in runs if r["method"] == method], steps) for method in methods]
    heads = [
        "method",
        *(f"step {step}" for step in steps),
        "settled at",
        f"{judged_on(runs)} accuracy (n seeds)",
    ]
    return markdown(heads, rows, left=1)


def _row(method: str, runs: Sequence[Mapping[str, Any]], steps: Sequence[str]) -> list[str]:
    means = [f"{statistics.fmean(run['distances'][step] for run in runs):.3f}" for step in steps]
    at = ", ".join(NONE if run["settled_at"] is None else str(run["settled_at"]) for run in runs)
    accuracy = mean_and_spread([run["test_accuracy"] for run in runs])
    return [method, *means, at, f"{accuracy} ({len(runs)})"]


def _command(arguments: argparse.Namespace) -> str:
    """The command line as results store it: without the directories of this machine."""
    runs = [f"runs/{workdir.absolute().name}" for workdir in arguments.workdirs]
    rule = ["--threshold", f"{arguments.threshold:g}", "--times", str(arguments.times)]
    return shlex.join(["python", "-m", "experiments.settling", *runs, *rule])


def _run(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.threshold < 1 or arguments.times < 1:
        raise ValueError(
            f"--threshold is {arguments.threshold} and --times {arguments.times}: a share of "
            "channels between 0 and 1, and at least one time"
        )
    if arguments.json is not None:
        output.check_writable(arguments.json)
    found = {
        "command": _command(arguments),
        "threshold": arguments.threshold,
        "times": arguments.times,
        "runs": [follow(w, arguments.threshold, arguments.times) for w in arguments.workdirs],
    }
    print(_table(found))
    if arguments.json is not None:
        output.write_json(arguments.json, found)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.settling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="finished runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the distances here")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help=f"of a distance ({THRESHOLD})"
    )
    parser.add_argument(
        "--times", type=int, default=TIMES, help=f"distances in a row below it ({TIMES})"
    )
    arguments = parser.parse_args(argv)
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
