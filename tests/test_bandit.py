"""The bandit against a plain NumPy one, its ties, bad rewards and purity."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dce_jax import bandit, budget, scores
from dce_jax.types import Arms

BUDGET = budget.Budget((("a", 9, 4), ("whole", 3, 3), ("b", 5, 2)))
UCB = functools.partial(scores.ucb, alpha=0.3)
SEATS = functools.partial(scores.seats, alpha=0.3, contest=0.25)
SCORES = {
    "ucb": UCB,
    "greedy": scores.greedy,
    "best": scores.best,
    "random": scores.random,
    "seats": SEATS,
}


def program(bud, score, discount=1.0):
    pick = jax.jit(functools.partial(bandit.select, budget=bud, score=score))
    book = jax.jit(functools.partial(bandit.update, discount=discount))
    return pick, lambda key, state, sel, rew: book(key, state, selection=sel, rewards=rew)


class Oracle:
    """CUCB of one group in plain NumPy, arm by arm."""

    def __init__(self, width):
        self.plays = np.zeros(width, np.float32)
        self.sums = np.zeros(width, np.float32)
        self.total = np.float32(0)

    def scores(self, alpha):
        found = []
        for plays, total in zip(self.plays, self.sums, strict=True):
            if plays == 0:
                found.append(np.inf)
                continue
            radius = np.sqrt(3 * np.log(max(float(self.total), 1.0)) / (2 * float(plays)))
            found.append(float(total) / float(plays) + alpha * radius)
        return np.asarray(found)

    def book(self, chosen, rewards, discount):
        d = np.float32(discount)
        self.plays, self.sums = d * self.plays, d * self.sums
        self.total = d * self.total + np.float32(1)
        for arm, reward in zip(chosen, rewards, strict=True):
            self.plays[arm] += np.float32(1)
            self.sums[arm] += reward if np.isfinite(reward) else np.float32(0)


def check_choice(chosen, expected, k):
    """The K best by the oracle's scores; where a near-tie decides, any of the tied."""
    order = np.argsort(-expected, kind="stable")
    edge = expected[order[k - 1]]
    margin = 1e-5 * (1 + abs(edge)) if np.isfinite(edge) else 0.0
    surely_in = {i for i in order[:k] if expected[i] > edge + margin}
    allowed = {i for i in order if expected[i] >= edge - margin}
    assert surely_in <= set(chosen.tolist()) <= allowed
    return len(allowed) == k


@pytest.mark.parametrize("discount", [1.0, 0.97])
def test_a_thousand_random_steps_equal_the_numpy_oracle(discount):
    pick, book = program(BUDGET, UCB, discount)
    state, draw = bandit.init(BUDGET), np.random.default_rng(3)
    oracles = {"a": Oracle(9), "b": Oracle(5)}
    keys, decided = jax.random.split(jax.random.key(0), 1000), 0
    for key in keys:
        selection, info = pick(key, state)
        rewards = {}
        for group, oracle in oracles.items():
            chosen, expected = np.asarray(selection[group]), oracle.scores(0.3)
            assert chosen.dtype == np.int32
            assert np.all(np.diff(chosen) > 0)
            np.testing.assert_allclose(info.scores[group], expected, rtol=1e-5)
            decided += check_choice(chosen, expected, BUDGET.compact[group])
            quality = np.linspace(0.2, 0.8, oracle.plays.size)[chosen]
            reward = (quality + 0.2 * draw.random(chosen.size)).astype(np.float32)
            reward[draw.random(chosen.size) < 0.02] = np.nan
            oracle.book(chosen, reward, discount)
            rewards[group] = reward
        state, _ = book(key, state, selection, rewards)
    assert decided > 1500  # of 2,000: ties are the exception, so the comparison has teeth
    # Without a discount every number is exact; with one XLA may fuse multiply and add.
    exact = {"rtol": 0} if discount == 1.0 else {"rtol": 1e-5}
    for group, oracle in oracles.items():
        np.testing.assert_allclose(state.plays[group], oracle.plays, **exact)
        np.testing.assert_allclose(state.sums[group], oracle.sums, **exact)
    np.testing.assert_allclose(state.total, oracles["a"].total, **exact)
    assert int(state.selections) == 1000


def test_unplayed_arms_come_first():
    pick, book = program(BUDGET, UCB)
    state, seen = bandit.init(BUDGET), set()
    for step in range(3):  # 9 arms, 4 at a time: all are seen after three selections
        selection, _ = pick(jax.random.key(step), state)
        new = set(np.asarray(selection["a"]).tolist()) - seen
        assert len(new) == min(4, 9 - len(seen))
        seen |= new
        rewards = {group: jnp.ones(chosen.shape) for group, chosen in selection.items()}
        state, _ = book(jax.random.key(step), state, selection, rewards)
    assert seen == set(range(9))


def test_whole_groups_are_not_selected():
    selection, info = program(BUDGET, UCB)[0](jax.random.key(0), bandit.init(BUDGET))
    assert set(selection) == set(info.scores) == {"a", "b"}


def test_ties_are_broken_by_the_key_and_fairly():
    keys = jax.random.split(jax.random.key(1), 3000)
    tied = jnp.asarray([0.5, 2.0, 0.5, 0.5, 0.1, 0.5], jnp.float32)
    chosen = jax.jit(jax.vmap(lambda key: bandit.top_k(key, tied, 3)))(keys)
    counts = np.bincount(np.asarray(chosen).ravel(), minlength=6)
    assert counts[1] == 3000
    assert counts[4] == 0
    # Two seats for four equal arms: 1,500 each, standard deviation 27.
    assert np.all(np.abs(counts[[0, 2, 3, 5]] - 1500) < 140)
    np.testing.assert_array_equal(bandit.top_k(keys[0], tied, 3), chosen[0])


def test_infinite_scores_and_both_zeros_rank_as_they_should():
    found = bandit.top_k(jax.random.key(0), jnp.asarray([1.0, jnp.inf, -1.0, jnp.inf]), 3)
    np.testing.assert_array_equal(found, [0, 1, 3])
    keys = jax.random.split(jax.random.key(1), 200)
    zeros = jnp.asarray([0.0, -0.0])
    first = jax.vmap(lambda key: bandit.top_k(key, zeros, 1))(keys)
    assert 50 < int(first.sum()) < 150


def test_an_arm_that_always_fails_ends_last_and_is_not_among_the_final_channels():
    bud = budget.Budget((("a", 8, 3),))
    pick, book = program(bud, functools.partial(scores.ucb, alpha=1.0))
    state, bad = bandit.init(bud), 0
    for step in range(60):
        selection, _ = pick(jax.random.key(step), state)
        chosen = np.asarray(selection["a"])
        failing = np.where(chosen == 2, np.nan, np.where(chosen == 5, np.inf, 0.5))
        state, info = book(
            jax.random.key(step), state, selection, {"a": failing.astype(np.float32)}
        )
        assert int(info.bad_rewards) == np.isin(chosen, (2, 5)).sum()
        bad += int(info.bad_rewards)
    mean = np.asarray(bandit.arms(state, "a").mean_C)
    assert bad > 2
    assert mean[2] == mean[5] == 0.0
    assert np.all(np.delete(mean, [2, 5]) == 0.5)
    for seed in range(20):
        final, _ = bandit.select(jax.random.key(seed), state, budget=bud, score=scores.best)
        assert not {2, 5} & set(np.asarray(final["a"]).tolist())


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("width", "k"), [(4, 1), (4, 4), (2, 1)])
def test_smallest_and_whole_super_arms(score, width, k):
    scores_C = SCORES[score](
        jax.random.key(0),
        Arms(
            jnp.linspace(0.1, 0.9, width),
            jnp.ones(width),
            jnp.float32(3.0),
            jnp.int32(3),
            jnp.zeros(width, bool),
        ),
    )
    found = np.asarray(bandit.top_k(jax.random.key(0), scores_C, k))
    assert found.shape == (k,)
    assert np.all((found >= 0) & (found < width))
    if k == width:
        np.testing.assert_array_equal(found, np.arange(width))
    elif score != "random":
        np.testing.assert_array_equal(found, [width - 1])


def example_arms():
    return Arms(
        jnp.asarray([0.5, 0.0, 0.25]),
        jnp.asarray([4.0, 0.0, 9.0]),
        jnp.float32(13.0),
        jnp.int32(6),
        jnp.asarray([True, False, False]),
    )


def test_scores_against_their_equations():
    arms, key = example_arms(), jax.random.key(0)
    log_t = np.log(13.0)
    expected = [0.5 + 0.7 * np.sqrt(1.5 * log_t / 4), np.inf, 0.25 + 0.7 * np.sqrt(1.5 * log_t / 9)]
    np.testing.assert_allclose(scores.ucb(key, arms, alpha=0.7), expected, rtol=1e-6)
    np.testing.assert_array_equal(scores.greedy(key, arms), [0.5, np.inf, 0.25])
    np.testing.assert_array_equal(scores.best(key, arms), [0.5, -1.0, 0.25])
    np.testing.assert_array_equal(scores.worst(key, arms), [-0.5, -np.inf, -0.25])
    assert scores.radius(arms, alpha=1.0)[1] == 0.0


def seated(means, plays, chosen):
    """Arms of one group, some of which sit."""
    width = len(means)
    mask = jnp.zeros(width, bool).at[jnp.asarray(chosen, jnp.int32)].set(True)
    values = jnp.asarray(means, jnp.float32), jnp.asarray(plays, jnp.float32)
    return Arms(*values, jnp.float32(5.0), jnp.int32(5), mask)


def test_the_worst_that_sit_leave_their_seats_to_unplayed_arms_first():
    arms = seated([0.9, 0.1, 0.5, 0.4, 0.8, 0.0], [5, 5, 5, 5, 1, 0], [0, 1, 2, 3])
    found = scores.seats(jax.random.key(0), arms, alpha=0.0, contest=0.25)
    np.testing.assert_allclose(
        np.asarray(found) / np.finfo(np.float32).max,
        [1, 0, 1 - 1 / 12, 1 - 2 / 12, 0, 1 / 4],
        atol=1e-7,
    )
    np.testing.assert_allclose(found[jnp.asarray([1, 4])], [-1 / 1.1, 0.8])
    two = scores.seats(jax.random.key(0), arms, alpha=0.0, contest=0.5)
    np.testing.assert_array_equal(bandit.top_k(jax.random.key(0), two, 4), [0, 2, 4, 5])


def test_with_no_seat_contested_the_latest_selection_stays_whatever_its_means():
    arms = seated([0.1, 0.9, 0.0, 0.8], [2, 2, 2, 2], [0, 2])
    found = scores.seats(jax.random.key(0), arms, alpha=1.0, contest=0.0)
    np.testing.assert_array_equal(bandit.top_k(jax.random.key(0), found, 2), [0, 2])
    # A budget that grew fills up with the best outside, one that shrank keeps the best that sit.
    np.testing.assert_array_equal(bandit.top_k(jax.random.key(0), found, 3)[:2], [0, 1])
    arms = seated([0.1, 0.9, 0.0, 0.9], [2, 2, 2, 2], [0, 1, 2])
    smaller = scores.seats(jax.random.key(0), arms, alpha=1.0, contest=1 / 3)
    np.testing.assert_array_equal(bandit.top_k(jax.random.key(0), smaller, 2), [0, 1])


def test_a_budget_that_shrinks_keeps_the_best_that_sit_even_of_those_that_all_stay():
    arms = seated(np.linspace(1.0, 0.1, 8).tolist() + [2.0] * 8, [3] * 16, range(8))
    for seed in range(4):
        found = scores.seats(jax.random.key(seed), arms, alpha=0.0, contest=0.0)
        np.testing.assert_array_equal(bandit.top_k(jax.random.key(seed), found, 3), [0, 1, 2])


def test_equal_means_leave_their_seats_by_lot():
    arms = seated([0.0] * 6, [1] * 6, range(4))
    stayed = np.zeros(6)
    for seed in range(200):
        found = scores.seats(jax.random.key(seed), arms, alpha=0.0, contest=0.5)
        stayed[np.asarray(found) > np.finfo(np.float32).max / 3] += 1
    assert stayed.sum() == 400 and np.all(stayed[4:] == 0)
    assert np.all(np.abs(stayed[:4] - 100) < 35)  # five deviations of a fair draw


def test_groups_of_one_width_are_selected_independently():
    twins = budget.Budget((("a", 8, 4), ("b", 8, 4)))
    for score in (scores.random, scores.greedy):  # of arms never played all are ties
        pick = jax.jit(functools.partial(bandit.select, budget=twins, score=score))
        alike = 0
        for seed in range(50):
            selection, _ = pick(jax.random.key(seed), bandit.init(twins))
            alike += np.array_equal(selection["a"], selection["b"])
        assert alike < 10  # one in 70 of fair draws


def test_fading_plays_never_make_an_arm_unknown():
    one = budget.Budget((("a", 4, 1),))
    state = bandit.init(one)
    rewards = {"a": jnp.asarray([0.5])}
    chosen = {"a": jnp.asarray([2], jnp.int32)}
    first = {"a": jnp.asarray([0], jnp.int32)}
    book = jax.jit(functools.partial(bandit.update, jax.random.key(0), discount=0.5))
    state, _ = book(state, selection=first, rewards={"a": jnp.asarray([0.3])})
    for _ in range(300):
        state, _ = book(state, selection=chosen, rewards=rewards)
    found = bandit.arms(state, "a")
    np.testing.assert_allclose(found.mean_C, [0.3, 0, 0.5, 0], rtol=1e-5)
    np.testing.assert_array_equal(found.plays_C > 0, [True, False, True, False])
    assert np.all(np.isfinite(scores.radius(found, alpha=0.0)))
    assert scores.greedy(jax.random.key(0), found)[0] < 1


def test_groups_that_nobody_keeps_account_of_are_refused_by_name():
    with pytest.raises(ValueError, match="unknown channel group 'aa'; did you mean 'a'"):
        bandit.init(budget.Budget((("a", 4, 1),)), ["aa"])
    wider = budget.Budget((("a", 4, 1), ("b", 5, 2)))
    with pytest.raises(ValueError, match=r"no account of group 'b', .* 2 of 5 channels: name it"):
        bandit.select(jax.random.key(0), bandit.init(wider, ["a"]), budget=wider, score=scores.best)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.0, 1.0), st.integers(0, 99))
def test_as_many_seats_change_as_are_contested(outside, k, contest, seed):
    draw = np.random.default_rng(seed)
    width = k + outside
    sitting = draw.permutation(width)[:k]
    arms = seated(draw.integers(0, 4, width) / 4, np.ones(width), sitting)  # with ties
    found = scores.seats(jax.random.key(0), arms, alpha=0.1, contest=contest)
    chosen = np.asarray(bandit.top_k(jax.random.key(seed), found, k))
    contested = min(np.floor(np.float32(contest) * k + np.float32(0.5)), outside)
    assert len(set(chosen) - set(sitting)) == contested
    gone = set(sitting) - set(chosen)
    stay = set(sitting) - gone
    if gone and stay:
        means = np.asarray(arms.mean_C)
        assert max(means[list(gone)]) <= min(means[list(stay)])


def test_alpha_may_be_a_schedule_over_undiscounted_selections():
    arms, key = example_arms(), jax.random.key(0)

    def schedule(selections):
        return jnp.where(selections < 10, 1.0, 0.0)

    early = scores.ucb(key, arms, alpha=schedule)
    np.testing.assert_array_equal(early, scores.ucb(key, arms, alpha=1.0))
    late = scores.ucb(key, arms._replace(selections=jnp.int32(10)), alpha=schedule)
    np.testing.assert_array_equal(late, scores.greedy(key, arms))


def test_a_discounted_total_below_one_gives_no_negative_radius():
    arms = example_arms()._replace(total=jnp.float32(0.5))
    np.testing.assert_array_equal(scores.radius(arms, alpha=1.0), np.zeros(3))


def test_random_scores_ignore_rewards_and_follow_the_key():
    arms, key = example_arms(), jax.random.key(0)
    other = arms._replace(mean_C=arms.mean_C + 9.0)
    drawn = scores.random(key, arms)
    np.testing.assert_array_equal(drawn, scores.random(key, other))
    assert not np.array_equal(drawn, scores.random(jax.random.key(1), arms))


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


def test_state_keeps_explicit_types_and_nothing_weak():
    state = bandit.init(BUDGET)
    selection, _ = bandit.select(jax.random.key(0), state, budget=BUDGET, score=UCB)
    rewards = {group: jnp.ones(chosen.shape, jnp.float32) for group, chosen in selection.items()}
    after = jax.eval_shape(
        lambda s: bandit.update(
            jax.random.key(0), s, selection=selection, rewards=rewards, discount=0.9
        )[0],
        state,
    )
    kinds = jax.tree.leaves(state)
    assert {str(leaf.dtype) for leaf in kinds} == {"float32", "int32", "bool"}
    assert not any(leaf.weak_type for leaf in kinds)
    assert avals(after) == avals(state)


@chex.assert_max_traces(n=1)
def traced_update(state, selection, rewards):
    return bandit.update(jax.random.key(0), state, selection=selection, rewards=rewards)[0]


def test_update_is_pure_and_traced_once():
    chex.clear_trace_counter()
    update, state = jax.jit(traced_update), bandit.init(BUDGET)
    before = jax.tree.map(np.array, state)
    selection = {"a": jnp.asarray([0, 1, 2, 3]), "b": jnp.asarray([0, 4])}
    rewards = {"a": jnp.ones(4), "b": jnp.ones(2)}
    one, two = (update(state, selection, rewards) for _ in range(2))
    chex.assert_trees_all_equal(one, two)
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, state))
    update(one, selection, rewards)


@pytest.mark.parametrize("function", [bandit.select, bandit.update])
def test_one_argument_order_for_bandit_functions(function):
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["key", "state"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("function", SCORES.values(), ids=SCORES)
def test_one_argument_order_for_scores(function):
    parameters = list(inspect.signature(function).parameters.values())
    assert [p.name for p in parameters[:2]] == ["key", "arms"]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])


def test_rewards_of_another_shape_are_refused():
    selection = {"a": jnp.arange(4), "b": jnp.arange(2)}
    with pytest.raises(ValueError, match=r"'b' have shape \(3,\), its selection \(2,\): one rew"):
        bandit.update(
            jax.random.key(0),
            bandit.init(BUDGET),
            selection=selection,
            rewards={"a": jnp.ones(4), "b": jnp.ones(3)},
        )
