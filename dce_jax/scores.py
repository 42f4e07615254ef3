"""Scores by which arms are ranked: the upper confidence bound and its plain rivals."""

import jax
import jax.numpy as jnp

from dce_jax.types import Alpha, Arms, Array, Contest


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


def worst(key: Array, arms: Arms) -> Array:
    """Minus the mean, arms never played last: the control that a ranking must beat."""
    del key
    return jnp.where(arms.plays_C > 0, -arms.mean_C, -jnp.inf)


def seats(key: Array, arms: Arms, *, alpha: Alpha, contest: Contest) -> Array:
    """Contests a few seats only: the best of the latest selection stay, by their means.

    Those with the lowest means leave their seats to the arms outside with the largest upper
    confidence bound, never played ones first; a newcomer stays if it earned more in its first
    selection than what was seated beside it. Before the first selection all arms are equal.

    Where fewer arms can be selected than stay, as after a budget that shrank, the best of them do.

    Args:
      key: draws among equal means.
      arms: float32[C] arrays of one group.
      alpha: scale of the confidence radius of the arms outside.
      contest: share of the seats that are contested, in [0, 1]; at 0 the latest selection stays.

    Returns:
      float32[C]: in the upper half of its range for those that stay, the best first; negative for
      those that leave.
    """
    share = contest(arms.selections) if callable(contest) else contest
    taken = jnp.sum(arms.seated_C, dtype=jnp.int32)
    wished = jnp.asarray(share, jnp.float32) * taken.astype(jnp.float32)
    contested = jnp.floor(wished + 0.5).astype(jnp.int32)
    means_C = jnp.where(arms.seated_C, arms.mean_C, -jnp.inf)
    rank_C = jnp.argsort(ranked(key, means_C))  # 0 is the best that is seated
    stays_C = arms.seated_C & (rank_C < taken - contested)
    largest, share_C = jnp.finfo(jnp.float32).max, rank_C.astype(jnp.float32) / rank_C.size
    outside_C = jnp.minimum(ucb(key, arms, alpha=alpha), largest / 4)
    # Where fewer arms are outside than seats contested, the best of those that leave come back.
    leaves_C = -1.0 / (1.0 + arms.mean_C)
    inside_C = jnp.where(stays_C, largest * (1.0 - 0.5 * share_C), leaves_C)
    return jnp.where(arms.seated_C, inside_C, outside_C)


def ranked(key: Array, scores_C: Array) -> Array:
    """Indices of arms by falling score, int32[C]; equal scores are drawn fairly by ``key``.

    Args:
      key: PRNG key.
      scores_C: float32[C], no NaN.
    """
    draw_C = jax.random.bits(key, scores_C.shape, jnp.uint32)
    index_C = jnp.arange(scores_C.shape[0], dtype=jnp.int32)
    _, _, ranked_C = jax.lax.sort((-scores_C, draw_C, index_C), num_keys=2)
    return ranked_C


def random(key: Array, arms: Arms) -> Array:
    """A fresh draw that ignores every reward."""
    return jax.random.uniform(key, arms.mean_C.shape, jnp.float32)
