"""What mask-based pruning trains: a full-width network whose unwanted channels are multiplied by 0.

It is the benchmark's rival, not a part of the method: a masked step costs what a dense one does.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dce_jax.budget import Budget
from dce_jax.channels import AxisNames, ChannelMap
from dce_jax.types import Array, LossFn, PyTree


def random_masks(budget: Budget) -> dict[str, Array]:
    """Group -> float32[C] with K ones in random places."""
    draw = np.random.default_rng(1)
    masks = {}
    for group, width, chosen in budget.entries:
        mask = np.zeros(width, np.float32)
        mask[draw.permutation(width)[:chosen]] = 1.0
        masks[group] = jnp.asarray(mask)
    return masks


def masked_loss(loss: LossFn, channels: ChannelMap) -> LossFn:
    """The loss of a full-width network whose channels are masked, not cut.

    Only kernels that read a channel are multiplied, which removes it at the least cost: no work is
    put into its own kernel and norm, whose gradients become zero by themselves.

    Args:
      loss: of the full-width network.
      channels: its channel map.

    Returns:
      A loss for batches that also hold ``masks``: group -> float32[C].
    """

    def masked(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        names = channels.names("params", params)
        params = jax.tree.map(partial(_mask_inputs, batch["masks"]), params, names)
        return loss(params, model_state, gates, batch, key)

    return masked


def _mask_inputs(masks: Mapping[str, Array], leaf: Array, names: AxisNames) -> Array:
    for axis, groups in enumerate(names.axes[:-1]):
        if groups:
            mask = jnp.concatenate([masks[group] for group in groups])
            leaf = leaf * mask.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
    return leaf
