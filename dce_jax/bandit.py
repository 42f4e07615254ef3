"""The combinatorial bandit: a pure pytree beside the parameters, and two pure functions.

One super arm is chosen per group: additive rewards make the exact oracle of CUCB (Chen, Wang and
Yuan, ICML 2013) the K largest scores. Scope (per group) and rewards are this project's choice.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dce_jax import scores
from dce_jax.budget import Budget, check_group
from dce_jax.types import Arms, Array, Rewards, ScoreFn, Selection

_LEAST_PLAYS = 2.0**-20


class BanditState(NamedTuple):
    """Everything the next selection needs, allocated at full size.

    Attributes:
      plays: group -> float32[C], times each channel executed a selection (discounted).
      sums: group -> float32[C], its rewards added up (discounted).
      total: float32[], selections so far (discounted): the t of the confidence radius.
      selections: int32[], selections so far, for schedules.
      seated: group -> bool[C], the channels of its latest selection.
    """

    plays: dict[str, Array]
    sums: dict[str, Array]
    total: Array
    selections: Array
    seated: dict[str, Array]


class SelectInfo(NamedTuple):
    """What a person may want to know of a selection.

    Attributes:
      scores: group -> float32[C].
    """

    scores: dict[str, Array]


class UpdateInfo(NamedTuple):
    """What a person may want to know of an update.

    Attributes:
      bad_rewards: int32[], NaN or infinite rewards that were counted as 0.
    """

    bad_rewards: Array


def init(budget: Budget, groups: Collection[str] | None = None) -> BanditState:
    """A bandit that has seen nothing.

    Args:
      budget: K per group.
      groups: those it keeps account of; by default the groups with K < C. Name more where a later
        budget may contest them.

    Raises:
      ValueError: an unknown group.
    """
    for group in groups or ():
        check_group(group, budget.full)
    known = budget.contested if groups is None else groups

    def zeros(dtype: Any = jnp.float32) -> dict[str, Array]:
        return {group: jnp.zeros(budget.full[group], dtype) for group in known}

    total, selections = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    return BanditState(zeros(), zeros(), total, selections, zeros(jnp.bool_))


def appraised(state: BanditState, rewards: Rewards) -> BanditState:
    """A bandit that played every arm of some groups once and knows nothing else of them.

    Args:
      state: the bandit; other groups and its counts of selections stay.
      rewards: group -> float32[C], such as saliencies of the whole network.
    """
    ones = {group: jnp.ones(values.shape, jnp.float32) for group, values in rewards.items()}
    sums = {group: jnp.asarray(values, jnp.float32) for group, values in rewards.items()}
    return state._replace(plays={**state.plays, **ones}, sums={**state.sums, **sums})


def select(
    key: Array, state: BanditState, *, budget: Budget, score: ScoreFn
) -> tuple[Selection, SelectInfo]:
    """Picks the K best-scored channels of every contested group.

    Args:
      key: PRNG key; breaks ties and feeds random scores.
      state: the bandit.
      budget: K per group, static.
      score: ranks the arms of one group.

    Returns:
      Group -> int32[K], sorted and distinct; and the scores.

    Raises:
      ValueError: a contested group that the bandit keeps no account of.
    """
    for group in budget.contested:
        if group not in state.plays:
            raise ValueError(
                f"the bandit keeps no account of group {group!r}, of which the budget executes "
                f"{budget.compact[group]} of {budget.full[group]} channels: name it to bandit.init"
            )
    selection, found = {}, {}
    for index, group in enumerate(budget.contested):
        for_score, for_ties = jax.random.split(jax.random.fold_in(key, index))
        found[group] = score(for_score, arms(state, group))
        selection[group] = top_k(for_ties, found[group], budget.compact[group])
    return selection, SelectInfo(found)


def update(
    key: Array, state: BanditState, *, selection: Selection, rewards: Rewards, discount: float = 1.0
) -> tuple[BanditState, UpdateInfo]:
    """Books one play of every selected channel; groups without a selection stay as they are.

    A NaN or infinite reward is a play with reward 0, so that an arm which always fails ends with
    the lowest mean instead of staying unplayed for ever.

    Args:
      key: unused; every bandit function takes one.
      state: the bandit.
      selection: group -> int32[K].
      rewards: group -> float32[K], each in [0, 1].
      discount: plays, sums and t are multiplied by it first; 1.0 is the plain mean. Plays that
        reach 2^-20 fade no further: an arm that was played once stays known, and so does its mean.
    """
    del key
    plays, sums, bad = {}, {}, jnp.zeros((), jnp.int32)
    seated = dict(state.seated)
    for group, before in state.plays.items():
        if group not in selection:  # it executes whole
            plays[group], sums[group] = before, state.sums[group]
            continue
        chosen, reward = selection[group], rewards[group]
        if reward.shape != chosen.shape:
            raise ValueError(
                f"rewards of group {group!r} have shape {reward.shape}, its selection "
                f"{chosen.shape}: one reward per executed channel"
            )
        good = jnp.isfinite(reward)
        bad = bad + jnp.sum(~good).astype(jnp.int32)
        gained = jnp.where(good, reward, 0.0).astype(jnp.float32)
        fades = discount * before >= _LEAST_PLAYS
        plays[group] = _add_at(_faded(before, fades, discount), chosen, jnp.float32(1.0))
        sums[group] = _add_at(_faded(state.sums[group], fades, discount), chosen, gained)
        seated[group] = jnp.zeros(before.shape, jnp.bool_).at[chosen].set(True)
    total = discount * state.total + 1.0
    return BanditState(plays, sums, total, state.selections + 1, seated), UpdateInfo(bad)


def arms(state: BanditState, group: str) -> Arms:
    """What score functions see of one group; the mean of an unplayed arm is 0."""
    plays_C = state.plays[group]
    mean_C = jnp.where(plays_C > 0, state.sums[group] / jnp.where(plays_C > 0, plays_C, 1.0), 0.0)
    return Arms(mean_C, plays_C, state.total, state.selections, state.seated[group])


def top_k(key: Array, scores_C: Array, k: int) -> Array:
    """Indices of the K largest scores, int32[K] sorted; equal scores are drawn fairly by ``key``.

    Args:
      key: PRNG key.
      scores_C: float32[C], no NaN.
      k: static, 1..C.
    """
    return jnp.sort(scores.ranked(key, scores_C)[:k])


def _faded(values_C: Array, fades_C: Array, discount: float) -> Array:
    return jnp.where(fades_C, discount * values_C, values_C)


def _add_at(values_C: Array, chosen_K: Array, gained: Array) -> Array:
    return values_C.at[chosen_K].add(
        gained, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds"
    )
