"""Progress on the terminal: a bar with the time left, loss, accuracy and channels explored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display(NamedTuple):
    """A progress bar of a run.

    Attributes:
      bar: the bar.
      task: its only task.
    """

    bar: Progress
    task: TaskID

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self.bar.console.print(text, highlight=False, markup=False)

    def update(self, line: dict[str, Any]) -> None:
        """Shows a block's metrics."""
        explored = line["explored"]
        seen = "" if explored is None else f"  channels explored {explored:.0%}"
        facts = f"{line['phase']}  loss {line['loss']:.3f}  accuracy {line['accuracy']:.1%}{seen}"
        self.bar.update(self.task, completed=line["step"], facts=facts)


def bar(console: Console | None = None) -> Progress:
    """A bar with counts, time spent, time left and a field ``facts``.

    Args:
      console: where to; the standard error stream unless told.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console or Console(stderr=True),
    )


@contextmanager
def progress(name: str, steps: int, *, console: Console | None = None) -> Iterator[Display]:
    """Opens the progress bar of a run.

    Args:
      name: shown before the bar.
      steps: length of the run.
      console: where to; the standard error stream unless told.
    """
    with bar(console) as opened:
        yield Display(opened, opened.add_task(name, total=steps, facts="compiling"))
