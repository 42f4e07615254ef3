"""Accuracy over a whole split, and batches for recalibration."""

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax import forward
from dce_jax.types import Array, PyTree
from experiments.dataset import DataSet, take
from experiments.pipeline import Augment, augment_batch, eval_batches, normalise
from experiments.views import random_window

BATCH = 256


def accuracy(module: nn.Module, variables: PyTree, data: DataSet) -> float:
    """Share of the whole test split that a network classifies rightly, in inference mode.

    Args:
      module: network at the widths of ``variables``.
      variables: collections.
      data: the data set.
    """
    count = jax.jit(partial(_count_right, module, data.mean, data.std))
    right = 0.0
    for batch in eval_batches(data.test, min(BATCH, data.test.num_images)):
        # Waits for the device: batches read ahead of it must not pile up in its memory.
        right += float(count(variables, batch))
    return right / data.test.num_images


def recalibration_inputs(
    data: DataSet, *, augment: Augment, examples: int, batch_size: int
) -> Iterator[Array]:
    """The images of `training_batches`, for recalibration.

    Augmented, because the weights have adapted to the statistics of what they were trained on;
    those of plain images differ by the black margins of the crops, or by the scale at which
    windows show their objects, and cost accuracy.
    """
    batches = training_batches(data, augment=augment, examples=examples, batch_size=batch_size)
    return (batch["image"] for batch in batches)


def training_batches(
    data: DataSet, *, augment: Augment, examples: int, batch_size: int
) -> Iterator[dict[str, Array]]:
    """The first training examples, augmented as in training, in full batches only.

    Args:
      data: the data set.
      augment: the training run's crop and flip.
      examples: how many; rounded down to whole batches, at least one batch.
      batch_size: B.

    Returns:
      An iterator of ``{"image": float32[B, H, W, C], "label": int32[B]}``, the same in every run.
    """
    whole = max(1, min(examples, data.train.num_images) // batch_size) * batch_size
    split = take(data.train, slice(whole))
    for index, batch in enumerate(eval_batches(split, batch_size, view=random_window)):
        key = jax.random.fold_in(jax.random.key(0), index)
        images = normalise(augment_batch(key, batch["image"], augment), data.mean, data.std)
        yield {"image": images, "label": batch["label"]}


def _count_right(
    module: nn.Module,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    variables: PyTree,
    batch: dict[str, Array],
) -> Array:
    state = {name: tree for name, tree in variables.items() if name != "params"}
    images = normalise(batch["image"], mean, std)
    logits, _ = forward.apply(module, variables["params"], state, images, train=False)
    right = jnp.argmax(logits, axis=-1) == batch["label"]
    return jnp.sum(jnp.where(right, batch["weight"], 0.0))
