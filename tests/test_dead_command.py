"""The command that tells of dead units and of what removing units costs."""

import json

import jax
import numpy as np
import pytest
import runs

from dce_jax import channels, compact, forward, pruning
from dce_jax.budget import from_widths
from dce_jax.signals import parse, value
from experiments import dead, dead_tables, removal, replacing, subject

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


def test_random_orders_are_drawn_as_their_mean():
    def rows(loss):
        return [{"removed": 2, **{how: {"loss": loss, "accuracy": 0.5} for how in HOW}}]

    found = dead_tables.curves({"l1 norm": rows(9.0), "random 0": rows(1.0), "random 1": rows(4.0)})
    assert list(found) == ["l1 norm", "random"]
    assert found["random"][0]["plain"] == {"loss": 2.5, "accuracy": 0.5}
    assert found["l1 norm"][0]["folded"]["loss"] == 9.0


HOW = ("plain", "folded")


def test_documents_hold_the_accuracies_of_a_file(tmp_path):
    points = [
        {"removed": n, **{how: {"loss": 1.0, "accuracy": a + n / 100} for how, a in accuracy}}
        for n in (0, 5)
        for accuracy in [zip(HOW, (0.5, 0.75), strict=True)]
    ]
    path = tmp_path / "dead.json"
    path.write_text(json.dumps({"units": 20, "curves": {"l1 norm": points}}))
    lines = dead_tables.tables([path]).splitlines()
    assert lines[0].split(" | ") == ["| units gone", "l1 norm |"]
    assert lines[2:] == ["| 0 (0%) | 50.0% / 75.0% |", "| 5 (25%) | 55.0% / 80.0% |"]
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
