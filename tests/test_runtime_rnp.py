"""Runtime neural pruning against plain loops."""

import functools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.runtime import rnp

SITES, ACTIONS, BATCH = 3, 4, 5


def temporal_differences(values, levels, losses, price, alpha, gamma):
    """Lin et al. 2017, equations 5 and 6, image by image and site by site."""
    total, last = 0.0, len(values) - 1
    for image in range(len(losses)):
        for site in range(len(values)):
            action = int(levels[site][image]) + 1
            target = (action - 1) * price[image]
            if site == last:
                target -= alpha * losses[image]
            else:
                target += gamma * max(values[site + 1][image])
            total += (target - values[site][image][action - 1]) ** 2
    return total / (len(losses) * len(values))


def passes():
    draw = np.random.default_rng(3)
    values = [chains.numbers(BATCH, ACTIONS, seed=i) for i in range(SITES)]
    levels = [jnp.asarray(draw.integers(0, ACTIONS, BATCH), jnp.int32) for _ in range(SITES)]
    losses = jnp.asarray(draw.uniform(0, 3, BATCH), jnp.float32)
    price = jnp.asarray(draw.uniform(-0.3, 0, BATCH), jnp.float32)
    return values, levels, losses, price


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 0.9), (2.0, 1.0)])
def test_the_error_is_the_loop_over_images_and_sites(alpha, gamma):
    values, levels, losses, price = passes()
    error = functools.partial(rnp.squared_error, alpha=alpha, gamma=gamma)
    found = jax.jit(error)(values, levels, losses, price)
    plain = [np.asarray(v, np.float64) for v in values]
    wanted = temporal_differences(plain, levels, losses, price, alpha, gamma)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    one = temporal_differences(plain, levels, losses, np.full(BATCH, -0.1), alpha, gamma)
    np.testing.assert_allclose(error(values, levels, losses, jnp.float32(-0.1)), one, rtol=1e-5)


def test_no_gradient_flows_through_the_target():
    values, levels, losses, price = passes()

    def error(values, losses):
        return rnp.squared_error(values, levels, losses, price, alpha=1.0, gamma=0.9)

    found, of_losses = jax.jit(jax.grad(error, argnums=(0, 1)))(values, losses)
    np.testing.assert_array_equal(of_losses, np.zeros(BATCH))
    for site, (grads, mine) in enumerate(zip(found, values, strict=True)):
        target = np.asarray(levels[site]) * np.asarray(price)
        after = 0.9 * np.asarray(values[(site + 1) % SITES]).max(axis=-1)
        target += -np.asarray(losses) if site == SITES - 1 else after
        wanted = np.zeros((BATCH, ACTIONS))
        rows = np.arange(BATCH), levels[site]
        wanted[rows] = 2 * (np.asarray(mine)[rows] - target) / (BATCH * SITES)
        np.testing.assert_allclose(grads, wanted, rtol=1e-4, atol=1e-6)


@functools.cache
def pruner(sizes=(4, 6, 6)):
    module = rnp.Decider(len(sizes), ACTIONS, encoded=5, hidden=6)

    def initial(key):
        carry, params = None, {}
        for site, size in enumerate(sizes):
            pooled, knob = jnp.zeros((1, size)), jnp.zeros(1)
            found = module.init(key, pooled, carry, knob, site=site)["params"]
            carry = jnp.zeros((1, 6))
            params |= found
        return params

    return module, chains.drawn(jax.eval_shape(initial, jax.random.key(0)), seed=1)


def test_greedy_is_the_largest_value_and_epsilon_explores():
    module, params = pruner()
    pooled = chains.numbers(400, 4)

    @jax.jit
    def decide(knob, epsilon, key):
        free = jnp.zeros_like(knob)
        greedy, carry, values = rnp.policy(module, params, knob, free)(0, pooled, None)
        noisy = rnp.policy(module, params, knob, free, epsilon=epsilon, key=key)
        first, _, same = noisy(0, pooled, None)
        second, _, later = noisy(1, chains.numbers(400, 6, seed=2), carry)
        return greedy.level, values, first.level, same, second.level, later

    knob, key = jnp.zeros(400), jax.random.key(0)
    greedy, values, level, same, second, later = decide(knob, 0.0, key)
    np.testing.assert_array_equal(greedy, np.argmax(values, axis=-1))
    assert len(np.unique(greedy)) > 1
    np.testing.assert_array_equal(level, greedy)
    np.testing.assert_allclose(values, same, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(second, np.argmax(later, axis=-1))
    _, _, level, same, second, _ = decide(knob, 1.0, key)
    np.testing.assert_allclose(values, same, rtol=1e-4, atol=1e-5)
    assert np.bincount(level, minlength=ACTIONS).min() > 60
    assert np.mean(level == second) < 0.4  # another draw at another site
    _, _, level, _, _, _ = decide(knob, 0.5, key)
    assert 0.25 < np.mean(level != greedy) < 0.5
    shared = decide(jnp.float32(0.7), 0.0, key)[1]
    each = decide(jnp.full(400, 0.7), 0.0, key)[1]
    np.testing.assert_allclose(shared, each, rtol=1e-4, atol=1e-5)
    assert np.abs(shared - values).max() > 1e-2  # the price is seen


def test_values_hold_what_an_action_costs():
    module, params = pruner()
    pooled, knob = chains.numbers(BATCH, 4), jnp.zeros(BATCH)

    @jax.jit
    def values(price):
        return rnp.policy(module, params, knob, price)(0, pooled, None)[2]

    price = jnp.asarray([-0.1, -0.2, -0.4, -0.8, -1.6])
    costs = np.arange(ACTIONS) * np.asarray(price)[:, None]
    free = values(jnp.zeros(BATCH))
    np.testing.assert_allclose(values(price), free + costs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values(jnp.float32(-0.4)), free + costs[2:3], rtol=1e-4, atol=1e-5)


def test_the_recurrent_network_remembers_earlier_sites():
    module, params = pruner()

    @jax.jit
    def values(first, second):
        decide = rnp.policy(module, params, jnp.zeros(BATCH), jnp.zeros(BATCH))
        _, carry, _ = decide(0, first, None)
        return decide(1, second, carry)[2]

    second = chains.numbers(BATCH, 6, seed=1)
    one, other = (values(chains.numbers(BATCH, 4, seed=i), second) for i in (2, 3))
    assert np.abs(one - other).max() > 1e-2


def test_random_decisions_try_everything_at_every_site():
    @jax.jit
    def decide(key):
        policy = rnp.random_policy(ACTIONS, key)
        return [policy(site, jnp.zeros((400, 3)), None)[0].level for site in range(2)]

    one, other = decide(jax.random.key(0))
    for level in (one, other):
        assert level.dtype == jnp.int32
        assert np.bincount(level, minlength=ACTIONS).min() > 60
        assert level.max() == ACTIONS - 1
    assert np.mean(one == other) < 0.4
