"""A block of steps with its line of metrics, and what the host did about it.

The host's times are read off clocks, so nothing is fetched or waited for that was not before. In ms
per step of a block:

- ``host_ms``: processor time of the thread that dispatches, from a block's first dispatch to its
  last: Python, JAX and the runtime. Waiting does not count. The device computes meanwhile, so it
  waits only where this exceeds the step itself. (A CPU runs programs of next to no work in the
  dispatching thread, where they count.)
- ``data_wait_ms``: wall time that this thread waited for batches which were not there yet.
- ``between_ms``: wall time from the end of the block before, when nothing is left for the device
  to do, to a block's first dispatch: metrics, journals, checkpoints, plans.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import blocks, explored
from experiments.blocks import Progress
from experiments.programs import Programs
from experiments.setup import Run

KEYS = ("host_ms", "data_wait_ms", "between_ms")


class Marks(NamedTuple):
    """Clocks at one moment.

    Attributes:
      wall: seconds.
      work: seconds of processor time of this thread.
      waited: seconds that this process has waited for batches.
    """

    wall: float
    work: float
    waited: float


def mark(waited: Callable[[], float]) -> Marks:
    """Reads the clocks.

    Args:
      waited: of the run's source of batches.
    """
    return Marks(time.perf_counter(), time.thread_time(), waited())


def per_step(
    begun: Marks, dispatched: Marks, *, steps: int, ended: float | None
) -> dict[str, float | None]:
    """The three times of a block.

    Args:
      begun: before its first dispatch.
      dispatched: after its last.
      steps: of the block.
      ended: wall clock at the end of the block before; None if this is a process's first.

    Returns:
      `KEYS` -> ms per step; ``between_ms`` is None without a block before.
    """
    return {
        "host_ms": 1e3 * (dispatched.work - begun.work) / steps,
        "data_wait_ms": 1e3 * (dispatched.waited - begun.waited) / steps,
        "between_ms": None if ended is None else 1e3 * (begun.wall - ended) / steps,
    }


def timed_block(
    run: Run,
    programs: Programs,
    state: Progress,
    done: int,
    end: int,
    *,
    ended: float | None,
    traced: bool,
) -> tuple[Progress, dict[str, Any]]:
    """One block of steps, waited for once, and its line of metrics.

    Args:
      run: the run.
      programs: its step programs.
      state: after ``done`` steps.
      done: steps taken before.
      end: steps taken after.
      ended: see `per_step`.
      traced: whether the profiler slows this block down.
    """
    known, begun = set(programs.compiled), mark(run.source.waited)
    phase = blocks.phase_at(run, done)
    state, metrics = blocks.run_block(run, programs, state, done, end)
    dispatched = mark(run.source.waited)
    metrics = jax.device_get(metrics)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begun.wall
    return state, {
        "step": end,
        "steps": end - done,
        "phase": phase,
        "loss": float(np.mean(metrics["loss"])),
        "accuracy": float(np.mean(metrics["accuracy"])),
        "learning_rate": float(run.rate(end - 1)),
        "ms_per_step": 1e3 * seconds / (end - done),
        **per_step(begun, dispatched, steps=end - done, ended=ended),
        "compile_s": sum(programs.facts[n].seconds for n in programs.compiled if n not in known),
        "profiled": traced,
        "explored": explored.share(state),
        "bad_rewards": int(np.sum(metrics.get("bad_rewards", 0))),
    }


def train_seconds(lines: Sequence[dict[str, Any]]) -> float:
    """Wall seconds from a run's first step to its last: what training takes beside the steps too.

    Compiling, planning, rounds of pruning, searches and checkpoints lie in blocks or between them.
    What a process does before its first block (start, images) and after the last one (recalibration
    and evaluation) does not count; nor what a killed run lost, since its lines are cut off.

    Args:
      lines: every block's line of metrics, in order.
    """
    return (
        sum(
            line["steps"] * (line["ms_per_step"] + (line.get("between_ms") or 0.0))
            for line in lines
        )
        / 1e3
    )


def median(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    """The median of a time over blocks, or None where no block knows it."""
    known = [line[key] for line in lines if line.get(key) is not None]
    return statistics.median(known) if known else None
