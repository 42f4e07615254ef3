"""Validation images: cut from the training split, never seen in training, fixed."""

import numpy as np
import pytest
import runs

from experiments import holdout
from experiments.dataset import Split, make_dataset


def numbered(count, first):
    """Gray 1x1 images that carry their own number, so that each can be traced."""
    images = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, (np.arange(count) % 2).astype(np.int32))


DATA = make_dataset(
    "numbers", numbered(100, 0), numbered(10, 200), num_classes=2, class_names=("even", "odd")
)


def ids(split):
    return set(split.images.ravel().tolist())


def test_validation_and_training_share_no_image_and_lose_none():
    found = holdout.hold_out(DATA, validation=30, examples=None)
    assert len(found.test.labels) == 30 and len(found.train.labels) == 70
    assert ids(found.test) | ids(found.train) == set(range(100))
    for split in (found.train, found.test):  # labels stay with their images
        np.testing.assert_array_equal(split.labels, split.images.ravel() % 2)
    assert found.mean == pytest.approx([found.train.images.mean() / 255])
    assert found.class_names == ("even", "odd")
    assert "evaluated on 30 held-out training images" in found.notes[-1]


def test_what_is_held_out_does_not_depend_on_the_number_of_examples():
    every = holdout.hold_out(DATA, validation=30, examples=None)
    few = holdout.hold_out(DATA, validation=30, examples=20)
    np.testing.assert_array_equal(every.test.images, few.test.images)
    assert len(few.train.labels) == 20 and ids(few.train) < ids(every.train)


def test_the_test_split_stays_where_nothing_is_held_out():
    assert holdout.hold_out(DATA, validation=0, examples=None) is DATA
    few = holdout.hold_out(DATA, validation=0, examples=20)
    assert few.test is DATA.test and len(few.train.labels) == 20
    assert few.notes == ("trained on 20 of 100 training images",)


@pytest.mark.parametrize(("validation", "examples"), [(100, None), (101, None), (90, 11)])
def test_more_than_there_is_is_refused(validation, examples):
    with pytest.raises(ValueError, match=f"100 training images: validation={validation} leaves"):
        holdout.hold_out(DATA, validation=validation, examples=examples)


def test_a_run_says_what_it_was_evaluated_on(tmp_path):
    with runs.lab(tmp_path) as lab:
        found, _ = lab.run(method="scratch", validation=16, examples=40)
    assert found["notes"] == [
        "trained on 40 of 64 training images",
        "evaluated on 16 held-out training images, not on the test split",
    ]
    assert found["test_accuracy"] * 16 == round(found["test_accuracy"] * 16)
