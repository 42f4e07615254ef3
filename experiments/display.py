"""Progress on the terminal: a bar with the time left, and a line of facts below it.

A log, which shows nothing that moves, gets both once in a while.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LOG_SECONDS = 60.0
"""Between two states of a bar in a log."""


class Display(NamedTuple):
    """A progress bar and the line below it.

    Attributes:
      live: what the terminal shows.
      bar: the bar.
      task: its only task.
      log: given every state, writes some of them where nothing moves.
    """

    live: Live
    bar: Progress
    task: TaskID
    log: Callable[[Group], None]

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.live.console.print(text, highlight=False, markup=False)

    def tell(self, completed: int, facts: str) -> None:
        """Moves the bar and replaces the line below it."""
        self.bar.update(self.task, completed=completed)
        shown = Group(self.bar, Text(facts))
        self.live.update(shown)
        self.log(shown)

    @contextmanager
    def beside(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A second bar, for work between two steps; gives what moves it."""
        task = self.bar.add_task(name, total=total)
        try:
            yield lambda completed: self.bar.update(task, completed=completed)
        finally:
            self.bar.remove_task(task)

    def expect(self, total: int) -> None:
        """Sets what the bar counts up to, where a run learns its length on the way."""
        self.bar.update(self.task, total=total)

    def update(self, line: dict[str, Any]) -> None:
        """Shows a block's metrics."""
        explored = line["explored"]
        seen = "" if explored is None else f"  channels explored {explored:.0%}"
        facts = f"{line['phase']}  loss {line['loss']:.3f}  accuracy {line['accuracy']:.1%}{seen}"
        self.tell(line["step"], facts)


@contextmanager
def progress(
    name: str,
    total: int,
    *,
    facts: str = "",
    console: Console | None = None,
    quiet: bool = False,
) -> Iterator[Display]:
    """Opens a progress bar.

    Args:
      name: shown before the bar.
      total: steps of a run, or runs of a sweep.
      facts: what the line below it says at first.
      console: where to; the standard error stream unless told.
      quiet: nothing is shown at all.
    """
    console = console or Console(stderr=True, quiet=quiet)
    # The bar alone fits a terminal of 80 columns; facts beside it would squeeze out the times.
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        # Of all that was done: a block of steps, or a run of a sweep, may take minutes and more.
        speed_estimate_period=math.inf,
    )
    task = bar.add_task(name, total=total)
    shown = Group(bar, Text(facts))
    try:
        with Live(shown, console=console, refresh_per_second=4) as live:
            yield Display(live, bar, task, _log(console))
    finally:
        if not console.is_terminal:
            console.line()  # a log gets the last state only, and no end of line


def _log(console: Console) -> Callable[[Group], None]:
    if console.is_terminal or console.is_jupyter:
        return lambda _: None
    written = console.get_time()

    def write(shown: Group) -> None:
        nonlocal written
        if console.get_time() - written >= LOG_SECONDS:
            written = console.get_time()
            console.print(shown)

    return write
