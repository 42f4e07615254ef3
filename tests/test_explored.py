"""Runs that start wide, or score the whole network."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from dce_jax import bandit, budget, forward, training
from experiments import blocks, plans, ranking, scoring, setup, sources, train
from experiments.programs import Programs

pytestmark = pytest.mark.one_set

WIDE = {"method": "dce", "steps": 20, "select_every": 2, "commit": 0.5, "block": 4}
SCORED = {**WIDE, "explore_keep": 0.7, "scoring": 2, "allocation": "global", "plans": 2}


def spent(found):
    """Training MACs of the steps alone, of a batch of 8."""
    ends = [*(plan["step"] for plan in found["plans"][1:]), found["steps"]]
    return sum(
        3 * 8 * (end - plan["step"]) * runs.macs(plan["widths"])
        for end, plan in zip(ends, found["plans"], strict=True)
    )


def test_a_wide_exploration_narrows_at_the_commit_and_costs_no_more(lab):
    found, workdir = lab.run(**WIDE, explore_keep=0.75)
    assert [plan["step"] for plan in found["plans"]] == [0, found["commit_step"]]
    assert found["plans"][0]["widths"] == {"conv0": 3, "conv1": 5}  # 4.5 rounds up
    assert found["widths"] == runs.HALF and found["steps"] < 20
    one_step = 3 * 8 * runs.macs(runs.HALF)
    assert abs(spent(found) - 20 * one_step) <= one_step
    assert found["train_macs"] == spent(found) + 16 * found["macs_compact"]
    assert found["train_macs_dense"] == (3 * 8 * 20 + 16) * found["macs_full"]
    assert set(found["compilations"].values()) == {1}
    # The channels that stay are the bandit's best.
    chosen = runs.chosen(workdir)
    for group, means in runs.lines(workdir / "channels.jsonl")[-1]["means"].items():
        best = np.sort(means)[::-1][: runs.HALF[group]]
        np.testing.assert_allclose(np.sort(np.take(means, chosen[group]))[::-1], best)


@pytest.mark.parametrize("changes", [SCORED, {**SCORED, "explore_keep": 1.0}], ids=str)
@pytest.mark.parametrize("stop", [3, 6, 9])
def test_a_stopped_run_goes_on_identically(lab, tmp_path, changes, stop):
    _, workdir = lab.run(**changes)
    config = runs.settings(lab.images, **changes, stop_after=stop)
    assert train.train(config, tmp_path / "w") is None
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


def test_few_contested_seats_end_with_those_that_sit(lab):
    changes = {**WIDE, "contest": 0.5, "discount": 0.5, "commit": 0.8, "block": 2}
    _, workdir = lab.run(**changes)
    run = runs.built(lab, **changes)
    state, done = blocks.start(run), 0
    sat = []
    while done < run.commit_step:
        end = blocks.block_end(run, done)
        state, _ = blocks.run_block(run, Programs(), state, done, end)
        sat.append({g: np.flatnonzero(m) for g, m in state.dce.bandit.seated.items()})
        done = end
    for group, chosen in runs.chosen(workdir).items():
        np.testing.assert_array_equal(chosen, sat[-1][group])
        changed = [len(set(b[group]) - set(a[group])) for a, b in itertools.pairwise(sat)]
        shares = [0.5 * (1 - i / 8) for i in range(1, 8)]  # falling to 0 at the eighth selection
        assert changed == [int(share * runs.HALF[group] + 0.5) for share in shares]


@pytest.mark.parametrize("final", ["random", "worst"])
def test_controls_keep_other_channels_of_the_same_exploration(lab, final):
    best, _ = lab.run(**WIDE, explore_keep=0.75)
    found, workdir = lab.run(**WIDE, explore_keep=0.75, final=final)
    assert found["widths"] == best["widths"] and found["train_macs"] == best["train_macs"]
    means = runs.lines(workdir / "channels.jsonl")[-1]["means"]
    if final == "worst":
        for group, chosen in runs.chosen(workdir).items():
            lowest = np.sort(means[group])[: runs.HALF[group]]
            np.testing.assert_allclose(np.sort(np.take(means[group], chosen)), lowest)
    else:
        best_workdir = lab.run(**WIDE, explore_keep=0.75)[1]
        assert runs.chosen(workdir) != runs.chosen(best_workdir)


# --- scoring


def test_saliencies_are_the_mean_signal_of_the_whole_network(lab):
    for signal in ("norm_taylor", "gate_taylor"):
        run = runs.built(lab, **SCORED, signal=signal)
        state = blocks.start(run)
        found = scoring.saliencies(run, Programs(), state.dce.loop)
        gates = forward.gate_shapes(run.module, jnp.zeros((2, *run.data.image_shape)))
        full = budget.full(run.budget.full)
        value = ranking.make_signal(signal, run.module, run.channels, full).value
        loss, total = forward.classification_loss(run.module), {}
        batches = list(
            scoring.evaluate.training_batches(
                run.data, augment=sources.augmentation(run.config), examples=16, batch_size=8
            )
        )
        assert len(batches) == 2
        for batch in batches:
            shapes = gates if signal == "gate_taylor" else None
            evidence, _, _ = training.evidence_of(loss, state.dce.loop, batch, shapes)
            for group, values in value(evidence).items():
                total[group] = total.get(group, 0) + np.asarray(values) / 2
        assert {g: v.shape for g, v in total.items()} == {"conv0": (4,), "conv1": (6,)}
        for group, values in total.items():
            np.testing.assert_allclose(found[group], values, rtol=2e-5, atol=1e-7)
            assert np.max(values) > 0


def test_scoring_is_paid_for_and_decides_the_final_channels(lab):
    found, workdir = lab.run(**SCORED)
    plain = spent(found) + 16 * found["macs_compact"]
    full_pass = 8 * found["macs_full"]
    assert found["train_macs"] == plain + 3 * 2 * 2 * full_pass  # two plans of two batches
    run, seen = runs.built(lab, **SCORED), {}
    state, done = blocks.start(run), 0
    while isinstance(state, blocks.Exploring) and done < run.commit_step:
        end = blocks.block_end(run, done)
        state, _ = blocks.run_block(run, Programs(), state, done, end)
        done = end
        if done in plans.steps(run):
            seen = scoring.saliencies(run, Programs(), state.dce.loop)
            run, state = blocks.replan(run, Programs(), state, done)
    assert run.budget.compact == found["widths"]
    for group, chosen in runs.chosen(workdir).items():
        if found["widths"][group] < runs.FULL[group]:
            best = np.argsort(-np.asarray(seen[group]))[: found["widths"][group]]
            assert sorted(best) == sorted(chosen)


def test_an_appraised_bandit_ranks_by_the_scores_alone():
    bud = budget.from_widths(runs.FULL, runs.HALF)
    state = bandit.init(bud, ["conv0", "conv1"])
    scores = {"conv0": jnp.array([0.0, 7.0, 3.0, 5.0])}
    found = bandit.appraised(state, scores)
    np.testing.assert_array_equal(bandit.arms(found, "conv0").mean_C, scores["conv0"])
    np.testing.assert_array_equal(found.plays["conv1"], state.plays["conv1"])
    assert found.selections == state.selections


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "subset", "scoring": 1}, "scoring is 1, but method subset has no bandit"),
        ({"method": "slimming", "explore_keep": 0.7}, "explore_keep is 0.7, but method slimming"),
        ({"explore_keep": 1.5}, "explore_keep is 1.5: it must be above 0 and at most 1"),
        ({"explore_keep": 1.0}, r"all channels of groups \['conv0', 'conv1'\] execute until"),
        ({"explore_keep": 0.9}, r"explore_keep is 0\.9: all channels of groups \['conv0'\]"),
        ({"scoring": -1}, "scoring is -1: it must be at least 0"),
        ({"sparsity": -1.0}, "sparsity is -1.0: it must not be negative"),
        ({"floor": 1.5}, "floor is 1.5: it is a share of the channels, 0 to 1"),
        ({"init_scale": 0.0}, "init_scale is 0.0: it must be positive"),
        ({"target": "flops"}, "unknown target 'flops'"),
        ({"final": "last"}, "unknown final 'last'"),
    ],
    ids=str,
)
def test_bad_input_is_refused(lab, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**(WIDE | changes))


# --- other settings


def test_the_initial_scale_multiplies_kernels_alone(lab):
    one, half = (runs.built(lab, init_scale=scale) for scale in (1.0, 0.5))
    before, after = (setup.initial_variables(r.module, r.data, r.config) for r in (one, half))
    for path, leaf in jax.tree_util.tree_leaves_with_path(before["params"]):
        found = leaf_at(after["params"], path)
        np.testing.assert_array_equal(found, leaf * (0.5 if leaf.ndim > 1 else 1.0))


def leaf_at(tree, path):
    for entry in path:
        tree = tree[entry.key]
    return tree


def test_a_learned_budget_may_keep_within_parameters(lab):
    found, _ = lab.run(**WIDE, allocation="global", plans=1, target="params")
    run = runs.built(lab, **WIDE, allocation="global", plans=1, target="params")
    count = plans.cost_of(run)
    assert count(runs.FULL) == found["params_full"]
    assert found["params_compact"] == count(found["widths"]) <= count(runs.HALF)
