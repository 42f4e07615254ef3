"""The device's own account of memory: one process per variant, so that peaks do not mix.

A device tells the most bytes that were ever in use (`jax.Device.memory_stats`), compiling and its
scratch space included; only a process that did nothing else can say what one step needs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments import bench_options, variants
from experiments.composed import Variant
from experiments.variants import Key

RUNS = 3
"""Calls of every program: the first may allocate more than those that follow."""


def measure(
    words: Sequence[str], asked: Sequence[Key], report: Callable[[int], None]
) -> dict[Key, int | None]:
    """Bytes at the peak of each variant; call it before this process touches the device.

    Args:
      words: the benchmark's command line, read again by the processes started here.
      asked: the variants.
      report: told how many are done after each.

    Returns:
      Variant -> bytes, None where the device keeps no account, as CPUs do not.

    Raises:
      ValueError: a process that failed, with the end of what it said.
    """
    # Reserving most of the memory at the start would leave nothing for a process beside it.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found: dict[Key, int | None] = {}
    for key in asked:
        command = [sys.executable, "-m", "experiments.device_memory", json.dumps(key), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"--device_memory, {key}: {done.stderr.strip()[-500:]}")
        found[key] = json.loads(done.stdout.splitlines()[-1])
        report(len(found))
    return found


def peak(variant: Variant, *, stats: Callable[[], dict[str, Any] | None]) -> int | None:
    """Runs a variant's programs a few times and asks the device.

    Args:
      variant: compiled; its state is made here.
      stats: of the device.

    Returns:
      Bytes, or None where the device keeps no account.
    """
    for part in variant.parts:
        state = part.contender.start()
        for _ in range(RUNS):
            state, metrics = part.contender.run(state, part.contender.data)
        jax.block_until_ready((state, metrics))
        del state
    account = stats()
    return None if account is None else int(account["peak_bytes_in_use"])


def main(argv: Sequence[str]) -> int:
    """One variant: prints its bytes as the last line."""
    key = Key(*json.loads(argv[0]))
    arguments = bench_options.parser().parse_args(argv[1:])
    (variant,) = variants.build(bench_options.opened(arguments), [key])
    print(json.dumps(peak(variant, stats=jax.devices()[0].memory_stats)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
