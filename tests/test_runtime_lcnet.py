"""L-Net, C-Net and LC-Net: training sees what inference runs; gradients reach what is not kept."""

import functools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.runtime import MASKED, Choice, costs, lcnet, run

NET = "projection"


def salience(logits, scales, *, layers=None):
    found = {} if logits is None else {"channels": (jnp.asarray(logits), jnp.asarray(scales))}
    if layers is not None:
        found["layers"] = tuple(jnp.asarray(each)[:, None] for each in layers)
    return found


def decide(found, widths, key=None, noise=1.0):
    return jax.jit(lambda found: lcnet._decided(found, widths, key, noise))(found)


def test_the_smallest_width_that_holds_what_is_kept_runs():
    logits = np.full((4, 8), -1.0, np.float32)
    for image, kept in enumerate((0, 2, 3, 8)):
        logits[image, 8 - kept :] = 1.0 + np.arange(kept)
    scales = np.random.default_rng(0).uniform(0.1, 2.0, (4, 8)).astype(np.float32)
    choice, work = decide(salience(logits, scales), (2, 4, 8))
    np.testing.assert_array_equal(choice.level, [0, 0, 1, 2])
    np.testing.assert_allclose(work, [0.25, 0.25, 0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(choice.scale, np.where(logits > 0, scales, 0.0), rtol=1e-6)
    np.testing.assert_array_equal(choice.order[2, :3], [7, 6, 5])
    np.testing.assert_array_equal(np.sort(choice.order, axis=-1), np.tile(np.arange(8), (4, 1)))
    assert choice.share is None


@pytest.mark.parametrize("channels", [False, True])
def test_layers_are_skipped_by_the_sign_and_scaled(channels):
    logits = np.where(np.arange(8) < 3, 1.0, -1.0).astype(np.float32) * np.ones((3, 1), np.float32)
    on = (np.asarray([2.0, -2.0, 0.5], np.float32), np.asarray([0.3, 1.0, 1.7], np.float32))
    found = salience(logits if channels else None, np.ones_like(logits), layers=on)
    choice, work = decide(found, (0, 4, 8) if channels else (0, 8))
    np.testing.assert_array_equal(choice.level, [1, 0, 1])
    np.testing.assert_allclose(choice.share, [0.3, 0.0, 1.7], rtol=1e-6)
    one = 0.5 if channels else 1.0
    np.testing.assert_allclose(work, [one, 0.0, one], rtol=1e-6)
    assert (choice.order is None) is not channels


def test_noise_is_logistic_and_training_runs_everything():
    key, logits = jax.random.key(3), chains.numbers(2000, 8)
    choice, _ = decide(salience(logits, jnp.ones((2000, 8))), (2, 4, 8), key)
    np.testing.assert_array_equal(choice.level, np.full(2000, 2))
    assert choice.order is None
    kept = np.asarray(choice.scale) > 0
    np.testing.assert_allclose(kept.mean(), jax.nn.sigmoid(logits).mean(), atol=0.02)
    differ = kept != (np.asarray(logits) > 0)
    assert 0.2 < differ.mean() < 0.5
    quiet, _ = decide(salience(logits, jnp.ones((2000, 8))), (2, 4, 8), key, noise=0.0)
    np.testing.assert_array_equal(np.asarray(quiet.scale) > 0, np.asarray(logits) > 0)


SEEDS = {"l": 0, "c": 5, "lc": 5}  # at which decisions differ


@pytest.mark.parametrize("kind", SEEDS)
def test_training_sees_what_inference_runs(kind):
    """Logits so large that no noise turns them; one system, both kinds of choice."""
    chain, widths = chains.build(NET), (4, 6)
    levels = {"c": ((1, 4), (2, 4, 6))}.get(kind, ((0, 1, 4), (0, 2, 4, 6)))
    levels = ((0, 4), (0, 6)) if kind == "l" else levels
    module = lcnet.Salience(widths, layers="l" in kind, channels="c" in kind, hidden=5)
    params = chains.salient(module, (4, 4), 1e3, seed=SEEDS[kind])

    @chains.jit
    def both(params, x, key):
        found = []
        for each in (None, key):
            policy = lcnet.policy(module, params, levels, jnp.float32(0.2), key=each)
            found.append(run(chain, levels, chains.variables(NET), x, policy, MASKED))
        return [(o.logits, o.choices, o.notes) for o in found]

    # Unlike images, for unlike decisions.
    x = chains.images() * jnp.linspace(0.1, 4.0, chains.BATCH).reshape(-1, 1, 1, 1)
    key = jax.random.key(0)
    (quiet, choices, work), (noisy, trained, same) = both(params, x, key)
    np.testing.assert_allclose(noisy, quiet, rtol=1e-5, atol=1e-5)
    for a, b in zip(work, same, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert len(np.unique(np.concatenate([c.level for c in choices]))) > 1
    for choice, site in zip(trained, levels, strict=True):
        np.testing.assert_array_equal(choice.level, np.full(chains.BATCH, len(site) - 1))
    chosen = jax.tree.map(jnp.asarray, choices)
    reference = factors(chain, levels, chosen)
    plain = chains.jitted_plain(NET)(chains.variables(NET), x, *reference)
    np.testing.assert_allclose(quiet, plain, rtol=2e-5, atol=2e-5)


def factors(chain, levels, choices):
    """As `chains.factors`, at other widths."""
    gates, shares = {}, {}
    for link, widths, choice in zip(chain.sites, levels, choices, strict=True):
        runs = np.zeros((chains.BATCH, widths[-1]), np.float32)
        for image, level in enumerate(np.asarray(choice.level)):
            order = range(widths[-1]) if choice.order is None else np.asarray(choice.order)[image]
            runs[image, list(order)[: widths[level]]] = 1.0
        scale = 1.0 if choice.scale is None else np.asarray(choice.scale)
        share = np.ones(chains.BATCH) if choice.share is None else np.asarray(choice.share)
        skipped = np.asarray(widths)[choice.level] == 0
        gates[link.group] = jnp.asarray(runs * scale)
        shares[link.name] = jnp.asarray(np.where(skipped, 0.0, share), jnp.float32)
    return gates, shares


def test_gradients_reach_the_logits_of_what_is_not_kept():
    """Through the whole network: the loss's alone, without the budget's."""
    chain, levels = chains.build("vgg"), ((2, 5), (3, 6))
    module = lcnet.Salience((5, 6), layers=False, channels=True, hidden=5)
    params = chains.salient(module, (4, 5), 1.0)

    @chains.jit
    def gradients(params, x, key):
        def loss(params):
            policy = lcnet.policy(module, params, levels, jnp.float32(0.2), key=key)
            found = run(chain, levels, chains.variables("vgg"), x, policy, MASKED)
            return jnp.square(found.logits).sum(), found.choices

        return jax.grad(loss, has_aux=True)(params)

    grads, choices = gradients(params, chains.images(), jax.random.key(1))
    never = 0
    for site, choice in enumerate(choices):
        dropped = np.all(np.asarray(choice.scale) == 0, axis=0)
        found = np.abs(grads[f"channels{site}"]["bias"])[dropped]
        never += np.sum(found > 1e-4)
    assert never > 0


def test_the_straight_gradient_is_the_sigmoids():
    logits, weights = chains.numbers(3, 8), chains.numbers(3, 8, seed=1)
    scales = jnp.full((3, 8), 0.5)

    def kept(logits):
        choice, work = lcnet._decided(salience(logits, scales), (2, 4, 8), None, 0.0)
        return jnp.sum(choice.scale * weights) + 7.0 * jnp.sum(work)

    slope = jax.nn.sigmoid(logits) * (1.0 - jax.nn.sigmoid(logits))
    wanted = slope * (0.5 * weights + 7.0 / 8)
    np.testing.assert_allclose(jax.jit(jax.grad(kept))(logits), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["vgg", "padding", "projection"])
def test_the_budget_term_is_the_distance_of_the_mean_cost(name):
    """Its value is that of the widths that run, shortcuts and widths of inputs included."""
    levels = ((2, 5), (1, 4, 6)) if name == "vgg" else ((0, 1, 4), (0, 2, 3, 6))
    table = costs.table(chains.build(name), levels, chains.variables(name), chains.EXAMPLE)
    draw = np.random.default_rng(0)
    index = [draw.integers(0, len(widths), 9) for widths in levels]
    work = [
        jnp.asarray(np.asarray(widths)[i] / widths[-1], jnp.float32)
        for widths, i in zip(levels, index, strict=True)
    ]
    choices = [Choice(jnp.asarray(i, jnp.int32)) for i in index]
    mean = float(np.mean(costs.share(table, choices)))
    for budget in (0.3, 0.9):
        found = jax.jit(functools.partial(lcnet.budget_term, table))(work, jnp.float32(budget))
        np.testing.assert_allclose(found, (mean - budget) ** 2, rtol=1e-4)


def test_the_budget_term_by_hand():
    sites = (np.asarray([[10.0, 20.0]]), np.asarray([[5.0, 10.0], [20.0, 40.0]]))
    table = costs.Costs(sites, always=30.0, around=(4.0, 0.0), full=90.0)
    work = [jnp.asarray([0.5, 1.0]), jnp.asarray([1.0, 0.25])]
    mean = (30 + 4 + 16 * 0.5 + 40 * 0.5 * 1.0 + 30 + 4 + 16 * 1.0 + 40 * 1.0 * 0.25) / 2 / 90
    found = lcnet.budget_term(table, work, jnp.float32(0.4))
    np.testing.assert_allclose(found, (mean - 0.4) ** 2, rtol=1e-5)


def test_images_with_one_budget_meet_it_together():
    """Two budgets in a batch: a term each, weighted by how many images have it."""
    sites = (np.asarray([[10.0, 20.0]]),)
    table = costs.Costs(sites, always=80.0, around=(0.0,), full=100.0)
    work = [jnp.asarray([0.0, 1.0, 0.5, 0.25, 1.0])]
    budget = jnp.asarray([0.9, 0.9, 0.9, 0.95, 0.95])
    first, second = 0.8 + 0.2 * 1.5 / 3, 0.8 + 0.2 * 1.25 / 2
    wanted = (3 * (first - 0.9) ** 2 + 2 * (second - 0.95) ** 2) / 5
    np.testing.assert_allclose(lcnet.budget_term(table, work, budget), wanted, rtol=1e-3)
