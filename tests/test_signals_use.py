"""Extras and published criteria in closed form; any signal as reward, score and ranking."""

import functools
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs
import signal_nets
from flax.core import FrozenDict
from nets import ConvNet, batch, channel_map, evidence, variables
from signal_nets import Stack, scene
from steps import host, jitted, setup

from dce_jax import allocate, budget, saliency, signals, step
from dce_jax.signals import algebra, extra, named
from dce_jax.types import Evidence
from experiments import blocks, checks, config, ranking, scoring, sources
from experiments.programs import Programs

pytestmark = pytest.mark.one_set


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """Compiling is what these tests spend their time on."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def small():
    return scene(Stack(activation=nn.relu), size=24, seed=1)


@functools.cache
def slow(base):
    return signal_nets.derivatives(small(), base)


def computed(name, of=None, key=None):
    of = of or small()
    signal = signals.signal(name, of.module, of.channels)
    assert signal.name == name and signal.own_pass and not signal.needs_gates
    return signal.value(Evidence(of.params, {}, {}, of.model_state, of.batch, key))


# Extras against NumPy.


def information(values, labels):
    """Mutual information of two lists of integers, term by term."""
    count, total = len(values), 0.0
    for v in set(values):
        for label in set(labels):
            both = sum(a == v and b == label for a, b in zip(values, labels, strict=True)) / count
            if both:
                apart = list(values).count(v) * list(labels).count(label) / count**2
                total += both * np.log(both / apart)
    return total


def binned(x):
    low, high = x.min(), x.max()
    return [min(int((v - low) / (high - low) * extra.BINS), extra.BINS - 1) for v in x]


@pytest.mark.parametrize("base", ["activations", "units"])
def test_statistics_of_activations(base):
    labels = np.asarray(small().batch["label"]).tolist()
    for group in small().module.widths:
        x = np.stack([values[group] for values, _, _ in slow(base)])
        flat = x.reshape(-1, x.shape[-1])
        expected = {
            "apoz": np.mean(flat > 0, axis=0),
            "mean": np.mean(flat, axis=0),
            "std": np.std(flat, axis=0),
            "mutual_information": [
                information(binned(c), labels) for c in x.mean(axis=(1, 2)).astype(np.float32).T
            ],
        }
        for name, values in expected.items():
            found = computed(f"{base}.{name}")[group]
            np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert max(computed(f"{base}.mutual_information")["b"]) > 0.05


def test_moments_of_several_layers_are_those_of_their_union():
    draw = np.random.default_rng(0)
    one, two = (jnp.asarray(draw.normal(1.0, 2.0, (6, s, s, 3)), jnp.float32) for s in (4, 2))
    found = extra._merged(extra._moments(one), extra._moments(two))
    both = np.concatenate([np.asarray(v).reshape(6, -1, 3) for v in (one, two)], axis=1)
    flat = both.reshape(-1, 3)
    assert found.elements == len(flat) == 6 * 20
    np.testing.assert_allclose(found.mean, flat.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.spread / len(flat), flat.var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.positive, (flat > 0).sum(axis=0))
    np.testing.assert_allclose(found.example_BC, both.mean(axis=1), rtol=1e-4, atol=1e-6)


def test_filters_near_the_geometric_median_are_worth_least():
    found = computed("weights.geometric_median")
    for group, values in found.items():
        kernel = np.asarray(small().params[f"conv_{group}"]["kernel"], np.float64)
        rows = kernel.reshape(-1, kernel.shape[-1]).T
        expected = [sum(np.linalg.norm(row - other) for other in rows) for row in rows]
        np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_random_values_follow_the_key():
    one, two, again = (computed("random", key=jax.random.key(k)) for k in (0, 1, 0))
    for group, values in one.items():
        assert values.shape == (small().module.widths[group],)
        assert 0 <= np.min(values) < np.max(values) < 1
        assert not np.allclose(values, two[group])
        np.testing.assert_array_equal(values, again[group])


# Published criteria, as their papers write them.


def per_filter(group, of):
    kernel = np.asarray(small().params[f"conv_{group}"]["kernel"], np.float64)
    return of(kernel.reshape(-1, kernel.shape[-1]))


def per_map(group, of, base="activations"):
    """Mean over examples of a function of a feature map and its gradient, [M, C] each."""
    found = [
        of(*(v[group].reshape(-1, v[group].shape[-1]) for v in (x, g))) for x, g, _ in slow(base)
    ]
    return np.mean(found, axis=0)


def by_l2(values):
    return values / np.linalg.norm(values)


PUBLISHED = {
    "l1_norm": lambda g: per_filter(g, lambda w: np.abs(w).sum(axis=0)),
    "l2_norm": lambda g: per_filter(g, lambda w: np.linalg.norm(w, axis=0) ** 2),
    "min_weight": lambda g: per_filter(g, lambda w: np.mean(w**2, axis=0)),
    "molchanov_taylor": lambda g: by_l2(per_map(g, lambda z, d: np.abs(np.mean(d * z, axis=0)))),
    "molchanov_taylor_mean": lambda g: per_map(g, lambda z, d: np.abs(np.mean(d * z, axis=0))),
    "theis_fisher": lambda g: per_map(g, lambda a, d: 0.5 * np.sum(-a * d, axis=0) ** 2),
    "evci_removal": lambda g: by_l2(
        per_map(g, lambda a, d: np.abs(np.mean(-a * d, axis=0)), "units")
    ),
    "evci_mean_replacement": lambda g: by_l2(
        per_map(g, lambda a, d: np.abs(np.mean(-a * d, axis=0)), "centred_units")
    ),
    "evci_mean_replacement_l1": lambda g: per_map(
        g, lambda a, d: np.sum(np.abs(d * a), axis=0), "centred"
    ),
}


@pytest.mark.parametrize("name", named.BY_NAME)
def test_published_criteria_are_points_of_the_algebra(name):
    found = computed(name)
    for group in small().module.widths:
        np.testing.assert_allclose(found[group], PUBLISHED[name](group), rtol=1e-4, atol=1e-6)


def test_the_documented_example_runs_and_the_tables_are_the_code():
    text = (Path(__file__).parents[1] / "docs" / "signals.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(compile(code, "docs/signals.md", "exec"), names)
    for group, values in names["worth"].items():
        assert values.shape == (names["network"].widths[group],)
        np.testing.assert_allclose(np.linalg.norm(values), 1.0, rtol=1e-5)
    for name, point in named.BY_NAME.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` ")]
        assert f"`{point.formula}`" in row and ("1/2" in row) == (point.factor == 0.5)
    for part in (*algebra.POINTWISE, *algebra.REDUCTIONS, *algebra.SCALINGS, *extra.BY_NAME):
        assert f"`{part}`" in text or part.split(".")[-1] in text, part


# As a reward.


def test_signed_values_begin_at_zero():
    values = {"a": jnp.asarray([-3.0, 1.0, jnp.nan]), "b": jnp.asarray([5.0, 5.0, jnp.inf])}
    unit = saliency.to_unit(values, signed=True)
    np.testing.assert_array_equal(unit["a"], [0.0, 1.0, np.nan])
    np.testing.assert_array_equal(unit["b"], [0.0, 0.0, np.inf])
    together = saliency.from_zero(values)
    np.testing.assert_array_equal(together["a"], [0.0, 4.0, np.nan])
    np.testing.assert_array_equal(together["b"], [8.0, 8.0, np.inf])
    nothing = saliency.from_zero({"a": jnp.asarray([jnp.nan])})
    assert np.isnan(nothing["a"]).all()


@pytest.mark.parametrize(
    "name", ["activations.taylor.sum.none", "weights.taylor_2nd.l1.weights_removed", "random"]
)
def test_any_signal_rewards_a_step(name):
    module, half = ConvNet(), budget.from_fraction(ConvNet().widths, 0.5)
    thin, found = module.clone(widths=FrozenDict(half.compact)), channel_map(module)
    signal = signals.signal(name, thin, found)
    pieces, state = setup(module, half, optax.sgd(0.1), signal=signal)
    inside = jitted(step.enter, pieces)(state)
    after, _ = jitted(step.observe, pieces)(inside, batch())
    if name == "random":
        again, _ = jitted(step.observe, pieces)(inside._replace(loop=after.loop), batch())
        assert not np.allclose(after.rewards["b"], again.rewards["b"])  # a draw per step
        return
    # The parameters and statistics that the forward pass used, not those after the step.
    of = signals.Scene(thin, found, inside.loop.params, inside.loop.model_state, batch())
    values = host(signals.value(signals.parse(name), of))
    assert signal.signed == ("sum" in name) == any(np.min(v) < 0 for v in values.values())
    for group, value in values.items():
        value = value - np.min(value) if signal.signed else value
        np.testing.assert_allclose(
            after.rewards[group], value / np.max(value), rtol=1e-3, atol=1e-4
        )


def test_evidence_without_examples_is_refused():
    seen = evidence(ConvNet(), variables(ConvNet()), batch())
    signal = signals.signal("activations.g.l1.none", ConvNet(), channel_map(ConvNet()))
    with pytest.raises(ValueError, match="read off labelled examples, but none were given: hand"):
        signal.value(seen)


# In configs and scoring passes.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.x.l7.none", "unknown reduction 'l7' of a signal"),
        ("molchanov_tailor", "unknown signal 'molchanov_tailor'; did you mean 'molchanov_taylor'"),
        ("weights.taylor.l1", "unknown signal .*did you mean 'weights.taylor"),
        ("??", r"unknown signal '\?\?'\. `python -m experiments.signals --list`"),
    ],
)
def test_configs_refuse_names_that_mean_nothing(name, message):
    made = config.defaults()
    for good in ("weights.x.l1.none", "theis_fisher", "units.std", "norm_taylor", "random"):
        made.signal = good
        checks.check(made)
    made.signal = name
    with pytest.raises(ValueError, match=message):
        checks.check(made)


SIGNED = "activations.taylor.sum.weights_removed"
SCORED = {
    "method": "dce",
    "steps": 20,
    "select_every": 2,
    "commit": 0.5,
    "block": 4,
    "scoring": 2,
    "allocation": "global",
    "plans": 2,
    "scale": "none",
}


def test_a_signed_score_ranks_all_layers_together(lab):
    run = runs.built(lab, **SCORED, signal=SIGNED)
    loop = blocks.start(run).dce.loop
    found = scoring.saliencies(run, Programs(), loop)
    raw = {}
    batches = scoring.evaluate.training_batches(
        run.data, augment=sources.augmentation(run.config), examples=16, batch_size=8
    )
    for examples in batches:
        of = signals.Scene(run.module, run.channels, loop.params, loop.model_state, examples)
        for group, values in signals.value(signals.parse(SIGNED), of).items():
            raw[group] = raw.get(group, 0) + np.asarray(values) / 2
    least = min(v.min() for v in raw.values())
    assert least < 0
    for group, values in raw.items():
        np.testing.assert_allclose(found[group], values - least, rtol=1e-3, atol=1e-6)
    # And so it allocates: the least worth of all channels is the first to go.
    saliencies = {g: np.asarray(v, np.float64) for g, v in found.items()}
    bud = allocate.budget(run.budget.full, saliencies, 0.95, lambda w: sum(w.values()))
    worst = min(raw, key=lambda g: raw[g].min())
    assert bud.compact == {**run.budget.full, worst: run.budget.full[worst] - 1}


def test_a_run_learns_its_budget_by_a_formula_and_pays_for_it(lab):
    found, _ = lab.run(**SCORED, signal=SIGNED)
    run = runs.built(lab, **SCORED, signal=SIGNED)

    def passes(widths):
        # Forward, and backward to every layer's output: not to the image, nor to any kernel.
        backward = runs.macs(widths) - 16 * 9 * widths["conv0"]
        return 8 * (runs.macs(widths) + backward)

    assert scoring.own_macs(run, run.budget) == passes(run.budget.compact)
    ends = [*(plan["step"] for plan in found["plans"][1:]), found["steps"]]
    spans = list(zip(found["plans"], ends, strict=True))
    steps = sum(24 * (end - p["step"]) * runs.macs(p["widths"]) for p, end in spans)
    rewards = sum((end - p["step"]) * passes(p["widths"]) for p, end in spans[:-1])
    scored = 2 * 2 * passes(runs.FULL)  # two plans of two batches
    recalibrated = 16 * found["macs_compact"]
    assert spans[-1][0]["step"] == found["commit_step"] == 10
    assert found["train_macs"] == steps + rewards + scored + recalibrated
    plain = ranking.make_signal("norm_taylor", run.module, run.channels, run.budget)
    assert not plain.own_pass
