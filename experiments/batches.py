"""Batches of data that live on the device, for training and, exactly counted, for evaluation."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dce_jax.types import Array, PyTree
from experiments import decoding
from experiments import placement as placing
from experiments.augment import Augment, augment_batch, normalise
from experiments.dataset import Split
from experiments.encoded import Encoded
from experiments.placement import Placement
from experiments.views import View, middle

_ONE = Placement()


class Source(NamedTuple):
    """Where a step program gets its batches from.

    Attributes:
      batch_fn: ``(data, step int32[], key) -> {"image": dtype[B, H, W, C], "label": int32[B]}``,
        normalised and augmented; called inside jit. It folds the step into the key, so that one
        key may serve the whole run.
      data_at: ``step -> data``, called outside jit. Resident: always the same arrays.
      resident: whether ``data`` is the same at every step, so that many steps may go into one
        dispatch.
      waited: seconds that ``data_at`` has waited for data until now.
    """

    batch_fn: Callable[[PyTree, Array, Array], dict[str, Array]]
    data_at: Callable[[int], PyTree]
    resident: bool
    waited: Callable[[], float]


def check_run(*, count: int, batch_size: int, steps: int, seed: int) -> None:
    """Refuses a run that has no batches.

    Args:
      count: number of examples.
      batch_size: examples in a batch.
      steps: steps of the whole run.
      seed: seed of the order.

    Raises:
      ValueError: batch size < 1 or larger than the data, steps < 1, or a negative seed.
    """
    if batch_size < 1 or batch_size > count:
        raise ValueError(
            f"batch size is {batch_size}, but the training split has {count} images; "
            f"use 1 .. {count}"
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}, but a run needs at least 1 step")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but it must be 0 or more")


def batch_order(*, count: int, batch_size: int, steps: int, seed: int) -> npt.NDArray[np.int32]:
    """Which examples every step of a run sees: a fresh permutation per epoch.

    The last, partial batch of an epoch is dropped.

    Args:
      count: N, number of examples.
      batch_size: B.
      steps: number of steps of the whole run.
      seed: the permutation of epoch e is drawn from (seed, e), so a longer run begins like a
        shorter one.

    Returns:
      int32[steps, B].

    Raises:
      ValueError: see ``check_run``.
    """
    check_run(count=count, batch_size=batch_size, steps=steps, seed=seed)
    per_epoch = count // batch_size
    order = np.empty((steps, batch_size), np.int32)
    for epoch, start in enumerate(range(0, steps, per_epoch)):
        shuffled = np.random.default_rng([seed, epoch]).permutation(count)
        batches = shuffled[: per_epoch * batch_size].reshape(per_epoch, batch_size)
        order[start : start + per_epoch] = batches[: steps - start]
    return order


def finish_batch(
    images: Array,
    labels: Array,
    *,
    step: Array,
    key: Array,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augment,
    dtype: Any,
) -> dict[str, Array]:
    """The part of a batch that resident and streamed data share.

    Args:
      images: uint8[B, H, W, C].
      labels: int32[B].
      step: int32[], folded into the key.
      key: PRNG key.
      mean: per channel.
      std: per channel.
      augment: crop and flip.
      dtype: of the images that come out.

    Returns:
      ``{"image": dtype[B, H, W, C], "label": int32[B]}``.
    """
    drawn = augment_batch(jax.random.fold_in(key, step), images, augment)
    return {"image": normalise(drawn, mean, std, dtype), "label": labels}


def resident(
    split: Split,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    augment: Augment,
    dtype: Any = jnp.float32,
    placement: Placement = _ONE,
) -> Source:
    """A split that lives on the device as uint8, with the whole run's order beside it.

    ``data`` is ``{"images": uint8[N, H*W*C], "labels": int32[N], "order": int32[steps, B]}``: an
    image is one row, because TPU pads the two minor-most axes of an array to 8 x 128 and reads
    rows fast. No step moves anything from the host.

    Args:
      split: training images and labels.
      batch_size: B.
      steps: steps of the whole run, also where it goes on in the middle.
      seed: seed of the order.
      mean: per channel.
      std: per channel.
      augment: crop and flip.
      dtype: of the images in a batch.
      placement: every device holds the whole split and takes its part of each batch.

    Returns:
      The source. A step beyond the last one reads the last one's examples.

    Raises:
      ValueError: see ``check_run``.
    """
    count, *shape = split.images.shape
    order = batch_order(count=count, batch_size=batch_size, steps=steps, seed=seed)
    held = {"images": split.images.reshape(count, -1), "labels": split.labels, "order": order}
    data = placing.put_whole(placement, held)

    def batch_fn(data: PyTree, step: Array, key: Array) -> dict[str, Array]:
        index_B = jnp.take(data["order"], step, axis=0, mode="clip")
        rows = jnp.take(data["images"], index_B, axis=0, mode="clip")
        return finish_batch(
            rows.reshape(batch_size, *shape),
            jnp.take(data["labels"], index_B, axis=0, mode="clip"),
            step=step,
            key=key,
            mean=mean,
            std=std,
            augment=augment,
            dtype=dtype,
        )

    return Source(
        placing.batch_fn(placement, batch_fn),
        lambda _step: data,
        resident=True,
        waited=lambda: 0.0,
    )


def _padded_batch(part: Split, batch_size: int) -> dict[str, Array]:
    """At most B examples on the device, filled up with zeros of weight 0."""
    images, labels = part
    fill = (0, batch_size - len(labels))
    return jax.device_put(
        {
            "image": np.pad(images, (fill, (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels, fill),
            "weight": np.pad(np.ones(len(labels), np.float32), fill),
        }
    )


def eval_batches(
    split: Split | Encoded, batch_size: int, *, view: View = middle
) -> Iterator[dict[str, Array]]:
    """A whole split once, in order, in batches of one shape.

    Sums weighted by ``weight`` over all batches are exact sums over the split.

    Args:
      split: images and labels; encoded ones are decoded by threads, a little ahead.
      batch_size: B, may exceed the split.
      view: how encoded images are cut; arrays are taken as they are.

    Returns:
      An iterator of ``{"image": uint8[B, H, W, C], "label": int32[B], "weight": float32[B]}`` on
      the device; examples that only fill up the last batch are zeros with weight 0, all others
      have 1.

    Raises:
      ValueError: batch size < 1; later, an encoded image that cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}, but evaluation needs at least 1")
    if isinstance(split, Encoded):
        parts = decoding.in_order(split, batch_size, view=view)
    else:
        parts = _slices(split, batch_size)
    return (_padded_batch(part, batch_size) for part in parts)


def _slices(split: Split, batch_size: int) -> Iterator[Split]:
    for start in range(0, split.num_images, batch_size):
        rows = slice(start, start + batch_size)
        yield Split(split.images[rows], split.labels[rows])
