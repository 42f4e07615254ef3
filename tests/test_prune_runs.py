"""The pruning job: rounds at equal training MACs, exact resume, one program per width."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from families import TINY, example
from nets import split, variables

from dce_jax import compact, forward, networks, pruning, saliency, training
from dce_jax.budget import from_widths
from dce_jax.channels import with_widths
from dce_jax.networks import VGG
from dce_jax.networks.stages import group_widths
from dce_jax.signals import Scene
from dce_jax.types import Evidence
from experiments import (
    blocks,
    evaluate,
    pacing,
    pruners,
    ranking,
    rounds,
    scoring,
    slimming,
    sources,
    train,
)
from experiments.programs import Programs

BASE = {"steps": 40, "block": 4, "rounds": 2, "keep": 0.5, "floor": 0.0, "rate_over": "macs"}
TAYLOR = {**BASE, "method": "taylor", "scoring": 2}
FISHER = {**BASE, "method": "fisher", "watch": 3, "distill": 0.5}
L1 = {**BASE, "method": "l1"}
SLIM = {**BASE, "method": "slimming", "rounds": 1, "sparsity": 0.01}
MEAN = {**BASE, "method": "mean_replacement", "scoring": 2}
ALL = {"taylor": TAYLOR, "fisher": FISHER, "l1": L1, "slimming": SLIM, "mean_replacement": MEAN}
PARAMETERS = {**L1, "prune_allocation": "global", "target": "params", "multiple_of": 2}


def stages(found):
    """(steps, widths) of every stage of a run."""
    ends = [*(plan["step"] for plan in found["plans"][1:]), found["steps"]]
    return [
        (end - plan["step"], plan["widths"]) for end, plan in zip(ends, found["plans"], strict=True)
    ]


def step_macs(found):
    return sum(3 * 8 * steps * runs.macs(widths) for steps, widths in stages(found))


# --- what a run is


@pytest.mark.parametrize("method", ALL)
def test_training_costs_what_scratch_costs_and_the_model_meets_the_target(lab, method):
    found, workdir = lab.run(**ALL[method])
    count = ALL[method]["rounds"]
    assert (found["method"], len(found["rounds"]), len(found["plans"])) == (
        method,
        count,
        1 + count,
    )
    assert found["plans"][0]["widths"] == runs.FULL
    assert found["macs_compact"] == runs.macs(found["widths"]) <= runs.macs(runs.HALF)
    # One channel more would have been too many, or the widths are those of scratch.
    if method == "l1":
        assert (found["allocation"], found["widths"]) == ("uniform", runs.HALF)
    else:
        assert found["allocation"] == "global"
        assert found["macs_compact"] > runs.macs(runs.HALF) - 16 * 9 - 4 * 9 * 6 - 1
    budget = 40 * 3 * 8 * runs.macs(runs.HALF)
    spent = found["train_macs"] - 16 * found["macs_compact"]  # recalibration is nobody's training
    last = 3 * 8 * runs.macs(found["widths"]) + (
        8 * runs.macs(runs.FULL) if "distill" in ALL[method] else 0
    )
    assert abs(spent - budget) <= last / 2 + 1
    for (before, after), record in zip(
        itertools.pairwise(found["plans"]), found["rounds"], strict=True
    ):
        removed = {g: w - after["widths"][g] for g, w in before["widths"].items()}
        assert record == {
            "step": after["step"],
            "removed": removed,
            "macs": runs.macs(after["widths"]),
        }
    _, model = compact.load(workdir / "compact", VGG)
    assert {g: len(s) for g, s in model.selection.items()} == found["widths"]
    assert all(len(set(s)) == len(s) and max(s) < runs.FULL[g] for g, s in model.selection.items())


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_group_held_whole_loses_nothing_in_any_round(lab, allocation):
    changes = {"method": "l1", "whole": "conv0", "prune_allocation": allocation}
    result, _ = lab.run(**(BASE | changes))
    assert result["widths"]["conv0"] == runs.FULL["conv0"]
    assert result["widths"]["conv1"] < runs.FULL["conv1"]


@pytest.mark.parametrize(
    ("criterion", "mean_of", "norm"),
    [
        ("weights.taylor.sum.l2", "weights.taylor.sum.none", 2),
        ("units.hessian_diag_approx2.sum.none", "units.hessian_diag_approx2.sum.none", None),
        ("activations.std", "activations.std", None),
    ],
)
def test_any_signal_can_say_who_goes(lab, criterion, mean_of, norm):
    run = runs.built(lab, **TAYLOR, criterion=criterion, penalty=0.0)
    state = advance(run, blocks.start(run), run.ends[0])
    full = runs.macs(runs.FULL)
    expected = pruning.greedy(
        over_norm(scored(run, state, mean_of), norm),
        run.pace.macs,
        target=full * (runs.macs(runs.HALF) / full) ** 0.5,
        least={"conv0": 1, "conv1": 1},
    )
    _, small = rounds.prune(run, Programs(), state, run.ends[0])
    for group, kept in expected.items():
        np.testing.assert_array_equal(small.selection[group], kept)


def test_a_random_order_meets_the_target_too(lab):
    found, _ = lab.run(**TAYLOR, criterion="random")
    assert runs.macs(found["widths"]) <= runs.macs(runs.HALF)


def test_every_extra_pass_is_counted(lab):
    found, _ = lab.run(**FISHER)
    taught = found["steps"] - found["plans"][1]["step"]
    teacher = taught * 8 * runs.macs(runs.FULL)  # one forward pass of the dense network a step
    assert found["train_macs"] == step_macs(found) + teacher + 16 * found["macs_compact"]
    found, _ = lab.run(**TAYLOR)
    extra = found["train_macs"] - step_macs(found) - 16 * found["macs_compact"]
    passes = 2 * 8 * sum(runs.macs(plan["widths"]) for plan in found["plans"][:-1])
    assert passes < extra < 2 * passes  # forward, and backward to all layers but the first


@pytest.mark.parametrize("folding", [True, False])
def test_folding_costs_a_forward_pass_of_every_batch_that_is_scored(lab, folding):
    found, _ = lab.run(**MEAN, **({} if folding else {"fold": False}))
    run, expected = runs.built(lab, **MEAN), step_macs(found) + 16 * found["macs_compact"]
    for plan in found["plans"][:-1]:
        budget = from_widths(runs.FULL, plan["widths"])
        signal = ranking.make_signal("evci_mean_replacement", run.module, run.channels, budget)
        thin = with_widths(run.module, plan["widths"])
        expected += 2 * ranking.scored_macs(signal, thin, jnp.zeros((1, 4, 4, 1)), 8)
        expected += 2 * 8 * runs.macs(plan["widths"]) * folding
    assert found["train_macs"] == expected


@pytest.mark.parametrize("method", ALL)
def test_each_width_is_one_program_and_each_scoring_another(lab, method):
    found, _ = lab.run(**ALL[method])
    stage_names = ["", *(f", budget {i + 2}" for i in range(ALL[method]["rounds"]))]
    expected = {f"plain{name}" for name in stage_names}
    if method == "taylor":
        expected |= {"score, budget 1", "score, budget 2"}
    if method == "mean_replacement":
        expected |= {f"{job}, budget {stage}" for job in ("score", "fold") for stage in (1, 2)}
    if method == "fisher":  # of the first width, steps far from a round are not watched
        expected |= {f"watch{name}" for name in stage_names[:-1]}
        lengths = [steps for steps, _ in stages(found)]
        expected -= {f"plain{stage_names[i]}" for i in (0, 1) if lengths[i] <= 3}
    assert found["compilations"] == dict.fromkeys(sorted(expected), 1)


@pytest.mark.parametrize(
    ("changes", "later"),
    [(TAYLOR, 0), (FISHER, -1), (FISHER, 1), (MEAN, 0), (PARAMETERS, 0)],
    ids=str,
)
def test_a_stopped_run_goes_on_identically(lab, tmp_path, changes, later):
    found, workdir = lab.run(**changes)
    stop = found["plans"][1]["step"] + later
    config = runs.settings(lab.images, **changes, stop_after=stop)
    assert train.train(config, tmp_path / "w") is None
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


class Killed(BaseException):
    """Nobody catches it."""


def test_a_run_killed_in_a_round_loses_nothing(lab, tmp_path, monkeypatch):
    _, workdir = lab.run(**FISHER)
    config, prune = runs.settings(lab.images, **FISHER), rounds.prune

    def die_in_the_last_round(run, programs, state, done, learn):
        found = prune(run, programs, state, done, learn)
        if done == run.ends[-1]:
            raise Killed
        return found

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "prune", die_in_the_last_round)
        with pytest.raises(Killed):
            train.train(config, tmp_path / "w")
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


# --- what a round does


def advance(run, state, until):
    done, programs = 0, Programs()
    while done < until:
        end = blocks.block_end(run, done)
        state, _ = blocks.run_block(run, programs, state, done, end)
        done = end
    return state


def scored(run, state, criterion):
    """Its mean over the two batches that a round scores the network on."""
    signal = ranking.make_signal(criterion, run.module, run.channels, run.budget)
    value, total = jax.jit(signal.value), {}
    for batch in evaluate.training_batches(
        run.data, augment=sources.augmentation(run.config), examples=16, batch_size=8
    ):
        seen = Evidence(state.loop.params, {}, {}, state.loop.model_state, batch)
        for group, values in value(seen).items():
            total[group] = total.get(group, 0) + np.asarray(values, np.float64) / 2
    return total


def over_norm(values, norm):
    if norm is None:
        return values
    return {group: each / np.linalg.norm(each, norm) for group, each in values.items()}


@pytest.mark.parametrize(
    ("criterion", "mean_of", "norm", "factor"),
    [
        ("molchanov_taylor", "activations.taylor.abs_sum.none", 2, 1),
        ("weights.taylor.sum.l1", "weights.taylor.sum.none", 1, 1),
        ("theis_fisher", "activations.taylor.sqr_sum.none", None, 0.5),
        ("activations.std", "activations.std", None, 1),
    ],
)
def test_the_mean_over_batches_comes_before_the_scaling(lab, criterion, mean_of, norm, factor):
    run = runs.built(lab, **TAYLOR, criterion=criterion, penalty=0.0)
    state = advance(run, blocks.start(run), run.ends[0])
    asked = scoring.Asked("score", criterion, run.budget, 2)
    found = scoring.averaged(run, Programs(), state.loop, asked)
    each_alone = scored(run, state, criterion)
    for group, values in over_norm(scored(run, state, mean_of), norm).items():
        np.testing.assert_allclose(found[group], values * factor, rtol=1e-4)
        far = np.abs(each_alone[group] / (values * factor) - 1).max()
        assert (far > 1e-3) == (norm is not None), far


def test_a_watched_criterion_is_scaled_after_its_last_step(lab):
    run = runs.built(lab, **FISHER, criterion="units.taylor.sqr_sum.l2", penalty=0.0)
    state = advance(run, blocks.start(run), run.ends[0])
    length = {g: np.linalg.norm(np.asarray(each) / 3) for g, each in state.sums.items()}
    full = runs.macs(runs.FULL)
    expected = pruning.greedy(
        {g: np.asarray(each, np.float64) / 3 / length[g] for g, each in state.sums.items()},
        run.pace.macs,
        target=full * (runs.macs(runs.HALF) / full) ** 0.5,
        least={"conv0": 1, "conv1": 1},
    )
    assert all(not np.isclose(each, 1, atol=1e-2) for each in length.values())
    _, small = rounds.prune(run, Programs(), state, run.ends[0])
    for group, kept in expected.items():
        np.testing.assert_array_equal(small.selection[group], kept)


def test_the_first_round_removes_what_the_signal_and_the_greedy_choice_say(lab):
    run = runs.built(lab, **TAYLOR, penalty=0.5)
    state = advance(run, blocks.start(run), run.ends[0])
    total = over_norm(scored(run, state, "activations.taylor.abs_sum.none"), 2)
    full = runs.macs(runs.FULL)
    target = full * (runs.macs(runs.HALF) / full) ** 0.5
    unit = full / 10  # of an average channel
    expected = pruning.greedy(
        total,
        run.pace.macs,
        target=target,
        least={"conv0": 1, "conv1": 1},
        order=pruning.Order(penalty=0.5 / unit),
    )
    careless = pruning.greedy(total, run.pace.macs, target=target, least={"conv0": 1, "conv1": 1})
    assert any(len(careless[group]) != len(kept) for group, kept in expected.items())
    after, small = rounds.prune(run, Programs(), state, run.ends[0])
    for group, kept in expected.items():
        np.testing.assert_array_equal(small.selection[group], kept)
    assert after.budget.compact == {g: len(k) for g, k in expected.items()}
    kernel = np.asarray(state.loop.params["conv1"]["kernel"])
    cut = kernel[:, :, expected["conv0"]][..., expected["conv1"]]
    np.testing.assert_array_equal(small.loop.params["conv1"]["kernel"], cut)
    assert cut.shape != kernel.shape


def test_a_round_folds_what_it_removes_unless_told_otherwise(lab):
    run = runs.built(lab, **MEAN)
    state, after = advance(run, blocks.start(run), run.ends[0]), {}
    for folds in (True, False):
        asked = run._replace(pace=run.pace._replace(pruner=run.pace.pruner._replace(fold=folds)))
        _, after[folds] = rounds.prune(asked, Programs(), state, run.ends[0])
    kept = {group: np.asarray(chosen) for group, chosen in after[True].selection.items()}
    batches = evaluate.training_batches(
        run.data, augment=sources.augmentation(run.config), examples=16, batch_size=8
    )
    scene = Scene(run.module, run.channels, state.loop.params, state.loop.model_state)
    params, stats = pruning.fold(scene, [batch["image"] for batch in batches], kept)
    bias, mean = params["head"]["bias"], stats["batch_stats"]["norm1"]["mean"][kept["conv1"]]
    np.testing.assert_allclose(after[True].loop.params["head"]["bias"], bias, rtol=1e-5)
    small = after[True].loop.model_state["batch_stats"]["norm1"]["mean"]
    np.testing.assert_allclose(small, mean, rtol=1e-4, atol=1e-6)
    # The control only cuts.
    plain = after[False].loop
    np.testing.assert_array_equal(plain.params["head"]["bias"], state.loop.params["head"]["bias"])
    assert np.abs(plain.params["head"]["bias"] - bias).max() > 1e-4


def test_fisher_watches_the_last_steps_before_a_round(lab):
    run = runs.built(lab, **FISHER)
    watched = [done for done in range(run.ends[-1] + 3) if rounds.watching(run, done)]
    assert watched == sorted({e - i for e in run.ends for i in range(1, 4) if e - i >= 0})
    state = advance(run, blocks.start(run), run.ends[0])
    assert int(state.taken) == 3 and all(np.any(s > 0) for s in state.sums.values())
    after, small = rounds.prune(run, Programs(), state, run.ends[0])
    assert int(small.taken) == 0 and not any(np.any(s > 0) for s in small.sums.values())
    # The teacher is the network as it was.
    for name, leaf in small.teacher["params"]["conv1"].items():
        np.testing.assert_array_equal(leaf, state.loop.params["conv1"][name])
    batch = rounds.batch_fn(after)(
        rounds.data_at(after, small, run.ends[0]), jnp.int32(0), jax.random.key(0)
    )
    assert batch[pruning.distill.TEACHER].shape == (8, 3)


def test_slimming_trains_dense_with_a_penalty_then_keeps_the_largest_scales(lab):
    found, workdir = lab.run(**SLIM)
    run = runs.built(lab, **SLIM)
    loss = slimming.penalised(forward.classification_loss(run.module), run.module, 0.01)
    loop = blocks.start(run).loop
    plain = jax.jit(functools.partial(training.plain, run.tx, loss, run.source.batch_fn))
    for index in range(run.commit_step):  # ordinary steps of the dense network
        loop, _ = plain(loop, run.source.data_at(index))
    scales = {f"conv{i}": np.abs(loop.params[f"norm{i}"]["scale"]) for i in (0, 1)}
    least = np.sort(np.concatenate(list(scales.values())))[::-1][sum(found["widths"].values()) - 1]
    for group, chosen in runs.chosen(workdir).items():
        kept = found["widths"][group]
        assert sorted(np.argsort(-scales[group])[:kept]) == sorted(chosen)
        if kept > 1:  # no floor held it up
            assert scales[group][chosen].min() >= least - 1e-6


def test_the_penalty_is_the_sum_of_absolute_scales_until_the_last_round(lab):
    run = runs.built(lab, **SLIM)
    state = blocks.start(run).loop
    batch = {"image": jnp.ones((2, 4, 4, 1)), "label": jnp.zeros(2, jnp.int32)}
    given = (state.params, state.model_state, {}, batch, jax.random.key(0))
    plain, _ = forward.classification_loss(run.module)(*given)
    assert float(run.loss(*given)[0] - plain) == pytest.approx(0.01 * (4 + 6), rel=1e-4)
    pruned = rounds.at(run, [*run.plans, (run.ends[0], run.budget)])
    assert float(pruned.loss(*given)[0]) == float(plain)
    with pytest.raises(ValueError, match="slimming prunes by the scales of norms, but object"):
        slimming.penalised(None, object(), 0.1)


def test_a_norm_that_several_groups_share_is_penalised_once():
    module, shape = TINY["dense-bc"], example("dense-bc")
    params, state = split(variables(module, shape))
    loss = slimming.penalised(lambda *_: (jnp.float32(0), None), module, 0.5)
    paths = [path for group in module.reward_norms().values() for path in group]
    assert len(paths) > len(set(paths))
    scales = [saliency.at(params, (*path, "scale")) for path in set(paths)]
    expected = 0.5 * sum(float(jnp.sum(jnp.abs(scale))) for scale in scales)
    assert float(loss(params, state, {}, {}, None)[0]) == pytest.approx(expected)


# --- pacing


def test_rounds_lie_where_their_shares_of_the_macs_are_spent(lab):
    run = runs.built(lab, **{**L1, "rounds": 3, "steps": 600}, prune_until=0.6, prune_dense=0.5)
    table = pacing.timetable(run.pace, run.config, 600, [runs.FULL])
    budget, spent, begin = 600 * runs.macs(runs.HALF), 0, 0
    widths = [runs.FULL, *(pacing.widths_after(run.pace, run.config, n) for n in (1, 2, 3))]
    assert widths[-1] == runs.HALF
    for end, each, share in zip(table.ends, widths, (0.3, 0.45, 0.6), strict=False):
        spent += (end - begin) * runs.macs(each)
        assert abs(spent - share * budget) <= runs.macs(each) / 2
        begin = end
    assert (
        abs(spent + (table.steps - begin) * runs.macs(runs.HALF) - budget)
        <= runs.macs(runs.HALF) / 2
    )
    ticking = pacing.clock(table)
    assert float(ticking(table.steps)) == pytest.approx(600, abs=1)
    assert float(ticking(table.ends[-1])) == pytest.approx(0.6 * 600, abs=3)


def test_widths_of_the_users_own_are_met_and_only_those_on_the_way_are_rounded(lab):
    own = {"conv0": 3, "conv1": 3}
    changes = {**L1, "rounds": 2, "steps": 60, "widths": "conv0=3,conv1=3", "multiple_of": 2}
    run = runs.built(lab, **changes)
    first, last = (pacing.widths_after(run.pace, run.config, n) for n in (1, 2))
    assert last == run.budget.full | own and run.pace.target.compact == own
    assert first == {"conv0": 4, "conv1": 4}


def test_a_step_comes_before_the_first_round_however_small_its_share(lab):
    for method in ("taylor", "fisher"):
        run = runs.built(lab, **(ALL[method] | {"prune_dense": 0.0}))
        assert run.ends[0] == 1 < run.ends[1]


def test_the_length_follows_from_what_the_channels_that_stayed_cost(lab):
    run = runs.built(lab, **TAYLOR)
    cheap = {"conv0": 1, "conv1": 2}
    after = rounds.at(
        run,
        [
            *run.plans,
            (
                run.ends[0],
                run.target.__class__(tuple((g, c, cheap[g]) for g, c in runs.FULL.items())),
            ),
        ],
    )
    assert after.ends[0] == run.ends[0] and after.steps > run.steps
    order = np.asarray(after.source.data_at(0)["order"])
    assert len(order) == after.steps
    np.testing.assert_array_equal(order[: run.steps], run.source.data_at(0)["order"])


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slimming", "prune_until": 1.0}, "prune_until is 1.0: slimming prunes until"),
        (
            {"prune_until": 0.0},
            "prune_until is 0, before the first step, but taylor begins with an",
        ),
        ({"multiple_of": 0}, "multiple_of is 0, what this device wants, but taylor shrinks"),
        ({"prune_dense": 1.5}, "prune_dense is 1.5: it is a share of the time, 0 to 1"),
        ({"rounds": 0}, "rounds is 0: it must be at least 1"),
        ({"penalty": -1.0}, "penalty is -1.0: it must not be negative"),
        ({"distill": 2.0}, "distill is 2.0: it is a share of the loss"),
        ({"criterion": "molchanov"}, "unknown signal 'molchanov'; did you mean 'molchanov_taylor'"),
        ({"prune_allocation": "globl"}, "unknown prune_allocation 'globl'; did you mean 'global'"),
        ({"widths": "conv0=2", "prune_allocation": "global"}, "but widths are given"),
        ({"per_cost": True, "penalty": 0.1}, "per_cost ranks by saliency per cost"),
        (
            {"per_cost": True, "criterion": "activations.taylor.sum.none"},
            "but activations.taylor.sum.none may be negative",
        ),
        (
            {"method": "fisher", "watch": 0, "scoring": 0},
            "watch is 0 and scoring is 0: there is nothing",
        ),
        ({"floor": 0.9}, "is below the floor: with at least"),
        ({"steps": 3}, "3 steps' worth of training MACs are spent after"),
        ({"explore_keep": 0.5}, "explore_keep is 0.5, but method taylor has no bandit"),
    ],
    ids=str,
)
def test_bad_input_is_refused(lab, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**(TAYLOR | changes))


def test_a_network_that_cannot_fold_is_refused_before_training(lab, monkeypatch):
    joined = networks.ResNet((1, 1), group_widths((1, 1), (2, 4)), 3, shortcut="padding")
    monkeypatch.setitem(networks.NETWORKS, "tiny", lambda **_: joined)
    with pytest.raises(ValueError, match=r"shortcut.*cannot be folded there; .*recalibrate"):
        runs.built(lab, **MEAN | {"keep": 0.6})


def test_a_criterion_whose_base_the_network_lacks_is_refused_before_training(lab, monkeypatch):
    for name, message in (
        ("norm_scale", "declares none in reward_norms"),
        ("norm_taylor", "declares none in reward_norms"),
    ):
        with monkeypatch.context() as patch:
            patch.delattr(VGG, "reward_norms")
            with pytest.raises(ValueError, match=message):
                runs.built(lab, **TAYLOR | {"criterion": name})


def test_every_method_is_runnable_and_has_a_config():
    from experiments import checks, prune
    from experiments.configs import (
        prune_compensated,
        prune_fisher,
        prune_l1,
        prune_mean_replacement,
        prune_slimming,
        prune_taylor,
    )

    shipped = [prune_taylor, prune_fisher, prune_l1, prune_slimming]
    shipped += [prune_mean_replacement, prune_compensated]
    assert [m.get_config().method for m in shipped] == list(pruners.METHODS)
    for module in shipped:
        config = module.get_config()
        assert config.name == module.__name__.rsplit(".", 1)[1]
        checks.check(config)
    assert prune.CONFIG.is_file()


def test_the_command_line_refuses_a_method_that_prunes_nothing(lab, monkeypatch, capsys):
    from types import SimpleNamespace

    from experiments import prune

    config = runs.settings(lab.images)
    monkeypatch.setattr(prune, "flags", SimpleNamespace(FLAGS=SimpleNamespace(config=config)))
    assert prune.main(["prune"]) == 2
    assert "method 'dce' prunes nothing" in capsys.readouterr().err


def test_results_say_how_they_were_made(lab):
    found, workdir = lab.run(**TAYLOR)
    assert found["command"].startswith("python -m experiments.prune ")
    assert json.loads((workdir / "config.json").read_text())["method"] == "taylor"
    phases = [line["phase"] for line in runs.lines(workdir / "metrics.jsonl")]
    assert list(dict.fromkeys(phases)) == ["prune", "commit"]
