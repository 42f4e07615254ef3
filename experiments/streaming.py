"""Batches streamed through Grain, for data that do not fit on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax.types import Array, PyTree
from experiments.augment import Augment
from experiments.batches import Source, check_run, finish_batch
from experiments.dataset import Split, require
from experiments.tfds_reader import Records

_THREADS = 4
_AHEAD = 8  # batches that are decoded ahead of the step


def _grain_seed(seed: int) -> int:
    """A seed for Grain, which adds the epoch to it.

    Without the spreading, epoch 1 of seed 0 would be epoch 0 of seed 1.
    """
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _batches(records: Split | Records, *, batch_size: int, seed: int) -> Any:
    """A grain.MapDataset of one epoch's host batches, shuffled anew in every epoch."""
    grain = require("grain", extra="data")
    if isinstance(records, Split):
        indices = grain.MapDataset.range(len(records.labels)).shuffle(seed=_grain_seed(seed))
        return indices.batch(batch_size, drop_remainder=True).map(
            lambda index_B: {"image": records.images[index_B], "label": records.labels[index_B]}
        )
    source = grain.MapDataset.source(records.source).shuffle(seed=_grain_seed(seed))
    picked = source.map(
        lambda record: {
            "image": record[records.image_key],
            "label": np.int32(record[records.label_key]),
        }
    )
    return picked.batch(batch_size, drop_remainder=True)


def _open(
    records: Split | Records, *, batch_size: int, steps: int, seed: int, start_step: int
) -> Iterator[dict[str, Any]]:
    """Host batches of the steps from ``start_step`` on, read ahead by threads."""
    grain = require("grain", extra="data")
    epoch = _batches(records, batch_size=batch_size, seed=seed)
    run = epoch.repeat(-(-steps // len(epoch))).slice(slice(start_step, steps))
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
    return iter(run.to_iter_dataset(options))


def _in_order(
    batches: Iterator[dict[str, Any]], *, start_step: int, steps: int
) -> Callable[[int], PyTree]:
    """``data_at`` over an iterator; one batch is always on its way to the device."""
    expected = start_step
    coming = jax.device_put(next(batches))

    def data_at(step: int) -> PyTree:
        nonlocal expected, coming
        if step != expected or step >= steps:
            raise ValueError(
                f"the stream was asked for step {step}, but next is {expected} of {steps} steps; "
                "open a new one with start_step to go elsewhere"
            )
        now, expected = coming, expected + 1
        if expected < steps:
            coming = jax.device_put(next(batches))
        return now

    return data_at


def stream(
    records: Split | Records,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augment,
    start_step: int = 0,
    dtype: Any = jnp.float32,
) -> Source:
    """Batches that are read, decoded and sent to the device a little ahead of their step.

    Every epoch is shuffled anew by Grain from (seed, epoch); its last, partial batch is dropped.
    ``data`` of a step is ``{"image": uint8[B, H, W, C], "label": int32[B]}``.

    Args:
      records: arrays, or a TFDS split from ``tfds_reader.records``, read as it goes.
      batch_size: B.
      steps: steps of the whole run.
      seed: seed of the order.
      mean: per channel.
      std: per channel.
      augment: crop and flip.
      start_step: first step that will be asked for; earlier ones are not read.
      dtype: of the images in a batch.

    Returns:
      The source. Its ``data_at`` must be called with start_step, start_step + 1, ... and raises
      ValueError otherwise.

    Raises:
      ValueError: see ``batches.check_run``; or start_step is not in 0 .. steps - 1.
      ModuleNotFoundError: Grain is not installed.
    """
    count = len(records.labels if isinstance(records, Split) else records.source)
    check_run(count=count, batch_size=batch_size, steps=steps, seed=seed)
    if not 0 <= start_step < steps:
        raise ValueError(f"start_step is {start_step}, but steps are 0 .. {steps - 1}")
    batches = _open(records, batch_size=batch_size, steps=steps, seed=seed, start_step=start_step)

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

    data_at = _in_order(batches, start_step=start_step, steps=steps)
    return Source(batch_fn, data_at, resident=False)
