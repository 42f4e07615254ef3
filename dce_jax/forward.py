"""One way to call any network: variables in, output and new model state out."""

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dce_jax.types import Array, LossFn, PyTree


def shapes(module: nn.Module, example: Any) -> PyTree:
    """Shapes of a network's variables, axis names still boxed; nothing is computed.

    Args:
      module: the network.
      example: one batch of inputs, an array or `jax.ShapeDtypeStruct`.
    """
    return jax.eval_shape(lambda x: initial(module, jax.random.key(0), x), example)


def initial(module: nn.Module, key: Array, example: Any) -> PyTree:
    """Initial variables of a network, axis names still boxed."""
    for_params, for_dropout = jax.random.split(key)
    return module.init({"params": for_params, "dropout": for_dropout}, example)


def apply(
    module: nn.Module,
    params: PyTree,
    model_state: PyTree,
    x: Array,
    *,
    train: bool,
    key: Array | None = None,
    gates: PyTree | None = None,
) -> tuple[Any, PyTree]:
    """Runs a network whose ``__call__`` takes ``x`` and, if it likes, ``train``.

    Args:
      module: the network, at the widths of ``params``.
      params: unboxed parameters.
      model_state: collection -> tree (``batch_stats``); {} where there is none.
      x: inputs.
      train: training mode; the model state is updated only then.
      key: PRNG key for dropout.
      gates: the ``gates`` collection, or None.

    Returns:
      Output and new model state, the old one outside training.
    """
    variables = {"params": params, **model_state}
    if gates:
        variables["gates"] = gates
    extra: dict[str, Any] = (
        {"train": train} if "train" in inspect.signature(module.__call__).parameters else {}
    )
    rngs = None if key is None else {"dropout": key}
    if train and model_state:
        return module.apply(variables, x, rngs=rngs, mutable=list(model_state), **extra)
    return module.apply(variables, x, rngs=rngs, mutable=False, **extra), model_state


def classification_loss(module: nn.Module) -> LossFn:
    """Mean softmax cross-entropy of a network, as the step functions take it.

    Args:
      module: network whose output is float[B, classes].

    Returns:
      ``(params, model_state, gates, batch, key) -> (loss, (model_state, metrics))`` for batches
      ``{"image": float[B, ...], "label": int32[B]}``; metrics hold ``accuracy``, float32[].
    """

    def loss(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        logits, model_state = apply(
            module, params, model_state, batch["image"], train=True, key=key, gates=gates
        )
        labels = batch["label"]
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
        return mean, (model_state, {"accuracy": accuracy})

    return loss


def gate_shapes(module: nn.Module, example: Any) -> PyTree:
    """Shapes of a network's unit gates, {} where it has none.

    Args:
      module: the network, at the widths in question.
      example: inputs or their `jax.ShapeDtypeStruct`.
    """
    variables = nn.unbox(shapes(module, example))

    def gates(variables: PyTree, x: Array) -> PyTree:
        return module.apply(variables, x, mutable=["gates"])[1].get("gates", {})

    return jax.eval_shape(gates, variables, example)
