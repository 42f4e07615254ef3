"""Runs of several processes: how they join, and what only the first of them does."""

import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

AUTO = "auto"
_POLL = 0.2  # seconds between two looks for a file


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes of a run, before anything else asks for a device.

    Args:
      coordinator: ``HOST:PORT`` of process 0; ``auto`` where JAX knows the cluster (Cloud TPU,
        Slurm, Open MPI, Kubernetes); None for a run of one process.
      count: how many processes, or None with ``auto``.
      index: of this one, 0 .. count - 1, or None with ``auto``.

    Raises:
      ValueError: numbers without a coordinator, a coordinator without them, or an index out of
        range.
    """
    if coordinator is None:
        if count is not None or index is not None:
            raise ValueError(
                f"--processes is {count} and --process {index}, but there is no --coordinator: "
                "give HOST:PORT of process 0"
            )
        return
    if coordinator == AUTO:
        jax.distributed.initialize(num_processes=count, process_id=index)
        return
    if count is None or index is None or not 0 <= index < count:
        raise ValueError(
            f"--coordinator is {coordinator}, --processes {count}, --process {index}: give the "
            "number of processes, and of this one from 0 to one less; or --coordinator=auto"
        )
    jax.distributed.initialize(coordinator, count, index)


def first() -> bool:
    """Whether this process writes files and speaks."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def check_same(name: str, value: int, remedy: str = "they must share one --workdir") -> None:
    """Refuses a number that is not the same in all processes.

    Args:
      name: what it is.
      value: this process's, below 2**31.
      remedy: what to do about a difference.

    Raises:
      ValueError: with the remedy.
    """
    if jax.process_count() == 1:
        return
    values = multihost_utils.process_allgather(np.asarray(value)).tolist()
    if len(set(values)) > 1:
        raise ValueError(f"{name} is {values} in the processes of this run: {remedy}")


def wait_for(path: Path) -> None:
    """Waits for a file that the first process writes last."""
    while not path.exists():
        time.sleep(_POLL)
