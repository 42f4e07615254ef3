"""Five systems under one roof: what they refuse, what their knob does, what deciding costs."""

import functools

import chains
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.runtime import MASKED, SWITCHED, chunked, run, systems

NET = "padding"
PARTS = {"rnp": 3, "l": 1, "c": 2, "lc": 2, "fbs": 4}


@functools.cache
def built(name, net=NET, span=None):
    return systems.build(
        name,
        chains.build(net),
        chains.variables(net),
        chains.EXAMPLE,
        parts=PARTS[name],
        span=span,
    )


def params(system):
    """Random ones: those that training begins with keep everything."""
    shapes = jax.eval_shape(lambda key: systems.initial(system, key), jax.random.key(0))
    draw = np.random.default_rng(4)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype), shapes)


@functools.cache
def program(name, execution):
    system, variables = built(name), chains.variables(NET)

    def outcome(params, x, knob):
        policy = systems.policy(system, params, knob)
        found = run(system.chain, system.levels, variables, x, policy, execution)
        return found._replace(variables=None)

    return chains.jit(outcome)


def images():
    return chains.images() * jnp.linspace(0.1, 4.0, chains.BATCH).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("name", systems.NAMES)
def test_a_system_decides_alike_however_it_runs(name):
    """Decisions and logits, at both ends of the knob; one compilation serves both."""
    system, x = built(name), images()
    weights = params(system)
    forms = {"rnp": [SWITCHED], "l": [chunked(3)], "lc": [SWITCHED]}.get(name, [])
    unlike = 0
    for knob in map(jnp.float32, system.span):
        masked = program(name, MASKED)(weights, x, knob)
        levels = np.stack([choice.level for choice in masked.choices])
        unlike += len(np.unique(levels)) > 1
        for form in forms:
            rows = [x] if form is not SWITCHED else [x[i : i + 1] for i in range(chains.BATCH)]
            found = [program(name, form)(weights, row, knob) for row in rows]
            logits = np.concatenate([each.logits for each in found])
            np.testing.assert_allclose(logits, masked.logits, rtol=2e-5, atol=2e-5)
            for site, choice in enumerate(masked.choices):
                mine = np.concatenate([each.choices[site].level for each in found])
                np.testing.assert_array_equal(mine, choice.level)
    assert unlike or name == "fbs"
    for form in (MASKED, *forms):
        assert program(name, form)._cache_size() == 1


@pytest.mark.parametrize("name", systems.NAMES)
def test_the_knob_is_seen(name):
    system, weights = built(name), params(built(name))
    low, high = (
        program(name, MASKED)(weights, images(), jnp.float32(knob)) for knob in system.span
    )
    assert np.abs(low.logits - high.logits).max() > 1e-3


def test_as_many_channels_run_as_the_density_asks_for():
    system = built("fbs")
    assert system.levels == ((1, 2, 3, 4), (2, 3, 5, 6))
    for knob, level in ((0.25, 0), (0.5, 1), (0.75, 2), (1.0, 3)):
        found = program("fbs", MASKED)(params(system), images(), jnp.float32(knob))
        for choice in found.choices:
            np.testing.assert_array_equal(choice.level, np.full(chains.BATCH, level))


@pytest.mark.parametrize("name", ["l", "c", "lc"])
def test_salience_begins_with_the_whole_network(name):
    system = built(name)
    start = chains.jit(functools.partial(systems.initial, system))(jax.random.key(0))
    found = program(name, MASKED)(start, images() * 0.1, jnp.float32(system.span[1]))
    for choice, widths in zip(found.choices, system.levels, strict=True):
        np.testing.assert_array_equal(choice.level, np.full(chains.BATCH, len(widths) - 1))
        for each in (choice.scale, choice.share):
            if each is not None:
                np.testing.assert_allclose(each, np.ones_like(each), rtol=1e-6)


def test_levels_are_equal_shares_and_zero_where_layers_are_skipped():
    assert built("rnp").levels == ((2, 3, 4), (2, 4, 6))
    assert built("l").levels == ((0, 4), (0, 6))
    assert built("c").levels == ((2, 4), (3, 6))
    assert built("lc").levels == ((0, 2, 4), (0, 3, 6))
    assert built("rnp").sizes == (4, 4)
    assert built("rnp", "vgg").sizes == (4, 5)
    assert built("rnp").costs.full == built("fbs").costs.full


def test_noise_needs_a_key():
    weights = params(built("rnp"))

    @chains.jit
    def level(key, epsilon):
        found = []
        for options in ({}, {"epsilon": epsilon}, {"key": key, "epsilon": epsilon}):
            policy = systems.policy(built("rnp"), weights, jnp.float32(-0.1), **options)
            found.append(policy(0, jnp.ones((200, 4)), None)[0].level)
        return found

    greedy, keyless, explored = level(jax.random.key(0), 1.0)
    np.testing.assert_array_equal(greedy, keyless)
    assert len(np.unique(greedy)) == 1
    assert np.bincount(explored, minlength=3).min() > 30


def test_what_deciding_costs():
    sizes = (4, 4)
    cell = 3 * 33 * 32 + 3 * 32 * 32  # three gates, each of what is seen and what is carried
    assert built("rnp").deciding == sum(size * 32 + cell + 32 * 3 for size in sizes)
    assert built("fbs").deciding == 5 * 4 + 5 * 6
    for name, outputs in (("l", (1, 1)), ("c", (4, 6)), ("lc", (5, 7))):
        # Logits and scales of every output.
        assert built(name).deciding == sum(5 * 16 + 2 * 16 * out for out in outputs)


@pytest.mark.parametrize("name", systems.NAMES)
def test_a_knobs_place_and_the_knob_at_a_place_are_inverse(name):
    system = built(name)
    low, high = system.span
    assert systems.scaled(system, low) == pytest.approx(-1.0, abs=1e-5)
    assert systems.scaled(system, high) == pytest.approx(1.0, abs=1e-5)
    places = jnp.linspace(-1, 1, 7)
    knobs = systems.at(system, places)
    assert np.all(np.diff(knobs) > 0)
    np.testing.assert_allclose(systems.scaled(system, knobs), places, atol=1e-5)
    middle = -np.sqrt(low * high) if name == "rnp" else (low + high) / 2
    np.testing.assert_allclose(systems.at(system, jnp.float32(0.0)), middle, rtol=1e-5)


@pytest.mark.parametrize("name", ["l", "lc"])
def test_a_network_without_shortcuts_cannot_skip_layers(name):
    with pytest.raises(ValueError, match="conv1 has no shortcut, so nothing is left of it"):
        built(name, "vgg")


@pytest.mark.parametrize("name", ["rnp", "c", "fbs"])
def test_a_network_without_shortcuts_may_choose_channels(name):
    assert built(name, "vgg").deciding > 0
    assert built(name, "vgg").levels[0][-1] == 5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fbs", {"parts": 5}, "5 widths asked of stage0_block0, which has 4 channels"),
        ("sact", {"parts": 2}, "unknown system 'sact': one of rnp, l, c, lc, fbs"),
        ("l", {"parts": 2}, "not among 2 widths: parts = 1"),
        ("rnp", {"parts": 1}, "rnp with 1 width has nothing to choose from: parts >= 2"),
        ("lc", {"parts": 1}, "lc with 1 width has nothing to choose from"),
        (
            "c",
            {"parts": 2, "span": (0.9, 0.3)},
            "budget from 0.9 to 0.3: c needs two ends that rise",
        ),
        ("c", {"parts": 2, "span": (0.5, 0.5)}, "budget from 0.5 to 0.5"),
        ("lc", {"parts": 2, "span": (0.0, 1.0)}, "above 0 and at most 1"),
        ("fbs", {"parts": 2, "span": (0.5, 1.1)}, "density from 0.5 to 1.1"),
        ("rnp", {"parts": 2, "span": (-0.1, 0.0)}, "price from -0.1 to 0.0.*below 0"),
        ("rnp", {"parts": 2, "span": (-0.1, -0.2)}, "price from -0.1 to -0.2"),
        ("rnp", {"parts": 2, "span": (float("-inf"), -0.2)}, "price from -inf"),
        ("c", {"parts": 2, "span": (float("nan"), 1.0)}, "budget from nan"),
    ],
)
def test_systems_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        systems.build(name, chains.build(NET), chains.variables(NET), chains.EXAMPLE, **options)


@pytest.mark.parametrize(
    ("name", "knob", "what"),
    [
        ("rnp", -0.31, "price -0.31"),
        ("rnp", 0.0, "price 0"),
        ("c", 0.29, "budget 0.29"),
        ("l", 1.01, "budget 1.01"),
        ("fbs", float("nan"), "density nan"),
    ],
)
def test_a_knob_outside_of_the_span_is_refused(name, knob, what):
    with pytest.raises(ValueError, match=f"{what} lies outside of what {name} was trained for"):
        systems.check_knob(built(name), knob)


def test_a_knob_within_the_span_is_not():
    system = built("c", NET, (0.4, 0.8))
    assert system.span == (0.4, 0.8)
    for knob in (0.4, 0.6, 0.8, float(np.float32(0.8))):
        systems.check_knob(system, knob)
