"""The main job in one process: methods, result, signals, options, compact model, finished runs."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from dce_jax import compact, slab
from dce_jax.networks import VGG
from experiments import blocks, data, evaluate, journal, ranking, result, session, setup, train
from experiments.records import RESULT_KEYS

METHODS = ("dce", "dense", "scratch", "subset", "random")
FULL = {"params": 36 + 8 + 216 + 12 + 18 + 3, "macs": 16 * 36 + 4 * 216 + 18}
HALF = {"params": 18 + 4 + 54 + 6 + 9 + 3, "macs": 16 * 18 + 4 * 54 + 9}
EXPLORED = {"select_every": 1, "commit": 1.0}  # R = 1, the bandit to the end

WEIGHT_L2 = {"signal": "weight_l2", "discount": 0.9, "widths": "conv0=1"}
NORM_SCALE = {
    "signal": "norm_scale",
    "rewards": "rank",
    "alpha_end": 0.0,
    "crop": 1,
    "flip": True,
    "macs": 0.4,
}


def weights(workdir, name="compact_raw"):
    return load_file(workdir / name / "weights.safetensors")


# --- methods and result.json


@pytest.mark.parametrize("method", METHODS)
def test_result_has_the_contracts_keys_and_consistent_values(lab, method):
    found, workdir = lab.run(method=method)
    assert found == json.loads((workdir / "result.json").read_text())
    more = {"notes", "command", "plans", "effective_rank", "train_s", "processor", "tunables"}
    times = {"host_ms_median", "data_wait_ms_median", "between_ms_median"}
    assert set(found) == {*RESULT_KEYS, *more, *times}
    assert all(1 / width <= found["effective_rank"][g] <= 1 for g, width in found["widths"].items())
    dense = method == "dense"
    cost = FULL if dense else HALF
    assert found["method"] == method
    assert (found["network"], found["seed"], found["steps"]) == ("tiny", 0, 12)
    assert found["dataset"] == str(lab.images)
    assert found["keep"] == found["keep_requested"] == (1.0 if dense else 0.5)
    assert found["allocation"] == "uniform"
    assert found["widths"] == (runs.FULL if dense else runs.HALF)
    assert found["commit_step"] == (5 if method in ("dce", "random") else 0)
    assert (found["params_full"], found["macs_full"]) == (FULL["params"], FULL["macs"])
    assert (found["params_compact"], found["macs_compact"]) == (cost["params"], cost["macs"])
    # 12 steps and 2 batches of recalibration, 8 images each
    assert found["train_macs"] == (3 * 12 + 2) * 8 * cost["macs"]
    assert found["train_macs_dense"] == (3 * 12 + 2) * 8 * FULL["macs"]
    for name in ("test_accuracy", "test_accuracy_raw"):
        assert 0 <= found[name] <= 1
        assert found[name] * 20 == round(found[name] * 20)  # of 20 test images
    assert found["test_accuracy_full"] is None
    assert found["train_s"] > found["compile_s"] > 0
    assert found["peak_bytes"] > 0
    assert set(found["step_ms_median"]) == {"explore", "commit"}
    assert set(found["versions"]) == {"python", "jax", "jaxlib", "flax", "optax", "numpy"}
    assert "cpu" in found["device"] and found["processor"]
    assert found["config"]["method"] == method


@pytest.mark.parametrize("method", METHODS)
def test_every_program_compiles_once(lab, method):
    windows = {"enter": 1, "leave": 1, "observe": 1} if method in ("dce", "random") else {}
    assert lab.run(method=method)[0]["compilations"] == {**windows, "plain": 1}


@pytest.mark.parametrize("method", ["dce", "random"])
def test_selection_every_step_is_one_program_and_scores_the_full_network(lab, method):
    found, workdir = lab.run(method=method, **EXPLORED)
    assert found["compilations"] == {"fused": 1}
    assert found["commit_step"] == found["steps"] == 12
    assert 0 <= found["test_accuracy_full"] <= 1
    plays = runs.lines(workdir / "channels.jsonl")[-1]["plays"]
    assert {g: sum(p) for g, p in plays.items()} == {g: 12 * k for g, k in runs.HALF.items()}
    bounds = [r for r in runs.lines(workdir / "channels.jsonl")[-1]["radius"]["conv0"] if r]
    assert any(bounds) == (method == "dce")  # random selection has no bound


def test_metric_lines_follow_the_blocks(lab):
    _, workdir = lab.run(method="dce")
    lines = runs.lines(workdir / "metrics.jsonl")
    assert [(x["step"], x["steps"], x["phase"]) for x in lines] == [
        (5, 5, "explore"),
        (10, 5, "commit"),
        (12, 2, "commit"),
    ]
    assert lines[0]["explored"] == 0.5
    assert lines[1]["explored"] is None
    assert [x["compile_s"] > 0 for x in lines] == [True, True, False]
    assert all(np.isfinite(x["loss"]) and x["bad_rewards"] == 0 for x in lines)


def test_long_warm_blocks_give_the_median_step(lab, tmp_path, monkeypatch):
    def line(steps, phase, ms, compile_s):
        return {"steps": steps, "phase": phase, "ms_per_step": ms, "compile_s": compile_s}

    for row in [
        line(20, "explore", 900.0, 3.0),  # compiled something
        *(line(20, "explore", ms, 0.0) for ms in (4.0, 5.0, 9.0)),
        line(19, "commit", 1.0, 0.0),  # too short to be timed
        line(25, "commit", 2.0, 0.0),
    ]:
        journal.append(tmp_path / "metrics.jsonl", row)
    times = result._timings(train.Programs(), tmp_path)
    assert times["step_ms_median"] == {"explore": 5.0, "commit": 2.0}


# --- the compact model


@pytest.mark.parametrize("method", METHODS)
def test_compact_model_needs_only_its_class_and_reproduces_the_accuracy(lab, method):
    found, workdir = lab.run(method=method)
    images = data.load(str(lab.images), data_dir=None)
    for folder, key in (("compact", "test_accuracy"), ("compact_raw", "test_accuracy_raw")):
        module, model = compact.load(workdir / folder, VGG)
        assert dict(module.widths) == found["widths"]
        assert evaluate.accuracy(module, model.variables, images) == found[key]
        for group, width in found["widths"].items():
            chosen = model.selection[group]
            assert chosen.shape == (width,)
            assert np.all(np.diff(chosen) > 0)
    assert weights(workdir).keys() == weights(workdir, "compact").keys()


def test_compact_raw_is_the_last_checkpoint(lab):
    _, workdir = lab.run(method="dce")
    stored = ocp.load((workdir / "checkpoints" / "12").absolute())
    kernel = np.asarray(stored[".loop.params['conv1']['kernel']"])
    np.testing.assert_array_equal(weights(workdir)["params/conv1/kernel"], kernel)
    chosen = json.loads((workdir / "compact" / "structure.json").read_text())["channels"]
    np.testing.assert_array_equal(np.asarray(stored[".selection['conv1']"]), chosen["conv1"])
    rows = json.loads((workdir / "layers.json").read_text())
    assert {row["group"]: row["chosen"] for row in rows} == chosen


def test_final_channels_have_the_best_means(lab):
    _, workdir = lab.run(method="dce", **EXPLORED)
    chosen = json.loads((workdir / "compact" / "structure.json").read_text())["channels"]
    for group, means in runs.lines(workdir / "channels.jsonl")[-1]["means"].items():
        best = np.sort(means)[::-1][: runs.HALF[group]]
        np.testing.assert_allclose(np.sort(np.take(means, chosen[group]))[::-1], best)


def test_subset_is_a_gathered_initialisation_that_depends_on_the_seed(lab):
    chosen = []
    for seed in (0, 1, 2):
        config = runs.settings(lab.images, method="subset", seed=seed)
        run = setup.build(config, data.load(config.dataset, data_dir=None))
        state = blocks.start(run)
        assert isinstance(state, blocks.Settled)
        whole = setup.initial_variables(run.module, run.data, run.config)["params"]
        expected = slab.gather(whole, run.pieces.params_names, state.selection, run.channels.full)
        jax.tree.map(np.testing.assert_array_equal, state.loop.params, expected)
        chosen.append({group: tuple(np.asarray(k)) for group, k in state.selection.items()})
    assert len({tuple(sorted(c.items())) for c in chosen}) > 1


# --- identities


def test_same_seed_same_bits_other_seed_other_bits(lab, tmp_path):
    _, workdir = lab.run(method="dce")
    train.train(runs.settings(lab.images, method="dce"), tmp_path / "again")
    runs.same_end(workdir, tmp_path / "again")
    _, other = lab.run(method="dce", seed=1)
    with pytest.raises(AssertionError):
        runs.same_end(workdir, other)


def test_whole_budget_is_the_dense_run(lab):
    found, workdir = lab.run(method="dce", keep=1.0, **EXPLORED)
    dense, beside = lab.run(method="dense")
    assert found["keep"] == 1.0
    assert found["widths"] == runs.FULL
    assert found["test_accuracy_full"] == found["test_accuracy"] == dense["test_accuracy"]
    for name, value in weights(beside).items():
        np.testing.assert_allclose(weights(workdir)[name], value, rtol=1e-5, atol=1e-6)


# With seed 0 two channels' mean rewards are so near that some processors' rounding ranks them
# otherwise in a loop.
@pytest.mark.parametrize("changes", [{"select_every": 5}, {**EXPLORED, "seed": 1}])
def test_many_steps_in_one_dispatch_change_nothing(lab, changes):
    plain, one = lab.run(method="dce", **changes)
    found, other = lab.run(method="dce", scan="on", **changes)
    assert all(" x" in name for name in set(found["compilations"]) - {"enter", "leave"})
    assert set(found["compilations"].values()) == {1}
    for name, value in weights(one).items():
        np.testing.assert_allclose(weights(other)[name], value, rtol=1e-5, atol=1e-6)
    for a, b in zip(*(runs.lines(w / "metrics.jsonl") for w in (one, other)), strict=True):
        assert (a["step"], a["bad_rewards"]) == (b["step"], b["bad_rewards"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    assert found["test_accuracy"] == plain["test_accuracy"]


# --- signals and options


@pytest.mark.parametrize(
    "changes",
    [
        {"signal": "gate_taylor", "dtype": "bfloat16"},
        {"signal": "batch_gate_taylor"},
        {"signal": "fisher", "optimizer": "lion", "learning_rate": 1e-3},
        {"signal": "weight_l1"},
        WEIGHT_L2,
        NORM_SCALE,
    ],
    ids=lambda changes: changes["signal"],
)
def test_every_signal_rewards_what_ran(lab, changes):
    with jax.numpy_dtype_promotion("standard"):  # flax's norms mix bfloat16 and float32
        found, workdir = lab.run(method="dce", **EXPLORED, **changes)
    assert found["compilations"] == {"fused": 1}
    last = runs.lines(workdir / "channels.jsonl")[-1]
    for group, means in last["means"].items():
        assert 0 < max(means) <= 1, group
        assert all(m == 0 for m, n in zip(means, last["plays"][group], strict=True) if n == 0)
    assert all(value.dtype == np.float32 for value in weights(workdir).values())


@pytest.mark.parametrize("every", [1, 2])
def test_the_log_counts_rewards_that_are_no_numbers(lab, tmp_path, monkeypatch, every):
    make = ranking.make_signal

    def broken(*given):
        signal = make(*given)

        def value(evidence):
            found = signal.value(evidence)
            return {group: values.at[0].set(jnp.nan) for group, values in found.items()}

        return signal._replace(value=value)

    monkeypatch.setattr(ranking, "make_signal", broken)
    config = runs.settings(
        lab.images, method="dce", steps=6, commit=1.0, select_every=every, block=2
    )
    train.train(config, tmp_path / "w")
    lines = runs.lines(tmp_path / "w/metrics.jsonl")
    # One channel of each of two groups, in every selection of a block.
    assert [line["bad_rewards"] for line in lines] == [2 * 2 // every] * 3


def test_signals_differ(lab):
    means = [
        str(runs.lines(lab.run(method="dce", **EXPLORED, **changes)[1] / "channels.jsonl")[-1])
        for changes in ({}, {"signal": "weight_l1"}, {"signal": "fisher"}, {"rewards": "rank"})
    ]
    assert len(set(means)) == 4


def test_idle_channels_may_catch_up_on_decoupled_decay(lab):
    decay = {"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 0.01}
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes a count and floats
        _, workdir = lab.run(method="dce", **EXPLORED, **decay, idle="catch_up")
    end = ocp.load((workdir / "checkpoints/12").absolute())
    last = {name: np.asarray(leaf) for name, leaf in end.items() if name.startswith(".dce.last")}
    assert len(last) == 8  # one per parameter leaf
    last_C = last[".dce.last['norm1']['scale']"]
    assert last_C.max() == 12
    assert last_C.min() < 12
    plain = ocp.load((lab.run(method="dce", **EXPLORED)[1] / "checkpoints/12").absolute())
    assert not [name for name in plain if "last" in name]


def test_explicit_widths_and_macs_target(lab):
    found, _ = lab.run(method="dce", **EXPLORED, **WEIGHT_L2)
    assert found["widths"] == {"conv0": 1, "conv1": 6}
    assert found["allocation"] == "explicit"
    assert found["keep"] == found["macs_compact"] / FULL["macs"]
    assert found["macs_compact"] == 16 * 9 + 4 * 54 + 18
    found, _ = lab.run(method="dce", **EXPLORED, **NORM_SCALE)
    assert found["keep_requested"] == 0.4
    assert found["keep"] == found["macs_compact"] / FULL["macs"] <= 0.4
    assert found["allocation"] == "uniform"


def test_scratch_names_its_own_channels(lab):
    _, workdir = lab.run(method="scratch")
    structure = json.loads((workdir / "compact" / "structure.json").read_text())
    assert structure["channels"] == {"conv0": [0, 1], "conv1": [0, 1, 2]}
    rows = json.loads((workdir / "layers.json").read_text())
    assert [row["chosen"] for row in rows] == [None, None]


# --- the life of a workdir


def test_stop_after_saves_at_the_end_of_its_block_and_goes_on_identically(lab, tmp_path):
    config = runs.settings(lab.images, method="dce", stop_after=7)
    assert train.train(config, tmp_path / "w") is None
    assert sorted(p.name for p in (tmp_path / "w/checkpoints").glob("*.json")) == [
        "10.json",
        "5.json",
    ]
    assert train.train(config, tmp_path / "w")["steps"] == 12  # the same command goes on
    _, workdir = lab.run(method="dce")
    runs.same_end(workdir, tmp_path / "w")


def test_finished_workdir_gives_its_result_without_training(lab, monkeypatch, tmp_path):
    found, workdir = lab.run(method="dce")
    monkeypatch.setattr(setup, "build", lambda *_: pytest.fail("trained again"))
    assert train.train(runs.settings(lab.images, method="dce"), workdir) == found


def test_report_that_was_killed_is_written_by_the_next_start(lab):
    found, workdir = lab.run(method="scratch")
    (workdir / train.PAGE).unlink()
    assert train.train(runs.settings(lab.images, method="scratch"), workdir) == found
    assert (workdir / train.PAGE).exists()


def test_streamed_data_train_and_resume_identically(lab, monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.pipeline.device_memory", lambda: 1)
    config = runs.settings(lab.images, method="dce", scan="on")  # a stream has nothing to scan
    found = train.train(config, tmp_path / "whole")
    assert found["compilations"] == {"enter": 1, "leave": 1, "observe": 1, "plain": 1}
    config.stop_after = 5
    assert train.train(config, tmp_path / "parts") is None
    config.stop_after = None
    with monkeypatch.context() as patch:
        patch.setattr(result, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):  # after the last step
            train.train(config, tmp_path / "parts")
    train.train(config, tmp_path / "parts")
    runs.same_end(tmp_path / "whole", tmp_path / "parts")


# --- the command line, in this process


@pytest.fixture
def command(lab, monkeypatch, tmp_path):
    """`main` with a config and a workdir in the place of flags."""

    def call(workdir, **changes):
        settings = runs.settings(lab.images, **changes)
        runs.flags(monkeypatch, settings, workdir)
        return train.main(["train"])

    return call


def test_command_prints_a_finished_run_and_exits_0(lab, command, capsys):
    _, workdir = lab.run(method="dce")
    assert command(workdir, method="dce") == 0
    shown = capsys.readouterr().out
    assert "dce: tiny on" in shown
    assert str(workdir / "report.html") in shown


def test_command_exits_130_when_stopped(command, tmp_path):
    assert command(tmp_path / "w", method="dce", stop_after=5) == 130
    assert (tmp_path / "w/checkpoints/5.json").exists()


def test_command_exits_130_on_an_early_or_second_interrupt(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command(tmp_path / "w") == 130
    assert "interrupted" in capsys.readouterr().err


def test_command_shows_errors_without_a_traceback(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(None, method="dcee", seed=3) == 2
    assert capsys.readouterr().err.startswith("error: unknown method 'dcee'; did you mean 'dce'?")
    assert train.main(["train", "digits"]) == 2
    assert "unknown arguments ['digits']" in capsys.readouterr().err


def test_default_workdir_names_config_method_and_seed():
    settings = runs.settings("x", method="random", seed=4)
    assert str(train.default_workdir(settings)) == "runs/tiny-random-seed4"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_asks_once_and_a_second_ctrl_c_does_not_wait(number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with session.interruptible() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_activations_computed_again_are_a_forward_pass_more(lab):
    plain, _ = lab.run(method="scratch")
    again, _ = lab.run(method="scratch", remat=True)
    forward = 8 * plain["steps"] * plain["macs_compact"]
    assert again["train_macs"] - plain["train_macs"] == forward
    assert again["test_accuracy"] == pytest.approx(plain["test_accuracy"], abs=0.06)
