"""Several devices: one mesh axis along the batch, and XLA's partitioner does the rest.

Nothing in a step knows of devices. A batch is cut along its examples; parameters, moments and the
bandit are replicated, or the full-width parameters and moments are cut too and only slabs are
whole. XLA inserts the sums over devices: a batch norm's statistics, gradients and rewards are those
of the whole batch, and a run on n devices is the run on one device up to rounding. Every device
takes the same decision from the same numbers, so no selection is ever sent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dce_jax.step import DceState, SlabState
from dce_jax.training import LoopState
from dce_jax.types import Array, LossFn, PyTree

AXIS = "batch"


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of one axis, the batch's.

    Args:
      devices: in order; by default all devices, those of one process side by side, so that a
        process's part of a batch is in one piece.
    """
    order = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    chosen = order if devices is None else devices
    return Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Equal parts along the first axis, the batch's."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def by_axis(mesh: Mesh, tree: PyTree) -> PyTree:
    """Equal parts along the first axis of each leaf that the number of devices divides.

    The first one, because `slab.gather` cuts a leaf's last axis first: what crosses the devices is
    then already cut along the others. Leaves without such an axis are replicated.

    Args:
      mesh: of `data_mesh`.
      tree: arrays or `jax.ShapeDtypeStruct`; no PRNG keys.

    Returns:
      `NamedSharding` per leaf.
    """

    def one(leaf: Any) -> NamedSharding:
        whole = [axis for axis, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        return NamedSharding(
            mesh, PartitionSpec(*(None,) * whole[0], AXIS) if whole else PartitionSpec()
        )

    return jax.tree.map(one, tree)


def shardings(mesh: Mesh, tree: PyTree, *, sharded: bool) -> PyTree:
    """Where the states of `step`, and whatever stands beside them, lie.

    Args:
      mesh: of `data_mesh`.
      tree: holds states and other arrays, or their shapes.
      sharded: parameters, moments and ``last`` of a `LoopState` or `DceState` are cut `by_axis`.
        A `SlabState`, which a step is about to use, is always replicated, and so is all else.

    Returns:
      `NamedSharding` per leaf of ``tree``.
    """
    whole = replicated(mesh)

    def cut(part: PyTree) -> PyTree:
        return by_axis(mesh, part) if sharded else jax.tree.map(lambda _: whole, part)

    def one(part: Any) -> Any:
        found = jax.tree.map(lambda _: whole, part)
        if isinstance(part, LoopState):
            return found._replace(params=cut(part.params), opt_state=cut(part.opt_state))
        if isinstance(part, DceState):
            return found._replace(loop=one(part.loop), last=cut(part.last))
        return found

    states = (LoopState, DceState, SlabState)
    return jax.tree.map(one, tree, is_leaf=lambda part: isinstance(part, states))


def cut_batches(
    mesh: Mesh, batch_fn: Callable[[Any, Array, Array], PyTree]
) -> Callable[[Any, Array, Array], PyTree]:
    """A batch function whose batches are cut along their examples, wherever its data lie.

    Args:
      mesh: of `data_mesh`; its size must divide the batch.
      batch_fn: as `step.pieces` takes it.
    """
    return lambda *given: jax.lax.with_sharding_constraint(batch_fn(*given), by_example(mesh))


def whole_params(mesh: Mesh, loss: LossFn) -> LossFn:
    """A loss that first makes its parameters, and then their gradients, whole on every device.

    Without it XLA might rather cut a layer's channels, where its parameters are cut.

    Args:
      mesh: of `data_mesh`.
      loss: as `step.pieces` takes it.
    """

    def with_whole(params: PyTree, *rest: Any) -> Any:
        return loss(jax.lax.with_sharding_constraint(params, replicated(mesh)), *rest)

    return with_whole
