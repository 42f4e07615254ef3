"""Training steps that add up what every channel was worth on the way (Theis et al. 2018)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dce_jax import saliency, training
from dce_jax.training import LoopState
from dce_jax.types import Array, LossFn, PyTree, Rewards, Signal, Widths


class Watched(NamedTuple):
    """A training run and its channels' saliencies so far.

    Attributes:
      loop: network and optimizer.
      sums: group -> float32[C], the signal added up over steps, on its own scale.
      taken: int32[], over how many.
    """

    loop: LoopState
    sums: Rewards
    taken: Array


def start(loop: LoopState, widths: Widths) -> Watched:
    """Nothing seen yet, at the widths of ``loop``."""
    sums = {group: jnp.zeros(width, jnp.float32) for group, width in widths.items()}
    return Watched(loop, sums, jnp.zeros((), jnp.int32))


def watch(
    tx: optax.GradientTransformation,
    loss: LossFn,
    batch_fn: Callable[[Any, Array, Array], PyTree],
    signal: Signal,
    gate_shapes: PyTree | None,
    state: Watched,
    data: PyTree,
) -> tuple[Watched, dict[str, Array]]:
    """`training.plain` that also reads a signal off the step's own gradients.

    Args:
      tx: the optimizer.
      loss: of the network at the widths of ``state``.
      batch_fn: makes the batch.
      signal: what a channel is worth.
      gate_shapes: `forward.gate_shapes` of the network, for a signal that reads gates.
      state: run and sums.
      data: what ``batch_fn`` takes.

    Raises:
      ValueError: a group that the signal says nothing of.
    """
    gates = gate_shapes if signal.needs_gates else None
    loop, metrics, evidence = training.observed(tx, loss, batch_fn, state.loop, data, gates)
    values = signal.value(evidence)
    saliency.check_cover(signal, values, tuple(state.sums))
    sums = {g: before + values[g].astype(jnp.float32) for g, before in state.sums.items()}
    return Watched(loop, sums, state.taken + 1), metrics


def means(state: Watched) -> Rewards:
    """Mean saliency of every channel over the steps watched.

    Raises:
      ValueError: no step was; needs a concrete state.
    """
    taken = int(jax.device_get(state.taken))
    if taken == 0:
        raise ValueError("no training step was watched, so no channel has a saliency: watch some")
    return {group: total / taken for group, total in state.sums.items()}
