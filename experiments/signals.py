r"""Names of the saliency signals, and how well they tell what channels are worth.

    python -m experiments.signals --list          the algebra: base.pointwise.reduction.scaling
    python -m experiments.signals --list-extra    every other signal
    python -m experiments.signals --study runs/dense --json study.json

A study asks the network of a finished run (--workdir of experiments.train): each channel alone is
cut out and the loss measured, on training images; all signals are computed on the same images and
ranked by how well they agree with it; then channels go by the best rankings, without retraining,
until test accuracy falls. It writes the JSON file and, beside it, a table and a picture.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dce_jax import signals
from experiments import display, journal, machine, output, study, study_plots, study_tables, subject
from experiments.arguments import portable, status
from experiments.choices import SIGNALS
from experiments.study import Sizes

_EPILOG = """\
Any name serves as --config.signal of experiments.train. What the parts mean: docs/signals.md.

Exit status: 0 done, 2 wrong input.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.signals",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--list", action="store_true", help="the 396 formulas of the algebra")
    either.add_argument("--list-extra", action="store_true", help="every other signal")
    either.add_argument(
        "--study", type=Path, metavar="WORKDIR", help="compare all signals with an oracle"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="study: where it is written")
    parser.add_argument("--data_dir", metavar="DIR", help="study: TFDS data directory of the run")
    sizes = Sizes()
    for name, text in (
        ("examples", "training images for oracle and signals"),
        ("test_examples", "test images for the removal curves"),
        ("batch", "images at a time"),
        ("best", "signals of the algebra that have a removal curve, beside the published ones"),
    ):
        default = getattr(sizes, name)
        parser.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"study: {text} ({default})"
        )
    return parser


def _study(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    names = ("examples", "test_examples", "batch", "best")
    for name in names[:3]:
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: choose 1 or more")
    if arguments.best < 0:
        raise ValueError(f"--best is {arguments.best}: choose 0 or more")
    sizes = Sizes(**{name: getattr(arguments, name) for name in names})
    if arguments.json is None:
        raise ValueError("a study takes long: say by --json FILE where its result is written")
    output.check_writable(arguments.json)
    asked = subject.read(arguments.study, arguments.data_dir)
    with display.progress("study", 1) as shown:

        def report(what: str, done: int, total: int) -> None:
            shown.expect(total)
            shown.tell(done, what)

        found = study.study(asked, sizes, report)
    command = shlex.join(["python", "-m", "experiments.signals", *portable(words)])
    found = {"command": command, **machine.facts(), **found}
    journal.write(arguments.json, found)
    picture, every = arguments.json.with_suffix(".png"), arguments.json.with_suffix(".md")
    study_plots.draw(found).savefig(picture, dpi=150)
    journal.write_text(every, study_tables.table(found, everything=True) + "\n")
    print(study_tables.table(found, everything=False))
    print(f"\nresult: {arguments.json}\nall signals: {every}\npicture: {picture}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser, words = _parser(), list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(words)
    if arguments.study is None:
        names = signals.names() if arguments.list else (*SIGNALS, *signals.other_names())
        return status(lambda: print("\n".join(names)))
    return status(lambda: _study(arguments, words))


if __name__ == "__main__":
    sys.exit(main())
