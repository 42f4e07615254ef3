"""How long a run on several devices decides as the same run on one does, in float32.

python -m experiments.drift --devices 8 --steps 200
    digits, a new selection at every step until the end; nothing is written
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
import numpy.typing as npt

from dce_jax import step
from experiments import blocks, checks, config, data, machine, setup
from experiments import placement as placing
from experiments.arguments import status
from experiments.programs import Programs, call

SHOWN = (1, 10, 50, 100, 200, 500, 1000)
"""Steps whose distance is shown, besides the last."""


class Walk(NamedTuple):
    """A run of a selection each step.

    Attributes:
      seated: per step, group -> bool[C].
      params: step -> all parameters, float32[N], at the steps in `SHOWN`.
    """

    seated: list[dict[str, npt.NDArray[np.bool_]]]
    params: dict[int, npt.NDArray[np.float32]]


def walk(network: str, *, devices: int, steps: int, batch: int, seed: int) -> Walk:
    """Trains on the digits, and remembers every selection.

    Args:
      network: name in `dce_jax.networks`.
      devices: how many.
      steps: of one selection each.
      batch: examples in a batch.
      seed: of the run.

    Raises:
      ValueError: a config that does not fit.
    """
    settings = config.defaults()
    settings.update(
        network=network, devices=devices, steps=steps, batch_size=batch, seed=seed, select_every=1
    )
    settings.commit = 1.0
    checks.check(settings)
    run = setup.build(settings, data.load(settings.dataset, data_dir=None))
    programs, made = Programs(placement=run.placement), Walk([], {})
    state = placing.put(run.placement, blocks.start(run)).dce
    one = partial(step.fused, run.pieces)
    for done in range(steps):
        state, _ = call(programs, "fused", one, state, run.source.data_at(done), donate=True)
        made.seated.append({g: np.asarray(chosen) for g, chosen in state.bandit.seated.items()})
        if done + 1 in (*SHOWN, steps):
            leaves = [placing.host(leaf).ravel() for leaf in jax.tree.leaves(state.loop.params)]
            made.params[done + 1] = np.concatenate(leaves)
    return made


def first_difference(one: Walk, other: Walk) -> int | None:
    """The first step, from 1, that selected other channels; None if there is none."""
    for index, (a, b) in enumerate(zip(one.seated, other.seated, strict=True)):
        if any(not np.array_equal(a[group], b[group]) for group in a):
            return index + 1
    return None


def _run(arguments: argparse.Namespace) -> None:
    for name in ("devices", "steps", "batch"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} {getattr(arguments, name)}: at least 1 is needed")
    machine.show_cpu_devices(arguments.devices)
    options = {"steps": arguments.steps, "batch": arguments.batch, "seed": arguments.seed}
    one, many = (walk(arguments.network, devices=n, **options) for n in (1, arguments.devices))
    for done, params in one.params.items():
        distance = np.max(np.abs(params - many.params[done]))
        print(f"step {done}: parameters differ by at most {distance:.2g}")
    differs = first_difference(one, many)
    same = f"the same channels were selected in all {arguments.steps} steps"
    print(same if differs is None else f"step {differs} is the first to select other channels")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.drift",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 done, 2 wrong input.",
    )
    parser.add_argument("--network", default="vgg-digits", help="by its name (%(default)s)")
    parser.add_argument(
        "--devices", type=int, default=8, help="a CPU shows as many as are asked (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=200, help="of both runs (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="of all devices (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of both runs (%(default)s)")
    arguments = parser.parse_args(argv)
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
