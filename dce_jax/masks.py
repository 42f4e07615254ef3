"""Full-width networks of which some channels are read by nobody: removed, without smaller tensors.

Masks are data: one compiled program serves any choice of channels, where a network that is really
cut is compiled for every width. It computes what the cut network does (`dce_jax.probe` proves that
of every channel map, on finite numbers: a removed channel that is NaN stays NaN), at what the dense
one costs.
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dce_jax.channels import AxisNames, ChannelMap
from dce_jax.types import Array, LossFn, PyTree, Widths

Masks = Mapping[str, Array | npt.NDArray[np.float32]]
"""Channel group -> float32[C], 1 where a channel is there, else 0; every group has one."""


def of(kept: Mapping[str, npt.NDArray[np.integer]], widths: Widths) -> dict[str, np.ndarray]:
    """Masks of a choice of channels, on the host.

    Args:
      kept: group -> integer[K]; absent groups stay whole.
      widths: group -> C.
    """
    found = {}
    for group, width in widths.items():
        found[group] = np.ones(width, np.float32)
        if group in kept:
            found[group][:] = 0.0
            found[group][kept[group]] = 1.0
    return found


def unread(tree: PyTree, names: PyTree, masks: Masks) -> PyTree:
    """A tree whose consumers read nothing of masked channels: their rows are multiplied by 0.

    A channel's own kernel and norm are left alone, so no work is put into them; what they compute
    goes nowhere, and their gradients are 0 by themselves.

    Args:
      tree: full-width parameters, or one collection of the model state.
      names: its names tree (`ChannelMap.names`).
      masks: of every group.
    """
    return jax.tree.map(partial(_unread, masks), tree, names)


def loss(loss: LossFn, channels: ChannelMap) -> LossFn:
    """The loss of a full-width network whose channels are masked, not cut.

    Args:
      loss: of the full-width network.
      channels: its channel map.

    Returns:
      A loss for batches that also hold ``masks``.
    """

    def masked(
        params: PyTree, model_state: PyTree, gates: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        hide = partial(unread, masks=batch["masks"])
        params = hide(params, channels.names("params", params))
        state = {n: hide(tree, channels.names(n, tree)) for n, tree in model_state.items()}
        return loss(params, state, gates, batch, key)

    return masked


def _unread(masks: Masks, leaf: Array, names: AxisNames) -> Array:
    for axis, groups in enumerate(names.axes[:-1]):
        if groups:
            mask = jnp.concatenate([masks[group] for group in groups]).astype(leaf.dtype)
            leaf = leaf * mask.reshape([-1 if i == axis else 1 for i in range(leaf.ndim)])
    return leaf
