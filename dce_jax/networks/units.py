"""Norm, ReLU and gates in one: per-example saliency that keeps no activation of its own.

A gate behind a ReLU needs the gated activation again in the backward pass, and XLA keeps it for
that: on VGG-16 a fifth of a narrow step's memory. For gates that are not negative
``relu(norm(x)) * gate`` equals ``relu((x - mean) * (mul * gate) + bias * gate)``, whose gradients
are sums over ``x - mean`` and over the derivative, which the norm's own backward pass holds anyway.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.networks import gates, layers


class GatedNorm(nn.Module):
    """`layers.norm` whose output is multiplied by gates, on the same variables.

    Attributes:
      train: normalise by the batch's statistics and update the running ones.
      dtype: compute type; statistics and sums are at least float32.
    """

    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, ones: jax.Array) -> jax.Array:
        """The gated output; with gates of one bit for bit that of `layers.norm`.

        Args:
          x: float[B, ..., C].
          ones: float[B, C], the gates.
        """
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), channels)
        bias = self.param("bias", nn.initializers.zeros_init(), channels)
        x = x.astype(jnp.promote_types(self.dtype, scale.dtype))
        mean, variance = self._statistics(x, channels)
        wide, ones = partial(_wide, like=x), gates.spread(ones.astype(x.dtype), x.ndim)
        scaled = jax.lax.rsqrt(wide(variance) + layers.EPSILON) * wide(scale)
        y = (x - wide(mean)) * (scaled * ones) + wide(bias) * ones
        return y.astype(self.dtype)

    def _statistics(self, x: jax.Array, channels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        running = [
            self.variable("batch_stats", name, make, channels, x.dtype)
            for name, make in (("mean", jnp.zeros), ("var", jnp.ones))
        ]
        if not self.train:
            return running[0].value, running[1].value
        axes = tuple(range(x.ndim - 1))
        mean = x.mean(axes)
        variance = jnp.maximum(0.0, jnp.square(x).mean(axes) - jnp.square(mean))
        for held, found in zip(running, (mean, variance), strict=True):
            held.value = layers.MOMENTUM * held.value + (1 - layers.MOMENTUM) * found
        return mean, variance


def _wide(vector: jax.Array, like: jax.Array) -> jax.Array:
    """float[C] -> float[1, ..., 1, C] of the dtype of ``like``: float[B, ..., C]."""
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + vector.shape)


def norm_relu(
    module: nn.Module,
    x: jax.Array,
    parts: Mapping[str, int],
    *,
    name: str,
    train: bool,
    dtype: jnp.dtype,
) -> jax.Array:
    """Norm, ReLU and the gates of a place where channels are read.

    Args:
      module: the calling Linen module.
      x: float[B, ..., sum of the parts].
      parts: channel group -> its channels, in the axis's order.
      name: of the norm.
      train: see `layers.norm`.
      dtype: compute type.

    Returns:
      float[B, ..., sum of the parts].
    """
    if not (module.is_initializing() or gates.tapped()):
        ones = gates.handed_in(module, x.shape[0], parts, dtype)
        if ones is not None:
            return nn.relu(GatedNorm(train, dtype, name=name)(x, ones))
    axis = tuple(parts) if len(parts) > 1 else next(iter(parts))
    y = nn.relu(layers.norm(axis, name=name, train=train, dtype=dtype)(x))
    return gates.gate_parts(module, y, parts)
