"""Runs of per-input execution: resume, what each step trains, what results say."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from dce_jax import networks
from dce_jax.networks import ResNet
from dce_jax.networks.stages import group_widths
from dce_jax.runtime import SWITCHED, predictor, store
from experiments import (
    latency,
    machine,
    runtime,
    runtime_config,
    runtime_plots,
    runtime_result,
    runtime_seen,
    runtime_setup,
    runtime_steps,
    session,
)
from experiments.pipeline import normalise

POINT_KEYS = {"knob", "accuracy", "macs_share", "shuffled_accuracy", "constant_accuracy"}


def residual(*, num_classes, dtype=np.float32, width=1.0):
    """Two blocks of 4 and 6 channels."""
    del width
    return ResNet((1, 1), group_widths((1, 1), (4, 6)), num_classes, dtype=dtype)


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    # AdamW's bias correction raises a float to a count.
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def backbones(lab):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(networks.NETWORKS, "residual", residual)
        plain = lab.run(method="dense", steps=20)[1]
        yield {
            "tiny": plain,
            "residual": lab.run(method="dense", steps=20, network="residual")[1],
        }


def settings(backbone, **changes):
    made = runtime_config.defaults()
    made.update(
        backbone=str(backbone),
        name="tiny",
        steps=12,
        batch_size=8,
        block=4,
        checkpoint_blocks=1,
        points=3,
        turn=2,
        parts=2,
    )
    made.update(changes)
    return made


@pytest.fixture(scope="module")
def finished(backbones, tmp_path_factory):
    """Gives (result, workdir) of a system, trained once."""
    known = {}

    def run(system):
        if system not in known:
            workdir = tmp_path_factory.mktemp(system)
            network = "tiny" if system == "rnp" else "residual"
            parts = {"parts": 1} if system == "l" else {}
            config = settings(backbones[network], system=system, **parts)
            known[system] = runtime.run(config, workdir), workdir
        return known[system]

    return run


def test_example_images_are_titled_with_their_class_and_work():
    share = np.array([[0.5, 0.25, 0.75]])
    images = {"share": share, "labels": np.array([1, 0, 1])}
    pictures = np.zeros((3, 2, 2, 1), np.uint8)
    found = {"points": [{"macs_share": 0.5}]}
    for names, first in ((["cat", "dog"], "cat"), ([], "0")):
        figure = runtime_plots.ends({**found, "class_names": names}, images, pictures)
        titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
        assert titles[0] == f"{first}\n25%" and len(titles) == 6


@pytest.mark.parametrize("system", ["rnp", "l", "c", "lc", "fbs"])
def test_every_system_is_trained_and_told_of(finished, system):
    found, workdir = finished(system)
    assert found == json.loads((workdir / "result.json").read_text())
    assert (found["system"], found["dataset"].endswith("images.npz")) == (system, True)
    knobs = [point["knob"] for point in found["points"]]
    np.testing.assert_allclose([knobs[0], knobs[-1]], found["span"], rtol=1e-6)
    assert re.fullmatch(r"runs/\d+", found["config"]["backbone"])  # no path of this machine
    assert machine.facts().items() <= found.items()
    assert all(point.keys() >= POINT_KEYS for point in found["points"])
    images = np.load(workdir / "images.npz")
    assert images["share"].shape == (3, 20) == images["right"].shape
    np.testing.assert_allclose(
        images["share"].mean(axis=1), [p["macs_share"] for p in found["points"]], rtol=1e-6
    )
    np.testing.assert_allclose(
        images["right"].mean(axis=1), [p["accuracy"] for p in found["points"]], rtol=1e-6
    )
    for index, point in enumerate(found["points"]):
        often = [
            np.bincount(images["levels"][index][:, site], minlength=len(widths)) / 20
            for site, widths in enumerate(found["levels"])
        ]
        assert point["levels"]["all"] == [row.tolist() for row in often]
    assert (
        (workdir / "runtime.png").stat().st_size > 10_000 < (workdir / "images.png").stat().st_size
    )


def test_hard_images_are_drawn_on_the_scale_of_all(finished):
    found, _ = finished("c")  # its images all take the same work
    low, high = 0.5, 1.5
    share = np.tile(np.linspace(low, high, 21), (3, 1))
    flat, steep = (
        runtime_plots.draw(found, {"share": each}).axes[3].get_ylim()
        for each in (np.ones_like(share), share)
    )
    assert flat[1] - flat[0] < 0.2
    np.testing.assert_allclose(steep, (low + 0.05, high - 0.05))


def test_a_run_that_stops_ends_as_one_that_does_not(finished, backbones, tmp_path):
    whole, straight = finished("rnp")
    config = settings(backbones["tiny"], stop_after=5)
    assert runtime.run(config, tmp_path) is None
    assert [line["step"] for line in runs.lines(tmp_path / "metrics.jsonl")] == [4, 8]
    config.stop_after = None
    assert runtime.run(config, tmp_path) == whole
    for name in (
        "metrics.jsonl",
        "model/deciding.safetensors",
        "model/network/weights.safetensors",
    ):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
    assert runtime.run(config, tmp_path) == whole  # read, not made again


def test_what_is_saved_decides_as_what_was_trained(finished, backbones):
    found, workdir = finished("lc")
    example = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    system, variables, params = store.load(workdir / "model", ResNet, example)
    assert system.levels == tuple(map(tuple, found["levels"])) == ((0, 2, 4), (0, 3, 6))
    job = runtime_setup.build(settings(backbones["residual"], system="lc"))
    watcher = runtime_seen.watcher(job)
    seen = runtime_seen.decided(watcher, variables, params, job.subject.data.test, found["span"][0])
    images = np.load(workdir / "images.npz")
    np.testing.assert_array_equal(seen.share, images["share"][0])
    np.testing.assert_array_equal(seen.right, images["right"][0])
    predict = predictor(system, variables, params, SWITCHED)
    data = job.subject.data
    one = normalise(jnp.asarray(data.test.images[:1]), data.mean, data.std)
    logits, share = predict(one, found["span"][0])
    assert (int(logits.argmax()) == int(data.test.labels[0])) == seen.right[0]
    np.testing.assert_allclose(share, images["share"][0][:1], rtol=1e-6)
    assert float(predict(one, found["span"][1])[1][0]) == pytest.approx(images["share"][-1][0])
    with pytest.raises(ValueError, match=r"budget 0.1 lies outside of what lc was trained for"):
        predict(one, 0.1)
    # The same decisions from outside, image by image: the controls stand on this.
    again = runtime_seen.followed(watcher, variables, job.subject.data.test, seen.choices)
    np.testing.assert_array_equal(again, seen.right)
    with pytest.raises(FileNotFoundError, match="no compact model here"):
        store.load(workdir / "model" / "network", ResNet, example)


def test_latency_is_measured_under_the_decisions_of_a_run(finished, tmp_path, capsys):
    found, workdir = finished("rnp")
    path, share = tmp_path / "latency.json", found["points"][1]["macs_share"]
    words = ["--workdir", str(workdir), "--batch", "1", "--repeats", "20", "--json", str(path)]
    picture = tmp_path / "latency.svg"
    assert latency.main([*words, "--macs", str(share), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 0
    written = json.loads(path.read_text())
    assert (written["subject"]["network"], written["subject"]["weights"]) == ("tiny", "trained")
    decisions = written["latency"][1]["decisions"]
    nearest = min(found["points"], key=lambda point: abs(point["macs_share"] - share))
    assert decisions["knob"] == pytest.approx(nearest["knob"])
    assert decisions["images_in_pool"] == 20
    # Every image of the pool is timed once.
    assert written["latency"][1]["share"] == pytest.approx(share)
    assert latency.main([*words, "--parts", "2"]) == 2
    assert "leave out --decisions, --parts and --system" in capsys.readouterr().err
    assert latency.main(["--workdir", found["backbone"]["command"]]) == 2


def test_steps_train_what_their_phase_says(backbones):
    config = settings(backbones["tiny"], random=0.25)
    phases = [runtime_setup.phase(config, 12, step) for step in range(12)]
    assert phases == ["random"] * 3 + ["decide"] * 6 + ["network"] * 2 + ["decide"]
    job = runtime_setup.build(config)
    cost = job.system.costs.full, job.system.deciding
    steps = 5 * 3 * (cost[0] + cost[1]) + 7 * (2 * cost[0] + 3 * cost[1])
    assert runtime_setup.train_macs(job) == pytest.approx(8 * steps)
    programs = runtime_steps.programs(job)
    for phase, changed in (("random", "vt"), ("decide", "d"), ("network", "v")):
        before = runtime_steps.start(job)
        kept = jax.device_get(before)
        after, _ = programs[phase](before, job.source.data_at(1), jnp.int32(1), jax.random.key(0))
        for field, letter in (("variables", "v"), ("deciding", "d"), ("typical", "t")):
            same = jax.tree.map(
                lambda a, b: bool(np.array_equal(a, b)), getattr(kept, field), getattr(after, field)
            )
            assert all(jax.tree.leaves(same)) == (letter not in changed), (phase, field)


def deciding_the_same(job, levels):
    """A start whose values ask for one level at every site, whatever the image."""
    state = runtime_steps.start(job)
    deciding = jax.tree.map(jnp.zeros_like, state.deciding)
    deciding["values"]["bias"] = jnp.asarray(levels)
    return state._replace(deciding=deciding)


def test_the_networks_turns_explore_as_those_of_what_decides_do(backbones):
    shares = {}
    for epsilon in (0.0, 1.0):
        job = runtime_setup.build(settings(backbones["tiny"], epsilon=epsilon))
        step = runtime_steps.programs(job)["network"]
        start = deciding_the_same(job, [0.0, -10.0])  # the fewest channels, where it is greedy
        _, metrics = step(start, job.source.data_at(1), jnp.int32(12), jax.random.key(0))
        shares[epsilon] = float(metrics["macs_share"])
    assert shares[1.0] > shares[0.0] + 0.05


def test_losses_are_counted_from_those_of_the_whole_network(backbones):
    """Everything runs and costs next to nothing, so nothing is lost: only the values are wrong."""
    config = settings(backbones["tiny"], epsilon=0.0, cheapest=-2e-6, dearest=-1e-6, gamma=1.0)
    job = runtime_setup.build(config)
    start = deciding_the_same(job, [0.0, 1.0])
    _, metrics = runtime_steps.programs(job)["decide"](
        start, job.source.data_at(1), jnp.int32(12), jax.random.key(0)
    )
    # Values of 1 at every site; only the last one's target, 0, is not 1.
    sites = len(job.system.chain.sites)
    assert float(metrics["loss"]) > 0.1
    assert float(metrics["temporal_difference"]) == pytest.approx(1.0 / sites, abs=1e-3)


def test_a_budget_is_kept(backbones):
    """The term of the budget, alone, moves work towards it."""
    config = settings(
        backbones["residual"],
        system="lc",
        cheapest=0.35,
        dearest=0.36,
        steps=40,
        deciding_rate=0.05,
        weight=1000.0,
    )
    job = runtime_setup.build(config)
    state, programs = runtime_steps.start(job), runtime_steps.programs(job)
    watcher, test = runtime_seen.watcher(job), job.subject.data.test
    work = []
    for begin, end in ((0, 0), (0, 40)):
        for step in range(begin, end):
            state, _ = programs["both"](
                state, job.source.data_at(step), jnp.int32(step), jax.random.key(0)
            )
        seen = runtime_seen.decided(watcher, state.variables, state.deciding, test, 0.355)
        work.append(seen.share.mean())
    assert work[1] < 0.6 < 0.9 < work[0]


def test_rank_correlation_is_spearmans_with_fishers_interval():
    share, loss = np.array([1.0, 2, 3, 4, 5]), np.array([10.0, 30, 20, 40, 50])
    found = runtime_result.correlation(share, loss)
    assert found["rho"] == pytest.approx(0.9)
    error = 1.96 * np.sqrt((1 + 0.81 / 2) / 2)
    np.testing.assert_allclose(
        [found["low"], found["high"]], np.tanh(np.arctanh(0.9) + np.array([-error, error]))
    )
    assert runtime_result.correlation(np.ones(5), loss)["rho"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "lcc"}, "unknown system 'lcc': one of rnp, l, c, lc, fbs"),
        ({"system": "lc"}, "conv1 has no shortcut, so nothing is left of it at width 0"),
        ({"parts": 9}, "9 widths asked of conv1, which has 6 channels: choose 1 to 6"),
        ({"cheapest": -0.1}, "set both cheapest and dearest"),
        ({"cheapest": -0.1, "dearest": 0.1}, "rnp needs two ends that rise, below 0"),
        ({"points": 0}, "points is 0: choose 1 or more"),
        ({"epsilon": 1.5}, r"epsilon is 1.5: choose 0 to 1"),
        ({"batch_size": 65}, "batch size is 65, but the training split has 64"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: choose more than 0"),
    ],
)
def test_wrong_configs_are_refused(backbones, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        runtime.run(settings(backbones["tiny"], **changes), tmp_path)


def test_a_backbone_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/result.json does not exist: give the"):
        runtime.run(settings("nowhere"), tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_saved(backbones, tmp_path):
    config = settings(backbones["residual"], system="lc", learning_rate=1e30)
    with pytest.raises(session.TrainingError, match="lower learning_rate"):
        runtime.run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_another_config_is_refused_in_the_same_workdir(finished, backbones):
    _, workdir = finished("rnp")
    with pytest.raises(ValueError, match=r"gamma: 0.999 there, 0.5 now"):
        runtime.run(settings(backbones["tiny"], gamma=0.5), workdir)


def test_the_command_line_says_what_went_wrong(monkeypatch, capsys, backbones, finished):
    _, workdir = finished("rnp")
    for config, code, text in (
        (settings("nowhere"), 2, "error: nowhere/result.json does not exist"),
        (settings(backbones["tiny"]), 0, "rnp on tiny"),
    ):
        flags = SimpleNamespace(FLAGS=SimpleNamespace(config=config, workdir=str(workdir)))
        if code:
            flags.FLAGS.workdir = str(workdir / "other")
        monkeypatch.setattr(runtime, "flags", flags)
        assert runtime.main(["runtime"]) == code
        shown = capsys.readouterr()
        assert text in shown.err + shown.out
