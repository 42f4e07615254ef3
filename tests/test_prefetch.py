"""Reading ahead: bounded, in order, the same bits as without it, and errors that are told."""

import threading
import time

import chex
import jax
import numpy as np
import pytest
import tfds_dirs

from experiments import data, pipeline, streaming
from experiments.augment import Augment
from experiments.dataset import Split

TRAIN, SIZE, BATCH, STEPS = 23, 8, 4, 17
RUN = {"batch_size": BATCH, "steps": STEPS, "seed": 3, "mean": (0.5,) * 3, "std": (0.2,) * 3}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    splits = {"train": tfds_dirs.photos(TRAIN), "validation": tfds_dirs.photos(2)}
    root = tfds_dirs.write(tmp_path_factory.mktemp("tfds"), "imagenet2012", splits)
    return data.load("imagenet2012", data_dir=root, image_size=SIZE).train


def opened(split, **changes):
    return pipeline.stream(split, **{**RUN, "augment": Augment(), **changes})


def counted(split, before=lambda _: None):
    """The split, every reading counted, and told to ``before``."""
    lock, count = threading.Lock(), [0]

    def read(row):
        with lock:
            count[0] += 1
            number = count[0]
        before(number)
        return split.read(row)

    return split._replace(read=read), count


def reaches(count, expected):
    """Whether so many are read, and then no more."""
    deadline = time.monotonic() + 60
    while count[0] < expected:
        assert time.monotonic() < deadline, f"{count[0]} of {expected} were read"
        time.sleep(0.01)
    time.sleep(0.1)
    return count[0] == expected


@pytest.mark.parametrize("threads", [1, 3])
def test_a_slow_consumer_is_not_run_away_from(photos, threads):
    split, count = counted(photos)
    source = opened(split, threads=threads)
    assert reaches(count, 0)
    for step in range(4):
        source.data_at(step)
        # Given away, on its way to the device, and Grain's own buffer.
        ahead = step + 1 + 1 + 2 * threads
        assert reaches(count, BATCH * min(ahead, STEPS))


@pytest.mark.parametrize("threads", [1, 3])
def test_a_fast_consumer_gets_what_it_would_get_without_reading_ahead(photos, threads):
    found = _all(opened(photos, threads=threads))
    one_by_one = streaming._batches(photos, batch_size=BATCH, rows=slice(0, BATCH), seed=3)
    plain = one_by_one.repeat(-(-STEPS // len(one_by_one)))
    for step, batch in enumerate(found):
        chex.assert_trees_all_equal(jax.device_get(batch), plain[step])


def _all(source):
    return [source.data_at(step) for step in range(STEPS)]


def test_no_step_waits_for_the_next_ones_batch(photos):
    """A batch is given though not one of those after it can be read."""
    held = threading.Event()

    def hold(number):
        if number > BATCH:
            assert held.wait(60)

    split, _ = counted(photos, hold)
    source, got = opened(split, threads=1), []
    asking = threading.Thread(target=lambda: got.append(source.data_at(0)))
    asking.start()
    asking.join(30)
    alive = asking.is_alive()
    held.set()
    asking.join(60)
    assert not alive
    expected = opened(photos).data_at(0)
    chex.assert_trees_all_equal(got[0], expected)
    chex.assert_trees_all_equal(source.data_at(1)["label"].shape, (BATCH,))


def test_a_batch_is_put_on_the_device_before_it_is_asked_for(photos, monkeypatch):
    put, there = streaming.placing.put_batch, []

    def seen(placement, batch):
        there.append(threading.current_thread() is threading.main_thread())
        return put(placement, batch)

    monkeypatch.setattr(streaming.placing, "put_batch", seen)
    source = opened(photos)
    source.data_at(0)
    deadline = time.monotonic() + 60
    while len(there) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    assert there == [False, False]  # one ahead, no more: the device's memory is the step's


def test_what_the_loop_waited_is_counted_and_nothing_else(photos):
    held = threading.Event()

    def hold(number):
        if number > 3 * BATCH:
            assert held.wait(60)

    split, count = counted(photos, hold)
    source = opened(split, threads=1)
    assert source.waited() == 0.0
    for step in (0, 1):
        source.data_at(step)
    before = source.waited()
    reaches(count, 3 * BATCH + 1)
    assert source.waited() == before  # the consumer was slow, not the pipeline
    source.data_at(2)
    before = source.waited()
    timer = threading.Timer(0.2, held.set)
    timer.start()
    source.data_at(3)
    assert source.waited() > before
    timer.join()


@pytest.mark.parametrize("broken", [1, 6])
def test_errors_of_the_threads_are_told_at_the_batch_that_has_them(photos, broken):
    def fail(number):
        if number == broken:
            raise OSError("the disk went away")

    split, _ = counted(photos, fail)
    source = opened(split, threads=1)
    with pytest.raises(OSError, match="the disk went away"):
        for step in range(STEPS):
            source.data_at(step)
    assert step == (broken - 1) // BATCH


def test_threads_are_refused_below_one_and_default_to_the_processors(photos):
    with pytest.raises(ValueError, match="threads is 0: at least 1 must decode"):
        opened(photos, threads=0)
    chex.assert_trees_all_equal(opened(photos).data_at(0), opened(photos, threads=2).data_at(0))


def test_arrays_are_streamed_as_they_were_shuffled(photos):
    split = Split(
        np.arange(TRAIN * 12, dtype=np.uint8).reshape(TRAIN, 2, 2, 3),
        np.arange(TRAIN, dtype=np.int32),
    )
    for batch in _all(opened(split)):
        np.testing.assert_array_equal(batch["image"], split.images[np.asarray(batch["label"])])
