"""Encoded images of a prepared TFDS directory: loaded, streamed in training, evaluated."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tfds_dirs

from dce_jax import mesh
from experiments import data, evaluate, pipeline, streaming, views
from experiments.augment import Augment
from experiments.dataset import Split
from experiments.placement import Placement

TRAIN, TEST, SIZE = 23, 10, 8
RUN = {"batch_size": 4, "steps": 17, "seed": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}
PER_EPOCH = TRAIN // 4
FLIP = Augment(flip=True)


def write(root, **changes):
    splits = {
        "train": tfds_dirs.photos(TRAIN),
        "validation": tfds_dirs.photos(TEST, first=500, seed=1),
    }
    return tfds_dirs.write(root, "imagenet2012", splits | changes)


def load(data_dir):
    return data.load("imagenet2012", data_dir=data_dir, image_size=SIZE)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return load(write(tmp_path_factory.mktemp("tfds")))


def middles(split):
    """The same split in memory, decoded one by one."""
    found = [split.read(int(row)) for row in split.rows]
    rng = np.random.default_rng(0)
    images = [views.middle(views.decode(record.image), rng, split.size) for record in found]
    return Split(np.stack(images), np.array([record.label for record in found], np.int32))


# Loading


def test_encoded_sets_are_described_without_decoding_them(photos):
    assert (photos.num_classes, photos.image_shape) == (1000, (SIZE, SIZE, 3))
    assert len(photos.class_names) == 1000 and photos.class_names[0] == "n01440764"
    assert (photos.train.num_images, photos.test.num_images) == (TRAIN, TEST)
    assert photos.notes == (
        "images cut to 8x8: random windows in training, else the middle",
        "evaluated on the split 'validation'",
    )


def test_a_test_split_that_hides_its_labels_is_not_evaluated(tmp_path):
    hidden = [{**record, "label": -1} for record in tfds_dirs.photos(3)]
    found = load(write(tmp_path, test=hidden))
    assert found.test.num_images == TEST
    assert found.notes[1:] == ("evaluated on the split 'validation'",)


def test_a_labelled_test_split_is_evaluated(tmp_path):
    found = load(write(tmp_path, test=tfds_dirs.photos(3)))
    assert (found.test.num_images, found.notes[1:]) == (3, ())


def test_unprepared_or_incomplete_sets_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare imagenet2012 --data_dir"):
        load(str(tmp_path))
    tfds_dirs.write(tmp_path, "imagenet2012", {"validation": tfds_dirs.photos(2)})
    with pytest.raises(ValueError, match=r"no split 'train'; it has \['validation'\]"):
        load(str(tmp_path))


# Training batches


def windows(split, *, steps, start=0, **changes):
    source = pipeline.make_source(
        split, **{**RUN, "augment": FLIP, **changes}, start_step=start, limit_bytes=10**12
    )
    assert not source.resident
    batch_fn, key = jax.jit(source.batch_fn), jax.random.key(0)
    return [batch_fn(source.data_at(s), jnp.int32(s), key) for s in range(start, start + steps)]


def test_batches_hold_every_image_once_an_epoch_each_time_cut_otherwise(photos):
    batches = windows(photos.train, steps=2 * PER_EPOCH, augment=Augment())
    for batch in batches:
        chex.assert_shape(batch["image"], (4, SIZE, SIZE, 3))
        chex.assert_type([batch["image"], batch["label"]], [jnp.float32, jnp.int32])
    epochs = []
    for start in (0, PER_EPOCH):
        some = batches[start : start + PER_EPOCH]
        labels = np.concatenate([batch["label"] for batch in some])
        assert len(set(labels)) == len(labels) and set(labels) <= set(range(TRAIN))
        images = np.concatenate([batch["image"] for batch in some])
        epochs.append(dict(zip(labels.tolist(), images, strict=True)))
    again = epochs[0].keys() & epochs[1].keys()
    assert len(again) > 10 and list(epochs[0]) != list(epochs[1])
    same = [label for label in again if np.array_equal(epochs[0][label], epochs[1][label])]
    assert same == []


def test_windows_show_their_own_image(photos):
    """Cut from an image of one colour, a window has that colour; labels stay with images."""
    colours = np.random.default_rng(0).integers(0, 256, (TRAIN, 3), dtype=np.uint8)
    plain = [np.broadcast_to(c, (12, 17, 3)) for c in colours]
    read = photos.train.read

    def coloured(row):
        return read(row)._replace(image=tfds_dirs.encode(np.ascontiguousarray(plain[row]), "PNG"))

    source = pipeline.stream(photos.train._replace(read=coloured), **RUN, augment=FLIP)
    for step in range(6):
        batch = source.data_at(step)
        expected = np.broadcast_to(
            colours[np.asarray(batch["label"])][:, None, None], (4, SIZE, SIZE, 3)
        )
        np.testing.assert_array_equal(batch["image"], expected)


def test_batches_depend_on_the_seed_alone(photos):
    first, again = (windows(photos.train, steps=7) for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    other = windows(photos.train, steps=1, seed=4)[0]
    assert not np.array_equal(first[0]["label"], other["label"])


@pytest.mark.parametrize("start", [1, PER_EPOCH, 13, 16])
def test_restarted_equals_the_uninterrupted_one(photos, start):
    whole = windows(photos.train, steps=17)
    chex.assert_trees_all_equal(whole[start:], windows(photos.train, steps=17 - start, start=start))


def in_memory(_):
    return Split(np.zeros((TRAIN, SIZE, SIZE, 3), np.uint8), np.arange(TRAIN, dtype=np.int32))


@pytest.mark.parametrize("kind", [lambda split: split, in_memory], ids=["encoded", "arrays"])
def test_a_process_reads_its_own_part_of_every_batch(photos, monkeypatch, kind):
    steps, split = 2 * PER_EPOCH + 1, kind(photos.train)
    whole = pipeline.stream(split, **RUN, augment=FLIP)
    monkeypatch.setattr(streaming.placing, "rows_of", lambda *_: slice(1, 3))
    part = pipeline.stream(split, **RUN, augment=FLIP)
    for step in range(steps):
        expected = jax.tree.map(lambda leaf: leaf[1:3], whole.data_at(step))
        chex.assert_trees_all_equal(part.data_at(step), expected)


def test_batches_are_cut_over_devices_and_stay_the_same(photos):
    many = Placement(mesh.data_mesh(jax.devices()[:4]))
    cut = windows(photos.train, steps=3, placement=many)
    chex.assert_trees_all_equal(jax.device_get(cut), jax.device_get(windows(photos.train, steps=3)))
    assert {shard.data.shape[0] for shard in cut[0]["image"].addressable_shards} == {1}


def test_nothing_is_decoded_before_it_is_asked_for(photos):
    read = []
    lazy = photos.train._replace(read=lambda row: read.append(row) or photos.train.read(row))
    source = pipeline.stream(lazy, **RUN, augment=FLIP)
    assert not read
    source.data_at(0)
    assert read


def test_flips_reach_encoded_images(photos):
    plain = windows(photos.train, steps=3, augment=Augment())
    flipped = windows(photos.train, steps=3)
    turned = 0
    for one, other in zip(plain, flipped, strict=True):
        for before, after in zip(one["image"], other["image"], strict=True):
            mirrored = np.array_equal(after, before[:, ::-1])
            turned += mirrored
            assert mirrored or np.array_equal(after, before)
    assert 0 < turned < 12


# Evaluation


class Means(nn.Module):
    """Classes by the channels' means."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1000)(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("batch_size", [3, 10, 16])
def test_streamed_evaluation_sees_the_middles_in_order(photos, batch_size):
    batches = list(pipeline.eval_batches(photos.test, batch_size))
    held = list(pipeline.eval_batches(middles(photos.test), batch_size))
    chex.assert_trees_all_equal(batches, held)


def test_streamed_accuracy_is_that_of_the_same_images_in_memory(photos, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH", 4)
    variables = Means().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    held = photos._replace(test=middles(photos.test))
    # Right labels for seven of the ten.
    images = pipeline.normalise(held.test.images, photos.mean, photos.std)
    labels = np.array(jnp.argmax(Means().apply(variables, images), axis=-1), np.int32)
    labels[:3] = (labels[:3] + 1) % 1000
    held = held._replace(test=held.test._replace(labels=labels))
    read = photos.test.read
    streamed = photos._replace(
        test=photos.test._replace(read=lambda row: read(row)._replace(label=int(labels[row])))
    )
    found = [evaluate.accuracy(Means(), variables, d) for d in (streamed, held)]
    assert found == [0.7, 0.7]


def test_recalibration_sees_random_windows_of_the_first_images(photos):
    ask = partial(evaluate.recalibration_inputs, augment=FLIP, examples=11, batch_size=4)
    found = np.concatenate(list(ask(photos)))
    assert found.shape == (8, SIZE, SIZE, 3)
    np.testing.assert_array_equal(found, np.concatenate(list(ask(photos))))
    held = photos._replace(train=middles(photos.train))
    assert not np.array_equal(found, np.concatenate(list(ask(held))))
