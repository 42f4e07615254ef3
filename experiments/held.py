"""How long a checkpoint holds the training loop: written by a thread, and waited for.

    python -m experiments.held                                  # VGG-16, SGD with momentum
    python -m experiments.held --network resnet50 --json held.json

Held is what stands between two blocks: the look for NaN, the copy to the host and, where it is
waited for, the writing. Both ways take turns, on the same state. Nothing else runs beside: on a CPU
the thread takes its processor time from the steps that the loop goes on with.
"""

import argparse
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from dce_jax import cost, networks
from dce_jax.types import PyTree
from experiments import background, bench, blocks, checkpoint, display, machine, output
from experiments.arguments import status
from experiments.background import Background

WAYS = ("waited for", "by a thread")


def hold(
    writer: Background, directory: Path, state: PyTree, count: int, *, waits: bool
) -> dict[str, float]:
    """One checkpoint.

    Args:
      writer: with nothing to do.
      directory: of all checkpoints.
      state: what is saved.
      count: its number.
      waits: whether the loop waits for the writing.

    Returns:
      ``held_ms``, until the loop may go on, and ``written_ms``, until the checkpoint counts.
    """
    begun = time.perf_counter()
    if not blocks.finite(state):
        raise ValueError("the state is not finite: nothing that a run would write")
    if waits:
        checkpoint.save(directory, count, state, {})
    else:
        checkpoint.begin(writer, directory, count, state, {})
    held = time.perf_counter()
    background.settle(writer)
    return {"held_ms": 1e3 * (held - begun), "written_ms": 1e3 * (time.perf_counter() - begun)}


def measure(
    state: PyTree, directory: Path, rounds: int, tell: Callable[[int, str], None]
) -> list[dict[str, Any]]:
    """Both ways in turn; the first round warms up and is not counted.

    Returns:
      For each way ``{"way", "held_ms", "held_ms_min", "held_ms_max", "written_ms"}``, medians.
    """
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with background.opened() as writer:
        for turn in range(rounds + 1):
            for place, way in enumerate(WAYS if turn % 2 else WAYS[::-1]):
                waits = way == WAYS[0]
                made = hold(writer, directory, state, 2 * turn + place, waits=waits)
                if turn:
                    found[way].append(made)
            tell(turn, f"last held {made['held_ms']:.0f} ms")
    return [{"way": way, **_medians(some)} for way, some in found.items()]


def _medians(some: Sequence[dict[str, float]]) -> dict[str, float]:
    held = [one["held_ms"] for one in some]
    return {
        "held_ms": statistics.median(held),
        "held_ms_min": min(held),
        "held_ms_max": max(held),
        "written_ms": statistics.median(one["written_ms"] for one in some),
    }


def _state(network: str) -> PyTree:
    """A dense run's state; its numbers do not matter, its shapes do."""
    module = networks.build(network, num_classes=10)
    shared = bench.prepare(module, batch=1, image_size=32, learning_rate=0.1, dispatch=1)
    return jax.block_until_ready(bench.initial(shared, module))


def _run(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    if arguments.rounds < 1:
        raise ValueError(f"--rounds {arguments.rounds}: at least 1 is needed for a figure")
    if arguments.json is not None:
        output.check_writable(Path(arguments.json))
    state = _state(arguments.network)
    size = cost.tree_bytes(state)
    with (
        tempfile.TemporaryDirectory(dir=arguments.directory) as folder,
        display.progress("checkpoints", arguments.rounds) as shown,
    ):
        rows = measure(state, Path(folder), arguments.rounds, shown.tell)
    made = {
        "network": arguments.network,
        "state_bytes": size,
        **machine.facts(),
        "command": shlex.join(["python", "-m", "experiments.held", *words]),
        "checkpoints": rows,
    }
    print(f"{arguments.network}: {size / 2**20:.0f} MiB, on {made['device']}")
    for row in rows:
        spread = f"[{row['held_ms_min']:.0f}, {row['held_ms_max']:.0f}]"
        print(f"{row['way']:>12}: loop held {row['held_ms']:.0f} ms {spread}, ", end="")
        print(f"written after {row['written_ms']:.0f} ms")
    if arguments.json is not None:
        output.write_json(Path(arguments.json), made)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="python -m experiments.held",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", default="vgg16", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    parser.add_argument("--directory", help="an existing one on the disk to measure")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    return status(lambda: _run(parser.parse_args(words), words))


if __name__ == "__main__":
    sys.exit(main())
