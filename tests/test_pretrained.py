"""Runs that begin with a trained network: same bits, paid for, pruned at once, refused if unfit."""

import json
import shutil

import jax
import numpy as np
import pytest
import runs
from safetensors.numpy import load_file

from dce_jax import compact
from dce_jax.channels import path_names
from dce_jax.networks import VGG
from experiments import blocks, data, pretrained, rounds, setup, train
from experiments.rounds import Pruning

pytestmark = pytest.mark.one_set

DENSE = {"method": "dense", "seed": 3}
L1 = {"method": "l1", "steps": 20, "prune_until": 0.0, "block": 5}
SLIM = {**L1, "method": "slimming", "floor": 0.0, "rate_over": "macs"}
TAYLOR = {
    **SLIM,
    "method": "taylor",
    "rounds": 1,
    "scoring": 2,
}
FOUND = {
    **SLIM,
    "method": "compensated",
    "steps": 120,
    "search_evaluations": 6,
    "search_population": 4,
    "search_examples": 16,
}
ROUNDS = {**SLIM, "method": "fisher", "watch": 2, "rounds": 2, "steps": 40, "prune_until": 0.5}
DCE = {"method": "dce"}
SUBSET = {"method": "subset"}


@pytest.fixture(scope="module")
def dense(lab):
    """Result and workdir of a finished dense run."""
    return lab.run(**DENSE)


def weights(workdir):
    return load_file(workdir / "compact" / "weights.safetensors")


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(path_names(path)): np.asarray(leaf) for path, leaf in found}


@pytest.mark.parametrize("changes", [{"method": "dense"}, L1, DCE], ids=lambda c: c["method"])
def test_the_first_state_is_the_trained_network(lab, dense, changes):
    run = runs.built(lab, **changes, pretrained=str(dense[1]))
    state = blocks.start(run)
    loop = state.dce.loop if isinstance(state, blocks.Exploring) else state.loop
    found, wanted = leaves({"params": loop.params, **loop.model_state}), weights(dense[1])
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)
    moments = [leaf for leaf in jax.tree.leaves(loop.opt_state) if leaf.ndim]
    assert moments and not any(np.any(leaf) for leaf in moments)


def test_a_run_holds_no_second_copy_of_the_trained_network(lab, dense):
    run = runs.built(lab, pretrained=str(dense[1]))
    assert run.pretrained == dense[0]
    assert not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.pretrained))


@pytest.mark.parametrize("changes", [L1, SLIM, TAYLOR, FOUND], ids=lambda c: c["method"])
def test_before_its_first_step_a_trained_network_can_lose_channels(lab, dense, changes):
    found, workdir = lab.run(**changes, pretrained=str(dense[1]))
    (only,) = found["rounds"]
    assert only["step"] == 0
    assert [plan["step"] for plan in found["plans"]] == [0, 0]
    assert found["macs_compact"] == only["macs"] <= runs.macs(runs.HALF)
    names = [line["phase"] for line in runs.lines(workdir / "metrics.jsonl")]
    assert set(names) == {"commit"}  # no step of full width
    if changes is L1:
        kernel = weights(dense[1])["params/conv0/kernel"]
        best = np.sort(np.argsort(-np.abs(kernel).sum((0, 1, 2)), kind="stable")[:2])
        assert runs.chosen(workdir)["conv0"] == best.tolist()


def test_what_is_left_before_tuning_is_the_slab_of_the_trained_network(lab, dense):
    run = runs.built(lab, **L1, pretrained=str(dense[1]))
    state = blocks.start(run)
    assert isinstance(state, Pruning) and rounds.due(run, 0)
    after, cut = rounds.prune(run, train.Programs(), state, 0)
    chosen = {group: np.asarray(c) for group, c in cut.selection.items()}
    _, model = compact.load(dense[1] / "compact", VGG)
    wanted = compact.extract(run.channels, after.budget, model.variables, chosen)
    found = leaves({"params": cut.loop.params, **cut.loop.model_state})
    for name, values in leaves(wanted.variables).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("changes", [L1, TAYLOR, ROUNDS, DCE], ids=lambda c: c["method"])
def test_a_stopped_run_goes_on_identically(lab, dense, tmp_path, changes):
    _, workdir = lab.run(**changes, pretrained=str(dense[1]))
    config = runs.settings(lab.images, **changes, pretrained=str(dense[1]), stop_after=5)
    assert train.train(config, tmp_path / "w") is None
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


def test_a_search_that_was_killed_before_the_first_step_goes_on(lab, dense, tmp_path, monkeypatch):
    _, workdir = lab.run(**FOUND, pretrained=str(dense[1]))
    config = runs.settings(lab.images, **FOUND, pretrained=str(dense[1]))
    judge = train.searching.fitness

    def dying(*given):
        whole, left = judge(*given), iter(range(3))

        def one(kept):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return whole(kept)

        return one

    with monkeypatch.context() as patch:
        patch.setattr(train.searching, "fitness", dying)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "w")
    assert len(runs.lines(tmp_path / "w" / "search.jsonl")) == 3
    assert train.train(config, tmp_path / "w") is not None
    runs.same_end(workdir, tmp_path / "w")


def test_what_training_it_took_is_paid_for(lab, dense):
    before, workdir = dense
    found, _ = lab.run(**L1, pretrained=str(workdir))
    own = 20 * 3 * 8 * runs.macs(runs.HALF) + 16 * runs.macs(runs.HALF)
    assert found["train_macs"] == own + before["train_macs"]
    assert found["train_s"] > before["train_s"]
    kept = ("test_accuracy", "train_macs", "seed", "command")
    assert found["pretrained"] == {key: before[key] for key in kept}
    assert "pretrained" not in before


def test_time_is_not_told_where_the_trained_networks_is_unknown(lab, dense, tmp_path):
    before, workdir = dense
    older = shutil.copytree(workdir, tmp_path / "older")
    without = {key: value for key, value in before.items() if key != "train_s"}
    (older / "result.json").write_text(json.dumps(without))
    assert lab.run(**SUBSET, pretrained=str(older))[0]["train_s"] is None


def test_every_seed_finds_its_own(lab, dense):
    template = str(dense[1].parent / "{seed}")
    config = runs.settings(lab.images, pretrained=template, seed=7)
    assert pretrained.directory(config) == dense[1].parent / "7"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "scratch"}, "method scratch trains the narrow network from scratch"),
        ({"init_scale": 0.5}, "init_scale is 0.5, but the network begins with the weights"),
        ({"width": 0.5}, "is a tiny of width 1.0, this run is of tiny, width 0.5"),
        ({**L1, "rounds": 2}, "prune_until is 0, before the first step, but l1 .* has 2 rounds"),
        ({**ROUNDS, "rounds": 1, "prune_until": 0.0}, "fisher .* watches 2 steps: give it"),
        ({**L1, "prune_until": -0.1}, "prune_until is -0.1: l1 prunes until"),
    ],
    ids=str,
)
def test_bad_input_is_refused(lab, dense, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**changes, pretrained=str(dense[1]))


def test_networks_that_do_not_fit_are_refused(lab, dense, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"result\.json does not exist: give the directory"):
        runs.built(lab, pretrained=str(tmp_path / "none"))
    narrow = lab.run(**L1, pretrained=str(dense[1]))[1]
    with pytest.raises(ValueError, match=r"is a compact model, with {'conv0': '2 of 4', .* left"):
        runs.built(lab, pretrained=str(narrow))
    images = runs.write_images(tmp_path / "five.npz", train_labels=np.arange(64) % 5)
    config = runs.settings(images, pretrained=str(dense[1]))
    with pytest.raises(ValueError, match=r"head/bias is float32\[3\] there and float32\[5\]"):
        setup.build(config, data.load(config.dataset, data_dir=None))


def test_only_a_trained_network_is_pruned_before_its_first_step(lab):
    with pytest.raises(ValueError, match="l1 begins with an untrained network"):
        lab.run(**L1)
