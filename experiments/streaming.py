"""Batches streamed through Grain, for data that do not fit on the device."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dce_jax.types import Array, PyTree
from experiments import placement as placing
from experiments.augment import Augment
from experiments.batches import Source, check_run, finish_batch
from experiments.dataset import Split, require
from experiments.decoding import DECODERS, examples, read_ahead
from experiments.encoded import Encoded
from experiments.placement import Placement
from experiments.views import random_window

_ONE = Placement()
_COPIERS = 4  # threads that gather batches of arrays


def _grain_seed(seed: int) -> int:
    """A seed for Grain, which adds the epoch to it.

    Without the spreading, epoch 1 of seed 0 would be epoch 0 of seed 1.
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _batches(split: Split | Encoded, *, batch_size: int, rows: slice, seed: int) -> Any:
    """A grain.MapDataset of one epoch's host batches, shuffled and cut anew in every epoch.

    Of every batch, only ``rows`` are read.
    """
    seed = _grain_seed(seed)
    order = require("grain", extra="data").MapDataset.range(split.num_images).shuffle(seed=seed)
    if isinstance(split, Encoded):
        cut = examples(split, order, view=random_window, seed=seed)
        if rows != slice(0, batch_size):
            return _part(cut, batch_size=batch_size, rows=rows)
        return cut.batch(batch_size, drop_remainder=True)
    return order.batch(batch_size, drop_remainder=True).map(
        lambda index_B: {"image": split.images[index_B[rows]], "label": split.labels[index_B[rows]]}
    )


def _part(cut: Any, *, batch_size: int, rows: slice) -> Any:
    """The batches of examples that are cut one by one, without those outside ``rows``."""
    per_epoch = len(cut) // batch_size

    def read(index: int, _: int) -> dict[str, Any]:
        # The index goes on counting over epochs, and so do the examples'.
        epoch, batch = divmod(index, per_epoch)
        first = epoch * len(cut) + batch * batch_size
        taken = [cut[first + row] for row in range(rows.start, rows.stop)]
        return {name: np.stack([one[name] for one in taken]) for name in taken[0]}

    return require("grain", extra="data").MapDataset.range(per_epoch).map_with_index(read)


def _open(
    split: Split | Encoded,
    *,
    batch_size: int,
    steps: int,
    rows: slice,
    seed: int,
    start_step: int,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Host batches of the steps from ``start_step`` on, read ahead by threads."""
    epoch = _batches(split, batch_size=batch_size, rows=rows, seed=seed)
    run = epoch.repeat(-(-steps // len(epoch))).slice(slice(start_step, steps))
    return read_ahead(run, threads=threads if isinstance(split, Encoded) else _COPIERS)


class _Feed(NamedTuple):
    """``data_at`` over an iterator, and the seconds that it has waited until now."""

    data_at: Callable[[int], PyTree]
    waited: Callable[[], float]


def _in_order(
    batches: Iterator[dict[str, Any]], *, start_step: int, steps: int, put: Callable[[Any], PyTree]
) -> _Feed:
    """One batch is always on its way to the device, by a thread: no step waits for the next's."""
    expected, waited = start_step, 0.0
    thread = ThreadPoolExecutor(1, "to-device")
    # The first batch is not read before it is asked for: a run may go on elsewhere.
    coming: Future[PyTree] | None = None

    def read() -> PyTree:
        return put(next(batches))

    def data_at(step: int) -> PyTree:
        nonlocal expected, coming, waited
        if step != expected or step >= steps:
            raise ValueError(
                f"the stream was asked for step {step}, but next is {expected} of {steps} steps; "
                "open a new one with start_step to go elsewhere"
            )
        begun = time.perf_counter()
        now = (coming or thread.submit(read)).result()
        waited += time.perf_counter() - begun
        expected += 1
        coming = thread.submit(read) if expected < steps else None
        return now

    return _Feed(data_at, lambda: waited)


def stream(
    split: Split | Encoded,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augment,
    start_step: int = 0,
    threads: int | None = None,
    dtype: Any = jnp.float32,
    placement: Placement = _ONE,
) -> Source:
    """Batches that are read, decoded and sent to the device a little ahead of their step.

    Every epoch is shuffled anew by Grain from (seed, epoch); its last, partial batch is dropped.
    ``data`` of a step is ``{"image": uint8[B, H, W, C], "label": int32[B]}``.

    Args:
      split: arrays, or encoded images that are read as it goes, every one of them cut to a
        random window drawn from (seed, its place in the run).
      batch_size: B.
      steps: steps of the whole run.
      seed: seed of the order.
      mean: per channel.
      std: per channel.
      augment: crop and flip.
      start_step: first step that will be asked for; earlier ones are not read.
      threads: that decode encoded images, one batch each, while twice as many batches may wait;
        None: as many as the machine has processors, at most 32. The batches do not depend on it.
      dtype: of the images in a batch.
      placement: a process reads only the examples that its own devices take.

    Returns:
      The source. Its ``data_at`` must be called with start_step, start_step + 1, ... and raises
      ValueError otherwise.

    Raises:
      ValueError: see ``batches.check_run``; start_step is not in 0 .. steps - 1, or less than
        one thread. Later, from ``data_at``, an encoded image that cannot be read.
      ModuleNotFoundError: Grain is not installed.
    """
    check_run(count=split.num_images, batch_size=batch_size, steps=steps, seed=seed)
    if not 0 <= start_step < steps:
        raise ValueError(f"start_step is {start_step}, but steps are 0 .. {steps - 1}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: at least 1 must decode")
    batches = _open(
        split,
        batch_size=batch_size,
        steps=steps,
        rows=placing.rows_of(placement, batch_size),
        seed=seed,
        start_step=start_step,
        threads=threads or DECODERS,
    )

    def batch_fn(data: PyTree, step: Array, key: Array) -> dict[str, Array]:
        return finish_batch(
            data["image"],
            data["label"],
            step=step,
            key=key,
            mean=mean,
            std=std,
            augment=augment,
            dtype=dtype,
        )

    put = partial(placing.put_batch, placement)
    feed = _in_order(batches, start_step=start_step, steps=steps, put=put)
    made = placing.batch_fn(placement, batch_fn)
    return Source(made, feed.data_at, resident=False, waited=feed.waited)
