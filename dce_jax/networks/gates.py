"""Unit gates: where a network lets per-example saliency be read off."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

GATES = "gates"
"""Variable collection that holds gates; absent in ordinary training and inference."""


def gate(module: nn.Module, y: jax.Array, group: str) -> jax.Array:
    """Multiplies ``y`` by the gate of a channel group, where gates were handed in.

    The gradient with respect to a gate of ones is the sum over positions of ``y * dL/dy``, per
    example and channel (Molchanov et al. 2017). Without a ``gates`` collection this is the
    identity and costs nothing. Call it inside a compact ``__call__``, once per module and group.

    Args:
      module: the calling Linen module.
      y: float[B, ..., C], the channels of ``group`` on the last axis.
      group: channel group.

    Returns:
      float[B, ..., C].
    """
    return gate_parts(module, y, {group: y.shape[-1]})


def gate_parts(module: nn.Module, y: jax.Array, parts: Mapping[str, int]) -> jax.Array:
    """`gate` where several groups lie one after another on the last axis.

    Args:
      module: the calling Linen module.
      y: float[B, ..., sum of the parts].
      parts: channel group -> its channels, in the axis's order.

    Returns:
      float[B, ..., sum of the parts].
    """
    if module.is_initializing():
        return y
    names = {_name(group): size for group, size in parts.items()}
    mutable = module.is_mutable_collection(GATES)
    if not (mutable or any(module.has_variable(GATES, name) for name in names)):
        return y
    gates = [
        module.variable(GATES, name, jnp.ones, (y.shape[0], size), y.dtype).value
        if mutable or module.has_variable(GATES, name)
        else jnp.ones((y.shape[0], size), y.dtype)
        for name, size in names.items()
    ]
    ones = gates[0] if len(gates) == 1 else jnp.concatenate(gates, axis=-1)
    return y * ones.reshape(y.shape[0], *(1,) * (y.ndim - 2), y.shape[-1])


def _name(group: str) -> str:
    return f"gate:{group}"  # a bare group name could clash with a submodule's
