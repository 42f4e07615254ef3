"""Layer-compensated pruning runs: the search and what it judges by, resumed and reused exactly."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from families import TINY, data, example, quick_jit
from nets import split, variables

from dce_jax import allocate, channels, forward, masks, pruning, saliency, slab
from dce_jax import channels as maps
from dce_jax.pruning import Latents, evolve
from dce_jax.types import Evidence
from experiments import (
    blocks,
    fields,
    holdout,
    latent_files,
    plans,
    pruners,
    rounds,
    scoring,
    searching,
    train,
)
from experiments import data as datasets
from experiments.budgeting import macs_of
from experiments.dataset import make_dataset
from experiments.pipeline import normalise
from experiments.programs import Programs

pytestmark = pytest.mark.one_set

COMPENSATED = {
    "method": "compensated",
    "steps": 120,
    "block": 20,
    "keep": 0.75,
    "floor": 0.25,
    "affine": True,
    "rate_over": "macs",
    "search_evaluations": 12,
    "search_population": 8,
    "search_examples": 20,
}
TARGET = runs.macs({"conv0": 3, "conv1": 5})
FLOOR = {"conv0": 1, "conv1": 2}
SEARCHED = 12 * 2 * 8  # images at full width: 20 make two batches


def stored(workdir):
    return json.loads((workdir / "latents.json").read_text())


def latents_of(found):
    return Latents(found["scale"], found["shift"])


def at_the_round(lab, **changes):
    """A run and its state before its first channels go."""
    run = runs.built(lab, **changes)
    state, done, programs = blocks.start(run), 0, Programs()
    while done < run.ends[0]:
        end = blocks.block_end(run, done)
        state, _ = blocks.run_block(run, programs, state, done, end)
        done = end
    return run, state


def worths(state):
    """Squared norms of the filters, by hand."""
    kernels = {f"conv{i}": np.asarray(state.loop.params[f"conv{i}"]["kernel"]) for i in (0, 1)}
    return {g: np.sum(np.square(k, dtype=np.float64), axis=(0, 1, 2)) for g, k in kernels.items()}


# --- masked networks


@pytest.mark.parametrize(
    ("family", "train_mode"), [("padding", True), ("padding", False), ("dense-bc", True)]
)
def test_a_masked_network_computes_what_the_shrunk_one_does(family, train_mode):
    module, batch = TINY[family], data(family)
    mapped = channels.build(module, forward.shapes(module, example(family)))
    params, state = split(variables(module, example(family)))
    # The first ones go: partners of padded shortcuts, which lie in the middle, stay.
    kept = {g: np.arange(1 + i % 2, w, dtype=np.int32) for i, (g, w) in enumerate(mapped.widths)}
    thin = maps.with_widths(module, {g: len(k) for g, k in kept.items()})

    def cut(name, tree):
        return slab.gather(tree, mapped.names(name, tree), kept, mapped.full)

    def loss_of(net):
        if train_mode:
            return forward.classification_loss(net)

        def loss(params, state, gates, batch, key):
            return forward.apply(net, params, state, batch["image"], train=False)[0].sum(), None

        return loss

    key = jax.random.key(0)
    masked = quick_jit(masks.loss(loss_of(module), mapped))
    seen = masks.of(kept, mapped.full)
    wide = masked(params, state, {}, {**batch, "masks": seen}, key)[0]
    small = {name: cut(name, tree) for name, tree in state.items()}
    narrow = quick_jit(loss_of(thin))(cut("params", params), small, {}, batch, key)[0]
    np.testing.assert_allclose(wide, narrow, rtol=1e-5, atol=1e-6)
    everything = masks.of({}, mapped.full)
    whole = masked(params, state, {}, {**batch, "masks": everything}, key)[0]
    assert abs(whole - wide) > 1e-4


def test_the_fitness_is_the_shrunk_networks_loss_on_the_images_held_out(lab):
    run, state = at_the_round(lab, **COMPENSATED)
    kept = {"conv0": np.array([0, 3], np.int32), "conv1": np.array([1, 2, 5], np.int32)}
    programs = Programs()
    worth = searching.fitness(run, programs, state.loop)(kept)
    other = searching.fitness(run, programs, state.loop)({**kept, "conv1": kept["conv1"][:1]})
    names = pruning.Names(run.pieces.params_names, run.pieces.state_names, run.pieces.opt_names)
    small = pruning.shrink(state.loop, names, kept, run.budget.full)
    thin = maps.with_widths(run.module, {g: len(k) for g, k in kept.items()})
    _, held = holdout.for_search(run.data, examples=20, batch_size=8)
    loss, losses = jax.jit(forward.classification_loss(thin)), []
    for begin in (0, 8):
        images = normalise(held.images[begin : begin + 8], run.data.mean, run.data.std)
        batch = {"image": images, "label": jnp.asarray(held.labels[begin : begin + 8])}
        given = (small.params, small.model_state, {}, batch, jax.random.key(0))
        losses.append(loss(*given)[0])
    assert worth == pytest.approx(float(np.mean(losses)), rel=1e-5)
    assert abs(other - worth) > 1e-3
    assert programs.counts == {"search": 1}


# --- a run


def test_a_run_ranks_by_the_best_latents_meets_its_target_and_pays_for_the_search(lab):
    found, workdir = lab.run(**COMPENSATED)
    learned = stored(workdir)
    run, state = at_the_round(lab, **COMPENSATED)
    assert [plan["step"] for plan in found["plans"]] == [0, *run.ends]
    expected = pruning.greedy(
        pruning.compensated(worths(state), latents_of(learned)),
        run.pace.macs,
        target=TARGET,
        least=FLOOR,
    )
    assert runs.chosen(workdir) == {g: k.tolist() for g, k in expected.items()}
    assert found["allocation"] == "global"
    assert TARGET - 40 * 3 - 144 < found["macs_compact"] <= TARGET
    assert all(width >= FLOOR[group] for group, width in found["widths"].items())
    ends = [*(plan["step"] for plan in found["plans"][1:]), found["steps"]]
    steps = sum(
        (end - plan["step"]) * runs.macs(plan["widths"])
        for end, plan in zip(ends, found["plans"], strict=True)
    )
    search = SEARCHED * runs.macs(runs.FULL)
    recalibration = 16 * found["macs_compact"]
    assert found["train_macs"] == 3 * 8 * steps + search + recalibration
    allowed = 120 * 3 * 8 * TARGET
    assert abs(found["train_macs"] - recalibration - allowed) <= 12 * found["macs_compact"] + 1
    assert found["compilations"] == {"plain": 1, "plain, budget 2": 1, "search": 1}


def test_what_was_learned_is_told_with_its_origin(lab):
    _, workdir = lab.run(**COMPENSATED)
    learned, lines = stored(workdir), runs.lines(workdir / "search.jsonl")
    assert learned["losses"] == [line["loss"] for line in lines] and len(lines) == 12
    assert learned["loss"] == min(learned["losses"])
    assert learned["loss_identity"] == learned["losses"][7]  # the last of the first population
    assert (learned["network"], learned["widths"]) == ("tiny", runs.FULL)
    assert (learned["criterion"], learned["affine"]) == ("weight_sqr", True)
    full = runs.macs(runs.FULL)
    assert learned["target"] == {"cost": "macs", "limit": TARGET, "of": full}
    assert learned["search_macs"] == SEARCHED * full
    assert learned["command"].startswith("python -m experiments.prune ")
    assert set(learned["versions"]) > {"jax", "flax"} and learned["device"].startswith("cpu")
    widths = [line["widths"] for line in lines]
    assert all(runs.macs(each) <= TARGET for each in widths)
    assert len({json.dumps(each) for each in widths}) > 1


def test_images_that_judge_are_not_trained_on_until_the_search_is_over(lab):
    run = runs.built(lab, **COMPENSATED)
    rest, held = holdout.for_search(run.data, examples=20, batch_size=8)

    def rows(images):
        return {image.tobytes() for image in np.asarray(images).reshape(len(images), -1)}

    everything = rows(run.data.train.images)
    assert len(everything) == 64 and len(rows(held.images)) == 16
    assert rows(rest.images) == everything - rows(held.images)
    assert rows(run.source.data_at(0)["images"]) == rows(rest.images)
    after = rounds.at(run, [*run.plans, (run.ends[0], run.budget)])
    assert rows(after.source.data_at(0)["images"]) == everything
    again = rounds.at(run, run.plans)  # as a resumed run does
    assert rows(again.source.data_at(0)["images"]) == rows(rest.images)
    assert not rows(held.images) & rows(run.data.test.images)
    # Its length is that of scratch, which trains on all images.
    epochs = {**COMPENSATED, "steps": None, "epochs": 16.0}
    assert runs.built(lab, **epochs).ends == runs.built(lab, **COMPENSATED | {"steps": 128}).ends


def test_labels_stay_with_the_images_that_judge():
    count = 100
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    numbered = datasets.Split(images, (np.arange(count) % 2).astype(np.int32))
    parts = holdout.for_search(
        make_dataset("numbers", numbered, numbered, num_classes=2), examples=30, batch_size=10
    )
    for part in parts:
        np.testing.assert_array_equal(part.labels, part.images.ravel() % 2)
    assert [part.num_images for part in parts] == [70, 30]


# --- going on


class Killed(BaseException):
    """Nobody catches it."""


def same_search(one, other):
    runs.same_end(one, other)
    assert stored(one) == stored(other)
    searches = [runs.lines(workdir / "search.jsonl") for workdir in (one, other)]
    for line in (*searches[0], *searches[1]):
        assert line.pop("program")[0] > 0  # seconds of compiling
    assert searches[0] == searches[1]


def counted(monkeypatch):
    """How often networks were judged."""
    judged, fitness = [], searching.fitness

    def counting(run, programs, loop):
        worth = fitness(run, programs, loop)
        return lambda kept: judged.append(1) or worth(kept)

    monkeypatch.setattr(searching, "fitness", counting)
    return judged


@pytest.mark.parametrize("after", [0, 5, 11])
def test_a_search_that_was_killed_goes_on_after_its_last_evaluation(
    lab, tmp_path, monkeypatch, after
):
    _, workdir = lab.run(**COMPENSATED)
    config, told = runs.settings(lab.images, **COMPENSATED), evolve.told

    def die(search, tried, loss):
        if len(search.losses) == after:
            raise Killed
        return told(search, tried, loss)

    with monkeypatch.context() as patch:
        patch.setattr(evolve, "told", die)
        with pytest.raises(Killed):
            train.train(config, tmp_path / "w")
    if after:
        with (tmp_path / "w" / "search.jsonl").open("a") as file:
            file.write('{"step": 6, "los')  # killed while it wrote
    judged = counted(monkeypatch)
    assert train.train(config, tmp_path / "w") is not None
    assert len(judged) == 12 - after
    same_search(workdir, tmp_path / "w")


def test_a_search_stops_when_asked_and_a_round_is_not_searched_twice(lab, tmp_path, monkeypatch):
    _, workdir = lab.run(**COMPENSATED)
    config, told = runs.settings(lab.images, **COMPENSATED), evolve.told

    def ask(search, tried, loss):
        if len(search.losses) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return told(search, tried, loss)

    with monkeypatch.context() as patch:
        patch.setattr(evolve, "told", ask)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "w")
    assert len(runs.lines(tmp_path / "w" / "search.jsonl")) == 5

    def die(*_):
        raise Killed

    judged = counted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(pruning, "shrink", die)
        with pytest.raises(Killed):
            train.train(config, tmp_path / "w")
    assert len(judged) == 7
    assert train.train(config, tmp_path / "w") is not None
    assert len(judged) == 7
    same_search(workdir, tmp_path / "w")


def test_evaluations_of_another_network_are_not_gone_on_with(lab, tmp_path, monkeypatch):
    _, workdir = lab.run(**COMPENSATED)
    run = runs.built(lab, **COMPENSATED)
    stopped = runs.settings(lab.images, **COMPENSATED, stop_after=run.ends[0])
    assert train.train(stopped, tmp_path / "w") is None
    line = runs.lines(workdir / "search.jsonl")[0]
    foreign = json.dumps({**line, "network": line["network"] + 1}) + "\n"
    (tmp_path / "w" / "search.jsonl").write_text(foreign)
    judged = counted(monkeypatch)
    assert train.train(stopped, tmp_path / "w") is not None
    assert len(judged) == 12
    same_search(workdir, tmp_path / "w")


def test_several_rounds_share_the_latents_of_the_first(lab, tmp_path, monkeypatch):
    twice = {**COMPENSATED, "rounds": 2}
    found, workdir = lab.run(**twice)
    assert len(found["rounds"]) == 2 and stored(workdir)["target"]["limit"] == TARGET
    assert found["compilations"]["search"] == 1
    # The search is paid for once: what the run spends is what it was allowed, to a step.
    allowed = 3 * 8 * 120 * runs.macs({"conv0": 3, "conv1": 5})
    recalibration = 16 * found["macs_compact"]
    assert abs(found["train_macs"] - recalibration - allowed) <= 3 * 8 * runs.macs(runs.FULL)
    lines = runs.lines(workdir / "search.jsonl")
    assert all(runs.macs(line["widths"]) <= TARGET for line in lines)  # the last round's
    config = runs.settings(lab.images, **twice, stop_after=found["plans"][1]["step"] + 1)
    assert train.train(config, tmp_path / "w") is None
    seen, choose = [], rounds.choose

    def watching(run, latents, saliencies, done):
        seen.append((done, latents))
        return choose(run, latents, saliencies, done)

    monkeypatch.setattr(rounds, "choose", watching)
    judged = counted(monkeypatch)
    assert train.train(config, tmp_path / "w") is not None
    assert seen == [(2, latents_of(stored(workdir)))] and not judged
    same_search(workdir, tmp_path / "w")


# --- other targets, other methods


def test_learned_latents_serve_another_target_without_a_search(lab):
    _, workdir = lab.run(**COMPENSATED)
    path = str(workdir / "latents.json")
    again = {**COMPENSATED, "keep": 0.5, "latents": path}
    found, other = lab.run(**again)
    run, state = at_the_round(lab, **again)
    expected = pruning.greedy(
        pruning.compensated(worths(state), latents_of(stored(workdir))),
        run.pace.macs,
        target=runs.macs(runs.HALF),
        least=FLOOR,
    )
    assert runs.chosen(other) == {g: k.tolist() for g, k in expected.items()}
    assert found["macs_compact"] <= runs.macs(runs.HALF) and "search" not in found["compilations"]
    assert not (other / "search.jsonl").exists() and not (other / "latents.json").exists()
    assert run.source.data_at(0)["images"].shape[0] == 64  # nothing is held out
    ends = [*(plan["step"] for plan in found["plans"][1:]), found["steps"]]
    steps = sum(
        (end - plan["step"]) * runs.macs(plan["widths"])
        for end, plan in zip(ends, found["plans"], strict=True)
    )
    assert found["train_macs"] == 3 * 8 * steps + 16 * found["macs_compact"]


DCE = {
    "method": "dce",
    "signal": "weight_sqr",
    "allocation": "global",
    "scale": "none",
    "scoring": 2,
    "plans": 1,
    "floor": 0.0,
}


def written(path, **changes):
    """A file of latents that hold all of conv0 and as little as can be of conv1."""
    fields = {
        "network": "tiny",
        "widths": runs.FULL,
        "criterion": "weight_sqr",
        "scale": {"conv0": 2.0, "conv1": 0.5},
        "shift": {"conv0": 50.0, "conv1": -3.0},
    }
    path.write_text(json.dumps(fields | changes))
    return str(path)


def test_latents_compensate_the_scores_that_dce_allocates_from(lab, tmp_path):
    path = written(tmp_path / "latents.json")
    found, _ = lab.run(**DCE, latents=path)
    # All channels of conv0 come before any of conv1: a third one would cost too much.
    assert found["widths"] == {"conv0": 2, "conv1": 1}
    run = runs.built(lab, **DCE, latents=path)
    loop = blocks.start(run).dce.loop
    scores = scoring.saliencies(run, Programs(), loop)
    squared = saliency.weight_sqr(channels.producers(run.channels))
    raw = squared.value(Evidence(loop.params, {}, {}))
    expected = pruning.compensated(
        raw, latents_of(json.loads((tmp_path / "latents.json").read_text()))
    )
    least = min(float(values.min()) for values in expected.values())
    for group, values in expected.items():
        np.testing.assert_allclose(scores[group], values - least, rtol=1e-5, atol=1e-5)
    learned = allocate.budget(
        runs.FULL,
        {g: np.asarray(v) for g, v in scores.items()},
        runs.macs(runs.HALF) / runs.macs(runs.FULL),
        macs_of(run.module, jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)),
    )
    assert plans.learned(run, scores, run.commit_step) == learned
    bare = scoring.saliencies(run._replace(latents=None), Programs(), loop)
    assert plans.learned(run, bare, run.commit_step) != learned


# --- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search_examples": 0}, "search_examples is 0: the validation split .* would be empty"),
        ({"search_examples": 7}, "search_examples is 7: the validation split .* would be empty"),
        (
            {"search_examples": 64, "steps": 900},
            "search_examples=64 of the 64 training images .* training 0",
        ),
        ({"search_evaluations": 0}, "search_evaluations is 0: it must be at least 1"),
        ({"search_population": 0}, "search_population is 0: it must be at least 1"),
        ({"search_population": 13}, "population 13 and evaluations 12: each must be at least"),
        ({"search_evaluations": 400}, "are spent after .* or search less"),
        ({"prune_allocation": "uniform"}, "ranks all layers together, but prune_allocation is"),
        ({"widths": "conv0=2"}, "ranks all layers together, but widths are given"),
        ({"per_cost": True}, "per_cost divides saliencies .* latents shift them below zero"),
        ({"latents": "nowhere.json"}, "latents nowhere.json cannot be read"),
        ({"method": "taylor", "latents": "x"}, "latents is 'x', but method taylor with"),
        ({"method": "scratch", "latents": "x"}, "latents is 'x', but method scratch with"),
        ({"method": "dce", "latents": "x"}, "method dce with allocation uniform ranks no layers"),
        ({**DCE, "scale": "mean", "latents": "x"}, "as they are, but scale is mean"),
        ({**DCE, "per_cost": True, "latents": "x"}, "per_cost is True"),
        ({**DCE, "scoring": 0, "latents": "x"}, "scoring is 0: set scale=none"),
    ],
    ids=str,
)
def test_settings_that_no_search_or_file_fits_are_refused(lab, changes, message):
    with pytest.raises(ValueError, match=message):
        lab.run(**(COMPENSATED | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "vgg16"}, "were learned on vgg16 with channels"),
        ({"widths": {"conv0": 4, "conv1": 7}}, "'conv1': 7}, this run is of tiny with"),
        ({"criterion": "weight_l1"}, "compensate 'weight_l1', but this run ranks by 'weight_sqr'"),
        ({"scale": {"conv0": 1.0}}, r"do not fit: the latents have no scale of groups \['conv1'\]"),
        ({"shift": {"conv9": 1.0}}, "do not fit: unknown channel group 'conv9'"),
        ({"scale": {"conv0": -1.0, "conv1": 1.0}}, "do not fit: scale of group 'conv0' is -1.0"),
        ({"shift": [1.0, 2.0]}, "do not fit: "),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["compensated", "dce"])
def test_latents_of_something_else_are_refused_before_training(
    lab, tmp_path, changes, message, method
):
    base = COMPENSATED if method == "compensated" else DCE
    path = written(tmp_path / "other.json", **changes)
    with pytest.raises(ValueError, match=message):
        lab.run(**base, latents=path)


@pytest.mark.parametrize("text", ["{", "[]", '{"network": "tiny"}'])
def test_a_file_of_another_kind_is_refused(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"give the latents\.json that a run of method compensated"
    ):
        latent_files.read(path, runs.FULL)


def test_the_criterion_is_legrs_and_its_rules_are_the_published_ones(lab):
    config = runs.settings(lab.images, method="compensated", seed=5)
    assert pruners.rules(config) == evolve.Rules(affine=False, seed=5)
    assert pruners.of(config).criterion == "weight_sqr" and pruners.of(config).rounds == 1


def test_only_what_a_method_reads_sets_its_runs_apart():
    search = {"affine", "search_evaluations", "search_population", "search_examples"}
    assert not (search | {"latents"}) & fields.idle_fields("compensated", "global")
    for method in ("taylor", "dense", "scratch", "random"):
        assert search | {"latents"} <= fields.idle_fields(method, "uniform"), method
    assert search <= fields.idle_fields("dce", "global")
    assert "latents" not in fields.idle_fields("dce", "global")


def test_a_round_is_due_until_its_channels_are_gone(lab):
    run = runs.built(lab, **COMPENSATED | {"rounds": 2})
    first, second = run.ends
    assert rounds.due(run, first) and not rounds.due(run, first - 1)
    assert not rounds.due(run, second)
    after = rounds.at(run, [*run.plans, (first, run.budget)])
    assert not rounds.due(after, first) and rounds.due(after, after.ends[1])
