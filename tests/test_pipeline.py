"""Batches: their order, their augmentation, and that a restart changes nothing."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, pipeline
from experiments.augment import Augment
from experiments.dataset import Split, make_dataset
from experiments.pipeline import batch_order, eval_batches, fits_on_device, make_source, resident

N, SHAPE = 23, (6, 5, 3)
RNG = np.random.default_rng(0)
SPLIT = Split(
    RNG.integers(0, 256, (N, *SHAPE), dtype=np.uint8),
    np.arange(N, dtype=np.int32),  # the label says which example it is
)
MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)
NONE = Augment()
RUN = {"batch_size": 4, "steps": 17, "seed": 3, "mean": MEAN, "std": STD, "augment": NONE}
PER_EPOCH = N // 4


def plain(images):
    return (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


def labels_of(source, steps):
    batch_fn, key = jax.jit(source.batch_fn), jax.random.key(0)
    return np.stack([batch_fn(source.data_at(s), jnp.int32(s), key)["label"] for s in steps])


def check_epochs(labels):
    for start in range(0, len(labels), PER_EPOCH):
        seen = labels[start : start + PER_EPOCH].ravel()
        assert len(set(seen.tolist())) == len(seen)
        assert set(seen.tolist()) <= set(range(N))
    assert not np.array_equal(labels[0], labels[PER_EPOCH])


# Resident


def test_resident_batches_are_the_normalised_images_of_their_labels():
    source = resident(SPLIT, **RUN)
    assert source.resident
    batch = jax.jit(source.batch_fn)(source.data_at(7), jnp.int32(7), jax.random.key(0))
    chex.assert_shape(batch["image"], (4, *SHAPE))
    chex.assert_type([batch["image"], batch["label"]], [jnp.float32, jnp.int32])
    expected = plain(SPLIT.images[np.asarray(batch["label"])])
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)


def test_resident_epochs_see_each_example_at_most_once():
    labels = labels_of(resident(SPLIT, **RUN), range(17))
    check_epochs(labels)
    expected = np.random.default_rng([3, 1]).permutation(N)[: PER_EPOCH * 4].reshape(-1, 4)
    np.testing.assert_array_equal(labels[PER_EPOCH : 2 * PER_EPOCH], expected)


def test_order_depends_on_the_seed_and_not_on_the_length_of_the_run():
    order = batch_order(count=N, batch_size=4, steps=17, seed=3)
    assert order.dtype == np.int32
    longer = batch_order(count=N, batch_size=4, steps=40, seed=3)
    np.testing.assert_array_equal(order, longer[:17])
    assert not np.array_equal(order, batch_order(count=N, batch_size=4, steps=17, seed=4))
    # Neither may epochs of neighbouring seeds coincide.
    other = batch_order(count=N, batch_size=4, steps=17, seed=2)
    assert not np.array_equal(order[:PER_EPOCH], other[PER_EPOCH : 2 * PER_EPOCH])


def test_resident_batch_depends_on_seed_step_and_key_alone():
    run = {**RUN, "augment": Augment(crop=2, flip=True)}
    first, again = resident(SPLIT, **run), resident(SPLIT, **run)
    batch_fn, late_fn = jax.jit(first.batch_fn), jax.jit(again.batch_fn)
    late = late_fn(again.data_at(0), jnp.int32(11), jax.random.key(5))
    for step in range(12):
        batch = batch_fn(first.data_at(step), jnp.int32(step), jax.random.key(5))
    chex.assert_trees_all_equal(batch, late)
    other = late_fn(again.data_at(0), jnp.int32(11), jax.random.key(6))
    assert not np.array_equal(other["image"], late["image"])
    np.testing.assert_array_equal(other["label"], late["label"])


def test_one_key_serves_all_steps():
    """Equal examples at two steps are cropped differently though the key is the same."""
    same = Split(np.broadcast_to(SPLIT.images[:1], SPLIT.images.shape), SPLIT.labels)
    source = resident(same, **{**RUN, "augment": Augment(crop=2, flip=True)})
    batch_fn, data, key = jax.jit(source.batch_fn), source.data_at(0), jax.random.key(0)
    first, second = (batch_fn(data, jnp.int32(s), key)["image"] for s in (0, 1))
    assert not np.array_equal(first, second)


def test_resident_compiles_once_and_moves_nothing_from_the_host():
    source = resident(SPLIT, **{**RUN, "augment": Augment(crop=2, flip=True)})
    step_fn = jax.jit(chex.assert_max_traces(source.batch_fn, n=1))
    key, steps = jax.random.key(0), [jnp.int32(s) for s in range(3)]
    step_fn(source.data_at(0), steps[0], key)
    with jax.transfer_guard("disallow"):
        for step in (1, 2):
            step_fn(source.data_at(step), steps[step], key)
    assert source.data_at(0)["images"] is source.data_at(9)["images"]


@pytest.mark.parametrize("kind", [resident, pipeline.stream])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 24}, r"batch size is 24, but the training split has 23 images.*1 \.\. 23"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_runs_that_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(SPLIT, **{**RUN, **changes})


def test_batch_may_be_all_of_the_data():
    order = batch_order(count=N, batch_size=N, steps=2, seed=0)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(N), (2, 1)))


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 4, 23, 50])
def test_eval_batches_cover_the_split_exactly_once(batch_size):
    batches = list(eval_batches(SPLIT, batch_size))
    assert {batch["image"].shape for batch in batches} == {(batch_size, *SHAPE)}
    weight, label, image = (
        np.concatenate([batch[key] for batch in batches]) for key in ("weight", "label", "image")
    )
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(label[weight == 1], SPLIT.labels)
    np.testing.assert_array_equal(image[weight == 1], SPLIT.images)
    assert weight.sum() == N
    assert set(weight[N:]) <= {0}


def test_eval_batches_refuse_at_once():
    with pytest.raises(ValueError, match="batch size is 0"):
        eval_batches(SPLIT, 0)


# Streaming


def test_stream_batches_are_the_normalised_images_of_their_labels():
    source = pipeline.stream(SPLIT, **RUN)
    assert not source.resident
    batch = jax.jit(source.batch_fn)(source.data_at(0), jnp.int32(0), jax.random.key(0))
    expected = plain(SPLIT.images[np.asarray(batch["label"])])
    np.testing.assert_allclose(batch["image"], expected, atol=1e-6)
    assert batch["label"].dtype == jnp.int32


def test_stream_epochs_see_each_example_at_most_once():
    labels = labels_of(pipeline.stream(SPLIT, **RUN), range(17))
    check_epochs(labels)
    neighbour = labels_of(pipeline.stream(SPLIT, **{**RUN, "seed": 2}), range(17))
    assert not np.array_equal(labels[:PER_EPOCH], neighbour[PER_EPOCH : 2 * PER_EPOCH])


@pytest.mark.parametrize("start", [1, PER_EPOCH, 13, 16])
def test_stream_restarted_equals_the_uninterrupted_one(start):
    run = {**RUN, "augment": Augment(crop=2, flip=True)}
    whole, rest = pipeline.stream(SPLIT, **run), pipeline.stream(SPLIT, **run, start_step=start)
    batch_fn, rest_fn = jax.jit(whole.batch_fn), jax.jit(rest.batch_fn)
    before = [whole.data_at(step) for step in range(start)]
    assert len(before) == start
    for step in range(start, 17):
        args = (jnp.int32(step), jax.random.key(1))
        expected = batch_fn(whole.data_at(step), *args)
        chex.assert_trees_all_equal(rest_fn(rest.data_at(step), *args), expected)


@pytest.mark.parametrize("asked", [0, 2, 5])
def test_stream_refuses_to_be_asked_out_of_order(asked):
    source = pipeline.stream(SPLIT, **RUN)
    right = np.asarray(pipeline.stream(SPLIT, **RUN, start_step=1).data_at(1)["label"])
    source.data_at(0)
    with pytest.raises(ValueError, match=rf"asked for step {asked}, but next is 1 of 17"):
        source.data_at(asked)
    np.testing.assert_array_equal(source.data_at(1)["label"], right)  # and is not disturbed


def test_stream_ends_with_the_run():
    source = pipeline.stream(SPLIT, **RUN, start_step=16)
    source.data_at(16)
    with pytest.raises(ValueError, match="asked for step 17"):
        source.data_at(17)
    for start in (-1, 17):
        with pytest.raises(ValueError, match=rf"start_step is {start}, but steps are 0 \.\. 16"):
            pipeline.stream(SPLIT, **RUN, start_step=start)


# Choice


def test_fits_on_device():
    assert fits_on_device(10**12, None)
    assert fits_on_device(50, 100)
    assert not fits_on_device(51, 100)


def test_make_source_picks_by_size():
    assert make_source(SPLIT, **RUN).resident
    size = SPLIT.images.nbytes + SPLIT.labels.nbytes + 17 * 4 * 4
    assert make_source(SPLIT, **RUN, limit_bytes=2 * size).resident
    streamed = make_source(SPLIT, **RUN, limit_bytes=2 * size - 1, start_step=5)
    assert not streamed.resident
    assert streamed.data_at(5)["image"].shape == (4, *SHAPE)


class Constant(nn.Module):
    """Always says class 0."""

    @nn.compact
    def __call__(self, x):
        return jnp.zeros((x.shape[0], 3)).at[:, 0].set(1.0)


@pytest.mark.parametrize("count", [3, 256, 300])
def test_accuracy_counts_no_padding(count):
    labels = np.arange(count, dtype=np.int32) % 3
    split = Split(np.zeros((count, *SHAPE), np.uint8), labels)
    found = evaluate.accuracy(
        Constant(), {"params": {}}, make_dataset("x", SPLIT, split, num_classes=N)
    )
    assert found == np.mean(labels == 0)
