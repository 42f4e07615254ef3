"""One way to call any network: variables in, output and new model state out."""

import inspect
from typing import Any

import flax.linen as nn
import jax

from dce_jax.types import Array, PyTree


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
