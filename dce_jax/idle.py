"""The rule for idle channels: freeze them (the default), or one of two others.

*Freeze*: what did not execute keeps its bits, parameters and moments alike. *Forget* (of `step`):
parameters keep their bits, moments start anew as soon as an element idles. *Catch up*: when an
element executes again it first receives the decoupled weight decay of the steps it missed, the
product of ``1 - lr(s) * wd``. Only decoupled decay (AdamW, Lion, SGD with decay after its momentum)
can be caught up in closed form; decay inside the gradient (L2) has no meaning for an idle channel.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax.types import Array, PyTree


class CatchUp(NamedTuple):
    """Decay that idle elements catch up on.

    Attributes:
      log_decay: float32[S+1], sum of ``ln(1 - lr(s) wd)`` over the steps before each step.
      decayed: tree of bools like the parameters: which leaves the optimizer decays.
    """

    log_decay: Array
    decayed: PyTree


def catch_up(
    learning_rate: float | Callable[[Array], Array],
    weight_decay: float,
    *,
    steps: int,
    decayed: PyTree,
) -> CatchUp:
    """Tabulates the decay of a whole run.

    Args:
      learning_rate: a number or an optax schedule, as the optimizer uses it.
      weight_decay: the optimizer's decoupled decay, at least 0.
      steps: length of the run; the table ends there, and what idles longer decays no more.
      decayed: tree of bools like the parameters.

    Raises:
      ValueError: a step whose factor ``1 - lr wd`` is not positive, or steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}: a run has at least one")
    at = jnp.arange(steps, dtype=jnp.int32)
    rates = jax.vmap(learning_rate)(at) if callable(learning_rate) else learning_rate
    factors = np.broadcast_to(1.0 - np.asarray(rates, np.float64) * weight_decay, (steps,))
    if weight_decay < 0 or not np.all(factors > 0):
        raise ValueError(
            f"decay factors 1 - lr * {weight_decay} reach from {factors.min():.3g} to "
            f"{factors.max():.3g}: they must lie in (0, 1]; lower weight_decay"
        )
    table = np.concatenate([[0.0], np.cumsum(np.log(factors))])
    return CatchUp(jnp.asarray(table, jnp.float32), decayed)


def init(params: PyTree) -> PyTree:
    """int32 step of every element's last update, like ``params``: 4 bytes an element."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.int32), params)


def settle(rule: CatchUp, params: PyTree, last: PyTree, step: Array) -> PyTree:
    """Applies the decay that each element has missed.

    Args:
      rule: the table.
      params: parameters (of a slab, or whole).
      last: int32 like ``params``: the step up to which each element is decayed.
      step: int32[], the step about to be taken.

    Returns:
      Parameters decayed up to ``step``.
    """

    def one(leaf: Array, since: Array, decayed: bool) -> Array:
        if not decayed:
            return leaf
        missed = rule.log_decay[step] - jnp.take(rule.log_decay, since, mode="clip")
        return leaf * jnp.exp(missed).astype(leaf.dtype)

    return jax.tree.map(one, params, last, rule.decayed)
