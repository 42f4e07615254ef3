"""Rounds of a pruning run: score, choose what goes, shrink, and what changes with it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dce_jax import channels as maps
from dce_jax import pruning, training
from dce_jax.budget import Budget, from_widths
from dce_jax.pruning import Latents, Names, Watched
from dce_jax.pruning.choose import Kept
from dce_jax.training import LoopState
from dce_jax.types import Array, Evidence, LossFn, PyTree, Rewards, Selection
from experiments import folds, optimizers, pacing, pruners, scoring
from experiments import placement as placing
from experiments.pacing import Pace
from experiments.programs import Programs
from experiments.ranking import make_signal
from experiments.setup import (
    Run,
    beginning,
    initial_variables,
    loss_of,
    model_state,
    train_key,
)
from experiments.sources import open_source

Learn = Callable[[Run, LoopState, dict[str, np.ndarray]], Latents | None]
"""Run, network and its saliencies -> latents that compensate them, None where there are none."""


class Pruning(NamedTuple):
    """Where a pruning run stands: one network that trains plainly and becomes smaller.

    Attributes:
      loop: the network, at the widths of the present budget, and its optimizer.
      selection: group -> int32[K], original indices of the channels that are there.
      sums: group -> float32[K], the criterion added up since the last round; {} where it is read
        otherwise.
      taken: int32[], steps that were added up.
      teacher: variables of the dense network before pruning, {} where nothing is distilled.
    """

    loop: LoopState
    selection: Selection
    sums: Rewards
    taken: Array
    teacher: PyTree


def pace_of(run: Run) -> Pace:
    """The pace of a run that prunes."""
    if run.pace is None:
        raise ValueError(f"method {run.config.method} does not prune")
    return run.pace


def start(run: Run) -> Pruning:
    """The dense network before its first step."""
    return _beginning(run, beginning(run), teacher={})


def template(run: Run) -> Pruning:
    """Shapes of the state at the present budget, to restore a checkpoint into."""
    taught = run.shapes if _teaching(run) else {}
    shapes = jax.eval_shape(lambda: initial_variables(run.thin, run.data, run.config))
    return jax.eval_shape(partial(_beginning, run), shapes, teacher=taught)


def _beginning(run: Run, variables: PyTree, teacher: PyTree) -> Pruning:
    key = train_key(run.config.seed)
    loop = training.start(variables["params"], model_state(variables), run.tx, key)
    return _unseen(run, loop, pruning.whole(run.budget.compact), teacher)


def _unseen(run: Run, loop: LoopState, selection: Selection, teacher: PyTree) -> Pruning:
    fresh = pruning.start(loop, run.budget.compact)
    sums = fresh.sums if pace_of(run).pruner.watch else {}
    return Pruning(loop, selection, sums, fresh.taken, teacher)


def stops(run: Run) -> tuple[int, ...]:
    """Steps at which a block ends: rounds, and where watching for them begins."""
    if run.pace is None:
        return ()
    watched = run.pace.pruner.watch
    begins = [end - watched for end in run.ends if watched]
    return tuple(sorted({stop for stop in (*begins, *run.ends) if stop > 0}))


def watching(run: Run, done: int) -> bool:
    """Whether the step after ``done`` steps adds up the criterion."""
    coming = [end for end in run.ends if end > done]
    return bool(coming) and done >= coming[0] - pace_of(run).pruner.watch


def watched_step(run: Run) -> Any:
    """`pruning.watch` of a run at its present budget: ``(watched, data) -> (watched, metrics)``."""
    signal = scoring.unscaled(run, pace_of(run).pruner.criterion, run.budget)
    gates = scoring.gates(run, run.thin, signal)
    return partial(pruning.watch, run.tx, run.loss, batch_fn(run), signal, gates)


def batch_fn(run: Run) -> Any:
    """The batches of a run, with the teacher's outputs where it teaches."""
    if not _teaching(run):
        return run.source.batch_fn
    return pruning.taught(run.source.batch_fn, run.module)


def data_at(run: Run, state: Pruning, index: int) -> PyTree:
    """What `batch_fn` takes at a step."""
    own = run.source.data_at(index)
    return (own, state.teacher) if _teaching(run) else own


def due(run: Run, done: int) -> bool:
    """Whether channels go now, after ``done`` steps."""
    rounds = len(run.plans) - 1
    return rounds < len(run.ends) and run.ends[rounds] == done


def prune(
    run: Run, programs: Programs, state: Pruning, done: int, learn: Learn | None = None
) -> tuple[Run, Pruning]:
    """One round: the network without its least important channels, and the run that goes on.

    Args:
      run: by now.
      programs: where the scoring program is kept.
      state: the network.
      done: steps taken.
      learn: finds latents that compensate the saliencies, where the method has any.
    """
    found = _saliencies(run, programs, state)
    if learn is not None:
        run = run._replace(latents=learn(run, state.loop, found))
    kept = choose(run, run.latents, found, len(run.plans))
    widths = {group: len(each) for group, each in kept.items()}
    after = at(run, [*run.plans, (done, from_widths(run.budget.full, widths))])
    names = Names(run.pieces.params_names, run.pieces.state_names, run.pieces.opt_names)
    teacher = state.teacher
    if _teaching(after) and not teacher:
        teacher = {"params": state.loop.params, **state.loop.model_state}
    before = run.budget.compact

    loop = folds.fold(run, programs, state.loop, kept)

    def cut(loop: LoopState, selection: Selection, kept: Any) -> tuple[LoopState, Selection]:
        return pruning.shrink(loop, names, kept, before), pruning.compose(selection, kept)

    loop, selection = jax.jit(cut)(loop, state.selection, dict(kept))
    shrunk = _unseen(after, loop, selection, teacher)
    return after, placing.put(run.placement, shrunk)


def at(run: Run, plans: Sequence[tuple[int, Budget]]) -> Run:
    """The run with the budgets it had so far: network, loss, steps, rate and batches.

    Args:
      run: of the same config.
      plans: (first step, budget), the dense one first.
    """
    pace, config, (begin, budget) = pace_of(run), run.config, plans[-1]
    known = [each.compact for _, each in plans]
    length = pacing.length(pace, config, run.data.train.num_images, known)
    rate = optimizers.over(config, length)
    tx = optimizers.build(config, rate)
    thin = maps.with_widths(run.module, budget.compact)
    loss: LossFn = placing.loss(run.placement, loss_of(config, thin, len(plans) - 1, pace))
    return run._replace(
        budget=budget,
        thin=thin,
        loss=loss,
        tx=tx,
        rate=rate,
        steps=length.steps,
        commit_step=length.commit_step,
        ends=length.ends,
        plans=tuple(plans),
        source=open_source(
            config,
            run.data,
            length.steps,
            start_step=begin,
            placement=run.placement,
            searching=pace.pruner.searches and len(plans) == 1,
        ),
    )


def _teaching(run: Run) -> bool:
    return bool(run.config.distill) and len(run.plans) > 1


def _saliencies(run: Run, programs: Programs, state: Pruning) -> dict[str, np.ndarray]:
    """What each of the channels that are there is worth, on the host."""
    pruner = pace_of(run).pruner
    found: Rewards
    if pruner.criterion in pruners.FREE:
        signal = make_signal(pruner.criterion, run.module, run.channels, run.budget)
        found = placing.local(run.placement, signal.value(Evidence(state.loop.params, {}, {})))
    elif pruner.watch:
        seen = Watched(state.loop, state.sums, state.taken)
        means = placing.local(run.placement, pruning.means(seen))
        found = scoring.scaled(run, pruner.criterion, run.budget, state.loop, means)
    else:
        name = f"score, budget {len(run.plans)}"
        asked = scoring.Asked(name, pruner.criterion, run.budget, pruner.scoring)
        found = scoring.averaged(run, programs, state.loop, asked)
    return {group: np.asarray(values, np.float64) for group, values in found.items()}


def choose(run: Run, latents: Latents | None, saliencies: dict[str, np.ndarray], done: int) -> Kept:
    """The channels that stay.

    Args:
      run: by now.
      latents: that compensate a global ranking, or None.
      saliencies: group -> float64[C] of the channels that are there.
      done: rounds with the one that they stay after: the target is that round's.
    """
    pace = pace_of(run)
    if latents is not None:
        saliencies = pruning.compensated(saliencies, latents)
    if pace.pruner.allocation != "global":
        return pruning.best(saliencies, pacing.widths_after(pace, run.config, done))
    return pruning.greedy(
        saliencies,
        pace.counted,
        target=pacing.goal(pace, done),
        least=pace.least,
        multiple_of=run.config.multiple_of,
        order=pacing.order(pace),
    )
