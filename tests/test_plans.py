"""Learned budgets in the main job: when they are planned, what carries over, exact resume."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax.core import FrozenDict

from dce_jax import allocate, bandit, budget, networks
from dce_jax.networks import VGG
from experiments import blocks, budgeting, plans, train

pytestmark = pytest.mark.one_set

WIDE = {"conv0": 32, "conv1": 32}
GLOBAL = {
    "method": "dce",
    "allocation": "global",
    "plans": 2,
    "steps": 20,
    "select_every": 2,
    "commit": 0.6,
    "block": 4,
    "keep": 0.5,
}


def built(lab, **changes):
    return runs.built(lab, **(GLOBAL | changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (6, 12)),
        ({"plans": 1}, (12,)),
        ({"plans": 5}, (2, 4, 8, 10, 12)),  # 2.4, 4.8, 7.2 and 9.6, to whole selections
        ({"plans": 99}, (2, 4, 6, 8, 10, 12)),
        ({"commit": 1.0}, (10,)),  # nothing trains after the end
        ({"allocation": "uniform"}, ()),
        ({"method": "dense"}, ()),
    ],
    ids=str,
)
def test_steps_of_plans_are_fixed_by_the_config(lab, changes, expected):
    run = built(lab, **changes)
    assert plans.steps(run) == expected
    ends, done = [], 0
    while done < run.steps:
        done = blocks.block_end(run, done)
        ends.append(done)
    assert set(expected) <= set(ends)


def known(run, means):
    """A bandit that saw every channel once."""
    state = bandit.init(run.budget, list(means))
    ones = {group: jnp.ones_like(values) for group, values in state.plays.items()}
    sums = {group: jnp.asarray(values, jnp.float32) for group, values in means.items()}
    return state._replace(plays=ones, sums=sums)


def test_a_plan_is_the_allocation_of_the_means_at_the_first_budgets_macs(lab):
    means = {"conv0": [0.9, 0.8, 0.1, 0.0], "conv1": [0.2, 0.2, 0.1, 0.1, 0.9, 0.3]}
    for changes, scaled in (
        ({}, allocate.by_mean),
        ({"scale": "max"}, allocate.by_max),
        ({"scale": "l2"}, allocate.by_l2),
    ):
        run = built(lab, **changes)
        image = jax.ShapeDtypeStruct((1, *run.data.image_shape), jnp.float32)
        count = budgeting.macs_of(run.module, image)
        share = count(run.budget.compact) / count(run.budget.full)
        arrays = {g: np.float32(v) for g, v in means.items()}
        expected = allocate.budget(run.budget.full, scaled(arrays), share, count)
        found = plans.learned(run, plans.means(run, known(run, means)), run.commit_step)
        assert found == expected and count(found.compact) <= count(run.budget.compact)
    run = built(lab, min_channels=2, per_cost=True)
    zeros = {"conv0": np.zeros(4), "conv1": np.ones(6)}
    assert plans.learned(run, zeros, run.commit_step).compact["conv0"] == 2


def test_a_plan_per_cost_values_what_a_mac_buys(lab):
    run = built(lab, per_cost=True)
    count = plans.cost_of(run)
    alike = {"conv0": np.linspace(1.0, 2.0, 4), "conv1": np.linspace(1.0, 2.0, 6)}
    scaled = allocate.per_cost(allocate.by_mean(alike), run.budget.full, count)
    share = count(run.budget.compact) / count(run.budget.full)
    expected = allocate.budget(run.budget.full, scaled, share, count)
    assert plans.learned(run, alike, run.commit_step) == expected
    assert plans.learned(built(lab), alike, run.commit_step) != expected


def test_no_layer_falls_below_its_floor(lab):
    worthless = {"conv0": np.zeros(4), "conv1": np.ones(6)}
    for floor, least in ((0.0, 1), (0.5, 2)):
        run = built(lab, floor=floor)
        assert plans.learned(run, worthless, run.commit_step).compact["conv0"] == least


def wide(*, num_classes, **options):
    """Two groups of 32."""
    return VGG(depths=(1, 1), widths=FrozenDict(WIDE), num_classes=num_classes)


def learned_wide(lab, monkeypatch, **changes):
    """What a run learns whose first layer is worthless."""
    monkeypatch.setitem(networks.NETWORKS, "wide", wide)
    run = built(lab, network="wide", **changes)
    worthless = {"conv0": np.zeros(32), "conv1": np.ones(32)}
    return plans.learned(run, worthless, run.commit_step).compact


def test_by_default_a_worthless_layer_keeps_a_tenth_of_its_channels(lab, monkeypatch):
    for changes, least in (({}, math.ceil(0.1 * 32)), ({"floor": 0.0}, 1)):
        found = learned_wide(lab, monkeypatch, keep=0.2, **changes)
        assert found["conv0"] == least < found["conv1"]


def test_a_plan_keeps_to_multiples(lab, monkeypatch):
    for multiple, least in ((1, 18), (8, 16)):
        found = learned_wide(lab, monkeypatch, keep=0.75, multiple_of=multiple)
        assert found == {"conv0": least, "conv1": 32}


def test_until_the_commit_a_plan_costs_what_exploring_does(lab):
    run = built(lab, explore_keep=0.75)
    count, alike = plans.cost_of(run), {"conv0": np.ones(4), "conv1": np.ones(6)}
    first, last = plans.steps(run)
    wide, narrow = (count(plans.learned(run, alike, at).compact) for at in (first, last))
    assert narrow <= count(run.target.compact) < wide <= count(run.budget.compact)


def test_a_run_learns_its_budget_and_compiles_once_for_each(lab):
    found, workdir = lab.run(**GLOBAL)
    assert [plan["step"] for plan in found["plans"]] == [0, 6, 12]
    assert found["plans"][0]["widths"] == runs.HALF
    assert found["plans"][-1]["widths"] == found["widths"]
    assert found["allocation"] == "global" and found["keep_requested"] == 0.5
    first = runs.macs(runs.HALF)
    assert found["macs_compact"] == runs.macs(found["widths"]) <= first
    assert found["keep"] == found["macs_compact"] / found["macs_full"]
    passed = [6, 6, 8]  # steps at each budget, and one pass of recalibration over 16 images
    spent = sum(
        3 * 8 * n * runs.macs(plan["widths"])
        for n, plan in zip(passed, found["plans"], strict=True)
    )
    assert found["train_macs"] == spent + 16 * found["macs_compact"]
    assert set(found["compilations"].values()) == {1}
    different = {str(plan["widths"]) for plan in found["plans"][:2]}
    assert len(different) == 2
    observed = [name for name in found["compilations"] if name.startswith("observe")]
    assert len(observed) == len(different)
    last = runs.lines(workdir / "channels.jsonl")[-1]
    assert {g: len(v) for g, v in last["plays"].items()} == runs.FULL


@pytest.mark.parametrize("stop", [6, 7, 12])
def test_a_stopped_run_goes_on_across_its_plans_identically(lab, tmp_path, stop):
    found, workdir = lab.run(**GLOBAL)
    assert found["plans"][0]["widths"] != found["plans"][1]["widths"]
    config = runs.settings(lab.images, **GLOBAL, stop_after=stop)
    assert train.train(config, tmp_path / "w") is None
    assert train.train(config, tmp_path / "w")["steps"] == 20
    runs.same_end(workdir, tmp_path / "w")


def test_budgets_survive_storing(lab):
    run = built(lab)
    thin = budget.from_widths(run.budget.full, {"conv0": 1, "conv1": 6})
    later = plans.planned(plans.planned(run, thin, 6), run.budget, 12)
    again = plans.recall(run, plans.store(later))
    assert again.plans == later.plans and again.budget == run.budget
    assert plans.label(later, "enter") == "enter"  # the first budget's programs serve again
    assert plans.label(plans.planned(run, thin, 6), "enter") == "enter, budget 2"
    assert plans.planned(run, thin, 6).thin.widths == thin.compact


def test_a_plan_reads_the_signal_at_its_own_widths(lab, monkeypatch):
    # Norms over concatenations hold their groups at places that the widths decide.
    run, seen = built(lab), []
    monkeypatch.setattr(plans, "make_signal", lambda *given: seen.append(given) or "signal")
    thin = budget.from_widths(run.budget.full, {"conv0": 1, "conv1": 6})
    assert plans.planned(run, thin, 6).pieces.signal == "signal"
    assert seen == [(run.config.signal, run.module, run.channels, thin)]


def test_a_group_held_whole_is_neither_played_for_nor_cut(lab):
    result, workdir = lab.run(**GLOBAL, whole="conv0")
    assert result["widths"]["conv0"] == runs.FULL["conv0"]
    assert result["widths"]["conv1"] == runs.HALF["conv1"]  # the only one that the target can cut
    assert runs.chosen(workdir)["conv0"] == list(range(runs.FULL["conv0"]))


def test_a_group_that_executes_whole_keeps_its_account(lab):
    run = built(lab)
    state = known(run, {"conv0": [0.1, 0.2, 0.3, 0.4], "conv1": np.arange(6) / 6})
    selection = {"conv1": jnp.array([0, 2], jnp.int32)}
    rewards = {"conv1": jnp.array([1.0, 0.0])}
    found, _ = bandit.update(jax.random.key(0), state, selection=selection, rewards=rewards)
    np.testing.assert_array_equal(found.plays["conv0"], state.plays["conv0"])
    np.testing.assert_array_equal(found.sums["conv0"], state.sums["conv0"])
    np.testing.assert_array_equal(found.plays["conv1"], [2, 1, 2, 1, 1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation": "globl"}, "unknown allocation 'globl'; did you mean 'global'"),
        ({"scale": "l1"}, "unknown scale 'l1'"),
        ({"plans": 0}, "plans is 0: it must be at least 1"),
        ({"method": "scratch"}, "allocation is global.*method scratch never explores"),
        ({"keep": 0.9}, r"keep is 0\.9: all channels of groups \['conv0'\] execute"),
        ({"keep": 0.9, "whole": "conv1"}, r"groups \['conv0'\] execute.*--config\.whole"),
        ({"whole": "conv7"}, "conv7"),
        (
            {"widths": "conv0=2", "allocation": "uniform", "whole": "conv1"},
            "whole is 'conv1' and wid",
        ),
        ({"widths": "conv0=2"}, "allocation is global.*widths are given"),
    ],
    ids=str,
)
def test_bad_input_is_refused(lab, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**(GLOBAL | changes))
