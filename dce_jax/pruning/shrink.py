"""Making a network physically smaller: parameters, moments, statistics, and who is still there."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from dce_jax import slab
from dce_jax.channels import ChannelMap
from dce_jax.moments import optimizer_names
from dce_jax.training import LoopState
from dce_jax.types import Array, PyTree, Selection, Widths

Positions = Mapping[str, Array | npt.NDArray[np.int32]]
"""Channel group -> int32[K], sorted positions among the channels that are there."""


class Names(NamedTuple):
    """Which channel groups cut which axes of everything that a training step carries.

    Attributes:
      params: names tree of the parameters.
      model_state: of the model state.
      opt_state: of the optimizer's state.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree


def names(
    channels: ChannelMap, params: PyTree, model_state: PyTree, tx: optax.GradientTransformation
) -> Names:
    """Builds the names trees, once for all rounds: they do not depend on widths.

    Args:
      channels: the map of the full-width network.
      params: full-width parameters or their shapes.
      model_state: full-width model state or its shapes.
      tx: the optimizer.

    Raises:
      ValueError: an optimizer whose moments cannot travel with the channels.
    """
    of_params = channels.names("params", params)
    of_state = {name: channels.names(name, tree) for name, tree in model_state.items()}
    return Names(of_params, of_state, optimizer_names(tx, params, of_params))


def shrink(loop: LoopState, names: Names, kept: Positions, widths: Widths) -> LoopState:
    """The same training run with fewer channels; what stays keeps its bits, moments included.

    Args:
      loop: network and optimizer.
      names: of `names`.
      kept: group -> int32[K], sorted positions among the channels that are there; absent groups
        stay whole.
      widths: group -> channels that are there.
    """
    chosen = {group: jnp.asarray(each, jnp.int32) for group, each in kept.items()}
    return loop._replace(
        params=slab.gather(loop.params, names.params, chosen, widths),
        model_state=slab.gather(loop.model_state, names.model_state, chosen, widths),
        opt_state=slab.gather(loop.opt_state, names.opt_state, chosen, widths),
    )


def whole(widths: Widths) -> Selection:
    """The selection of every channel: original indices before anything is removed."""
    return {group: jnp.arange(width, dtype=jnp.int32) for group, width in widths.items()}


def compose(selection: Selection, kept: Positions) -> Selection:
    """Original indices of the channels that stay.

    Args:
      selection: group -> int32[C], original indices of those that are there.
      kept: group -> int32[K], positions among them; absent groups stay whole.
    """
    return {g: chosen[kept[g]] if g in kept else chosen for g, chosen in selection.items()}
