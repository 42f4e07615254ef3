"""Budgets: rounding, MACs targets and errors with all their numbers."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dce_jax import budget

WIDTHS = {"stem": 16, "mid": 24, "top": 40}


def quadratic(widths):
    sizes = [3, *widths.values(), 10]
    return sum(a * b for a, b in itertools.pairwise(sizes))


def test_budgets_are_frozen_hashable_records_of_plain_numbers():
    one = budget.from_fraction(WIDTHS, 0.5)
    assert hash(one) == hash(budget.from_fraction(WIDTHS, 0.5))
    assert one == budget.from_fraction(WIDTHS, 0.5) != budget.from_fraction(WIDTHS, 0.25)
    assert one.entries == (("stem", 16, 8), ("mid", 24, 12), ("top", 40, 20))
    assert one.full == WIDTHS
    assert one.compact == {"stem": 8, "mid": 12, "top": 20}
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.entries = ()


def test_only_narrowed_groups_are_contested():
    assert budget.full(WIDTHS).contested == ()
    assert budget.full(WIDTHS).compact == WIDTHS
    assert budget.from_fraction(WIDTHS, 0.5, whole=["mid"]).contested == ("stem", "top")
    part = budget.from_widths(WIDTHS, {"top": 5}, allow_missing=True)
    assert (part.contested, part.compact) == (("top",), {"stem": 16, "mid": 24, "top": 5})


@pytest.mark.parametrize(
    ("keep", "options", "expected"),
    [
        (0.5, {}, [8, 12, 20]),
        (0.3, {}, [5, 7, 12]),
        (0.5, {"multiple_of": 8}, [8, 16, 24]),  # 12 and 20 lie half-way: up
        (0.01, {}, [1, 1, 1]),
        (0.01, {"min_channels": 4}, [4, 4, 4]),
        (0.01, {"min_channels": 20}, [16, 20, 20]),
        (0.01, {"multiple_of": 8, "min_channels": 9}, [16, 16, 16]),
        (0.99, {"multiple_of": 16}, [16, 16, 32]),
        (1.0, {"multiple_of": 16}, [16, 24, 40]),
        (0.25, {"whole": ("mid",)}, [4, 24, 10]),
    ],
)
def test_fraction_rounds_as_documented(keep, options, expected):
    assert list(budget.from_fraction(WIDTHS, keep, **options).compact.values()) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: budget.Budget(()), r"at least one channel group, got none"),
        (lambda: budget.Budget((("a", 4, 2), ("a", 4, 2))), r"named twice.*\['a'\]"),
        (lambda: budget.Budget((("a", 4, 5),)), r"budget 5 of group 'a' is outside 1\.\.4"),
        (lambda: budget.Budget((("a", 4, 0),)), r"budget 0 of group 'a' is outside 1\.\.4"),
        (lambda: budget.from_fraction(WIDTHS, 0.0), r"keep is 0\.0: .* above 0 and at most 1"),
        (lambda: budget.from_fraction(WIDTHS, -0.5), r"keep is -0\.5"),
        (lambda: budget.from_fraction(WIDTHS, 1.5), r"keep is 1\.5"),
        (lambda: budget.from_fraction(WIDTHS, math.nan), r"keep is nan"),
        (
            lambda: budget.from_fraction(WIDTHS, 0.5, multiple_of=0),
            r"multiple_of is 0 and min_channels is 1: both must be >= 1",
        ),
        (
            lambda: budget.from_fraction(WIDTHS, 0.5, min_channels=0),
            r"multiple_of is 1 and min_channels is 0",
        ),
        (
            lambda: budget.from_fraction(WIDTHS, 0.5, multiple_of=32),
            r"multiple_of 32 fits nowhere in group 'stem', which has 16.*at most 16",
        ),
        (
            lambda: budget.from_fraction(WIDTHS, 0.5, multiple_of=10, min_channels=12),
            r"'stem' has 16 channels: no multiple of 10 .*min_channels=12 and at most 16",
        ),
        (
            lambda: budget.from_fraction(WIDTHS, 0.5, whole=["stern"]),
            r"unknown channel group 'stern'; did you mean 'stem'\?",
        ),
        (lambda: budget.check_group("xyz", WIDTHS), r"group 'xyz'\. The groups are \['mid', "),
        (
            lambda: budget.from_widths(WIDTHS, {"topp": 3}),
            r"'topp'; did you mean 'top'\? The groups are \['mid', 'stem', 'top'\]",
        ),
        (
            lambda: budget.from_widths(WIDTHS, {"top": 3}),
            r"groups \['stem', 'mid'\].*allow_missing",
        ),
        (
            lambda: budget.from_widths(WIDTHS, {"stem": 17, "mid": 2, "top": 3}),
            r"budget 17 of group 'stem' is outside 1\.\.16",
        ),
        (lambda: budget.from_macs(WIDTHS, 0.0, quadratic), r"MACs target 0\.0 is outside \(0, 1\]"),
        (lambda: budget.from_macs(WIDTHS, 1.1, quadratic), r"MACs target 1\.1 is outside"),
        (
            lambda: budget.from_macs(WIDTHS, 0.01, quadratic, multiple_of=8),
            r"target of 0\.01 \(18 of 1,792\) cannot be met: .*multiple_of=8, min_channels=1 "
            r"costs 232; raise",
        ),
    ],
)
def test_errors_name_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("multiple_of", [1, 4])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.77, 1.0])
def test_macs_target_gives_the_largest_uniform_budget_that_meets_it(fraction, multiple_of):
    found = budget.from_macs(WIDTHS, fraction, quadratic, multiple_of=multiple_of)
    # Every uniform budget that there is, by brute force over a fine grid of fractions.
    grid = {budget.from_fraction(WIDTHS, i / 4000, multiple_of=multiple_of) for i in range(1, 4001)}
    fitting = [b for b in grid if quadratic(b.compact) <= fraction * quadratic(WIDTHS)]
    assert found in grid
    assert quadratic(found.compact) == max(quadratic(b.compact) for b in fitting)


def test_a_share_counted_from_a_budget_gives_it_back():
    for step in range(1, 65):
        wanted = budget.from_fraction(WIDTHS, step / 64)
        share = quadratic(wanted.compact) / quadratic(WIDTHS)
        found = budget.from_macs(WIDTHS, share, quadratic)
        assert quadratic(found.compact) == quadratic(wanted.compact)


def test_widths_are_plain_integers():
    found = budget.Budget((("a", np.int64(4), np.int64(2)),))
    assert [type(number) for number in found.entries[0][1:]] == [int, int]
    for wrong in (2.0, 2.5, "2"):
        with pytest.raises(ValueError, match="widths of a budget must be integers"):
            budget.Budget((("a", 4, wrong),))


def test_macs_target_holds_whole_groups():
    found = budget.from_macs(WIDTHS, 0.5, quadratic, whole=["top"], min_channels=3)
    assert found.compact["top"] == 40
    assert quadratic(found.compact) <= 0.5 * quadratic(WIDTHS)
    assert min(found.compact.values()) >= 3


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    widths=st.dictionaries(st.text("abc", min_size=1), st.integers(8, 64), min_size=1, max_size=4),
    keep=st.floats(0.001, 1.0),
    multiple_of=st.sampled_from([1, 2, 3, 8]),
    min_channels=st.integers(1, 6),
)
def test_every_fraction_gives_a_fitting_budget(widths, keep, multiple_of, min_channels):
    found = budget.from_fraction(widths, keep, multiple_of=multiple_of, min_channels=min_channels)
    assert list(found.full.items()) == list(widths.items())
    for _, width, chosen in found.entries:
        assert min(min_channels, width) <= chosen <= width
        if keep == 1.0:
            assert chosen == width
            continue
        assert chosen % multiple_of == 0
        floor = math.ceil(min_channels / multiple_of) * multiple_of
        ceiling = width // multiple_of * multiple_of
        # Within half a step of the wish, unless a limit stands in the way.
        assert abs(chosen - keep * width) <= multiple_of / 2 + 1e-9 or chosen in (floor, ceiling)
