"""Time and memory of a training step: dynamic channel execution beside what it is compared with.

    python -m experiments.benchmark                                # VGG-16, batch 64, keep 0.5
    python -m experiments.benchmark --keep 0.25,0.5,0.75 --json costs.json

Compared are the dense step, the narrow network's own step (the limit), the slab with a new
selection every R steps, the committed slab, and a masked step, which is what mask-based pruning
runs. All are compiled first; then they take turns, once each per round, on random images.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dce_jax import networks
from experiments import bench, cost_plot, cost_rows, machine, output, peers, timing, variants
from experiments.arguments import list_of

_EPILOG = """\
How to read the table: "/ narrow" is the median over rounds of a step's time divided by the time
that the narrow network's step took in the same round, with a 95 % bootstrap interval; 1.00 is the
limit. A slab's time holds its selection, gather and scatter: (enter + R steps + leave) / R.
Memory is XLA's account of the compiled programs.

Leave the machine alone while it measures. Exit status: 0 done, 2 wrong input.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, what: str, **more: Any) -> None:
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(name, default=default, help=what + shown, **more)

    add("--json", None, "write the figures here, and a picture (.png) beside them", metavar="FILE")
    add("--network", "vgg16", f"one of {', '.join(networks.NETWORKS)}", metavar="NAME")
    add("--batch", 64, "examples per step", type=int, metavar="N")
    add("--keep", "0.5", "shares of every group's channels", type=list_of(float), metavar="X,Y")
    add("--select_every", "1,10", "steps per selection", type=list_of(int), metavar="R,S")
    add(
        "--pairs",
        15,
        "rounds at least; each pairs every step with the narrow network's",
        type=int,
        metavar="N",
    )
    add(
        "--seconds",
        240.0,
        "more rounds are made as long as they fit into this time, which the "
        "compilations are part of",
        type=float,
        metavar="S",
    )
    add("--image_size", 32, "images are N x N x 3", type=int, metavar="N")
    add("--learning_rate", 0.05, "of SGD with momentum", type=float, metavar="X")
    add(
        "--steps_per_dispatch",
        None,
        "steps in one lax.scan (default: 20; on a CPU 1, because "
        "XLA runs a convolution's gradient in a loop about 20 times slower there)",
        type=int,
        metavar="N",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also time the same network in PyTorch, on as many threads as there are cores: dense, "
        "masked, cut by Torch-Pruning, narrow (pip install -e '.[training,peers]')",
    )
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Refuses what cannot be measured, before anything is compiled.

    Raises:
      ValueError: a number out of its range, or an output path that would overwrite itself.
      OSError: an output path that cannot be written.
    """
    for keep in arguments.keep:
        if not 0.0 < keep <= 1.0:
            raise ValueError(f"--keep {keep:g}: a share of channels is above 0 and at most 1")
    if not arguments.learning_rate > 0:
        raise ValueError(f"--learning_rate {arguments.learning_rate}: it must be above 0")
    smallest = min(arguments.select_every)
    numbers = {name: getattr(arguments, name) for name in ("batch", "pairs", "image_size")}
    for name, value in {**numbers, "select_every": smallest}.items():
        if value < 1:
            raise ValueError(f"--{name} {value}: it must be at least 1")
    if arguments.steps_per_dispatch is not None and arguments.steps_per_dispatch < 1:
        raise ValueError(f"--steps_per_dispatch {arguments.steps_per_dispatch}: at least 1")
    if arguments.json is not None:
        for path in _outputs(arguments.json):
            output.check_writable(path)


def _outputs(text: str) -> tuple[Path, Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        raise ValueError(f"--json {path} is a directory: name a file in it")
    if path.suffix == ".png":
        raise ValueError(f"--json {path}: the picture takes this name; end the file in .json")
    return path, path.with_suffix(".png")


def measure(
    arguments: argparse.Namespace, module: Any, *, begun: float, console: Console
) -> tuple[list[cost_rows.Row], list[cost_rows.Row]]:
    """Compiles all variants, times them in turn, and returns the rows of the JSON file.

    The second rows are those of ``--peers``.

    Args:
      arguments: checked options.
      module: the network at full width.
      begun: `time.perf_counter` at the start of the program; ``--seconds`` counts from here.
      console: for the progress bar.
    """
    dispatch = arguments.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 20)
    shared = bench.prepare(
        module,
        batch=arguments.batch,
        image_size=arguments.image_size,
        learning_rate=arguments.learning_rate,
        dispatch=dispatch,
    )
    count = variants.count(arguments.keep, arguments.select_every)
    columns = (
        *(TextColumn("{task.description}"), BarColumn()),
        *(TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console) as progress:
        compiling = progress.add_task("compile", total=count)
        built = []
        for variant in variants.build(shared, arguments.keep, arguments.select_every):
            built.append(variant)
            progress.advance(compiling)
        others = _peers(arguments, shared, progress)
        rounds = progress.add_task("measure", total=arguments.pairs)

        def report(done: int, expected: int) -> None:
            progress.update(rounds, completed=done, total=expected)

        times_RV = timing.interleave(
            [one.contender for one in (*built, *others)],
            least=arguments.pairs,
            until=begun + arguments.seconds,
            report=report,
        )
    names = {"network": arguments.network, "batch": arguments.batch}
    rows = cost_rows.rows(built, times_RV[:, : len(built)], **names)
    return rows, peers.rows(others, built, times_RV, **names) if others else []


def _peers(arguments: argparse.Namespace, shared: bench.Bench, progress: Progress) -> list[Any]:
    if not arguments.peers:
        return []
    from experiments import peer_steps  # imports PyTorch

    preparing = progress.add_task("peers", total=peer_steps.count(arguments.keep))
    found = []
    for peer in peer_steps.build(shared, arguments.keep, learning_rate=arguments.learning_rate):
        found.append(peer)
        progress.advance(preparing)
    return found


def _run(arguments: argparse.Namespace, words: Sequence[str], console: Console) -> None:
    begun = time.perf_counter()
    check(arguments)
    module = networks.build(arguments.network, num_classes=10)
    if arguments.peers:
        peers.check(module, arguments.network)
    rows, others = measure(arguments, module, begun=begun, console=console)
    device = machine.device()
    result = {
        "device": device,
        "versions": machine.versions(),
        "command": shlex.join(["python", "-m", "experiments.benchmark", *words]),
        "signal": variants.SIGNAL,
        "seconds": time.perf_counter() - begun,
        "rows": rows,
        **({"peers": others} if others else {}),
    }
    if arguments.json is not None:
        path, picture = _outputs(arguments.json)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        cost_plot.step_times(rows, device=device).savefig(picture, dpi=150)
        console.print(f"figures: {path}\npicture: {picture}", highlight=False)
    console.print(cost_rows.table(rows, device=device))
    if others:
        console.print(peers.table(others))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    # A table in a file or a pipe must not be folded at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    try:
        _run(arguments, words, console)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
