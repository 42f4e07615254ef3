"""The parameter-free shortcut between two streams, with independent widths on either side.

Padding by position would tie the two streams' selections: channel ``i`` of one belongs to channel
``i + offset`` of the other. Here that relation is a matrix of the network's state, ``link``
[C, C'], 1 where two channels belong together, its axes named by both groups. It is cut with them,
so a slab's link joins exactly those selected channels that the full network joins, and the probe
proves it like any kernel. A channel whose partner was not selected is padded with zeros.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.networks import layers

LINKS = "links"
"""Variable collection of the shortcuts' links: constants that are cut, never trained."""


def pad_channels(module: nn.Module, x: jax.Array, before: str, after: str, width: int) -> jax.Array:
    """Adds channels of zeros on both sides: option A of He et al. 2016, section 4.2.

    Call it inside a compact ``__call__``, once per module. A link holds at most one entry per
    column, so reading it is a look-up of channels, without multiply-accumulates.

    Args:
      module: the calling Linen module.
      x: float[B, H, W, C], channels of ``before``.
      before: group of the input.
      after: group of the output.
      width: channels C' of the output.

    Returns:
      float[B, H, W, C'].
    """
    size = x.shape[-1]
    offset = (width - size) // 2
    centred = layers.named(lambda: jnp.eye(size, width, offset, dtype=jnp.float32), (before, after))
    link: jax.Array = module.variable(LINKS, "shortcut", centred).value
    # The largest entry by magnitude is the only one: rows of zeros never win against it.
    source, weight = jnp.argmax(jnp.abs(link), axis=0), jnp.sum(link, axis=0)
    chosen = x.at[..., source].get(mode="promise_in_bounds")
    return chosen * weight.reshape(1, 1, 1, width).astype(x.dtype)
