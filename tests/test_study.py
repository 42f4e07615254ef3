"""Signals against an oracle: agreement, removal orders, and the study of a trained network."""

import itertools
import json

import numpy as np
import pytest
import signal_nets
from hypothesis import given, settings
from hypothesis import strategies as st

from dce_jax import pruning, signals
from dce_jax import signals as algebra
from dce_jax.pruning.oracle import Judged
from experiments import arguments, correlation, removal, study, study_plots, study_tables, subject
from experiments import signals as command

pytestmark = pytest.mark.one_set

SIZES = study.Sizes(examples=16, test_examples=20, batch=8, chunk=4, best=3, draws=2, look=0.1)
FLAGS = ["--examples=16", "--test_examples=20", "--batch=8", "--best=3"]


def ranks(values):
    """Mean rank of ties, literally."""
    return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
@settings(deadline=None, max_examples=50)
def test_spearman_is_the_correlation_of_mean_ranks(pairs):
    one, other = np.array(pairs, np.float64).T
    found = correlation.spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
        return
    np.testing.assert_allclose(found, np.corrcoef(ranks(one), ranks(other))[0, 1], atol=1e-12)


def test_agreement_is_of_each_layer_and_of_all_together():
    one = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([1.0, 1.0]), "c": np.array([9.0, 8.0])}
    other = {"b": np.array([7.0, 8.0]), "a": np.array([1.0, 3.0, 2.0]), "c": np.array([5.0, 6.0])}
    found = correlation.agreement(one, other)
    assert found.layers == {"a": pytest.approx(0.5), "b": None, "c": pytest.approx(-1.0)}
    assert found.per_layer == pytest.approx(-0.25)
    joined = [np.concatenate([values[g] for g in "abc"]) for values in (one, other)]
    assert found.across == pytest.approx(correlation.spearman(*joined))
    with pytest.raises(ValueError, match=r"different channels: .*'c': 2.* and .*'c': 1"):
        correlation.agreement(one, {**other, "c": np.array([5.0])})


def test_the_least_salient_go_first_and_the_last_of_a_group_stays():
    values = {"a": np.array([3.0, 1.0]), "b": np.array([1.0, 0.0, -1.0])}
    assert removal.order(values) == (("b", 2), ("b", 1), ("a", 1))


def test_a_walk_takes_channels_away_until_accuracy_falls():
    gone_at = []

    def judge(masks):
        gone = sum(int(np.sum(mask == 0)) for mask in masks.values())
        gone_at.append({g: np.flatnonzero(mask == 0).tolist() for g, mask in masks.items()})
        return Judged(np.zeros(10), np.arange(10) >= (0, 0, 0, 1, 0, 5, 9)[gone])

    order = tuple(("a", i) for i in (4, 0, 2)) + tuple(("b", i) for i in (1, 3, 0))
    curve = removal.walk(judge, {"a": 5, "b": 4}, order, stride=1, until=0.3)
    assert curve.removed == [0, 1, 2, 3, 4, 5]
    assert curve.accuracy == [1.0, 1.0, 1.0, 0.9, 1.0, 0.5]
    assert gone_at[3] == {"a": [0, 2, 4], "b": []} and gone_at[5]["b"] == [1, 3]
    assert [removal.endured(curve, loss) for loss in (0.01, 0.11, 0.9)] == [2, 4, 5]
    strided = removal.walk(judge, {"a": 5, "b": 4}, order, stride=4, until=0.3)
    assert strided.removed == [0, 4]
    with pytest.raises(ValueError, match="stride is 0"):
        removal.walk(judge, {"a": 5}, order, stride=0, until=0.3)


NAMES = (
    *("activations.taylor.abs_sum.l2", "activations.x.sum.cardinality"),
    *("weights.g.l1.l1", "weights.taylor.sqr_sum.none"),
)


def test_averages_of_batches_are_the_values_of_all_examples():
    whole = signal_nets.scene(size=6)
    formulas = [signals.parse(name) for name in NAMES]
    parts = [{k: v[rows] for k, v in whole.batch.items()} for rows in (slice(4), slice(4, 6))]
    found = signals.averages(formulas, whole._replace(batch=None), parts, chunk=2)
    for formula, expected in signals.values(formulas, whole).items():
        for group, values in expected.items():
            np.testing.assert_allclose(found[formula][group], values, rtol=2e-4, atol=1e-6)
    with pytest.raises(ValueError, match="signals are means over batches, but there was none"):
        signals.averages(formulas, whole, [])


@pytest.fixture(scope="module")
def dense(lab):
    _, workdir = lab.run(method="dense", steps=20)
    return workdir


@pytest.fixture(scope="module")
def written(dense, tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.json"
    assert command.main(["--study", str(dense), "--json", str(path), *FLAGS]) == 0
    return path


def test_a_study_ranks_every_formula_by_the_oracle(dense, written):
    found = json.loads(written.read_text())
    names = [row["name"] for row in found["signals"]]
    assert set(algebra.names()) <= set(names)
    assert {"random 0", "norm_scale", "activations.apoz", "centred_units.taylor.abs_sum.l2"} <= set(
        names
    )
    assert {"units.taylor.abs_sum.none", "units.taylor.sqr_sum.none"} <= set(names)
    across = [row["across"] for row in found["signals"]]
    known = [value for value in across if value is not None]
    assert known == sorted(known, reverse=True) and known == across[: len(known)]
    asked = subject.read(dense, None)
    batches = list(subject.batches(asked, "train", 16, 8))
    assert [len(batch["label"]) for batch in batches] == [8, 8]
    oracle = pruning.oracle.penalties(asked.scene, batches)
    for group, values in oracle.items():
        np.testing.assert_allclose(found["oracle"][group], values, atol=1e-9)
    formula = signals.parse("activations.taylor.abs_sum.l2")
    values = signals.averages([formula], asked.scene, batches)[formula]
    size = {group: np.abs(each) for group, each in oracle.items()}
    expected = correlation.agreement({g: np.asarray(v) for g, v in values.items()}, size)
    row = found["signals"][names.index(str(formula))]
    assert row["across"] == pytest.approx(expected.across)
    assert row["per_layer"] == pytest.approx(expected.per_layer)
    assert row["published"] == "Taylor (Molchanov)"
    assert found["command"] == (
        f"python -m experiments.signals --study runs/{dense.name} --json study.json "
        "--examples 16 --test_examples 20 --batch 8 --best 3"
    )
    assert found["subject"]["command"] == asked.result["command"] and found["versions"]["jax"]


def test_signals_outside_the_algebra_see_the_images_that_all_others_see(dense):
    asked = subject.read(dense, None)
    sizes = SIZES._replace(examples=21)  # two batches and a half
    seen = study.others(asked, sizes)["units.mean"]
    parts = [b["image"] for b in subject.batches(asked, "train", 21, 8)]
    batch = {"image": np.concatenate(parts), "label": np.zeros(16, np.int32)}
    expected = study._alone(asked, "units.mean", batch)
    assert len(batch["image"]) == 16
    for group, values in expected.items():
        np.testing.assert_array_equal(seen[group], values)


def test_a_subject_keeps_to_the_images_that_its_run_had(lab):
    _, workdir = lab.run(method="dense", steps=4, validation=24, examples=30)
    asked = subject.read(workdir, None)
    assert (asked.data.train.num_images, asked.data.test.num_images) == (30, 24)
    facts = subject.facts(asked)
    assert "evaluated on 24 held-out" in " ".join(facts["notes"])
    assert facts["judged_on"] == "validation"
    whole = subject.read(lab.run(method="dense", steps=20)[1], None)
    assert whole.data.train.num_images == 64
    assert subject.facts(whole)["judged_on"] == "test"


def test_the_best_the_published_and_the_oracle_have_curves(dense, written):
    found = json.loads(written.read_text())
    points = [row["name"] for row in found["signals"] if row["name"].count(".") == 3]
    curves = found["curves"]
    assert {"oracle", "oracle, absolute", "random 1", "weights.x.l1.none", *points[:3]} <= set(
        curves
    )
    assert len(points) > 200
    assert len(curves) <= 2 + 3 + 3 + len(study.PUBLISHED)  # oracles, the best, random, published
    asked = subject.read(dense, None)
    for curve in curves.values():
        assert curve["removed"][:2] == [0, 1] and len(curve["accuracy"]) == len(curve["removed"])
        assert curve["at_1_percent"] in curve["removed"]
    plain = curves["oracle"]["accuracy"][0]
    right = []
    for batch in subject.batches(asked, "test", 20, 8):
        logits = asked.scene.module.apply(
            {"params": asked.scene.params, **asked.scene.model_state}, batch["image"]
        )
        right += np.asarray(logits.argmax(axis=-1) == batch["label"]).tolist()
    assert len(right) == 16 and plain == np.mean(right)


def test_a_study_leaves_a_picture_and_tables(written):
    assert written.with_suffix(".png").stat().st_size > 10_000
    every = written.with_suffix(".md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in every) - 2 == len(
        json.loads(written.read_text())["signals"]
    )
    short = study_tables.tables([written])
    assert "Taylor (Molchanov)" in short and "random 1" in short
    cells = [line.strip("| ").split(" | ") for line in short.splitlines() if line.endswith("|")]
    points = [row for row in cells[2:] if row[2] == "-" and "random" not in row[1]]
    assert len(points) == study_tables.BEST
    assert all(one[3:6] != other[3:6] for one, other in itertools.pairwise(points))


@pytest.mark.parametrize("best", ["units.taylor.sqr_sum.none", "weights.g.l2.none"])
def test_every_named_curve_has_one_line_and_one_name(written, best):
    found = json.loads(written.read_text())
    first = [{**found["signals"][0], "name": best}]
    found["signals"], found["curves"][best] = first, found["curves"][study.ABSOLUTE]
    axes = study_plots.draw(found).axes[1]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    named = ["oracle", "Taylor, behind the ReLU", "Fisher, behind the ReLU", "L1 norm", "random"]
    assert names == (named if best.startswith("units") else [best, *named])


@pytest.mark.parametrize("images", ["validation", "test"])
def test_tables_and_pictures_name_the_images_that_accuracies_are_of(written, images):
    found = json.loads(written.read_text())
    found["subject"]["judged_on"] = images
    first = study_tables.table(found, everything=False).splitlines()[0]
    assert f"% {images} accuracy, 10 channels; 16 training images, 20 {images} images" in first
    label = study_plots.draw(found).axes[1].get_ylabel()
    assert label == f"{images} accuracy, not retrained (dashed: 1 % less)"
    del found["subject"]["judged_on"]  # as in older files
    assert "% test accuracy" in study_tables.table(found, everything=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say by --json FILE"),
        (["--json", "x.json", "--examples", "0"], "--examples is 0: choose 1 or more"),
        (["--json", "x.json", "--best", "-1"], "--best is -1: choose 0 or more"),
        (["--json", "x.json"], "does not exist: give the directory of a finished run"),
    ],
)
def test_what_no_study_can_be_made_of_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--study", str(tmp_path / "none"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_study_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"other.json is no study of signals, it has no \['comm"):
        study_tables.tables([path])


def test_stored_commands_name_no_directories_of_this_machine():
    words = [
        "--workdir=/a/b/dense",
        "--data_dir",
        "/c",
        "--json",
        "d/e.json",
        "--batch=8",
        "--plot=f",
    ]
    found = ["--workdir", "runs/dense", "--data_dir", "DIR", "--json", "e.json", "--batch", "8"]
    assert arguments.portable(words) == [*found, "--plot", "f"]
    assert arguments.portable(["--study", "."])[1].startswith("runs/")
