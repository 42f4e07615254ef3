"""Unit gates: where a network lets per-example saliency be read off."""

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
    if module.is_initializing():
        return y
    name = f"gate:{group}"  # a bare group name could clash with a submodule's
    if not (module.has_variable(GATES, name) or module.is_mutable_collection(GATES)):
        return y
    ones = module.variable(GATES, name, jnp.ones, (y.shape[0], y.shape[-1]), y.dtype).value
    return y * ones.reshape(y.shape[0], *(1,) * (y.ndim - 2), y.shape[-1])
