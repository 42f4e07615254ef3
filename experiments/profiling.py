"""A trace of some of a run's blocks, by `jax.profiler`; what the run computes stays the same."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import jax

from experiments import processes

PROFILE = "profile"


class Window(NamedTuple):
    """Which steps to trace.

    Attributes:
      first: counted from 1.
      last: inclusive.
    """

    first: int
    last: int


def parse(text: str) -> Window:
    """``FIRST:LAST`` as a window.

    Raises:
      ValueError: not two numbers in order, from 1.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"--profile is {text!r}: give the first and the last step to trace, counted from 1, as "
            "in 101:120"
        )
    return Window(int(first), int(last))


def check(window: Window | None, *, done: int, steps: int) -> None:
    """Refuses a window that this process will not run.

    Args:
      window: what to trace, or None.
      done: steps that were taken before.
      steps: of the whole run.

    Raises:
      ValueError: with the steps that are left.
    """
    if window is None:
        return
    if done >= steps:
        raise ValueError(
            f"--profile asks for steps {window.first} to {window.last}, but all {steps} steps of "
            "this run are taken: choose another --workdir"
        )
    if window.first <= done or window.last > steps:
        raise ValueError(
            f"--profile asks for steps {window.first} to {window.last}, but those still to be "
            f"taken are {done + 1} to {steps}: choose among them"
        )


@contextmanager
def profiler(
    window: Window | None, directory: Path, say: Callable[[str], None]
) -> Iterator[Callable[[int, int], bool]]:
    """Traces the blocks that hold a window's steps, from the first one's begin to the last's end.

    Args:
      window: what to trace, or None.
      directory: where the trace is written.
      say: told where it lies.

    Yields:
      ``look(done, end)``, to be told of every block before it runs; whether it is traced.
    """
    with ExitStack() as tracing:

        def look(done: int, end: int) -> bool:
            if window is None or not processes.first() or end < window.first or done >= window.last:
                tracing.close()
                return False
            if done < window.first:
                tracing.enter_context(_trace(directory, say))
            return True

        yield look


@contextmanager
def _trace(directory: Path, say: Callable[[str], None]) -> Iterator[None]:
    with jax.profiler.trace(str(directory)):
        yield
    say(
        f"profile: {directory}; open its newest *.trace.json.gz at https://ui.perfetto.dev, or the "
        f"directory with `xprof {directory}`"
    )
