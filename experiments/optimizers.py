"""Optimizers and schedules by name; all of optax, none of our own."""

import difflib
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dce_jax import idle
from dce_jax.types import Array, PyTree
from experiments.lengths import Clock, Length

NAMES = ("sgd", "adamw", "lion")


Rate: TypeAlias = Callable[[Any], Array]
"""Count of steps -> float32[] learning rate."""


def schedule(config: ConfigDict, steps: int, clock: Clock | None = None) -> Rate:
    """Linear warm-up, then a cosine to zero.

    Args:
      config: ``learning_rate`` (peak) and ``warmup`` (share of the whole).
      steps: length of the run.
      clock: how far the run is after a count of steps; by default the count itself.
    """
    # optax mixes the count with floats, which strict type promotion refuses.
    clock = clock or (lambda count: jnp.asarray(count, jnp.float32))
    whole = round(float(clock(steps)))
    curve = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=max(1, round(config.warmup * whole)),
        decay_steps=max(2, whole),
    )
    return lambda count: curve(clock(count))


def over(config: ConfigDict, length: Length) -> Rate:
    """The rate of a run of some length, over steps or training MACs, started anew or not."""
    rate = schedule(config, length.steps, length.clock)
    if config.restart:
        return restarted(config, rate, length.steps, length.commit_step)
    return rate


def restarted(config: ConfigDict, before: Rate, steps: int, at: int) -> Rate:
    """A schedule that starts anew, warm-up and all, after a step.

    Args:
      config: as for `schedule`.
      before: the rate until then.
      steps: length of the run.
      at: the step; 0 or the run's end leave ``before`` as it is.
    """
    if not 0 < at < steps:
        return before
    after = schedule(config, steps - at)
    return lambda count: jnp.where(count < at, before(count), after(jnp.maximum(count - at, 0)))


def build(config: ConfigDict, rate: Rate) -> optax.GradientTransformation:
    """The optimizer of a config.

    ``sgd`` is Nesterov momentum 0.9 with L2 inside the gradient; ``adamw`` and ``lion`` decay
    decoupled. Decay acts on kernels only, never on norms and biases.

    Raises:
      ValueError: unknown name.
    """
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return optax.chain(
            optax.add_decayed_weights(decay, mask=kernels),
            optax.sgd(rate, momentum=0.9, nesterov=True),
        )
    if config.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=decay, mask=kernels)
    if config.optimizer == "lion":
        return optax.lion(rate, weight_decay=decay, mask=kernels)
    near = difflib.get_close_matches(config.optimizer, NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown optimizer {config.optimizer!r}{hint} One of {NAMES}")


def idle_rule(config: ConfigDict, rate: Rate, steps: int, params: PyTree) -> idle.CatchUp | None:
    """The rule for idle channels' weight decay: None leaves them as they are.

    Raises:
      ValueError: unknown rule, or catch-up with an optimizer whose decay is not decoupled.
    """
    if config.idle in ("freeze", "forget"):
        return None
    if config.idle != "catch_up":
        raise ValueError(f"unknown idle rule {config.idle!r}: 'freeze', 'forget' or 'catch_up'")
    if config.optimizer == "sgd":
        raise ValueError(
            "idle='catch_up' needs decoupled weight decay: choose optimizer 'adamw' or 'lion', "
            "or idle='freeze' (sgd's decay is part of its gradient)"
        )
    return idle.catch_up(rate, config.weight_decay, steps=steps, decayed=kernels(params))


def kernels(params: PyTree) -> PyTree:
    """Which leaves are decayed: those with more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
