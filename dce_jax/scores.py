"""Scores by which arms are ranked: the upper confidence bound and its plain rivals."""

import jax
import jax.numpy as jnp

from dce_jax.types import Alpha, Arms, Array


def ucb(key: Array, arms: Arms, *, alpha: Alpha) -> Array:
    """Upper confidence bound of combinatorial bandits; arms never played come first.

    ``mean + alpha * sqrt(3 ln t / (2 T))`` (Chen, Wang and Yuan, ICML 2013, CUCB); alpha = 1 is
    the paper's radius.

    Args:
      key: unused; every score function takes one.
      arms: float32[C] arrays of one group.
      alpha: scale of the radius, a number or a schedule over the count of selections.

    Returns:
      float32[C], +inf where an arm was never played.
    """
    del key
    bound = arms.mean_C + radius(arms, alpha=alpha)
    return jnp.where(arms.plays_C > 0, bound, jnp.inf)


def radius(arms: Arms, *, alpha: Alpha) -> Array:
    """The confidence radius ``alpha * sqrt(3 ln t / (2 T))``, float32[C]; 0 for unplayed arms."""
    scale = alpha(arms.selections) if callable(alpha) else alpha
    # With a discount t may fall below 1, where the logarithm would turn negative.
    log_t = jnp.log(jnp.maximum(arms.total, 1.0))
    played = jnp.maximum(arms.plays_C, jnp.finfo(jnp.float32).tiny)
    width = jnp.asarray(scale, jnp.float32) * jnp.sqrt(1.5 * log_t / played)
    return jnp.where(arms.plays_C > 0, width, 0.0)


def greedy(key: Array, arms: Arms) -> Array:
    """The mean alone; arms never played come first, so that every arm has one."""
    del key
    return jnp.where(arms.plays_C > 0, arms.mean_C, jnp.inf)


def best(key: Array, arms: Arms) -> Array:
    """The mean alone; arms never played come last. Ranks the final channels."""
    del key
    return jnp.where(arms.plays_C > 0, arms.mean_C, -1.0)


def random(key: Array, arms: Arms) -> Array:
    """A fresh draw that ignores every reward."""
    return jax.random.uniform(key, arms.mean_C.shape, jnp.float32)
