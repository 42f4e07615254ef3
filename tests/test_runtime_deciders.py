"""What decides: runtime neural pruning, L/C/LC-Net, feature boosting and suppression."""

import functools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.networks import layers
from dce_jax.networks.units import GatedNorm
from dce_jax.runtime import MASKED, Choice, costs, fbs, lcnet, rnp, run

NET = "projection"
SITES, ACTIONS, BATCH = 3, 4, 5
PARTS = ((2, 4, 8), (3, 6))


def drawn(shapes, seed=0, size=1.0):
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(size * draw.normal(size=leaf.shape), jnp.float32), shapes
    )


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Runtime neural pruning.


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
    values = [numbers(BATCH, ACTIONS, seed=i) for i in range(SITES)]
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

    return module, drawn(jax.eval_shape(initial, jax.random.key(0)), seed=1)


def test_greedy_is_the_largest_value_and_epsilon_explores():
    module, params = pruner()
    pooled = numbers(400, 4)

    @jax.jit
    def decide(knob, epsilon, key):
        greedy, carry, values = rnp.policy(module, params, knob)(0, pooled, None)
        noisy = rnp.policy(module, params, knob, epsilon=epsilon, key=key)
        first, _, same = noisy(0, pooled, None)
        second, _, later = noisy(1, numbers(400, 6, seed=2), carry)
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


def test_the_recurrent_network_remembers_earlier_sites():
    module, params = pruner()

    @jax.jit
    def values(first, second):
        decide = rnp.policy(module, params, jnp.zeros(BATCH))
        _, carry, _ = decide(0, first, None)
        return decide(1, second, carry)[2]

    second = numbers(BATCH, 6, seed=1)
    one, other = (values(numbers(BATCH, 4, seed=i), second) for i in (2, 3))
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


# L-Net, C-Net and LC-Net.


def salience(logits, scales, *, layers=None):
    found = {} if logits is None else {"channels": (jnp.asarray(logits), jnp.asarray(scales))}
    if layers is not None:
        found["layers"] = tuple(jnp.asarray(each)[:, None] for each in layers)
    return found


def decide(found, widths, key=None):
    return jax.jit(lambda found: lcnet._decided(found, widths, key))(found)


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
    key, logits = jax.random.key(3), numbers(2000, 8)
    choice, _ = decide(salience(logits, jnp.ones((2000, 8))), (2, 4, 8), key)
    np.testing.assert_array_equal(choice.level, np.full(2000, 2))
    assert choice.order is None
    kept = np.asarray(choice.scale) > 0
    np.testing.assert_allclose(kept.mean(), jax.nn.sigmoid(logits).mean(), atol=0.02)
    differ = kept != (np.asarray(logits) > 0)
    assert 0.2 < differ.mean() < 0.5


SEEDS = {"l": 0, "c": 5, "lc": 5}  # at which decisions differ


@pytest.mark.parametrize("kind", SEEDS)
def test_training_sees_what_inference_runs(kind):
    """Logits so large that no noise turns them; one system, both kinds of choice."""
    chain, widths = chains.build(NET), (4, 6)
    levels = {"c": ((1, 4), (2, 4, 6))}.get(kind, ((0, 1, 4), (0, 2, 4, 6)))
    levels = ((0, 4), (0, 6)) if kind == "l" else levels
    module = lcnet.Salience(widths, layers="l" in kind, channels="c" in kind, hidden=5)
    params = salient(module, (4, 4), 1e3, seed=SEEDS[kind])

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


def salient(module, sizes, size, seed=5):
    """Parameters whose logits are ``size`` times as large as those of a normal draw."""

    def initial(key):
        params = {}
        for site, width in enumerate(sizes):
            params |= module.init(key, jnp.zeros((1, width)), jnp.zeros(1), site=site)["params"]
        return params

    params = drawn(jax.eval_shape(initial, jax.random.key(0)), seed=seed)
    return {
        name: leaf
        if "hidden" in name or "scale" in name
        else {k: size * v for k, v in leaf.items()}
        for name, leaf in params.items()
    }


def test_gradients_reach_the_logits_of_what_is_not_kept():
    """Through the whole network: the loss's alone, without the budget's."""
    chain, levels = chains.build("vgg"), ((2, 5), (3, 6))
    module = lcnet.Salience((5, 6), layers=False, channels=True, hidden=5)
    params = salient(module, (4, 5), 1.0)

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
    logits, weights = numbers(3, 8), numbers(3, 8, seed=1)
    scales = jnp.full((3, 8), 0.5)

    def kept(logits):
        choice, work = lcnet._decided(salience(logits, scales), (2, 4, 8), None)
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


# Feature boosting and suppression.


def boost(saliency, levels, density):
    """Decisions at one site from saliencies that are given, not predicted."""
    width = levels[-1]
    module = fbs.Boost((width,))
    kernel = jnp.concatenate([jnp.eye(width), jnp.zeros((1, width))])
    params = {"saliency0": {"kernel": kernel, "bias": jnp.zeros(width)}}
    decide = fbs.policy(module, params, (levels,), jnp.float32(0.3), density)
    return decide(0, saliency, None)


@pytest.mark.parametrize(
    ("density", "level"),
    [(0.05, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (0.7501, 2), (0.8, 3), (1.0, 3)],
)
def test_as_many_channels_as_the_share_asks_for_and_those_of_the_largest_saliency(density, level):
    saliency = jnp.abs(numbers(6, 8))
    choice, _, note = jax.jit(lambda s, d: boost(s, (2, 4, 6, 8), d))(
        saliency, jnp.float32(density)
    )
    np.testing.assert_array_equal(choice.level, np.full(6, level))
    np.testing.assert_allclose(choice.scale, saliency, rtol=1e-6)
    np.testing.assert_allclose(note, saliency.mean(axis=-1), rtol=1e-5)
    count = 2 * (level + 1)
    for row, order in zip(np.asarray(saliency), np.asarray(choice.order), strict=True):
        assert set(order[:count]) == set(np.argsort(row)[-count:])


def test_saliency_is_rectified_and_only_winners_have_a_gradient():
    chain, levels = chains.build("vgg"), ((2, 5), (3, 6))
    module = fbs.Boost((5, 6))
    params = salient(module, (4, 5), 1.0)
    params["saliency0"]["bias"] += 1.0

    @chains.jit
    def gradients(x, extra, density):
        def loss(extra):
            policy = fbs.policy(module, params, levels, jnp.float32(0.0), density)

            def shifted(site, pooled, carry):
                choice, carry, note = policy(site, pooled, carry)
                return choice._replace(scale=choice.scale + extra[site]), carry, note

            found = run(chain, levels, chains.variables("vgg"), x, shifted, MASKED)
            return jnp.square(found.logits).sum(), found.choices

        return jax.grad(loss, has_aux=True)(extra)

    zeros = [jnp.zeros((chains.BATCH, width)) for width in (5, 6)]
    grads, choices = gradients(chains.images(), zeros, jnp.float32(0.4))
    for found, choice, count in zip(grads, choices, (2, 3), strict=True):
        assert np.min(choice.scale) == 0.0
        winners = np.zeros(choice.scale.shape, bool)
        np.put_along_axis(winners, np.asarray(choice.order)[:, :count], True, axis=-1)
        np.testing.assert_array_equal(np.asarray(found)[~winners], 0.0)
        assert np.mean(np.asarray(found)[winners] != 0.0) > 0.5


def test_saliencies_may_take_the_place_of_the_norms_scale():
    x, gates = numbers(2, 4, 4, 3), jnp.abs(numbers(2, 3, seed=1)).at[0, 1].set(0.0)
    norm = layers.norm("a", name="norm", train=False, dtype=jnp.float32)
    params = {"scale": numbers(3, seed=2), "bias": numbers(3, seed=3)}
    stats = {"mean": numbers(3, seed=4), "var": jnp.abs(numbers(3, seed=5))}
    variables = {"params": params, "batch_stats": stats}
    inside = GatedNorm(False, jnp.float32)
    found = jax.jit(lambda x, g: jax.nn.relu(inside.apply(variables, x, g)))(x, gates)
    wanted = jax.jit(lambda x, g: jax.nn.relu(norm.apply(variables, x)) * g[:, None, None])(
        x, gates
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(wanted).max() > 0.1
