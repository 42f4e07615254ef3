"""Learned budgets: against a literal loop, and what they refuse."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking import heads

from dce_jax import allocate
from dce_jax.budget import from_widths, from_wishes

WIDTHS = {"a": 4, "b": 6}


def chain(widths):
    """MACs of a chain of dense layers from 3 features to 2."""
    sizes = [3, *widths.values(), 2]
    return sum(x * y for x, y in pairwise(sizes))


def literal(widths, saliencies, fraction, multiple_of, min_channels):
    """Drops the worst channel of all, one at a time, until the rounded budget fits."""
    for found in reversed(heads(widths, saliencies, multiple_of, min_channels)):
        if chain(found) <= fraction * chain(widths) * (1 + 1e-12):
            return from_widths(widths, found)
    return None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_learned_budget_is_the_longest_head_of_the_ranking_that_fits(data):
    sizes = data.draw(st.lists(st.integers(4, 9), min_size=1, max_size=4))
    widths = {f"g{i}": size for i, size in enumerate(sizes)}
    # Few distinct values: ties between groups and within them.
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    saliencies = {
        g: np.array(data.draw(st.lists(values, min_size=c, max_size=c))) for g, c in widths.items()
    }
    fraction = data.draw(st.floats(0.05, 1.0))
    multiple_of, least = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 3), (4, 1)]))
    expected = literal(widths, saliencies, fraction, multiple_of, least)
    options = {"multiple_of": multiple_of, "min_channels": least}
    if expected is None:
        with pytest.raises(ValueError, match="cannot be met"):
            allocate.budget(widths, saliencies, fraction, chain, **options)
    else:
        assert allocate.budget(widths, saliencies, fraction, chain, **options) == expected


def test_a_worthless_group_keeps_its_floor_and_whole_groups_stay():
    saliencies = {"a": np.zeros(4), "b": np.arange(1.0, 7.0)}
    found = allocate.budget(WIDTHS, saliencies, 0.6, chain, min_channels=2)
    assert found.compact == {"a": 2, "b": 5} and chain(found.compact) <= 0.6 * chain(WIDTHS)
    held = allocate.budget(WIDTHS, {"b": saliencies["b"]}, 0.6, chain, whole=["a"])
    assert held.compact == {"a": 4, "b": 2}


def test_the_whole_target_is_the_full_network():
    saliencies = {group: np.ones(width) for group, width in WIDTHS.items()}
    assert allocate.budget(WIDTHS, saliencies, 1.0, chain).compact == WIDTHS


def test_scales_by_hand():
    given = {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}
    for scale, expected in (
        (allocate.by_max, [0.75, 1.0]),
        (allocate.by_l2, [0.6, 0.8]),
        (allocate.by_mean, [6 / 7, 8 / 7]),
    ):
        found = scale(given)
        np.testing.assert_allclose(found["a"], expected, rtol=1e-15)
        np.testing.assert_array_equal(found["b"], 0.0)
        assert found["a"].dtype == np.float64
    costly = allocate.per_cost({"a": np.ones(4), "b": np.ones(6)}, WIDTHS, chain)
    np.testing.assert_allclose(costly["a"], 1 / (3 + 6))  # one of a's channels
    np.testing.assert_allclose(costly["b"], 1 / (4 + 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"target 0.0 is outside \(0, 1\]"),
        ({"fraction": 1.5}, r"target 1.5 is outside \(0, 1\]"),
        ({"fraction": 0.01}, "target of 0.01 .* cannot be met: the narrowest.* costs 6"),
        ({"whole": ["c"]}, "unknown channel group 'c'"),
        ({"whole": ["a", "b"]}, "every group is held whole"),
        ({"saliencies": {"a": np.ones(4)}}, "no saliency of group 'b'"),
        ({"saliencies": {"a": np.ones(4), "bb": np.ones(6)}}, "unknown .* did you mean 'b'"),
        ({"saliencies": {"a": np.ones(3), "b": np.ones(6)}}, "group 'a' must be 4 .* got .3,."),
        ({"saliencies": {"a": -np.ones(4), "b": np.ones(6)}}, "'a' must be .* from -1 to 0"),
        ({"saliencies": {"a": np.full(4, np.nan), "b": np.ones(6)}}, "'a' must be 4 finite"),
        ({"multiple_of": 5}, "multiple_of 5 fits nowhere in group 'a', which has 4"),
        ({"min_channels": 0}, "min_channels is 0"),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes, message):
    arguments = {
        "saliencies": {"a": np.ones(4), "b": np.ones(6)},
        "fraction": 0.5,
        "multiple_of": 1,
        "min_channels": 1,
        "whole": (),
        **changes,
    }
    saliencies, fraction = arguments.pop("saliencies"), arguments.pop("fraction")
    with pytest.raises(ValueError, match=message):
        allocate.budget(WIDTHS, saliencies, fraction, chain, **arguments)


@pytest.mark.parametrize("width", [7, 49, 93, 1000])
def test_a_share_computed_from_a_budget_affords_that_budget(width):
    # 49 * (k / 49) is less than k for some k.
    for k in range(1, width + 1):
        found = allocate.budget({"a": width}, {"a": np.ones(width)}, k / width, lambda w: w["a"])
        assert found.compact == {"a": k}


def test_the_floor_is_a_share_of_every_group_rounded_up():
    values = {"a": np.zeros(10), "b": np.ones(7)}
    for floor, expected in ((0.25, {"a": 3, "b": 5}), (0.0, {"a": 1, "b": 7})):
        found = allocate.budget(
            {"a": 10, "b": 7}, values, 0.48, lambda w: sum(w.values()), floor=floor
        )
        assert found.compact == expected
    # 0.07 * 100 is above 7 in floating point.
    least = from_wishes({"a": 100}, {"a": 0.0}, floor=0.07)
    assert least.compact == {"a": 7}
    with pytest.raises(ValueError, match=r"floor is 1\.2: it is a share of every group's channels"):
        allocate.budget({"a": 10}, {"a": np.ones(10)}, 0.5, lambda w: w["a"], floor=1.2)
