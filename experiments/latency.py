r"""How long per-input execution takes: only what is decided, beside the whole network, in turns.

  python -m experiments.latency --json latency.json                    # VGG-16, a third of the MACs
  python -m experiments.latency --macs 0.1,0.2,0.333,0.5,0.75,1.0 --plot latency.png
  python -m experiments.latency --system c --batch 1                   # C-Net decides, not rnp
  python -m experiments.latency --workdir runs/rnp                     # a trained system's network
  python -m experiments.latency --workdir runs/rnp --network vgg16     # its decisions, full width
  python -m experiments.latency --frequencies result.json              # as often as it made them

One image runs through a switch over widths, its large kernels in tiles or whole, a batch in chunks
of images that ask for the same; the masked form, which computes everything, runs the same
decisions. The decision network is in all of them, and runs: what it decides is overruled at run
time by the decisions that are drawn. The whole network is 1. In every round each contender runs on
the round's own decisions, of eight single images one after another, or of one batch. A ratio is
that of mean times over rounds, with a 95 % bootstrap interval over rounds. All rounds are made
twice, and the second time counts: a branch of a switch is slower when it runs for the first time.

Decisions are those of a file, one row of levels per image, or drawn for a mean share of the
network's MACs, by themselves or as often as a trained system made them (--frequencies); every
round's are evenly spread over them, from the cheapest to the dearest.
"""

import argparse
import itertools
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from rich.console import Console

from dce_jax.runtime import System, systems
from experiments import (
    latency_decisions,
    latency_frequencies,
    latency_plot,
    latency_tables,
    machine,
    output,
    timing,
)
from experiments.arguments import list_of, portable, status
from experiments.display import Display, progress
from experiments.latency_decisions import Draws, File, Pool
from experiments.latency_forms import IN_A_ROW, contender, forms, in_a_row, ways
from experiments.latency_frequencies import Frequencies
from experiments.latency_subject import Subject, check_nested, trained, untrained

_NETWORK = "vgg16"
_PARTS = 4
_MACS = (0.333,)
_BATCHES = (1, 256)
_SIZES = {
    "chunk": (32, "images in a chunk, of batches"),
    "repeats": (20, f"rounds, each of {IN_A_ROW} single images in a row"),
    "batch_repeats": (5, "rounds with a batch"),
}

Given: TypeAlias = File | Frequencies
"""What a file or a run says about decisions."""


class Plan(NamedTuple):
    """What is measured at one batch size.

    Attributes:
      batch: B.
      chunk: images in a chunk.
      draws: sets of decisions, each timed in all forms.
    """

    batch: int
    chunk: int
    draws: tuple[Draws, ...]

    @property
    def rounds(self) -> int:
        """In each of which a form runs `in_a_row` batches."""
        return len(self.draws[0].levels_RSB) // in_a_row(self.batch)


def measure(subject: Subject, plan: Plan, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of one batch size: the whole network, then every form at every set of decisions.

    All rounds are made twice, and the second time counts: a branch is slower when it runs first.

    Args:
      subject: network and system.
      plan: what is measured.
      tell: told what is compiled next, and every round that is done.
    """
    first, *deciding = forms(subject, batch=plan.batch, chunk=plan.chunk, tell=tell)
    tell("warming up")
    pairs = [(form, draws) for draws in plan.draws for form in deciding]
    entrants = [(first, plan.draws[0]), *pairs]

    def turn(name: str) -> npt.NDArray[np.float64]:
        return timing.interleave(
            [contender(subject, form, draws) for form, draws in entrants],
            least=plan.rounds,
            until=time.perf_counter(),
            report=lambda done, _: tell(f"{name} round {done} of {plan.rounds}"),
            shortest=0.0,  # every run takes the next decisions, so each is one measurement
        )

    first_RC, times_RC = turn("unmeasured"), turn("measured")
    return latency_tables.rows(subject, entrants, times_RC, first_RC, chunk=plan.chunk)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.latency",
        description=__doc__,
        epilog="Leave the machine alone while it measures. Exit status: 0 done, 2 wrong input.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, kind: Any, text: str) -> None:
        parser.add_argument(name, default=default, type=kind, help=f"{text} (default: {default})")

    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="a finished run of experiments.runtime: its network, or with --network another one "
        "with as many sites, under its decisions at the knob whose MACs are nearest to --macs",
    )
    parser.add_argument("--network", help=f"network, at random weights (default: {_NETWORK})")
    add("--width", 1.0, float, "multiplies its published widths")
    parser.add_argument(
        "--system",
        choices=systems.NAMES,
        help=f"whose decision network runs, where decisions are drawn (default: {systems.RNP})",
    )
    parser.add_argument("--parts", type=int, help=f"widths per site (default: {_PARTS})")
    parser.add_argument(
        "--macs",
        type=list_of(float),
        help=f"mean shares of the network's MACs, to draw for (default: {_MACS[0]})",
    )
    parser.add_argument("--decisions", type=Path, metavar="FILE", help="take decisions from here")
    parser.add_argument(
        "--frequencies",
        type=Path,
        metavar="FILE",
        help="a result.json of experiments.runtime: draw levels as often as its system chose them "
        "at the two points of its knob around --macs",
    )
    parser.add_argument(
        "--batch", type=list_of(int), default=_BATCHES, help="batch sizes (default: 1,256)"
    )
    for name, (default, text) in _SIZES.items():
        add(f"--{name}", default, int, text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here: .png or .svg")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    for name in _SIZES:
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} is {getattr(arguments, name)}: choose 1 or more")
    if min(arguments.batch) < 1:
        raise ValueError(f"--batch {min(arguments.batch)}: choose 1 or more images")
    several = [batch for batch in arguments.batch if batch > 1]
    if several and arguments.chunk > min(several):
        raise ValueError(
            f"--chunk {arguments.chunk} is larger than a batch of {min(several)}: choose 1 to "
            f"{min(several)}"
        )
    drawn = arguments.parts is not None or arguments.system is not None
    if arguments.decisions is not None and (arguments.macs or drawn):
        raise ValueError(
            "--decisions names what is decided: leave out --macs, --parts and --system"
        )
    if arguments.workdir is not None and (arguments.decisions or drawn):
        raise ValueError(
            "--workdir holds decisions and widths: leave out --decisions, --parts and --system"
        )
    if arguments.frequencies is not None and (arguments.decisions or arguments.workdir or drawn):
        raise ValueError(
            "--frequencies holds decisions and widths: leave out --decisions, --workdir, --parts "
            "and --system"
        )
    if arguments.workdir is not None and len(arguments.macs or _MACS) > 1:
        raise ValueError("--workdir takes one point of the knob: name one number with --macs")
    if not all(map(math.isfinite, arguments.macs or ())):
        raise ValueError(f"--macs is {arguments.macs}: choose finite numbers")
    for path in (arguments.json, arguments.plot):
        if path is not None:
            output.check_writable(path)


def _plans(arguments: argparse.Namespace, subject: Subject, given: Given | None) -> list[Plan]:
    system = subject.system
    pools = _pools(arguments, system, given)
    found = []
    for batch in arguments.batch:
        rounds = arguments.repeats if batch == 1 else arguments.batch_repeats
        decisions = rounds * in_a_row(batch)
        draws = [
            latency_decisions.draws(system, each, rounds=decisions, batch=batch) for each in pools
        ]
        found.append(Plan(batch, arguments.chunk, tuple(draws)))
    return found


def _pools(arguments: argparse.Namespace, system: System, given: Given | None) -> list[Pool]:
    if isinstance(given, File):
        return [given.pool]
    shares = arguments.macs or _MACS
    if given is None:
        return [latency_decisions.drawn(system, share) for share in shares]
    return [latency_frequencies.drawn(given, system, share) for share in shares]


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    given = _given(arguments)
    subject = _subject(arguments, given)
    if max(arguments.batch) > 1:
        check_nested(subject)
    plans = _plans(arguments, subject, given)
    total = sum(2 + len(ways(subject, plan.batch, plan.chunk)) + 2 * plan.rounds for plan in plans)
    rows = []
    with progress("latency", total) as display:
        done = itertools.count(1)
        for plan in plans:
            rows += measure(subject, plan, partial(_tell, display, done, plan.batch))
    return {"subject": _facts(arguments, subject, given), "latency": rows}


def _given(arguments: argparse.Namespace) -> Given | None:
    if arguments.workdir is not None:
        return latency_decisions.of_run(arguments.workdir, (arguments.macs or _MACS)[0])
    if arguments.frequencies is not None:
        return latency_frequencies.read(arguments.frequencies)
    return None if arguments.decisions is None else latency_decisions.read(arguments.decisions)


def _subject(arguments: argparse.Namespace, given: Given | None) -> Subject:
    images = max(arguments.batch)
    if isinstance(given, File) and arguments.workdir is not None and arguments.network is None:
        return trained(arguments.workdir, knob=given.pool.facts["knob"], images=images)
    return untrained(
        arguments.network or _NETWORK,
        width=arguments.width,
        name=given.system if given else arguments.system or systems.RNP,
        parts=given.parts if given else _PARTS if arguments.parts is None else arguments.parts,
        images=images,
    )


def _tell(display: Display, done: Iterator[int], batch: int, what: str) -> None:
    display.tell(next(done), f"batch {batch}: {what}")


def _facts(arguments: argparse.Namespace, subject: Subject, given: Given | None) -> dict[str, Any]:
    system = subject.system
    own = arguments.workdir is not None and arguments.network is None
    network = arguments.network or _NETWORK
    if own and isinstance(given, File):
        network = given.pool.facts["network"]
    return {
        "network": network,
        "width": None if own else arguments.width,
        "weights": "trained" if own else "random",
        "image": list(subject.images.shape[1:]),
        "system": system.name,
        "levels": [list(widths) for widths in system.levels],
        "macs_full": system.costs.full,
        "macs_deciding": system.deciding,
    }


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    _check(arguments)
    found = {
        **machine.facts(),
        "command": shlex.join(["python", "-m", "experiments.latency", *portable(words)]),
        "settings": {name: getattr(arguments, name) for name in ("batch", *_SIZES)},
        "in_a_row": {str(batch): in_a_row(batch) for batch in arguments.batch},
        "ratio": "of mean times over rounds; 95 % bootstrap interval, rounds drawn as pairs",
        "ratio_first": "as ratio, when the same rounds were made for the first time",
        **_measure(arguments),
    }
    # A table in a file or a pipe must not be folded at 80 columns.
    (Console() if sys.stdout.isatty() else Console(width=120)).print(latency_tables.table(found))
    if arguments.json is not None:
        output.write_json(arguments.json, found)
    if arguments.plot is not None:
        latency_plot.draw(found).savefig(arguments.plot, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return status(lambda: _run(_parser().parse_args(words), words))


if __name__ == "__main__":
    sys.exit(main())
