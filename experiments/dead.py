r"""Dead units of a trained network, and what removing units costs with and without their means.

  python -m experiments.dead --workdir runs/dense --data_dir DIR --json dead.json

The network is that of a finished run, any method's; one to begin with (two minutes on a CPU):

  python -m experiments.train --config experiments/configs/lenet_mnist.py --workdir runs/dense \
      --config.network=lenet-small --config.method=dense --config.epochs=5 --config.data_dir=DIR

First comes the report: units that are zero, constant, or never learn, on training images. Then
units are removed, more and more, with no retraining, by Evci's removal score and mean replacement
score, by L1 norm and at random, and with `--measured` by what each unit's removal and mean
replacement alone really cost; test loss and accuracy are told of the network as it is cut and of
the one whose biases took the means of what went, where the network has biases or norms to take
them. `--compact DIR` writes the network without its zero and constant units.
"""

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dce_jax import channels as maps
from dce_jax import compact, pruning
from dce_jax.pruning.dead import Dead
from dce_jax.pruning.folding import CannotFoldError
from dce_jax.types import Array
from experiments import bury, dead_plot, dead_tables, machine, output, removal, replacing, subject
from experiments.arguments import portable, status
from experiments.display import Display, progress
from experiments.subject import Subject
from experiments.summary import judged_on

Batches = Mapping[str, Sequence[Mapping[str, Array]]]

_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_SIZES = {
    "examples": (2000, "training images for the report, the scores and the means"),
    "test_examples": (10_000, "test images for loss and accuracy"),
    "batch": (500, "images at a time"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.dead",
        description=__doc__,
        epilog="Exit status: 0 done, 2 wrong input.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a finished run")
    parser.add_argument("--data_dir", metavar="DIR", help="TFDS data directory of the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--compact", type=Path, metavar="DIR", help="write the network without its dead units here"
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="also remove units in the order of their measured penalties, which costs a forward "
        "pass of all --examples for every unit",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here: .png or .svg")
    for name, (default, text) in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"{text} ({default})"
        )
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in _SIZES:
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: choose 1 or more")
    for path in (arguments.json, arguments.plot):
        if path is not None:
            output.check_writable(path)
    if arguments.compact is not None:
        output.check_writable(arguments.compact / compact.WEIGHTS)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    asked = subject.read(arguments.workdir, arguments.data_dir)
    batches = {
        split: list(subject.batches(asked, split, count, arguments.batch))
        for split, count in (("train", arguments.examples), ("test", arguments.test_examples))
    }
    found = pruning.dead.report(asked.scene, batches["train"])
    print(pruning.dead.table(found), end="\n\n")
    lean = _lean(asked, found, batches, arguments.compact)
    taken = _means(asked, batches["train"])
    total = sum(maps.module_widths(asked.scene.module).values())
    wanted = _orders(asked, batches["train"], total, measured=arguments.measured)
    removed = [0, *(round(share * total) for share in _SHARES)]
    removed = [n for n in dict.fromkeys(removed) if n <= len(next(iter(wanted.values())))]
    with progress("removing", len(wanted) * len(removed), facts="compiling") as display:
        done = itertools.count(1)
        curves = {
            name: replacing.curve(
                asked, order, removed, taken, batches["test"], partial(_tell, display, done, name)
            )
            for name, order in wanted.items()
        }
    return {
        "subject": subject.facts(asked),
        "units": total,
        "dead": {
            group: {kind: mask.nonzero()[0].tolist() for kind, mask in each._asdict().items()}
            for group, each in found.items()
        },
        "without_dead": lean,
        "curves": curves,
    }


def _lean(
    asked: Subject, found: Mapping[str, Dead], batches: Batches, directory: Path | None
) -> dict[str, Any]:
    """Cuts the dead units out, says what is left, and writes it where a directory is given."""
    lean = bury.without(asked, found, batches["train"])
    before, after = (bury.facts(each, batches["test"]) for each in (asked, lean.asked))
    gone = sum(before["widths"].values()) - sum(after["widths"].values())
    print(
        f"without its {gone} zero and constant units: {before['params']:,} -> {after['params']:,} "
        f"parameters, {before['macs']:,} -> {after['macs']:,} MACs, "
        f"{judged_on([asked.result])} accuracy "
        f"{before['accuracy']:.2%} -> {after['accuracy']:.2%}\n"
    )
    if directory is not None:
        compact.save(directory, lean.asked.scene.module, lean.asked.model)
    return {"units": gone, "folded": lean.folded, "before": before, "after": after}


def _means(asked: Subject, batches: Sequence[Mapping[str, Array]]) -> replacing.Means | None:
    try:
        return replacing.means(asked, batches)
    except CannotFoldError as error:
        print(f"units are cut out plainly, their means are not folded: {error}\n")
        return None


def _orders(
    asked: Subject, batches: Sequence[Mapping[str, Array]], total: int, *, measured: bool
) -> dict[str, removal.Order]:
    if not measured:
        return replacing.orders(asked, batches)
    count = len(replacing.MEASURED) * total
    with progress("measuring penalties", count, facts="compiling") as display:
        done = itertools.count(1)
        return replacing.orders(asked, batches, lambda name, *_: display.tell(next(done), name))


def _tell(display: Display, done: Iterator[int], name: str) -> None:
    display.tell(next(done), name)


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    _check(arguments)
    found = {
        **machine.facts(),
        "command": shlex.join(["python", "-m", "experiments.dead", *portable(words)]),
        "settings": {name: getattr(arguments, name) for name in _SIZES},
        **_measure(arguments),
    }
    about, console = found["subject"], Console()
    console.print(f"{about['network']} on {about['dataset']}, {found['device']}")
    console.print(*(dead_tables.table(found, key) for key in ("loss", "accuracy")))
    if arguments.json is not None:
        output.write_json(arguments.json, found)
    if arguments.plot is not None:
        dead_plot.draw(found).savefig(arguments.plot, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return status(lambda: _run(_parser().parse_args(words), words))


if __name__ == "__main__":
    sys.exit(main())
