r"""How many images recalibrate a compact model, and whether they are augmented as in training.

    python -m experiments.recalibration runs/A runs/B --data_dir DIR --json recalibration.json

Each finished run's compact model is taken as training left it, its batch statistics are replaced by
those of more and more training images, cropped and flipped as the run's were or as they are, and
its accuracy is measured on the images that judged the run. A table pools the runs of one network
and method; the JSON file has every figure.
"""

import argparse
import itertools
import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dce_jax import compact
from experiments import evaluate, machine, output, records, sources, subject
from experiments.arguments import list_of, status
from experiments.augment import Augment
from experiments.display import progress
from experiments.subject import COMPACT, Subject
from experiments.summary import markdown, mean_and_spread

EXAMPLES = (64, 256, 1024, 4096, 16384)
PLAIN = Augment(0, False)


def figures(workdir: Path, asked: Subject, examples: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A run's accuracy by its own statistics, and by those of training images.

    Args:
      workdir: of the run.
      asked: its network and data.
      examples: numbers of training images, each rounded down to whole batches of the run.

    Yields:
      ``{"examples": int or None, "augmented": bool or None, "accuracy": float}``; None: not
      recalibrated.
    """
    module, raw = compact.load(workdir / f"{COMPACT}_raw", type(asked.scene.module))
    measure = partial(evaluate.accuracy, module, data=asked.data)
    yield {"examples": None, "augmented": None, "accuracy": measure(raw.variables)}
    config = asked.result["config"]
    own = sources.augmentation(ConfigDict(config))
    for augment, count in itertools.product(dict.fromkeys((own, PLAIN)), examples):
        inputs = evaluate.recalibration_inputs(
            asked.data, augment=augment, examples=count, batch_size=config["batch_size"]
        )
        found = compact.recalibrate(module, raw.variables, inputs)
        yield {"examples": count, "augmented": augment != PLAIN, "accuracy": measure(found)}


def tables(paths: Sequence[Path]) -> str:
    """Markdown: a row per network, method and way to recalibrate, pooled over runs.

    Args:
      paths: JSON files of this command.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file of something else.
    """
    return "\n\n".join(_table(_read(path)) for path in paths)


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    found = records.read_json(path)
    if not isinstance(found, dict) or "recalibrated" not in found:
        raise ValueError(
            f"{path} holds no recalibrated models: name a file that "
            "`python -m experiments.recalibration --json` wrote"
        )
    runs: Sequence[Mapping[str, Any]] = found["recalibrated"]
    return runs


def _table(runs: Sequence[Mapping[str, Any]]) -> str:
    pooled: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        pooled.setdefault((run["network"], run["method"]), []).append(run)
    rows = [row for key, same in pooled.items() for row in _rows(key, same)]
    judged = " or ".join(sorted({run["judged_on"] for run in runs}))
    heads = ["network", "method", "images", "augmented", f"{judged} accuracy (n runs)"]
    return markdown([*heads, "minus not recalibrated, points"], rows, left=2)


def _rows(key: tuple[str, str], runs: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for same in zip(*(run["figures"] for run in runs), strict=True):
        own = [figure["accuracy"] for figure in same]
        gains = [
            100 * (accuracy - run["figures"][0]["accuracy"])
            for accuracy, run in zip(own, runs, strict=True)
        ]
        count, augmented = same[0]["examples"], same[0]["augmented"]
        yield [
            *key,
            "none" if count is None else f"{count:,}",
            "" if count is None else "yes" if augmented else "no",
            f"{mean_and_spread(own)} ({len(own)})",
            "" if count is None else f"{statistics.fmean(gains):+.2f}",
        ]


def _command(arguments: argparse.Namespace) -> str:
    """The command line as results store it: without the directories of this machine."""
    words = [f"runs/{workdir.absolute().name}" for workdir in arguments.workdirs]
    words += [] if arguments.data_dir is None else ["--data_dir", "DIR"]
    words += ["--examples", ",".join(map(str, arguments.examples))]
    return shlex.join(["python", "-m", "experiments.recalibration", *words])


def _run(arguments: argparse.Namespace) -> None:
    if min(arguments.examples) < 1:
        raise ValueError(f"--examples is {min(arguments.examples)}: at least one image")
    if arguments.json is not None:
        output.check_writable(arguments.json)
    asked = [subject.read(workdir, arguments.data_dir) for workdir in arguments.workdirs]
    found = []
    with progress("recalibrating", len(asked), facts="compiling") as display:
        for done, (workdir, each) in enumerate(zip(arguments.workdirs, asked, strict=True), 1):
            own = list(figures(workdir, each, arguments.examples))
            found.append({**subject.facts(each), "figures": own})
            display.tell(done, workdir.name)
    print(_table(found))
    if arguments.json is not None:
        made = {**machine.facts(), "command": _command(arguments)}
        output.write_json(arguments.json, {**made, "recalibrated": found})


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.recalibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument("workdirs", nargs="+", type=Path, metavar="WORKDIR", help="finished runs")
    parser.add_argument("--data_dir", metavar="DIR", help="TFDS data directory of the runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--examples",
        type=list_of(int),
        default=EXAMPLES,
        help=f"numbers of images; default {','.join(map(str, EXAMPLES))}",
    )
    arguments = parser.parse_args(argv)
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
