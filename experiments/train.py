r"""The main job: trains a compact network by dynamic channel execution, or one of its rivals.

  python -m experiments.train
      digits, bundled, under two minutes on a CPU
  python -m experiments.train --config experiments/configs/cifar10_small.py \
      --config.data_dir DIR --config.method scratch --config.seed 1
      real CIFAR-10 from a TFDS data directory; any config field can be set this way

Methods: dce (bandit, then commit), dense, scratch (the narrow widths from scratch), subset (a fixed
random subset of the full initialisation), random (random selection until the commit); and those of
experiments.prune, which train dense first and prune: taylor, fisher, l1, slimming,
mean_replacement, compensated.
Killed and started again with the same --workdir, a run goes on where its last checkpoint stood.
Most used fields: keep (fraction of the channels), macs, widths, epochs or steps, batch_size,
learning_rate, optimizer, commit, select_every, signal, dataset, seed. All of them, with meaning and
default: experiments/config.py. Exit status: 0 done, 1 a run that cannot go on (a loss that is no
number, a full disk), 2 wrong input, 130 stopped by Ctrl-C.

  python -m experiments.train --profile=101:140
      also traces those steps, into WORKDIR/profile; see docs/long_runs.md
  python -m experiments.train --config.devices=0 --coordinator=HOST:PORT --processes=2 --process=0
      one of two processes that share every batch; see docs/scaling.md
"""

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import (
    background,
    blocks,
    budgeting,
    checks,
    config,
    data,
    explored,
    fields,
    footprint,
    holdout,
    journal,
    plans,
    processes,
    profiling,
    report,
    result,
    round_facts,
    rounds,
    searching,
    session,
    setup,
    watch,
)
from experiments import placement as placing
from experiments.background import Background
from experiments.blocks import Exploring, Progress
from experiments.dataset import DataSet
from experiments.display import progress
from experiments.profiling import Window
from experiments.programs import Programs
from experiments.records import read_result
from experiments.rounds import Pruning
from experiments.session import TrainingError
from experiments.setup import Run
from experiments.summary import print_result

STOPPED, WRONG_INPUT, INTERRUPTED = 1, 2, 130  # exit status
PAGE = "report.html"  # as `experiments.report` calls it

_DIGITS = Path(__file__).parent / "configs" / "digits.py"
# No default here: ml_collections would apply overrides to it, and fail, at import.
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"Config file of the run; default {_DIGITS.name}, the bundled digits."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lives; default runs/<config>-<method>-seed<n>."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or auto, where a run has several processes."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "FIRST:LAST: trace the blocks of these steps, from 1, into WORKDIR/profile."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes share the run.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0.")


def train(
    settings: ConfigDict, workdir: Path, profile: Window | None = None
) -> dict[str, Any] | None:
    """Runs, or goes on with, one training run.

    Args:
      settings: the config (`experiments.config.defaults` names every field).
      workdir: where everything is written; one config a workdir.
      profile: steps whose blocks are traced; the result stays the same.

    Returns:
      What `result.json` holds, or None if the run was interrupted and saved.

    Raises:
      ValueError: a config, data set, workdir or profile that does not fit.
      TrainingError: NaN loss, or a disk that cannot be written; nothing saved is lost.
    """
    checks.check(settings)
    session.open_workdir(workdir, settings)
    if (workdir / result.RESULT).exists():
        return _finished(workdir, profile)
    run = setup.build(settings, _images(settings))
    programs = Programs(placement=run.placement)
    name = f"{settings.name} {settings.method} seed {settings.seed}"
    with (
        progress(name, run.steps, facts="compiling", quiet=not processes.first()) as display,
        session.interruptible() as asked,
        background.opened() as writer,
        profiling.profiler(profile, workdir / profiling.PROFILE, display.say) as look,
    ):
        display.say(footprint.line(footprint.footprint(run)))
        for warning in budgeting.warnings(run.budget, settings.dtype):
            display.say(f"warning: {warning}")
        run, state, done = session.resume(run, programs, workdir, display.say)
        profiling.check(profile, done=done, steps=run.steps)
        run, ended = setup.starting_at(run, done), None
        display.expect(run.steps)
        learn = partial(searching.learn, programs, workdir, display, asked)
        while done < run.steps:
            if isinstance(state, Pruning) and rounds.due(run, done):
                with session.refusing_full_disk(workdir, writer):
                    run, state = rounds.prune(run, programs, state, done, learn)
                display.expect(run.steps)
                display.say(round_facts.line(run))
            end = blocks.block_end(run, done)
            traced = look(done, end)
            state, line = watch.timed_block(
                run, programs, state, done, end, ended=ended, traced=traced
            )
            ended = None if traced else time.perf_counter()
            session.look(writer, workdir)
            check_finite(line, workdir, writer)
            with session.refusing_full_disk(workdir, writer):
                record(run, state, workdir, line)
            display.update(line)
            begin, done = done, end
            if isinstance(state, Exploring):
                run, state = _turned(run, programs, state, done)
            stop = processes.any_of(asked()) or begin < (settings.stop_after or 0) <= done
            if stop or session.due(run, done):
                session.save(run, programs, state, workdir, done, writer=writer)
            if stop and done < run.steps:
                session.settle(writer, workdir)
                display.say(f"stopped after step {done}; the same command goes on from there")
                return None
        session.settle(writer, workdir)
    return _finish(run, programs, state, workdir)


def _images(settings: ConfigDict) -> DataSet:
    whole = data.load(settings.dataset, data_dir=settings.data_dir, image_size=settings.image_size)
    return holdout.hold_out(whole, validation=settings.validation, examples=settings.examples)


def _turned(run: Run, programs: Programs, state: Exploring, done: int) -> tuple[Run, Progress]:
    """What a run that explores becomes after a block: planned anew, committed, or what it was."""
    if done in plans.steps(run):
        run, state = blocks.replan(run, programs, state, done)
    if done == run.commit_step < run.steps:
        return run, blocks.commit(run, state)
    return run, state


def _finish(run: Run, programs: Programs, state: Progress, workdir: Path) -> dict[str, Any]:
    # What is left is one device's work; the other processes wait for what it leaves.
    state = placing.local(run.placement, state)
    if processes.first():
        with session.refusing_full_disk(workdir):
            result.finish(run, programs, state, workdir)
            report.write(workdir)
    return _finished(workdir)


def _finished(workdir: Path, profile: Window | None = None) -> dict[str, Any]:
    page = workdir / PAGE
    if not processes.first():
        processes.wait_for(page)
    elif not page.exists():  # killed between the two
        report.write(workdir)
    found = read_result(workdir / result.RESULT)
    profiling.check(profile, done=found["steps"], steps=found["steps"])
    return found


def check_finite(line: dict[str, Any], workdir: Path, writer: Background) -> None:
    """Stops a run whose loss is not a number any more.

    Raises:
      TrainingError: with the steps and what is kept.
    """
    if not np.isfinite(line["loss"]):
        first = line["step"] - line["steps"] + 1
        background.rest(writer)
        raise TrainingError(
            f"loss is {line['loss']} in steps {first} to {line['step']}: lower learning_rate (now "
            f"{line['learning_rate']:.3g}) or lengthen warmup; {session.last_good(workdir)}"
        )


def record(run: Run, state: Progress, workdir: Path, line: dict[str, Any]) -> None:
    """Appends a block's metrics and, while exploring, what the bandit knows."""
    known = state.dce.bandit if isinstance(state, Exploring) else None
    channels = explored.line(run, known, line["step"]) if known is not None else None
    if not processes.first():
        return
    journal.append(workdir / session.METRICS, line)
    if channels is not None:
        journal.append(workdir / session.CHANNELS, channels)


def default_workdir(settings: ConfigDict) -> Path:
    """``runs/<config>-<method>-seed<n>``."""
    return Path("runs") / f"{settings.name}-{settings.method}-seed{settings.seed}"


def parse(argv: Sequence[str], default: Path = _DIGITS) -> list[str]:
    """Parses the flags, with a config file where none is given; mistakes end in words, status 2."""
    program, *words = argv
    if {"--help", "-h"}.intersection(words):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=0)  # absl's own help ends with 1
    if not any(word.lstrip("-").split("=")[0] == "config" for word in words):
        words.insert(0, f"--config={default}")
    try:
        rest = flags.FLAGS([program, *words])
        settings = _CONFIG.value  # a file that cannot be read fails here
        if "method" in settings:  # experiments.runtime has none
            _note_unread(settings)
        return rest
    except AttributeError as error:
        print(f"error: no config field {config.field_message(error)}", file=sys.stderr)
    except (OSError, flags.Error) as error:
        print(f"error: {error}", file=sys.stderr)
    sys.exit(WRONG_INPUT)


def _note_unread(settings: ConfigDict) -> None:
    """Tells which fields of the command line the run's method never reads."""
    given = config_flags.get_override_values(flags.FLAGS["config"])
    unread = fields.idle_fields(settings.method, settings.allocation) & set(given)
    if unread:  # a sweep hands its settings to every method, so this is no mistake
        told = ", ".join(sorted(unread))
        print(f"note: method {settings.method} does not read {told}", file=sys.stderr)


def main(argv: Sequence[str]) -> int:
    """Command line: one run, its result printed."""
    if len(argv) > 1:
        print(f"unknown arguments {list(argv[1:])}: see --help", file=sys.stderr)
        return WRONG_INPUT
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it touches
    settings = _CONFIG.value
    if settings.deterministic:
        flag = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(settings)
    try:
        processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        profile = None if _PROFILE.value is None else profiling.parse(_PROFILE.value)
        found = train(settings, workdir, profile)
    except (ValueError, OSError, ModuleNotFoundError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return STOPPED if isinstance(error, TrainingError) else WRONG_INPUT
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return INTERRUPTED
    if found is None:
        return INTERRUPTED
    if not processes.first():
        return 0
    print_result(found)
    print(f"\nreport: {workdir / PAGE}\ncompact model: {workdir / result.MODEL}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
