"""A run's life on disk: opening its workdir, saving, going on, stopping cleanly."""

import errno
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ml_collections import ConfigDict
from safetensors import SafetensorError

from experiments import background, blocks, checkpoint, config, journal, plans, processes
from experiments import placement as placing
from experiments.background import Background
from experiments.blocks import Progress
from experiments.programs import Programs, recall
from experiments.setup import Run

METRICS, CHANNELS = "metrics.jsonl", "channels.jsonl"
CONFIG, CHECKPOINTS = "config.json", "checkpoints"


class TrainingError(Exception):
    """A run that cannot go on; its last good checkpoint stays."""


def open_workdir(workdir: Path, settings: ConfigDict) -> None:
    """Makes a workdir, or checks that what was begun there belongs to this config.

    The first process does; the others wait for it.

    Raises:
      ValueError: it cannot be written, or another config made it (the difference is shown).
    """
    if processes.first():
        _open(workdir, settings)
    processes.wait("workdir")


def _open(workdir: Path, settings: ConfigDict) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        stored = workdir / CONFIG
        # A run that failed before its first block leaves nothing to protect but its config.
        begun = any((workdir / name).exists() for name in (METRICS, CHECKPOINTS))
        if begun and not stored.exists():
            raise ValueError(
                f"{workdir} holds a run that was begun, but not its {CONFIG}, which would tell "
                "whether this config may go on with it: put the file back, or choose another "
                "--workdir"
            )
        if not begun:
            journal.write(stored, config.plain(settings))
    except OSError as error:
        raise ValueError(
            f"workdir {workdir} cannot be written ({error.strerror or error}): choose another "
            "--workdir"
        ) from error
    config.check_same(config.read(stored), settings, workdir)


def resume(
    run: Run, programs: Programs, workdir: Path, say: Callable[[str], None]
) -> tuple[Run, Progress, int]:
    """Run, state and steps done: the newest whole checkpoint's, or a fresh start.

    Metric lines after the restored step are cut: those steps are taken again.
    """
    found = checkpoint.restore(workdir / CHECKPOINTS, lambda meta: _template(run, meta), say)
    done = 0
    if found is None:
        state = blocks.start(run)
    else:
        state, meta = found
        done, run = meta["step"], plans.recall(run, meta["plans"])
        recall(programs, meta["programs"])
        say(f"going on after step {done} of {run.steps}")
    processes.check_same("the step that was restored", done)
    with refusing_full_disk(workdir):
        for name in (METRICS, CHANNELS) if processes.first() else ():
            journal.cut(workdir / name, done)
    return run, placing.put(run.placement, state), done


def _template(run: Run, meta: dict[str, Any]) -> Progress:
    return blocks.template(plans.recall(run, meta["plans"]), meta["phase"])


def save(
    run: Run, programs: Programs, state: Progress, workdir: Path, done: int, *, writer: Background
) -> None:
    """Begins to write a checkpoint of a state that is finite, as `checkpoint.begin` does.

    Raises:
      TrainingError: the state holds NaN or infinite numbers, devices have come to hold different
        decisions, or the disk could not be written.
    """
    if not blocks.finite(state):
        background.rest(writer)
        raise TrainingError(
            f"parameters or moments are not finite after step {done}: lower learning_rate; "
            f"{last_good(workdir)}"
        )
    decided = state.dce.bandit if isinstance(state, blocks.Exploring) else state.selection
    differing = placing.differing(run.placement, decided)
    if differing:
        background.rest(writer)
        raise TrainingError(
            f"devices hold different copies of {differing[:3]} after step {done}: one of them "
            f"computes wrongly; {last_good(workdir)}"
        )
    phase = blocks.EXPLORE if isinstance(state, blocks.Exploring) else blocks.COMMIT
    with refusing_full_disk(workdir, writer):
        meta = {"phase": phase, "programs": programs.facts, "plans": plans.store(run)}
        checkpoint.begin(writer, workdir / CHECKPOINTS, done, state, meta)


def look(writer: Background, workdir: Path) -> None:
    """Does not wait for a checkpoint that is being written, but tells of one that could not be.

    Raises:
      TrainingError: the disk could not be written.
    """
    with refusing_full_disk(workdir):
        background.look(writer)


def settle(writer: Background, workdir: Path) -> None:
    """Waits for the checkpoint that is being written.

    Raises:
      TrainingError: the disk could not be written.
    """
    with refusing_full_disk(workdir):
        background.settle(writer)


def due(run: Run, done: int) -> bool:
    """Whether a checkpoint falls on the end of a block: every few blocks, commit and end."""
    if done in (run.commit_step, run.steps, *plans.steps(run)):
        return True
    size = -(-run.config.block // run.config.select_every) * run.config.select_every
    begin = 0 if done < run.commit_step else run.commit_step
    return (done - begin) // size % run.config.checkpoint_blocks == 0


def last_good(workdir: Path) -> str:
    """A sentence that names the last checkpoint."""
    known = checkpoint.steps(workdir / CHECKPOINTS)
    if not known:
        return "no checkpoint was written yet"
    return (
        f"the last good checkpoint, of step {known[-1]}, is kept in {workdir / CHECKPOINTS} (only "
        "the same settings go on from it: others need another --workdir)"
    )


@contextmanager
def refusing_full_disk(workdir: Path, writer: Background | None = None) -> Iterator[None]:
    """Turns a disk that cannot be written into a clear error.

    Args:
      workdir: of the run.
      writer: what it is writing is waited for, before the error names the last checkpoint.

    Raises:
      TrainingError: with what is kept and what to do.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors tells what the operating system refused in its text only.
        full = getattr(error, "errno", None) == errno.ENOSPC or "(os error 28)" in str(error)
        why = "the disk is full" if full else str(error)
        if writer is not None:
            background.rest(writer)
        raise TrainingError(
            f"{workdir} cannot be written: {why}. Make room and start the same command again; "
            f"{last_good(workdir)}"
        ) from error


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop at the end of the block; a second Ctrl-C does not wait."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
