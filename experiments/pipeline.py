"""Training batches: resident on the device where they fit, otherwise streamed.

A batch depends on (seed, step, key) alone, never on where a run started.
"""

from typing import Any

import jax

from experiments.augment import Augment, augment_batch, normalise
from experiments.batches import Source, batch_order, eval_batches, resident
from experiments.dataset import Split
from experiments.encoded import Encoded
from experiments.placement import Placement
from experiments.streaming import stream

__all__ = [
    "Augment",
    "Source",
    "augment_batch",
    "batch_order",
    "device_memory",
    "eval_batches",
    "fits_on_device",
    "make_source",
    "normalise",
    "resident",
    "stream",
]

_ONE = Placement()
_SHARE = 0.5  # of the device's memory that data may take: the rest is for the step


def device_memory() -> int | None:
    """Bytes that the first local device may hold, or None where it does not say (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return None if stats is None else stats.get("bytes_limit")


def fits_on_device(split_bytes: int, limit_bytes: int | None) -> bool:
    """Whether a split may live on the device.

    Args:
      split_bytes: bytes of images, labels and order.
      limit_bytes: bytes of the device, or None where it shares the host's memory.

    Returns:
      True if the data take at most half of the device, or if there is no limit.
    """
    return limit_bytes is None or split_bytes <= _SHARE * limit_bytes


def make_source(
    split: Split | Encoded,
    *,
    steps: int,
    batch_size: int,
    limit_bytes: int | None = None,
    start_step: int = 0,
    threads: int | None = None,
    placement: Placement = _ONE,
    **rest: Any,
) -> Source:
    """Resident arrays where they fit on the device, otherwise a stream; encoded images stream.

    The two see the examples in different orders: a run goes on only with the kind it began with.

    Args:
      split: training images and labels.
      steps: steps of the whole run.
      batch_size: B.
      limit_bytes: bytes of the device; None asks the device.
      start_step: first step that will be asked for; matters to a stream alone.
      threads: that decode encoded images; see ``stream``.
      placement: of what the source gives; batches are cut over its devices.
      **rest: seed, mean, std, augment and dtype, as ``resident`` and ``stream`` take them.

    Returns:
      The source.

    Raises:
      ValueError: see ``check_run``.
      ModuleNotFoundError: the data must be streamed and Grain is not installed.
    """
    rest = {**rest, "steps": steps, "batch_size": batch_size, "placement": placement}
    if isinstance(split, Encoded):
        return stream(split, start_step=start_step, threads=threads, **rest)
    size = split.images.nbytes + split.labels.nbytes + 4 * steps * batch_size
    limit = device_memory() if limit_bytes is None else limit_bytes
    if fits_on_device(size, limit):
        return resident(split, **rest)
    return stream(split, start_step=start_step, **rest)
