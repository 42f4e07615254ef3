"""Time and memory of a training step: dynamic channel execution beside what it is compared with.

    python -m experiments.benchmark                                # VGG-16, batch 64, keep 0.5
    python -m experiments.benchmark --keep 0.25,0.5,0.75 --json costs.json

Compared are the dense step, the narrow network's own step (the limit), the slab with a new
selection every R steps, the committed slab, and a masked step, which is what mask-based pruning
runs. All are compiled first; then they take turns, once each per round, on random images.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments import (
    bench,
    bench_options,
    composed,
    cost_plot,
    cost_rows,
    device_memory,
    machine,
    output,
    peers,
    timing,
    variants,
)
from experiments.arguments import status


def measure(
    arguments: argparse.Namespace, words: Sequence[str], *, begun: float, console: Console
) -> tuple[list[cost_rows.Row], list[cost_rows.Row]]:
    """Compiles all variants, times them in turn, and returns the rows of the JSON file.

    The second rows are those of ``--peers``.

    Args:
      arguments: checked options.
      words: that they were read from.
      begun: `time.perf_counter` at the start of the program; ``--seconds`` counts from here.
      console: for the progress bar.

    Raises:
      ValueError: unknown network or signal, or images that the network refuses.
    """
    asked = variants.keys(arguments.keep, arguments.select_every, arguments.signals)
    columns = (
        *(TextColumn("{task.description}"), BarColumn()),
        *(TextColumn("{task.completed:.0f}/{task.total:.0f}"), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console) as progress:
        peaks = _device_peaks(arguments, words, asked, progress)
        compiling = progress.add_task("compile", total=len(asked))
        shared, built = bench_options.opened(arguments), []
        for variant in variants.build(shared, asked):
            built.append(variant)
            progress.advance(compiling)
        own, others = composed.contenders(built), _peers(arguments, shared, progress)
        rounds = progress.add_task("measure", total=arguments.pairs)

        def report(done: int, expected: int) -> None:
            progress.update(rounds, completed=done, total=expected)

        times_RC = timing.interleave(
            [*own, *(peer.contender for peer in others)],
            least=arguments.pairs,
            until=begun + arguments.seconds,
            report=report,
        )
    names = {"network": arguments.network, "batch": arguments.batch}
    times_RV = composed.combined(built, times_RC[:, : len(own)])
    rows = cost_rows.rows(built, times_RV, **names)
    for key, row in zip(asked, rows, strict=True):
        row["device_peak_bytes"] = peaks.get(key)
    times_RV = np.concatenate([times_RV, times_RC[:, len(own) :]], axis=1)
    return rows, peers.rows(others, built, times_RV, **names) if others else []


def _device_peaks(
    arguments: argparse.Namespace,
    words: Sequence[str],
    asked: Sequence[variants.Key],
    progress: Progress,
) -> dict[variants.Key, int | None]:
    if not arguments.device_memory:
        return {}
    task = progress.add_task("device memory", total=len(asked))
    return device_memory.measure(words, asked, lambda done: progress.update(task, completed=done))


def _peers(
    arguments: argparse.Namespace, shared: bench.Bench, progress: Progress
) -> list[peers.Peer]:
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
    bench_options.check(arguments)
    rows, others = measure(arguments, words, begun=begun, console=console)
    device = machine.device()
    result = {
        **machine.facts(),
        "command": shlex.join(["python", "-m", "experiments.benchmark", *words]),
        "seconds": time.perf_counter() - begun,
        "rows": rows,
        **({"peers": others} if others else {}),
    }
    console.print(cost_rows.table(rows, device=device))
    if others:
        console.print(peers.table(others))
    if arguments.json is not None:
        path, picture = bench_options.outputs(arguments.json)
        output.write_json(path, result)
        cost_plot.step_times(rows, device=device).savefig(picture, dpi=150)
        console.print(f"figures: {path}\npicture: {picture}", highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = bench_options.parser(__doc__).parse_args(words)
    # A table in a file or a pipe must not be folded at 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    return status(lambda: _run(arguments, words, console))


if __name__ == "__main__":
    sys.exit(main())
