"""Blocks of steps: what is dispatched between two looks of the host.

Blocks end at steps fixed by the run's length, never by where a process started, so that a resumed
run dispatches exactly what an uninterrupted one does.
"""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import bandit, step, training
from dce_jax.pruning import Watched
from dce_jax.step import DceState, SlabState
from dce_jax.training import LoopState
from dce_jax.types import Array, PyTree
from experiments import placement as placing
from experiments import plans, processes, rounds, scoring
from experiments.programs import Programs, call
from experiments.ranking import final_score
from experiments.rounds import Pruning
from experiments.setup import Run, beginning, model_state, train_key

EXPLORE, PRUNE, COMMIT, TRAIN = "explore", "prune", "commit", "train"


class Exploring(NamedTuple):
    """Where a run stands while it explores.

    Attributes:
      dce: full-width network, optimizer and bandit.
    """

    dce: DceState


class Settled(NamedTuple):
    """Where a run stands while one network trains plainly: dense, narrow or committed.

    Attributes:
      loop: the network and its optimizer.
      selection: group -> int32[K] of a committed slab; {} where the method selects nothing.
    """

    loop: LoopState
    selection: dict[str, Array]


Progress: TypeAlias = Exploring | Settled | Pruning


def phase_at(run: Run, done: int) -> str:
    """The phase of the step after ``done`` steps."""
    if run.config.method in ("dense", "scratch"):
        return TRAIN
    before = EXPLORE if run.pace is None else PRUNE
    return before if done < run.commit_step else COMMIT


def block_end(run: Run, done: int) -> int:
    """The step at which the block that begins after ``done`` steps ends."""
    every = run.config.select_every
    size = -(-run.config.block // every) * every
    begin = 0 if done < run.commit_step else run.commit_step
    end = run.commit_step if done < run.commit_step else run.steps
    stops = (*plans.steps(run), *rounds.stops(run))
    planning = sorted(step for step in stops if step > done)
    return min(end, *planning[:1], begin + ((done - begin) // size + 1) * size)


def start(run: Run) -> Progress:
    """The state before the first step."""
    if run.pace is not None:
        return rounds.start(run)
    method, variables = run.config.method, beginning(run)
    key = train_key(run.config.seed)
    loop = training.start(variables["params"], model_state(variables), run.tx, key)
    if method in ("dense", "scratch"):
        return Settled(loop, {})
    state = Exploring(step.start_dce(run.pieces, loop, plans.groups(run)))
    if method == "subset":
        # A fixed random subset of the full initialisation: nothing was played, all ties.
        return commit(run, state)
    return state


def template(run: Run, phase: str) -> Progress:
    """Shapes of the state in a phase, to restore a checkpoint into."""
    if run.pace is not None:
        return rounds.template(run)

    def made() -> Progress:
        state = start(run)
        return commit(run, state) if phase == COMMIT and isinstance(state, Exploring) else state

    return jax.eval_shape(made)


def commit(run: Run, state: Exploring) -> Settled:
    """Cuts the final slab; what was not chosen is given up."""
    cut = partial(step.commit, run.pieces, score=final_score(run.config))
    inside = jax.jit(cut)(state.dce)
    return placing.put(run.placement, Settled(inside.loop, inside.selection))


def replan(run: Run, programs: Programs, state: Exploring, done: int) -> tuple[Run, Exploring]:
    """The run with another budget, and at a scored run's commit a bandit that knows the scores.

    Raises:
      ValueError: processes of one run that learned different budgets.
    """
    if plans.scored(run):
        found = scoring.saliencies(run, programs, step.settle(run.pieces, state.dce).loop)
    else:
        found = plans.means(run, state.dce.bandit)
    budget = plans.learned(run, found, done)
    # Programs of different shapes would wait for each other for ever.
    processes.check_same(
        f"the checksum of the budget learned after step {done}",
        zlib.crc32(repr(budget).encode()) % 2**31,
        "their hosts compute differently; use the same versions and processors for all",
    )
    run = plans.planned(run, budget, done)
    if plans.scored(run) and done == run.commit_step:
        known = bandit.appraised(state.dce.bandit, found)
        state = placing.put(run.placement, Exploring(state.dce._replace(bandit=known)))
    return run, state


def run_block(
    run: Run, programs: Programs, state: Progress, done: int, end: int
) -> tuple[Progress, dict[str, Array]]:
    """Runs the steps ``done``..``end`` of one phase.

    Returns:
      The state, and metrics of every step, stacked on the device.
    """
    if isinstance(state, Pruning):
        return _pruning(run, programs, state, done, end)
    if isinstance(state, Settled):
        plain = partial(training.plain, run.tx, run.loss, run.source.batch_fn)
        loop, metrics = _repeat(run, programs, "plain", plain, state.loop, done, end)
        return state._replace(loop=loop), metrics
    if run.config.select_every == 1:
        fused = partial(step.fused, run.pieces)
        dce, metrics = _repeat(run, programs, "fused", fused, state.dce, done, end)
        return Exploring(dce), metrics
    return _windows(run, programs, state, done, end)


def _pruning(
    run: Run, programs: Programs, state: Pruning, done: int, end: int
) -> tuple[Pruning, dict[str, Array]]:
    data_at = partial(rounds.data_at, run, state)
    if rounds.watching(run, done):
        seen = Watched(state.loop, state.sums, state.taken)
        one = rounds.watched_step(run)
        seen, metrics = _repeat(run, programs, "watch", one, seen, done, end, data_at)
        return state._replace(loop=seen.loop, sums=seen.sums, taken=seen.taken), metrics
    plain = partial(training.plain, run.tx, run.loss, rounds.batch_fn(run))
    loop, metrics = _repeat(run, programs, "plain", plain, state.loop, done, end, data_at)
    return state._replace(loop=loop), metrics


def _windows(
    run: Run, programs: Programs, state: Exploring, done: int, end: int
) -> tuple[Exploring, dict[str, Array]]:
    dce, found = state.dce, []
    for begin in range(done, end, run.config.select_every):
        until = min(begin + run.config.select_every, end)
        name = plans.label(run, "enter")
        inside = call(programs, name, partial(step.enter, run.pieces), dce)
        inside, metrics = _repeat(
            run, programs, "observe", partial(step.observe, run.pieces), inside, begin, until
        )
        leaving = partial(step.leave, run.pieces)
        name = plans.label(run, "leave")
        dce, info = call(programs, name, leaving, dce, inside, donate=True)
        bad = jnp.zeros_like(metrics["loss"], jnp.int32).at[-1].set(info.bad_rewards)
        found.append({**metrics, "bad_rewards": bad})
    return Exploring(dce), jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _repeat(
    run: Run,
    programs: Programs,
    name: str,
    one: Any,
    state: LoopState | DceState | SlabState | Watched,
    done: int,
    end: int,
    data_at: Callable[[int], PyTree] | None = None,
) -> tuple[Any, dict[str, Array]]:
    name = plans.label(run, name)
    data_at = data_at or run.source.data_at
    if scans(run):
        many = training.repeat(one, end - done)
        name = f"{name} x{end - done}"
        with _annotated(done):
            return call(programs, name, many, state, data_at(done), donate=True)
    found = []
    for index in range(done, end):
        with _annotated(index):
            state, metrics = call(programs, name, one, state, data_at(index), donate=True)
        found.append(metrics)
    return state, jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def _annotated(done: int) -> jax.profiler.StepTraceAnnotation:
    """Names what is dispatched within, from the step after ``done`` steps on, in a profile."""
    return jax.profiler.StepTraceAnnotation("train", step_num=done + 1)


def scans(run: Run) -> bool:
    """Whether many steps go into one dispatch: resident data, and not on the CPU."""
    if run.config.scan == "auto":
        return run.source.resident and jax.default_backend() != "cpu"
    return run.config.scan == "on" and run.source.resident


def finite(state: PyTree) -> bool:
    """Whether every floating-point number of a state is finite."""
    leaves = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    sums = jax.device_get([jnp.sum(x, dtype=jnp.float32) for x in leaves])  # fetched together
    return bool(np.all(np.isfinite(np.array(sums))))
