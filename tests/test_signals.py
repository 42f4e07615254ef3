"""The algebra of signals: its names and counts, and every signal against a literal reference."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import signal_nets
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from nets import x64
from signal_nets import Stack, flat, scene

from dce_jax import signals
from dce_jax.signals import algebra, pointwise, reduction, scaling
from experiments import signals as command

QUICK = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate]}
BOTH, ALL = algebra.BASES, (*algebra.BASES, *algebra.OTHER_BASES)


@pytest.fixture(autouse=True, scope="module")
def cheap():
    """Compiling is what these tests spend their time on."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norms_of_very_small_and_very_large_values_are_right(size):
    values = {"a": jnp.asarray([3.0, 0.0, -4.0]) * size, "b": jnp.zeros(2)}
    found = scaling.scaled(values, "l2", {})
    np.testing.assert_allclose(found["a"], [0.6, 0.0, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], [0.0, 0.0])


@functools.cache
def computed(activation, bases=BOTH):
    """A small float64 network, some of its channels inactive, and its signals."""
    with x64():
        module = Stack(activation=activation, dtype=jnp.float64)
        small = scene(module, active={"a": 3, "b": 4}, seed=5)
        # On ReLU networks the default is exact; on others only one product per element is.
        second = None if activation is nn.relu else signals.exact()
        return small, signals.values(signals.combinations(bases), small, second=second)


# Names and counts.


def test_there_are_420_spellings_of_396_formulas():
    spellings = signals.combinations()
    assert len(spellings) == len(set(spellings)) == 2 * 7 * 5 * 6 == 420
    distinct = signals.formulas()
    assert len(distinct) == len(set(distinct)) == 396
    assert {signals.canonical(f) for f in spellings} == set(distinct)
    assert all(signals.canonical(f) == f for f in distinct)
    assert all(signals.parse(str(f)) == f for f in spellings)
    counts = {
        name: len(algebra.formulas(bases, signs))
        for name, bases, signs in [
            ("relu", BOTH, algebra.RELU),
            ("after relu", ("units", "weights"), algebra.AFTER_RELU),
        ]
    }
    assert counts == {"relu": 372, "after relu": 360}


@pytest.mark.parametrize(
    ("signs", "h_sign", "x_sign", "functions"),
    [(algebra.ALWAYS, 0, 0, 33), (algebra.RELU, 1, 0, 31), (algebra.AFTER_RELU, 1, 1, 29)],
    ids=["any network", "relu", "after relu"],
)
def test_the_canonical_form_is_equality_of_functions(signs, h_sign, x_sign, functions):
    # As functions of free numbers x, g and h, each signed as the network allows, nothing else.
    draw = np.random.default_rng(0)
    x, g, h = draw.normal(size=(3, 5, 40))
    x, h = (np.abs(v) if sign else v for v, sign in ((x, x_sign), (h, h_sign)))
    classes = {}
    for one, reduce in itertools.product(algebra.POINTWISE, algebra.REDUCTIONS):
        value, order = pointwise.BY_NAME[one]
        f = value(*(jnp.asarray(v, jnp.float32) for v in (x, g, h)[: order + 1]))
        values = np.asarray(reduction.BY_NAME[reduce](reduction.sums(f)))
        same = [o for o, v in classes.items() if np.allclose(v, values, rtol=1e-4, atol=1e-5)]
        first = same[0] if same else (one, reduce)
        classes.setdefault(first, values)
        name = signals.canonical(signals.Formula("units", one, reduce, "none"), signs)
        assert (name.pointwise, name.reduction) == first
    assert len(classes) == functions


def partition(values):
    """Numerical twins among signals: first name of each class -> all its names."""
    names = list(values)
    table = np.stack([flat(values[name]) for name in names])
    sizes = np.max(np.abs(table), axis=1)
    classes = {}
    for i, name in enumerate(names):
        for first in classes:
            j = names.index(first)
            gap = np.max(np.abs(table[i] - table[j])) / max(sizes[i], sizes[j])
            assert gap < 1e-11 or gap > 1e-5, (name, first, gap)  # nothing in between
            if gap < 1e-11:
                classes[first].append(name)
                break
        else:
            classes[name] = [name]
    return classes


def check_coincidences(values, signs, expected, also=lambda formula: formula):
    """Signals coincide where canonical form and constant factors say so, and nowhere else."""
    assert np.all([np.max(np.abs(flat(v))) > 1e-9 for v in values.values()])
    for classes in partition(values).values():
        predicted = {also(one_of_twins(signals.canonical(f, signs))) for f in classes}
        assert len(predicted) == 1, classes
    assert len(partition(values)) == expected


def one_of_twins(formula):
    other = algebra.twin(formula)
    return formula if other is None else min(formula, other, key=str)


def test_formulas_differ_pairwise_on_a_tanh_network_but_for_four_pairs():
    _, values = computed(nn.tanh)
    check_coincidences(values, algebra.ALWAYS, 396 - 4)
    pairs = {frozenset((f, algebra.twin(f))) for f in signals.formulas() if algebra.twin(f)}
    assert len(pairs) == 4
    for one, other in pairs:
        np.testing.assert_allclose(flat(values[one]), flat(values[other]), rtol=1e-12)


def test_coincidences_on_a_relu_network():
    _, values = computed(nn.relu, ALL)
    base = {name: {f: v for f, v in values.items() if f.base in name} for name in (BOTH, AFTER)}
    check_coincidences(base[BOTH], algebra.RELU, 372 - 4)
    check_coincidences(base[AFTER], algebra.AFTER_RELU, 360 - 4)


AFTER = ("units", "weights")


def test_without_biases_the_weights_taylor_is_that_of_the_activations():
    # y = w * x is linear in w: the sum of w dL/dw over a filter is that of y dL/dy over positions.
    for bias in (True, False):
        with x64():
            small = scene(Stack(bias=bias, dtype=jnp.float64), active={"a": 3, "b": 4}, seed=5)
            taylor = [f for f in signals.combinations() if f.pointwise == "taylor"]
            values = {f: flat(v) for f, v in signals.values(taylor, small).items()}
        equal = 0
        for formula, value in values.items():
            _, *rest = str(formula).split(".")
            other = values[signals.Formula("activations", *rest)]
            linear = formula.reduction in reduction.OF_THE_TOTAL
            if formula.base == "weights":
                if linear and "cardinality" not in formula.scaling and not bias:
                    np.testing.assert_allclose(value, other, rtol=1e-9)
                    equal += 1
                else:
                    assert np.max(np.abs(value - other)) > 1e-5 * np.max(np.abs(other)), formula
        assert equal == (0 if bias else 12)


# The reference.


def check_reference(small, found, bases):
    slow = signal_nets.reference(small, bases)
    assert {str(formula) for formula in found} == set(slow)
    for formula, values in found.items():
        assert list(values) == list(small.module.widths)
        if formula.base.startswith("centred") and str(formula).split(".")[1:3] == ["x", "sum"]:
            # A mean of distances from the mean: rounding, whatever it is divided by.
            assert formula.scaling in ("l1", "l2") or np.max(np.abs(flat(values))) < 1e-13
            continue
        for group, value in values.items():
            expected = slow[str(formula)][group]
            np.testing.assert_allclose(
                value,
                expected,
                rtol=1e-9,
                atol=1e-12 * np.max(np.abs(expected)),
                err_msg=f"{formula} of {group}",
            )


@pytest.mark.parametrize(("activation", "bases"), [(nn.tanh, BOTH), (nn.relu, ALL)])
def test_every_signal_is_its_literal_reference(activation, bases):
    small, found = computed(activation, bases)
    assert len(found) == 210 * len(bases)
    with x64():
        check_reference(small, found, bases)


@settings(max_examples=2, **QUICK)
@given(
    st.sampled_from([nn.swish, nn.sigmoid]),
    st.integers(1, 4),
    st.integers(2, 5),
    st.sampled_from([1, 3]),
    st.booleans(),
    st.sampled_from(ALL),
    st.integers(0, 99),
)
def test_signals_of_random_networks_are_the_reference(activation, a, b, size, bias, base, seed):
    module = Stack(activation=activation, size=size, bias=bias, dtype=jnp.float64)
    with x64():
        small = scene(module, active={"a": a, "b": b}, seed=seed)
        found = signals.values(signals.combinations([base]), small, second=signals.exact())
        check_reference(small, found, [base])


# The command.


def test_the_list_is_the_algebra_and_the_others_are_everything_else(capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == [str(f) for f in signals.formulas()] and len(set(listed)) == 396
    assert listed[0] == "activations.x.sum.none"
    assert command.main(["--list-extra"]) == 0
    others = capsys.readouterr().out.splitlines()
    assert len(others) == len(set(others)) and not set(others) & set(listed)
    assert {"norm_taylor", "molchanov_taylor", "activations.apoz", "random"} <= set(others)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.x.l1", r"'weights.x.l1' has 3 parts, not 4: .*activations.taylor.abs_sum.l2"),
        ("weigths.x.l1.none", "unknown base 'weigths' of a signal; did you mean 'weights'[?] One"),
        ("weights.tailor.l1.none", "unknown pointwise 'tailor'.*did you mean 'taylor'"),
        ("weights.x.l3.none", "unknown reduction 'l3'.*One of sum, l1, l2, abs_sum, sqr_sum"),
        ("weights.x.l1.macs", "unknown scaling 'macs'.*weights_removed"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        signals.parse(name)
