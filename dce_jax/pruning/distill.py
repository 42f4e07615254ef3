"""Distillation: a pruned network learns from the outputs of the one before pruning."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dce_jax import forward
from dce_jax.types import Array, LossFn, PyTree

TEACHER = "teacher"
"""Key of the teacher's logits in a batch."""


def taught(
    batch_fn: Callable[[Any, Array, Array], PyTree], teacher: nn.Module
) -> Callable[[Any, Array, Array], PyTree]:
    """A batch function whose batches also hold the teacher's logits.

    Args:
      batch_fn: makes ``{"image", "label"}`` batches.
      teacher: the network before pruning, run in inference mode.

    Returns:
      Batch function of ``(data, variables of the teacher)``: they go in as data, so that no
      program holds a copy of them.
    """

    def batch_of(data: Any, step: Array, key: Array) -> PyTree:
        own, variables = data
        batch = batch_fn(own, step, key)
        state = {name: tree for name, tree in variables.items() if name != "params"}
        image = batch["image"]
        logits, _ = forward.apply(teacher, variables["params"], state, image, train=False)
        return {**batch, TEACHER: jax.lax.stop_gradient(logits)}

    return batch_of


def distilled(module: nn.Module, share: float) -> LossFn:
    """``(1 - share) CE(labels) + share CE(teacher)`` (Theis et al. 2018, with 0.9).

    Their teacher is an ensemble of other networks; here it is the dense network before pruning.

    Args:
      module: the pruned network.
      share: of the teacher, in [0, 1].

    Returns:
      A loss for batches of `taught`; ``accuracy`` is that of the labels.

    Raises:
      ValueError: a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"the teacher's share of the loss is {share}: it must be in 0..1")

    def loss(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        logits, model_state = forward.apply(
            module, params, model_state, batch["image"], train=True, key=key, gates=gates
        )
        labels, soft = batch["label"], jax.nn.softmax(batch[TEACHER])
        hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        total = (1.0 - share) * hard + share * optax.softmax_cross_entropy(logits, soft).mean()
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
        return total, (model_state, {"accuracy": accuracy})

    return loss
