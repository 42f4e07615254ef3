"""One thread that writes while the run goes on: one piece of work at a time, its error kept."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import NamedTuple


class Background(NamedTuple):
    """A thread and what it has to do.

    Attributes:
      thread: its executor.
      pending: the work that was begun last, until somebody has seen how it ended; at most one.
    """

    thread: ThreadPoolExecutor
    pending: list[Future[None]]


@contextmanager
def opened() -> Iterator[Background]:
    """A thread that has nothing to do yet; on leaving, what it does is waited for."""
    with ThreadPoolExecutor(1, "background") as thread:
        yield Background(thread, [])


def begin(background: Background, work: Callable[[], None]) -> None:
    """Starts a piece of work; the one before must have been settled."""
    background.pending.append(background.thread.submit(work))


def look(background: Background) -> None:
    """Raises the error of a piece of work that has ended; never waits."""
    if background.pending and background.pending[0].done():
        settle(background)


def settle(background: Background) -> None:
    """Waits for the work that was begun, and raises its error."""
    while background.pending:
        background.pending.pop().result()


def rest(background: Background) -> None:
    """Waits for the work that was begun, however it ends; its error is kept."""
    wait(background.pending)
