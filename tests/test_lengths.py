"""Run lengths at equal training MACs."""

import pytest
import runs
from hypothesis import given
from hypothesis import strategies as st

from experiments import lengths

DRAWN = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 5000),
        "commit": st.floats(0.0, 1.0),
        "select_every": st.integers(1, 50),
        "method": st.sampled_from(("dce", "random")),
    }
)


@given(DRAWN, st.floats(0.3, 16.0).filter(lambda ratio: ratio != 1.0))
def test_training_costs_what_steps_at_one_budget_cost(changes, ratio):
    config = runs.settings("", **changes)
    steps, commit = lengths.lengths(config, 64, ratio)
    spent = ratio * commit + (steps - commit)
    if changes["commit"] == 1.0:  # never: whole steps of exploring are the rounding
        assert commit == steps
        assert abs(spent - config.steps) <= ratio / 2 or commit == 1
        return
    assert commit % config.select_every == 0 and 1 <= commit < steps
    # One window explores at least, and one step tunes what was found; else only rounding is left.
    tight = steps - commit == 1
    assert abs(spent - config.steps) <= (ratio * config.select_every + 1 if tight else 0.5)


@pytest.mark.parametrize(
    ("changes", "ratio", "expected"),
    [
        ({"commit": 0.5}, 4.0, (625, 125)),
        ({"commit": 0.1, "select_every": 10}, 4.0, (1000 - 120 + 30, 30)),
        ({"commit": 0.1, "select_every": 10}, 1.0, (1000, 100)),
        ({"commit": 0.0, "select_every": 10}, 4.0, (970, 10)),  # one window is the least
        ({"commit": 1.0}, 4.0, (250, 250)),
        ({"commit": 0.5, "method": "dense"}, 1.0, (1000, 0)),
    ],
    ids=str,
)
def test_lengths_by_hand(changes, ratio, expected):
    config = runs.settings("", **({"steps": 1000, "select_every": 5} | changes))
    assert lengths.lengths(config, 64, ratio) == expected


def test_epochs_count_whole_batches_and_a_batch_must_fit():
    config = runs.settings("", steps=None, epochs=2.5, batch_size=8)
    assert lengths.run_length(config, 31) == round(2.5 * 3)
    config.steps = 7
    assert lengths.run_length(config, 31) == 7
    with pytest.raises(ValueError, match="batch_size is 8, but the training split has 7 images"):
        lengths.run_length(config, 7)
