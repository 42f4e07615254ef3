"""Saliencies of a whole network at the moment of a plan or a round."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dce_jax import budget as budgets
from dce_jax import channels as maps
from dce_jax import forward, pruning, saliency, signals, training
from dce_jax.budget import Budget
from dce_jax.training import LoopState
from dce_jax.types import Array, Evidence, PyTree, Rewards, Signal
from experiments import evaluate
from experiments import placement as placing
from experiments.fields import SELECTING
from experiments.programs import Programs, call
from experiments.ranking import make_signal, scored_macs
from experiments.setup import Run
from experiments.sources import augmentation


def saliencies(run: Run, programs: Programs, loop: LoopState) -> Rewards:
    """What every channel is worth while all of them execute; nothing is updated.

    Args:
      run: its ``signal`` is read, as a mean over ``scoring`` batches.
      programs: where the compiled program is kept.
      loop: the full-width network.

    Returns:
      Group -> float32[C], on the signal's own scale, compensated where the run has latents; what
      may be negative is moved so that the smallest value of all groups is 0.
    """
    full = budgets.full(run.budget.full)
    asked = Asked("score", run.config.signal, full, run.config.scoring)
    means = averaged(run, programs, loop, asked)
    if run.latents is None:
        signed = unscaled(run, asked.criterion, full).signed
        return saliency.from_zero(means) if signed else means
    found = pruning.compensated({g: np.asarray(v) for g, v in means.items()}, run.latents)
    return saliency.from_zero({g: jnp.asarray(v, jnp.float32) for g, v in found.items()})


class Asked(NamedTuple):
    """What a network is asked.

    Attributes:
      name: of the program.
      criterion: name of the signal that says what a channel is worth.
      budget: whose compact widths the network has.
      batches: how many of the first training images.
    """

    name: str
    criterion: str
    budget: Budget
    batches: int


def averaged(run: Run, programs: Programs, loop: LoopState, asked: Asked) -> Rewards:
    """A signal of the first training images, all together; nothing is updated.

    Args:
      run: its data and placement.
      programs: where the compiled program is kept.
      loop: the network that is asked.
      asked: signal and widths.

    Returns:
      Group -> float[C], on the signal's own scale.
    """
    batches = evaluate.training_batches(
        run.data,
        augment=augmentation(run.config),
        examples=asked.batches * run.config.batch_size,
        batch_size=run.config.batch_size,
    )
    signal = unscaled(run, asked.criterion, asked.budget)
    thin = maps.with_widths(run.module, asked.budget.compact)
    score, cut = partial(_batch_saliencies, run, thin, signal), partial(placing.cut, run.placement)
    found = [call(programs, asked.name, score, loop, cut(batch)) for batch in batches]
    means = jax.tree.map(lambda *values: jnp.mean(jnp.stack(values), axis=0), *found)
    return scaled(run, asked.criterion, asked.budget, loop, placing.local(run.placement, means))


def unscaled(run: Run, criterion: str, budget: Budget) -> Signal:
    """What to take the mean of over batches or steps, before it is `scaled`.

    Args:
      run: its network.
      criterion: name of a signal.
      budget: whose slabs are judged.
    """
    return make_signal(signals.unscaled(criterion), run.module, run.channels, budget)


def scaled(run: Run, criterion: str, budget: Budget, loop: LoopState, means: Rewards) -> Rewards:
    """A signal from the means of its `unscaled` one.

    Args:
      run: its network and the shape of its images.
      criterion: name of the signal.
      budget: whose slabs are judged.
      loop: the network at those widths.
      means: group -> float[K].
    """
    thin = maps.with_widths(run.module, budget.compact)
    example = {
        "image": jnp.zeros((1, *run.data.image_shape), jnp.float32),
        "label": jnp.zeros(1, jnp.int32),
    }
    scene = signals.Scene(thin, run.channels, loop.params, loop.model_state, example)
    return signals.scaled(criterion, scene, means)


def _batch_saliencies(
    run: Run, module: nn.Module, signal: Signal, loop: LoopState, batch: dict[str, Array]
) -> Rewards:
    if signal.own_pass:
        key = jax.random.fold_in(loop.key, loop.step)
        return signal.value(Evidence(loop.params, {}, {}, loop.model_state, batch, key))
    loss = placing.loss(run.placement, forward.classification_loss(module))
    evidence, _, _ = training.evidence_of(loss, loop, batch, gates(run, module, signal))
    return signal.value(evidence)


def gates(run: Run, module: nn.Module, signal: Signal) -> PyTree:
    """Shapes of the gates that a signal reads, or None."""
    if not signal.needs_gates:
        return None
    example = jax.ShapeDtypeStruct((2, *run.data.image_shape), jnp.float32)
    return forward.gate_shapes(module, example)


def macs(run: Run, macs_full: int) -> int:
    """MACs that scoring took at full width, at every plan: forward and backward, or its own."""
    if run.config.method not in SELECTING:
        return 0
    batches = (len(run.plans) - 1) * run.config.scoring
    own = own_macs(run, budgets.full(run.budget.full)) if batches else 0
    return batches * (own or 3 * run.config.batch_size * macs_full)


def reward_macs(run: Run) -> int:
    """MACs of the passes that a signal took beside the steps that explored."""
    if run.config.method not in SELECTING:
        return 0
    ends = [*(begin for begin, _ in run.plans[1:]), run.commit_step]
    return sum(
        (end - begin) * own_macs(run, budget)
        for (begin, budget), end in zip(run.plans, ends, strict=True)
        if end > begin
    )


def own_macs(run: Run, budget: Budget) -> int:
    """MACs of one batch of a signal that runs the network itself; 0 for what a step gives away."""
    signal = make_signal(run.config.signal, run.module, run.channels, budget)
    if not signal.own_pass:
        return 0
    thin = maps.with_widths(run.module, budget.compact)
    example = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
    return scored_macs(signal, thin, example, run.config.batch_size)
