"""The main job on encoded images: trained, stopped, gone on with, held out, and what is broken."""

from pathlib import Path

import numpy as np
import pytest
import runs
import tfds_dirs

from experiments import data, holdout, pipeline, train
from experiments.augment import Augment

TRAIN, TEST, SIZE = 32, 10, 8
CHANGES = {"image_size": SIZE, "flip": True, "steps": 11, "batch_size": 8}


def write(root, records):
    test = tfds_dirs.photos(TEST, first=TRAIN, seed=1)
    return tfds_dirs.write(root, "imagenet2012", {"train": records, "validation": test})


def load(data_dir):
    return data.load("imagenet2012", data_dir=data_dir, image_size=SIZE)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tfds"), tfds_dirs.photos(TRAIN))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, data_dir):
    with runs.lab(tmp_path_factory.mktemp("runs")) as opened:
        opened.settings = lambda **changes: runs.settings(
            "imagenet2012", data_dir=data_dir, **CHANGES, **changes
        )
        yield opened


@pytest.fixture(scope="module")
def whole(lab, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return train.train(lab.settings(), workdir), workdir


# Runs


def test_a_run_trains_and_is_evaluated_on_the_validation_split(whole):
    found, _ = whole
    assert found["compilations"] == {"enter": 1, "leave": 1, "observe": 1, "plain": 1}
    assert found["test_accuracy"] * TEST == pytest.approx(round(found["test_accuracy"] * TEST))
    assert found["notes"][1] == "evaluated on the split 'validation'"
    assert "--config.image_size=8" in found["command"]


@pytest.mark.parametrize("stop", [5, 10])
def test_an_interrupted_run_sees_the_same_images_and_ends_the_same(lab, whole, tmp_path, stop):
    settings = lab.settings(stop_after=stop, threads=1)
    assert train.train(settings, tmp_path) is None
    settings.update(stop_after=None, threads=3)
    train.train(settings, tmp_path)
    runs.same_end(whole[1], tmp_path)


def test_another_seed_sees_other_images(lab, whole, tmp_path):
    found = train.train(lab.settings(seed=1, stop_after=5), tmp_path)
    assert found is None
    losses = [runs.lines(w / "metrics.jsonl")[0]["loss"] for w in (whole[1], tmp_path)]
    assert losses[0] != losses[1]


def test_validation_and_examples_work_without_decoding(lab, data_dir, tmp_path):
    every = load(data_dir)
    held = holdout.hold_out(every, validation=6, examples=20)
    rows = [set(split.rows.tolist()) for split in (held.train, held.test)]
    assert [len(r) for r in rows] == [20, 6] and not rows[0] & rows[1]
    assert (held.mean, held.std) == (every.mean, every.std)
    labels = [batch["label"] for batch in pipeline.eval_batches(held.test, 6)]
    assert set(np.concatenate(labels).tolist()) == rows[1]  # a label is its record's row

    few = lab.settings(validation=6, examples=20, method="scratch", seed=2)
    found = train.train(few, tmp_path)
    assert found["notes"][-2:] == [
        "trained on 20 of 32 training images",
        "evaluated on 6 held-out training images, not on the test split",
    ]
    assert found["test_accuracy"] * 6 == pytest.approx(round(found["test_accuracy"] * 6))


def test_more_images_than_there_are_are_refused(lab, tmp_path):
    with pytest.raises(ValueError, match="32 training images: validation=30 leaves 2"):
        train.train(lab.settings(validation=30, examples=3), tmp_path)


def test_images_too_small_for_a_network_are_refused(lab, tmp_path):
    settings = lab.settings()
    settings.update(network="resnet50", image_size=16)
    with pytest.raises(ValueError, match="16x16"):
        train.train(settings, tmp_path)


def test_without_an_image_size_the_run_is_refused(lab, tmp_path):
    settings = lab.settings()
    settings.image_size = None
    with pytest.raises(ValueError, match=r"imagenet2012: image sizes differ; give .* image_size"):
        train.train(settings, tmp_path)


# Broken records


def broken(kind):
    records = tfds_dirs.photos(TRAIN)
    bad = records[3]
    if kind == "cut":
        bad["image"] = bad["image"][: len(bad["image"]) // 2]
    elif kind == "text":
        bad["image"] = b"not an image"
    else:
        bad["label"] = kind
    return records


MESSAGES = [
    ("cut", r" cannot be decoded \(.*truncated.*\); mend or drop that image"),
    ("text", r" cannot be decoded \(not an image of a known format\); mend"),
    (1000, r": label 1000 is out of range; labels must be 0 \.\. 999"),
    (-1, ": label -1 is out of range"),
]
NAMED = r"imagenet2012: record 3 of split 'train' \(n00000003.JPEG\)"


@pytest.mark.parametrize(("kind", "message"), MESSAGES)
def test_a_broken_record_is_named_in_training_and_evaluation(tmp_path, kind, message):
    bad = load(write(tmp_path, broken(kind)))
    with pytest.raises(ValueError, match=f"(?i){NAMED}{message}"):
        list(pipeline.eval_batches(bad.train, 8))
    source = pipeline.stream(
        bad.train, batch_size=8, steps=4, seed=0, mean=bad.mean, std=bad.std, augment=Augment()
    )
    with pytest.raises(ValueError, match=f"(?i){NAMED}{message}"):
        for step in range(4):
            source.data_at(step)


def test_a_broken_record_ends_a_run_with_one_line(lab, tmp_path, monkeypatch, capsys):
    settings = lab.settings()
    settings.data_dir = write(tmp_path, broken("cut"))
    runs.flags(monkeypatch, settings, tmp_path / "w")
    assert train.main(["train"]) == 2
    said = capsys.readouterr().err
    assert "error: imagenet2012: record 3 of split 'train' (n00000003.JPEG) cannot be dec" in said
    assert "Traceback" not in said


def test_a_damaged_file_is_named(tmp_path):
    made = Path(write(tmp_path, tfds_dirs.photos(TRAIN)))
    file = tfds_dirs.file_of(next((made / "imagenet2012").iterdir()), "train")
    whole = bytearray(file.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes(64)
    file.write_bytes(whole)
    split = load(str(tmp_path)).train
    with pytest.raises(ValueError, match=r"imagenet2012: record \d+ of split 'train' is damaged"):
        list(pipeline.eval_batches(split, 8))
