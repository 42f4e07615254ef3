"""Encoded splits read and decoded by Grain's threads, one batch a thread."""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from experiments import views
from experiments.dataset import Split, require
from experiments.encoded import Encoded
from experiments.views import View

# Pillow decodes outside the interpreter lock, but Python's own part of the work does not scale on.
DECODERS = min(32, os.cpu_count() or 4)


def examples(split: Encoded, positions: Any, *, view: View, seed: int) -> Any:
    """Decoded examples of a split, each cut by a generator of its own.

    Args:
      split: encoded images.
      positions: a grain.MapDataset of positions in the split.
      view: how images are cut.
      seed: the generator of an example is drawn from (seed, its index in ``positions``), which
        goes on counting over repetitions.

    Returns:
      A grain.MapDataset of ``{"image": uint8[S, S, 3], "label": int32[]}``. Reading an image that
      cannot be decoded raises ValueError with the record's name.
    """
    return positions.random_map(partial(_example, split, view), seed=seed)


def read_ahead(batches: Any, *, threads: int) -> Iterator[dict[str, Any]]:
    """The elements of a grain.MapDataset in order, read by threads before they are asked for.

    Args:
      batches: a grain.MapDataset.
      threads: how many; each works on one element, and twice as many elements may wait.

    Returns:
      An iterator. Nothing is read before it is first asked.
    """
    grain = require("grain", extra="data")
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(batches.to_iter_dataset(options))


def in_order(split: Encoded, batch_size: int, *, view: View) -> Iterator[Split]:
    """A whole split once, in order, decoded as it is asked for.

    Args:
      split: encoded images.
      batch_size: B.
      view: how images are cut; a random one draws the same windows every time.

    Yields:
      ``images`` uint8[B, S, S, 3] and ``labels`` int32[B]; the last part may be smaller.

    Raises:
      ValueError: an image cannot be read or decoded.
      ModuleNotFoundError: Grain or Pillow is not installed.
    """
    positions = require("grain", extra="data").MapDataset.range(split.num_images)
    batches = examples(split, positions, view=view, seed=0).batch(batch_size)
    for batch in read_ahead(batches, threads=DECODERS):
        yield Split(batch["image"], batch["label"])


def _example(split: Encoded, view: View, position: int, rng: np.random.Generator) -> dict[str, Any]:
    record = split.read(int(split.rows[position]))
    try:
        image = views.decode(record.image)
    except ValueError as error:
        raise ValueError(
            f"{record.name} cannot be decoded ({error}); mend or drop that image and prepare the "
            "data set again"
        ) from error
    return {"image": view(image, rng, split.size), "label": np.int32(record.label)}
