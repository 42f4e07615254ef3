"""How a config ranks channels: by which signal, and by which score of the bandit."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from dce_jax import channels as maps
from dce_jax import cost, forward, saliency, scores, signals, training
from dce_jax.budget import Budget
from dce_jax.channels import ChannelMap
from dce_jax.parts import norm_parts
from dce_jax.training import LoopState
from dce_jax.types import Array, Evidence, PyTree, Rewards, ScoreFn, Signal
from experiments import pruners
from experiments.choices import FINAL, SIGNALS


def make_signal(name: str, module: nn.Module, channels: ChannelMap, budget: Budget) -> Signal:
    """A saliency signal by name: read off the training step, or by passes of its own.

    Args:
      name: of `choices.SIGNALS`, which a step gives away, or any of `dce_jax.signals`.
      module: the network at full width.
      channels: its channel map.
      budget: whose slabs will be judged.

    Raises:
      ValueError: unknown name, or a network without what the signal reads.
    """
    if name not in SIGNALS:
        return signals.signal(name, maps.with_widths(module, budget.compact), channels)
    if name in ("norm_taylor", "norm_scale"):
        declared = getattr(module, "reward_norms", None)
        if declared is None:
            raise ValueError(
                f"signal {name!r} is read off norms, but {type(module).__name__} declares none in "
                "reward_norms(): use gate_taylor, or declare them"
            )
        return getattr(saliency, name)(declared(), norm_parts(channels, budget.compact))
    if name in ("weight_l1", "weight_l2", "weight_sqr"):
        return getattr(saliency, name)(maps.producers(channels))
    return getattr(saliency, name)()


def scored_macs(signal: Signal, module: nn.Module, example: Any, batch_size: int) -> int:
    """MACs that a signal takes on one batch: forward and backward, its own passes, or none.

    Args:
      signal: of the network at the widths of ``module``.
      module: the network.
      example: inputs, for their shape and dtype.
      batch_size: B.

    Raises:
      ValueError: whatever the network lacks for the signal; nothing is computed.
    """
    images = jax.ShapeDtypeStruct((batch_size, *example.shape[1:]), example.dtype)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    variables = nn.unbox(forward.shapes(module, images))
    state = {name: tree for name, tree in variables.items() if name != "params"}
    gates = forward.gate_shapes(module, images) if signal.needs_gates else None
    loss = forward.classification_loss(module)

    def value(params: PyTree, state: PyTree, images: Array, labels: Array) -> Rewards:
        batch = {"image": images, "label": labels}
        if signal.own_pass:
            return signal.value(Evidence(params, {}, {}, state, batch))
        loop = LoopState(params, state, None, jax.random.key(0), jnp.zeros((), jnp.int32))
        return signal.value(training.evidence_of(loss, loop, batch, gates)[0])

    given = (variables["params"], state, images, labels)
    saliency.check_cover(signal, jax.eval_shape(value, *given), tuple(maps.module_widths(module)))
    if signal.name in pruners.FREE:
        return 0
    if signal.own_pass:
        return cost.macs(value, *given)
    return 3 * cost.macs(lambda v, x: module.apply(v, x), variables, images)


def make_score(config: ConfigDict, commit_step: int) -> ScoreFn:
    """How arms are ranked while a run explores."""
    if config.method == "random":
        return scores.random
    alpha: Any = config.alpha
    if config.alpha_end is not None:
        selections = max(1, commit_step // config.select_every)
        alpha = optax.linear_schedule(config.alpha, config.alpha_end, selections)
    if config.contest < 1.0:
        selections = max(1, commit_step // config.select_every)
        open_seats = optax.linear_schedule(config.contest, 0.0, selections)
        return partial(scores.seats, alpha=alpha, contest=open_seats)
    return partial(scores.ucb, alpha=alpha)


def final_score(config: ConfigDict) -> ScoreFn:
    """How the channels of the compact model are ranked at the commit."""
    sitting = config.method == "dce" and config.contest < 1.0 and not config.scoring
    if sitting and config.final == "best":
        return partial(scores.seats, alpha=0.0, contest=0.0)  # those that sit stay
    return FINAL[config.final]
