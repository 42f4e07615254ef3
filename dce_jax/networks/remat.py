"""Parts of a network whose activations are computed again in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from dce_jax.networks import gates


def called(
    part: Callable[..., jax.Array],
    module: nn.Module,
    x: jax.Array,
    *,
    remat: bool,
    **static: Any,
) -> jax.Array:
    """Calls a part of a network, by `jax.checkpoint` where its activations are not to be kept.

    Then only ``x`` waits for the backward pass, which runs the part's forward pass once more (Chen
    et al. 2016, arXiv 1604.06174). Values are the same. A function that watches activations
    (`gates.tapping`) needs them in the open: nothing is computed twice then.

    Args:
      part: a method ``(module, x, **static) -> y``.
      module: whose variables the part reads.
      x: float[B, ...].
      remat: whether to keep no more than ``x``.
      **static: what is no array.
    """
    if not remat or module.is_initializing() or gates.tapped():
        return part(module, x, **static)
    return nn.remat(partial(part, **static))(module, x)
