"""Saliencies of a whole network at the moment of a plan, unscaled."""

from functools import partial

import jax
import jax.numpy as jnp

from dce_jax import budget as budgets
from dce_jax import forward, step
from dce_jax.step import LoopState
from dce_jax.types import Array, Evidence, PyTree, Rewards, Signal
from experiments import evaluate
from experiments import placement as placing
from experiments.programs import Programs, call
from experiments.ranking import make_signal
from experiments.setup import Run, augmentation


def saliencies(run: Run, programs: Programs, loop: LoopState) -> Rewards:
    """What every channel is worth while all of them execute; nothing is updated.

    Args:
      run: its ``signal`` is read, as a mean over ``scoring`` batches of the first training
        images; slimming reads the norms' scales off the parameters.
      programs: where the compiled program is kept.
      loop: the full-width network.

    Returns:
      Group -> float32[C], on the signal's own scale.
    """
    full = budgets.full(run.budget.full)
    if run.config.method == "slimming":
        signal = make_signal("norm_scale", run.module, run.channels, full)
        return placing.local(run.placement, signal.value(Evidence(loop.params, {}, {})))
    signal = make_signal(run.config.signal, run.module, run.channels, full)
    score = partial(_batch_saliencies, run, signal)
    batches = evaluate.training_batches(
        run.data,
        augment=augmentation(run.config),
        examples=run.config.scoring * run.config.batch_size,
        batch_size=run.config.batch_size,
    )
    cut = partial(placing.cut, run.placement)
    found = [call(programs, "score", score, loop, cut(batch)) for batch in batches]
    means = jax.tree.map(lambda *values: jnp.mean(jnp.stack(values), axis=0), *found)
    return placing.local(run.placement, means)


def _batch_saliencies(
    run: Run, signal: Signal, loop: LoopState, batch: dict[str, Array]
) -> Rewards:
    loss = placing.loss(run.placement, forward.classification_loss(run.module))
    evidence, _, _ = step.evidence_of(loss, loop, batch, _gates(run, signal))
    return signal.value(evidence)


def _gates(run: Run, signal: Signal) -> PyTree:
    if not signal.needs_gates:
        return None
    example = jax.ShapeDtypeStruct((2, *run.data.image_shape), jnp.float32)
    return forward.gate_shapes(run.module, example)


def macs(run: Run, macs_full: int) -> int:
    """MACs that scoring took: forward and backward at full width, at every plan."""
    if run.config.method == "slimming":
        return 0
    plans = len(run.plans) - 1
    return 3 * plans * run.config.scoring * run.config.batch_size * macs_full
