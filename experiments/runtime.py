r"""Per-input execution: trains what decides, per image, how much of a network runs.

  python -m experiments.train && python -m experiments.runtime
      digits: the main job's compact model, then runtime neural pruning of it, minutes on a CPU
  python -m experiments.train --config experiments/configs/cifar10_resnet20.py \
      --config.data_dir DIR --config.method dense --config.width 0.5 --workdir runs/resnet20
  python -m experiments.runtime --config experiments/configs/runtime_cifar10.py \
      --config.data_dir DIR --config.backbone runs/resnet20 --config.system lc
      a ResNet-20 whose images skip blocks and channels; any config field can be set this way

Systems: rnp (runtime neural pruning, Lin et al. 2017), l, c, lc (L-Net, C-Net, LC-Net: Xia et al.
2020; l and lc need a residual network), fbs (feature boosting and suppression, Gao et al. 2019).
The backbone is the compact model of a finished run, any method's. Each system is trained over a
span of a knob (what a channel group costs, or a share of multiply-accumulates) and evaluated at
`points` of it. Killed and started again with the same --workdir, a run goes on.
Exit status: 0 done, 1 a run that cannot go on, 2 wrong input, 130 stopped by Ctrl-C.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import ConfigDict

from dce_jax.types import PyTree
from experiments import (
    background,
    blocks,
    checkpoint,
    journal,
    runtime_config,
    runtime_plots,
    runtime_result,
    runtime_setup,
    runtime_steps,
    session,
    train,
)
from experiments.background import Background
from experiments.display import progress
from experiments.records import read_json
from experiments.runtime_setup import Job
from experiments.runtime_steps import State
from experiments.session import TrainingError
from experiments.setup import train_key

CONFIG = Path(__file__).parent / "configs" / "runtime_digits.py"

flags.adopt_module_key_flags(train)


def run(settings: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Runs, or goes on with, one run of per-input execution.

    Args:
      settings: the config (`experiments.runtime_config.defaults` names every field).
      workdir: where everything is written; one config a workdir.

    Returns:
      What `result.json` holds, or None if the run was interrupted and saved.

    Raises:
      FileNotFoundError: no finished run at ``backbone``, or no data.
      ValueError: a config, network or workdir that does not fit.
      TrainingError: NaN loss, or a disk that cannot be written; nothing saved is lost.
    """
    runtime_config.check(settings)
    session.open_workdir(workdir, settings)
    if (workdir / runtime_result.RESULT).exists():
        return dict(read_json(workdir / runtime_result.RESULT))
    job = runtime_setup.build(settings)
    title = f"{settings.name} {settings.system} seed {settings.seed}"
    with (
        progress(title, job.steps, facts="compiling") as display,
        session.interruptible() as asked,
        background.opened() as writer,
    ):
        state, done = _resume(job, workdir, display.say)
        job = job._replace(source=runtime_setup.source(job, done))
        programs = runtime_steps.programs(job)
        while done < job.steps:
            begin, end = done, min(done + settings.block, job.steps)
            state, line = _block(job, programs, state, begin, end)
            done = end
            session.look(writer, workdir)
            train.check_finite(line, workdir, writer)
            with session.refusing_full_disk(workdir, writer):
                journal.append(workdir / session.METRICS, line)
            display.tell(done, _facts(line))
            stop = asked() or begin < (settings.stop_after or 0) <= done
            if stop or _due(job, done):
                _save(workdir, state, done, writer)
            if stop and done < job.steps:
                session.settle(writer, workdir)
                display.say(f"stopped after step {done}; the same command goes on from there")
                return None
        session.settle(writer, workdir)
    with session.refusing_full_disk(workdir):
        return runtime_result.finish(job, state, workdir)


def _block(
    job: Job, programs: dict[str, runtime_steps.Step], state: State, begin: int, end: int
) -> tuple[State, dict[str, Any]]:
    """Takes the steps of a block; means of their metrics."""
    key, total = train_key(job.config.seed), None
    for step in range(begin, end):
        program = programs[runtime_setup.phase(job.config, job.steps, step)]
        state, metrics = program(state, job.source.data_at(step), jnp.int32(step), key)
        metrics = {name: metrics[name] for name in ("loss", "accuracy", "macs_share")}
        total = metrics if total is None else jax.tree.map(jnp.add, total, metrics)
    means = {name: float(value) / (end - begin) for name, value in (total or {}).items()}
    phase = runtime_setup.phase(job.config, job.steps, end - 1)
    rate = job.config.learning_rate
    return state, {
        "step": end,
        "steps": end - begin,
        "phase": phase,
        "learning_rate": rate,
        **means,
    }


def _facts(line: dict[str, Any]) -> str:
    return (
        f"{line['phase']}  loss {line['loss']:.3f}  accuracy {line['accuracy']:.1%}  "
        f"MACs {line['macs_share']:.0%}"
    )


def _due(job: Job, done: int) -> bool:
    return done == job.steps or done % (job.config.block * job.config.checkpoint_blocks) == 0


def _save(workdir: Path, state: State, done: int, writer: Background) -> None:
    if not blocks.finite(state):
        background.rest(writer)
        raise TrainingError(
            f"parameters or moments are not finite after step {done}: lower learning_rate; "
            f"{session.last_good(workdir)}"
        )
    with session.refusing_full_disk(workdir, writer):
        checkpoint.begin(writer, workdir / session.CHECKPOINTS, done, state, {})


def _resume(job: Job, workdir: Path, say: Callable[[str], None]) -> tuple[State, int]:
    """State and steps done: the newest whole checkpoint's, or a fresh start."""
    begun = runtime_steps.start(job)

    def template(meta: dict[str, Any]) -> PyTree:
        del meta
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), begun)

    found = checkpoint.restore(workdir / session.CHECKPOINTS, template, say)
    state, done = (begun, 0) if found is None else (found[0], int(found[1]["step"]))
    if done:
        say(f"going on after step {done} of {job.steps}")
    with session.refusing_full_disk(workdir):
        journal.cut(workdir / session.METRICS, done)
    return state, done


def main(argv: Sequence[str]) -> int:
    """Command line: one run, its result printed."""
    if len(argv) > 1:
        print(f"unknown arguments {list(argv[1:])}: see --help", file=sys.stderr)
        return train.WRONG_INPUT
    logging.set_verbosity(logging.WARNING)  # Orbax tells every file it touches
    settings = flags.FLAGS.config
    default = Path("runs") / f"{settings.name}-{settings.system}-seed{settings.seed}"
    workdir = Path(flags.FLAGS.workdir or default)
    try:
        found = run(settings, workdir)
    except (ValueError, OSError, ModuleNotFoundError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return train.STOPPED if isinstance(error, TrainingError) else train.WRONG_INPUT
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return train.INTERRUPTED
    if found is None:
        return train.INTERRUPTED
    runtime_result.show(found)
    print(f"\npictures: {workdir / runtime_plots.PICTURE}\nmodel: {workdir / runtime_result.MODEL}")
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=partial(train.parse, default=CONFIG))
