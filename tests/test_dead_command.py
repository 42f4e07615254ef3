"""The command that tells of dead units and of what removing units costs."""

import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import runs

from dce_jax import channels, compact, forward, networks, pruning
from dce_jax.budget import from_widths
from dce_jax.networks import VGG, ResNet
from dce_jax.networks.stages import group_widths
from dce_jax.signals import parse, value
from experiments import dead, dead_plot, dead_tables, removal, replacing, subject

pytestmark = pytest.mark.one_set

SIZES = ("--examples", "32", "--test_examples", "20", "--batch", "10")


@pytest.fixture(scope="module")
def measured(lab):
    _, workdir = lab.run(method="dense", steps=20)
    path = lab.images.parent / "dead.json"
    picture = path.with_suffix(".svg")
    words = ["--workdir", str(workdir), "--json", str(path), "--plot", str(picture), *SIZES]
    assert dead.main(words) == 0
    assert picture.read_text().lstrip().startswith("<?xml")
    return json.loads(path.read_text()), subject.read(workdir, None)


def test_the_file_says_what_it_was_made_with_and_of(measured):
    found, asked = measured
    assert found["command"].startswith("python -m experiments.dead --workdir ")
    assert found["settings"] == {"examples": 32, "test_examples": 20, "batch": 10}
    assert "jax" in found["versions"] and found["device"].startswith("cpu")
    assert (found["units"], found["subject"]["widths"]) == (10, runs.FULL)
    batches = list(subject.batches(asked, "train", 32, 10))
    for group, each in pruning.dead.report(asked.scene, batches).items():
        assert found["dead"][group]["zero"] == np.flatnonzero(each.zero).tolist()


def test_points_are_the_losses_of_networks_that_are_really_cut(measured):
    found, asked = measured
    train = list(subject.batches(asked, "train", 32, 10))
    test = list(subject.batches(asked, "test", 20, 10))
    order = replacing.orders(asked, train)["removal score"]
    rows = {row["removed"]: row for row in found["curves"]["removal score"]}
    assert list(rows) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert rows[0]["plain"] == rows[0]["folded"]
    gone, widths = order[:4], asked.scene.channels.full
    kept = {
        group: np.asarray([c for c in range(width) if (group, c) not in gone], np.int32)
        for group, width in widths.items()
    }
    own = (asked.scene.params, asked.scene.model_state)
    images = [batch["image"] for batch in train]
    folded = pruning.fold(asked.scene, images, kept)
    for how, (params, state) in (("plain", own), ("folded", folded)):
        narrow = {group: len(each) for group, each in kept.items()}
        trees = {"params": params, **state}
        cut = compact.extract(
            asked.scene.channels, from_widths(widths, narrow), trees, kept
        ).variables
        thin, params = channels.with_widths(asked.scene.module, narrow), cut.pop("params")
        losses = []
        for batch in test:
            logits = forward.apply(thin, params, cut, batch["image"], train=False)[0]
            right = logits[np.arange(10), batch["label"]]
            losses.append(jax.nn.logsumexp(logits, axis=-1) - right)
        np.testing.assert_allclose(rows[4][how]["loss"], np.mean(losses), rtol=1e-5)
    assert rows[4]["plain"] != rows[4]["folded"]


def test_orders_are_those_of_the_scores(measured):
    _, asked = measured
    (batch,) = subject.batches(asked, "train", 10, 10)
    orders = replacing.orders(asked, [batch])
    assert [len(order) for order in orders.values()] == [8] * 6  # one of each group stays
    scene = asked.scene._replace(batch=batch)
    for name, formula in (
        ("removal score", "units.taylor.abs_sum.l2"),
        ("mean replacement score", "centred_units.taylor.abs_sum.l2"),
        ("l1 norm", "weights.x.l1.l2"),
    ):
        worth = {g: np.asarray(v) for g, v in value(parse(formula), scene).items()}
        assert orders[name] == removal.order(worth)
    assert len({orders[f"random {draw}"] for draw in range(3)}) == 3


def silenced(workdir, to):
    """A run like another, but channel 0 of conv1 gives 0 and channel 2 gives 1."""
    module, model = compact.load(workdir / "compact", VGG)
    params = dict(model.variables["params"])
    norm = {name: np.array(leaf) for name, leaf in params["norm1"].items()}
    norm["scale"][[0, 2]], norm["bias"][[0, 2]] = 0.0, (-1.0, 1.0)
    params["norm1"] = norm
    compact.save(
        to / "compact", module, model._replace(variables={**model.variables, "params": params})
    )
    shutil.copy(workdir / "result.json", to)
    return to


def test_the_network_is_written_without_its_dead_units(lab, tmp_path, capsys):
    found, workdir = lab.run(method="subset", keep=0.5)
    words = ["--workdir", str(silenced(workdir, tmp_path)), *SIZES]
    words += ["--json", str(tmp_path / "dead.json"), "--compact", str(tmp_path / "lean")]
    assert dead.main(words) == 0
    assert "without its 2 zero and constant units: " in capsys.readouterr().out
    stored = json.loads((tmp_path / "dead.json").read_text())
    assert "--compact lean" in stored["command"] and str(tmp_path) not in stored["command"]
    told = stored["without_dead"]
    assert (told["units"], told["folded"]) == (2, True)
    assert told["before"]["widths"] == runs.HALF == found["widths"]
    assert told["after"]["widths"] == {"conv0": 2, "conv1": 1}
    assert told["after"]["macs"] == runs.macs(told["after"]["widths"])
    np.testing.assert_allclose(told["after"]["loss"], told["before"]["loss"], rtol=1e-5)
    # Its channels are the original network's, and it computes what the whole one does.
    before, whole = compact.load(tmp_path / "compact", VGG)
    after, lean = compact.load(tmp_path / "lean", VGG)
    np.testing.assert_array_equal(lean.selection["conv1"], whole.selection["conv1"][[1]])
    assert lean.budget.full == runs.FULL and lean.budget.compact == told["after"]["widths"]
    assert told["after"]["params"] == sum(
        leaf.size for leaf in jax.tree.leaves(lean.variables["params"])
    )
    images = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    logits = [
        forward.apply(module, v["params"], {"batch_stats": v["batch_stats"]}, images, train=False)[
            0
        ]
        for module, v in ((before, whole.variables), (after, lean.variables))
    ]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


def test_a_network_that_cannot_fold_is_cut_plainly(lab, tmp_path, monkeypatch, capsys):
    _, workdir = lab.run(method="dense", steps=20)
    joined = ResNet((1, 1), group_widths((1, 1), (2, 4)), 3, shortcut="padding")
    monkeypatch.setitem(networks.NETWORKS, "tiny", lambda **_: joined)
    variables = nn.unbox(joined.init(jax.random.key(0), np.zeros((2, 4, 4, 1), np.float32)))
    params = variables["params"]
    for norm in (params["norm"], params["stage0_block0"]["norm1"]):  # the stream's channel 0 is off
        norm |= {"scale": norm["scale"].at[0].set(0.0), "bias": norm["bias"].at[0].set(-1.0)}
    bud = from_widths(joined.widths, joined.widths)
    whole = compact.Compact(variables, bud, compact.whole_selection(bud, {}))
    compact.save(tmp_path / "compact", joined, whole)
    shutil.copy(workdir / "result.json", tmp_path)
    path, picture = tmp_path / "dead.json", tmp_path / "dead.svg"
    words = ["--workdir", str(tmp_path), "--json", str(path), "--plot", str(picture), *SIZES]
    assert dead.main(words) == 0
    assert picture.read_text().lstrip().startswith("<?xml")
    told = capsys.readouterr().out
    assert "units are cut out plainly, their means are not folded: " in told
    assert "test accuracy: plain" in told and "plain / folded" not in told
    found = json.loads(path.read_text())
    assert (found["without_dead"]["units"], found["without_dead"]["folded"]) == (1, False)
    before, after = (found["without_dead"][when] for when in ("before", "after"))
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-5)
    assert after["widths"]["stage0"] == 1 and after["macs"] < before["macs"]
    for rows in found["curves"].values():
        assert [set(row) for row in rows] == [{"removed", "plain"}] * len(rows)
    assert " / " not in dead_tables.tables([path])


def test_units_go_by_their_measured_penalties_where_they_are_asked_for(lab, tmp_path):
    _, workdir = lab.run(method="dense", steps=20)
    path, picture = tmp_path / "dead.json", tmp_path / "dead.svg"
    words = ["--workdir", str(workdir), "--json", str(path), "--plot", str(picture), "--measured"]
    assert dead.main([*words, *SIZES]) == 0
    curves = json.loads(path.read_text())["curves"]
    asked = subject.read(workdir, None)
    train = list(subject.batches(asked, "train", 32, 10))
    orders = replacing.orders(asked, train, measured=lambda *_: None)
    assert list(curves) == list(orders)
    for name, replacement in (("measured removal", "zero"), ("measured mean replacement", "mean")):
        worth = pruning.oracle.penalties(asked.scene, train, replacement=replacement)
        assert orders[name] == removal.order(worth)
        assert [row["removed"] for row in curves[name]] == [0, 1, 2, 3, 4, 5, 6, 7]
        assert f"<!-- {name} -->" in picture.read_text()
    assert orders["measured removal"] != orders["measured mean replacement"]


def test_random_orders_are_drawn_as_their_mean():
    def rows(loss):
        return [{"removed": 2, **{how: {"loss": loss, "accuracy": 0.5} for how in HOW}}]

    found = dead_tables.curves({"l1 norm": rows(9.0), "random 0": rows(1.0), "random 1": rows(4.0)})
    assert list(found) == ["l1 norm", "random"]
    assert found["random"][0]["plain"] == {"loss": 2.5, "accuracy": 0.5}
    assert found["l1 norm"][0]["folded"]["loss"] == 9.0


@pytest.mark.parametrize("images", ["validation", "test"])
def test_tables_and_pictures_name_the_images_that_accuracies_are_of(measured, images):
    found, _ = measured
    found = {**found, "subject": {**found["subject"], "judged_on": images}}
    for key, axes in zip(("loss", "accuracy"), dead_plot.draw(found).axes, strict=True):
        assert axes.get_ylabel() == f"{images} {key}"
        assert dead_tables.table(found, key).title.startswith(f"{images} {key}: plain / folded")


def test_held_out_images_are_not_called_the_test_split(lab, capsys):
    _, workdir = lab.run(method="dense", steps=4, validation=24, examples=30)
    assert dead.main(["--workdir", str(workdir), *SIZES]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "MACs, validation accuracy " in told and "validation loss: plain" in told
    assert "test accuracy" not in told and "test loss" not in told


HOW = ("plain", "folded")


def test_documents_hold_the_accuracies_of_a_file(tmp_path):
    points = [
        {"removed": n, **{how: {"loss": 1.0, "accuracy": a + n / 100} for how, a in accuracy}}
        for n in (0, 5)
        for accuracy in [zip(HOW, (0.5, 0.75), strict=True)]
    ]
    path = tmp_path / "dead.json"
    about = {"network": "net", "dataset": "mnist"}
    path.write_text(json.dumps({"units": 20, "curves": {"l1 norm": points}, "subject": about}))
    lines = dead_tables.tables([path]).splitlines()
    assert lines[0].split(" | ") == ["| units gone", "l1 norm |"]
    assert lines[2:] == ["| 0 (0%) | 50.0% / 75.0% |", "| 5 (25%) | 55.0% / 80.0% |"]
    # Files of one network are seeds of it, and make one table.
    better = tmp_path / "better.json"
    for point in points:
        point["plain"]["accuracy"] += 0.1
    better.write_text(json.dumps({"units": 20, "curves": {"l1 norm": points}, "subject": about}))
    both = dead_tables.tables([path, better])
    assert "55.0% / 75.0%" in both and "60.0% / 80.0%" in both and both.count("units gone") == 1
    rest = {"units": 20, "curves": {"l1 norm": points[:1]}, "subject": about}
    better.write_text(json.dumps(rest))
    with pytest.raises(ValueError, match="net differ in orders or in units removed: make all"):
        dead_tables.tables([path, better])
    path.write_text(json.dumps({"units": 20}))
    with pytest.raises(ValueError, match=r"dead.json holds no curves of units removed: name a"):
        dead_tables.tables([path])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workdir", "nowhere"], "nowhere"),
        (["--workdir", "nowhere", "--batch", "0"], "--batch is 0: choose 1 or more"),
    ],
)
def test_bad_input_is_refused(capsys, words, message):
    assert dead.main(words) == 2
    assert message in capsys.readouterr().err
