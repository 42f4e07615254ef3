"""Runs that train a part of their final channels first and grow at the commit."""

import numpy as np
import pytest
import runs

from experiments import train

pytestmark = pytest.mark.one_set

FULL_RUN = {"method": "dce", "steps": 20, "select_every": 2, "commit": 0.5, "block": 4, "keep": 1.0}
GROWING = {**FULL_RUN, "keep": 0.75, "grow": 0.5, "contest": 0.0, "rate_over": "macs"}
SMALL, FINAL = {"conv0": 2, "conv1": 3}, {"conv0": 3, "conv1": 5}


def test_the_network_grows_at_the_commit_and_costs_no_more(lab):
    found, workdir = lab.run(**GROWING)
    assert [plan["widths"] for plan in found["plans"]] == [SMALL, FINAL]
    assert found["plans"][1]["step"] == found["commit_step"]
    assert found["widths"] == FINAL and found["steps"] > 20
    small, final = runs.macs(SMALL), runs.macs(FINAL)
    explored = found["commit_step"]
    spent = explored * small + (found["steps"] - explored) * final
    assert abs(spent - 20 * final) <= final
    assert abs(explored * small - 10 * final) <= small * GROWING["select_every"]
    assert found["train_macs"] == 3 * 8 * spent + 16 * found["macs_compact"]
    # Those that executed stay, in the same seats from the first step on; the others are added.
    plays = [line["plays"] for line in runs.lines(workdir / "channels.jsonl")]
    for group, chosen in runs.chosen(workdir).items():
        seated = [set(np.flatnonzero(line[group])) for line in plays]
        assert all(s == seated[0] for s in seated) and len(seated[0]) == SMALL[group]
        assert seated[0] < set(chosen)


def test_a_full_budget_that_grows_ends_with_every_channel(lab):
    found, workdir = lab.run(**{**GROWING, "keep": 1.0})
    assert found["widths"] == runs.FULL == found["plans"][1]["widths"]
    assert {g: len(c) for g, c in runs.chosen(workdir).items()} == runs.FULL


def test_growing_by_one_is_not_growing(lab):
    plain, plain_dir = lab.run(**FULL_RUN | {"keep": 0.75, "contest": 0.0})
    found, workdir = lab.run(**GROWING | {"grow": 1.0})
    assert found["plans"] == plain["plans"]
    assert runs.arrays_of(plain_dir) == runs.arrays_of(workdir)


def test_the_rate_at_the_commit_is_that_of_the_macs_spent(lab):
    run = runs.built(lab, **GROWING)
    by_steps = runs.built(lab, **GROWING | {"rate_over": "steps"})
    whole = runs.built(lab, **FULL_RUN | {"keep": 0.75})
    # Half of the MACs are spent: the rate is where a run at the final budget has it half way.
    assert float(run.rate(run.commit_step)) == pytest.approx(float(whole.rate(10)), rel=0.1)
    assert float(by_steps.rate(run.commit_step)) < 0.8 * float(whole.rate(10))


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("stop", [3, 16, 25])
def test_a_stopped_run_goes_on_identically(lab, tmp_path, stop, quiet):
    changes = {**GROWING, "quiet": quiet}
    _, workdir = lab.run(**changes)
    config = runs.settings(lab.images, **changes, stop_after=stop)
    assert train.train(config, tmp_path / "w") is None
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


def test_a_share_of_one_channel_is_that_channel(lab):
    run = runs.built(lab, **GROWING | {"widths": "conv0=1,conv1=2", "grow": 0.1})
    assert run.plans[0][1].compact == {"conv0": 1, "conv1": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grow": 0.0}, "grow is 0.0: it must be above 0 and at most 1"),
        ({"grow": 1.5}, "grow is 1.5: it must be above 0 and at most 1"),
        ({"commit": 1.0}, "grow is 0.5, but commit is 1.0: a network that never commits"),
        ({"explore_keep": 0.3}, r"grow is 0.5 and explore_keep 0.3: both say what executes"),
        ({"allocation": "global"}, "grow is 0.5 with allocation=global: channels that never"),
        ({"rate_over": "epochs"}, "unknown rate_over 'epochs'"),
    ],
    ids=str,
)
def test_bad_input_is_refused(lab, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**(GROWING | changes))
