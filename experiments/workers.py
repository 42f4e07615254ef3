"""Runs jobs in processes of their own, a few at a time, with a progress bar."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import display, huge_pages, records, session

POLL = 0.5  # seconds between two looks at the processes


class Job(NamedTuple):
    """One process.

    Attributes:
      name: for people.
      command: program and arguments.
      log: file that takes both its output streams.
      workdir: of the run it makes; its last metric line is shown.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    workdir: Path


class Outcome(NamedTuple):
    """What became of the jobs.

    Attributes:
      failed: jobs that ended with an error; the others were not held up.
      interrupted: whether Ctrl-C or SIGTERM stopped the sweep.
    """

    failed: tuple[Job, ...]
    interrupted: bool


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    lane: int


def run(jobs: Sequence[Job], *, count: int, finished: Callable[[Job], None]) -> Outcome:
    """Runs jobs side by side and waits for all of them.

    They ask for huge pages (`huge_pages`). With more than one worker, each gets an equal share of
    this process's cores for itself, where the system can do that: runs that share cores slow each
    other down and spoil their step times.

    Args:
      jobs: in the order in which they start.
      count: how many at a time.
      finished: called after each job that ended well.

    Raises:
      ValueError: ``count`` below 1.
    """
    if count < 1:
        raise ValueError(f"workers is {count}: at least one must run")
    waiting, running, failed, stopped = list(jobs), list[_Running](), list[Job](), False
    shares, over = lanes(count), 0
    with display.progress("sweep", len(jobs)) as bar, session.interruptible() as asked:
        while waiting or running:
            if asked() and not stopped:
                stopped = True
                waiting.clear()
                for one in running:
                    one.process.terminate()  # a run then saves the end of its block
            while waiting and len(running) < count:
                lane = min(set(range(count)) - {one.lane for one in running})
                running.append(_start(waiting.pop(0), lane, shares))
            time.sleep(POLL)
            ended = [one for one in running if one.process.poll() is not None]
            running = [one for one in running if one not in ended]
            for one in ended:
                if one.process.returncode == 0:
                    finished(one.job)
                elif not stopped:
                    failed.append(one.job)
            over += len(ended)
            bar.tell(over, ", ".join(_where(one) for one in running))
    return Outcome(tuple(failed), stopped)


def lanes(count: int) -> list[set[int]]:
    """The cores of each worker; empty sets where they cannot be divided or need not be."""
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [set()] * count
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // count
    if not share:
        return [set()] * count
    return [set(cores[i * share : (i + 1) * share]) for i in range(count)]


def _start(job: Job, lane: int, shares: Sequence[set[int]]) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        # A session of its own: Ctrl-C reaches it through us, once.
        process = subprocess.Popen(
            job.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=huge_pages.environment(),
        )
    if shares[lane]:
        os.sched_setaffinity(process.pid, shares[lane])
    return _Running(job, process, lane)


def _where(one: _Running) -> str:
    try:
        step = records.read_lines(one.job.workdir / "metrics.jsonl")[-1]["step"]
    except (FileNotFoundError, ValueError, IndexError):
        return one.job.name
    return f"{one.job.name} step {step}"
