"""Options of the benchmark: what its command line takes, refuses, and makes of it."""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dce_jax import networks
from experiments import bench, output, peers, variants
from experiments.arguments import list_of
from experiments.bench import Bench

_EPILOG = """\
How to read the table: "/ narrow" is the median over rounds of a step's time divided by the time
that the narrow network's step took in the same round, with a 95 % bootstrap interval; 1.00 is the
limit. A slab's time holds its selection, gather and scatter: (enter + R steps + leave) / R, where
for R > 1 one inner step and one enter + leave are timed in each round. Memory is XLA's account of
the compiled programs; "/ narrow" of memory leaves out what a slab must hold besides, the full
parameters and moments.

Leave the machine alone while it measures. Exit status: 0 done, 2 wrong input.
"""


def parser(description: str | None = None) -> argparse.ArgumentParser:
    """The command line's words.

    Args:
      description: what ``--help`` says first.
    """
    made = argparse.ArgumentParser(
        prog="python -m experiments.benchmark",
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(name: str, default: Any, what: str, **more: Any) -> None:
        shown = "" if default is None else " (default: %(default)s)"
        made.add_argument(name, default=default, help=what + shown, **more)

    add("--json", None, "write the figures here, and a picture (.png) beside them", metavar="FILE")
    add("--network", "vgg16", f"one of {', '.join(networks.NETWORKS)}", metavar="NAME")
    add("--batch", 64, "examples per step", type=int, metavar="N")
    add("--keep", "0.5", "shares of every group's channels", type=list_of(float), metavar="X,Y")
    add("--select_every", "1,10", "steps per selection", type=list_of(int), metavar="R,S")
    add(
        "--signals",
        variants.SIGNAL,
        "rewards of the slab, such as norm_taylor,gate_taylor: at no cost, and per example",
        type=list_of(str),
        metavar="A,B",
    )
    add(
        "--pairs",
        30,
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
    add("--dtype", "float32", "compute type", choices=("float32", "bfloat16"))
    made.add_argument(
        "--remat",
        action="store_true",
        help="compute activations again in the backward pass, for all variants",
    )
    made.add_argument(
        "--device_memory",
        action="store_true",
        help="ask the device for each variant's peak too, in a process of its own (not on a CPU)",
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
    made.add_argument(
        "--peers",
        action="store_true",
        help="also time the same network in PyTorch, on as many threads as there are cores: dense, "
        "masked, cut by Torch-Pruning, narrow (pip install -e '.[training,peers]')",
    )
    return made


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
    if arguments.peers:
        peers.check(networks.build(arguments.network, num_classes=10), arguments.network)
    if arguments.json is not None:
        for path in outputs(arguments.json):
            output.check_writable(path)


def outputs(text: str) -> tuple[Path, Path]:
    """The files of figures and of their picture.

    Raises:
      ValueError: a directory, or a name that the picture takes.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        raise ValueError(f"--json {path} is a directory: name a file in it")
    if path.suffix == ".png":
        raise ValueError(f"--json {path}: the picture takes this name; end the file in .json")
    return path, path.with_suffix(".png")


def opened(arguments: argparse.Namespace) -> Bench:
    """What the variants share.

    Args:
      arguments: checked.

    Raises:
      ValueError: unknown network, or images that it refuses.
    """
    module = networks.build(arguments.network, num_classes=10, dtype=jnp.dtype(arguments.dtype))
    return bench.prepare(
        module.clone(remat=True) if arguments.remat else module,
        batch=arguments.batch,
        image_size=arguments.image_size,
        learning_rate=arguments.learning_rate,
        dispatch=arguments.steps_per_dispatch or (1 if jax.default_backend() == "cpu" else 20),
    )
