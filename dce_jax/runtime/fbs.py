"""Feature boosting and suppression: as many channels for every input, but not the same ones.

Gao, Zhao, Dudziak, Mullins and Xu, ICLR 2019 (arXiv 1810.05331). Saliency is a rectified linear
function of the pooled feature map; the channels with the largest run, multiplied by it. Theirs
takes the place of the norm's scale; behind a ReLU that is the same, because it is not negative.
That the share of channels is an input of the predictors, and so one network serves several, is our
choice.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dce_jax.runtime.choice import Choice
from dce_jax.runtime.forward import Policy
from dce_jax.types import Array, PyTree


class Boost(nn.Module):
    """Saliency of every channel.

    Attributes:
      widths: channels per site.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, pooled: Array, knob: Array, *, site: int) -> Array:
        """float32[B, C], one at first where inputs are zero.

        Args:
          pooled: float32[B, C'].
          knob: float32[B], the share of channels between -1 and 1.
          site: index.
        """
        seen = jnp.concatenate([pooled, knob[:, None]], axis=-1)
        layer = nn.Dense(self.widths[site], bias_init=nn.initializers.ones, name=f"saliency{site}")
        return nn.relu(layer(seen))


def policy(
    module: Boost,
    params: PyTree,
    levels: Sequence[Sequence[int]],
    knob: Array,
    density: Array,
) -> Policy:
    """The most salient channels; a site's note is their mean saliency, float32[B].

    Args:
      module: the predictors.
      params: their parameters.
      levels: per site its widths; as many run as the smallest width holds that is not below the
        share.
      knob: float32[] or float32[B], the share between -1 and 1.
      density: of the same shape, the share of channels itself.
    """

    def decide(site: int, pooled: Array, carry: None) -> tuple[Choice, None, Array]:
        wide = jnp.broadcast_to(knob, pooled.shape[:1])
        saliency: Any = module.apply({"params": params}, pooled, wide, site=site)
        widths = jnp.asarray(levels[site], jnp.float32)
        # A share that stands for a width may be rounded above it.
        index = jnp.searchsorted(widths, density * levels[site][-1] - 1e-3)
        level = jnp.broadcast_to(index.astype(jnp.int32), pooled.shape[:1])
        order = jnp.argsort(-saliency, axis=-1).astype(jnp.int32)
        return Choice(level, order, saliency), carry, saliency.mean(axis=-1)

    return decide
