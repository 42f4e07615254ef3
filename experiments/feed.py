"""Whether reading feeds the step: images per second of the pipeline, of the step, and of both.

    python -m experiments.feed                                     # about five minutes
    python -m experiments.feed --network resnet50 --keep 0.25 --json feed.json

Writes photos of about 500x375 pixels and 110 kB into a temporary array_record set and streams them
as the main job streams ImageNet: decoded, cut to a random window, flipped, batched and put on the
device by threads, beside steps of several lengths. "sleep" steps stand for a device that leaves the
host's processors alone: they do nothing but last. A network's steps really run; on a CPU they take
processors from the decoding.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from dce_jax import networks
from experiments import data as datasets
from experiments import display, machine, output, pace, synthetic, timing
from experiments.arguments import list_of, status
from experiments.dataset import DataSet
from experiments.pace import Consumer

_NAME, _CLASSES = "imagenet2012", 1000
_EPILOG = """\
How to read the table: "wait" is the share of time in which the training loop had no batch, and
"both / slower" how much of the slower one's own speed is left when both run: 1.00 is perfect
overlap. A step of rate 0.5 takes twice as long as the pipeline needs for a batch. The loop runs
ahead of a network's steps, so its waits cost nothing unless "both / slower" falls. Files come from
the page cache: a disk's own speed is not part of it.

Leave the machine alone while it measures. Exit status: 0 done, 2 wrong input.
"""


class Case(NamedTuple):
    """What stands beside the pipeline.

    Attributes:
      step: ``sleep``, or the network's name.
      rate: of a sleep, its images per second over the pipeline's; None for a network.
    """

    step: str
    rate: float | None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.feed",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, what: str, **more: Any) -> None:
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, default=default, help=what + shown, **more)

    add("--json", None, "write the figures here", metavar="FILE")
    add("--images", 256, "photos that are made", type=int, metavar="N")
    add("--image_size", 224, "side of the windows", type=int, metavar="N")
    add("--batch", 16, "images per batch", type=int, metavar="N")
    add("--batches", 30, "batches per measurement", type=int, metavar="N")
    add("--rounds", 3, "measurements of everything", type=int, metavar="N")
    add("--threads", "1,2", "that decode", type=list_of(int), metavar="N,M")
    add("--rates", "0.5,0.8,1.5", "of sleeping steps", type=list_of(float), metavar="X,Y")
    add("--network", None, "also real steps of this network", metavar="NAME")
    add("--keep", 0.25, "share of its channels", type=float, metavar="X")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Refuses what cannot be measured, before anything is made.

    Raises:
      ValueError: a number out of its range, or an unknown network.
      OSError: an output path that cannot be written.
    """
    numbers = {name: getattr(arguments, name) for name in ("batch", "batches", "rounds")}
    numbers |= {"image_size": arguments.image_size, "threads": min(arguments.threads)}
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: it must be at least 1")
    if arguments.images < arguments.batch:
        raise ValueError(
            f"--images {arguments.images}: a batch takes {arguments.batch} of them; make more"
        )
    if min(arguments.rates) <= 0:
        raise ValueError(f"--rates {min(arguments.rates):g}: a rate must be above 0")
    if not 0.0 < arguments.keep <= 1.0:
        raise ValueError(f"--keep {arguments.keep:g}: a share of channels is above 0 and at most 1")
    if arguments.network is not None:
        networks.build(arguments.network, num_classes=_CLASSES)
    if arguments.json is not None:
        output.check_writable(Path(arguments.json))


def measure(
    arguments: argparse.Namespace, images: DataSet, real: Consumer | None, tell: Any
) -> Iterator[dict[str, Any]]:
    """Every measurement of every round.

    Args:
      arguments: checked options.
      images: the set.
      real: the network's steps, or None.
      tell: told (measurements done, what the last one gave).

    Yields:
      ``{"threads", "step", "rate", "pipeline", "alone", "both", "waited"}``; rates in images per
      second, ``waited`` a share.
    """
    batch, batches = arguments.batch, arguments.batches
    cases = [Case("sleep", rate) for rate in arguments.rates]
    cases += [Case(arguments.network, None)] if real is not None else []
    done = 0
    for turn in range(arguments.rounds):
        for threads in arguments.threads:

            def run(consumer: Consumer, threads: int = threads) -> pace.Window:
                source = pace.open_stream(
                    images, batch=batch, batches=batches + 2 * threads, threads=threads
                )
                return pace.consume(source, consumer, batches=batches, margin=threads)

            pipeline = batches * batch / run(pace.take).seconds
            for place in timing.order(turn, len(cases)):
                case = cases[place]
                consumer = real if case.rate is None else None
                if consumer is None:
                    consumer = pace.sleeping(batch / (case.rate or 1.0) / pipeline)
                example = pace.open_stream(images, batch=batch, batches=1, threads=1).data_at(0)
                seconds = pace.alone(consumer, example, batches=max(1, batches // 3))
                window = run(consumer)
                done += 1
                tell(done, f"{threads} threads: {pipeline:.0f} images/s, wait {window.waited:.1%}")
                yield {
                    "threads": threads,
                    **case._asdict(),
                    "pipeline": pipeline,
                    "alone": batch / seconds,
                    "both": batches * batch / window.seconds,
                    "waited": window.waited,
                }


def summarise(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds, and the rounds themselves.

    Args:
      found: what `measure` gave.

    Returns:
      One object for each number of threads and step: medians of the rates and of ``waited``,
      ``overlap`` (median of both / slower), and ``rounds``.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["threads"], one["step"], one["rate"]), []).append(one)
    made = []
    for (threads, name, rate), some in sorted(groups.items(), key=lambda item: str(item[0])):
        overlaps = [one["both"] / min(one["pipeline"], one["alone"]) for one in some]
        keys = ("pipeline", "alone", "both", "waited")
        made.append(
            {
                "threads": threads,
                "step": name,
                "rate": rate,
                **{key: statistics.median(one[key] for one in some) for key in keys},
                "overlap": statistics.median(overlaps),
                "rounds": [{key: one[key] for key in keys} for one in some],
            }
        )
    return made


def table(paces: Sequence[dict[str, Any]], *, device: str) -> Table:
    """The figures for a terminal."""
    shown = Table(title=f"images per second, on {device}", title_justify="left")
    for head in ("threads", "step", "pipeline", "step alone", "both", "wait", "both / slower"):
        shown.add_column(head, justify="left" if head == "step" else "right")
    for one in paces:
        name = one["step"] if one["rate"] is None else f"sleep, rate {one['rate']:g}"
        rates = [f"{one[key]:.1f}" for key in ("pipeline", "alone", "both")]
        waited = f"{one['waited']:.1%}"
        shown.add_row(str(one["threads"]), name, *rates, waited, f"{one['overlap']:.2f}")
    return shown


def _run(arguments: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    check(arguments)
    total = arguments.rounds * len(arguments.threads) * len(arguments.rates)
    total += arguments.rounds * len(arguments.threads) if arguments.network else 0
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"making {arguments.images} photos", highlight=False)
        records = list(synthetic.photos(arguments.images, classes=_CLASSES, seed=0))
        synthetic.write(Path(folder), _NAME, {"train": records, "validation": records[:1]})
        images = datasets.load(_NAME, data_dir=folder, image_size=arguments.image_size)
        real = None
        if arguments.network is not None:
            module = networks.build(arguments.network, num_classes=_CLASSES)
            real = pace.training(images, module, keep=arguments.keep, batch=arguments.batch)
        with display.progress("measure", total, console=console) as shown:
            found = list(measure(arguments, images, real, shown.tell))
    paces, device = summarise(found), machine.device()
    console.print(table(paces, device=device))
    if arguments.json is not None:
        made = {
            **machine.facts(),
            "command": shlex.join(["python", "-m", "experiments.feed", *words]),
            "keep": arguments.keep if arguments.network else None,
            "jpeg_bytes_mean": statistics.fmean(len(one["image"]) for one in records),
            "paces": paces,
        }
        output.write_json(Path(arguments.json), made)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    console = Console() if sys.stdout.isatty() else Console(width=120)
    return status(lambda: _run(arguments, words, console))


if __name__ == "__main__":
    sys.exit(main())
