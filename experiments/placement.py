"""Where a run's arrays lie: on one device, or over the devices of one process or several."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from dce_jax import mesh as meshes
from dce_jax.types import Array, LossFn, PyTree


class Placement(NamedTuple):
    """Where arrays lie.

    Attributes:
      mesh: the batch's, or None: one device, and nothing is placed or constrained at all.
      sharded: whether full-width parameters and moments are cut over the devices.
    """

    mesh: Mesh | None = None
    sharded: bool = False

    @property
    def devices(self) -> int:
        """How many devices."""
        return 1 if self.mesh is None else self.mesh.size


def of(config: ConfigDict) -> Placement:
    """The placement that a config asks for.

    Raises:
      ValueError: more devices than there are, some of several processes' only, or a batch that
        the devices cannot share equally.
    """
    there, processes = jax.device_count(), jax.process_count()
    count = config.devices or there
    if count > there:
        raise ValueError(
            f"devices is {count}, but there are {there} ({jax.default_backend()}): choose at most "
            f"{there}, or 0 for all; a CPU shows more where JAX_NUM_CPU_DEVICES={count} is set"
        )
    if processes > 1 and count != there:
        raise ValueError(
            f"devices is {count}, but {processes} processes hold {there} devices together, and "
            "none may be left out: choose 0 for all"
        )
    if config.batch_size % count:
        raise ValueError(
            f"batch_size is {config.batch_size}: {count} devices take equal parts of a batch, so "
            f"choose a multiple of {count}, or another number of devices"
        )
    if count == 1:
        return Placement()
    # A part of the devices is taken of a single process only.
    devices = None if count == there else jax.devices()[:count]
    return Placement(meshes.data_mesh(devices), config.sharding == "sharded")


def put(placement: Placement, tree: PyTree) -> PyTree:
    """States, and whatever stands beside them, where they belong."""
    if placement.mesh is None:
        return tree
    where = meshes.shardings(placement.mesh, tree, sharded=placement.sharded)
    return jax.tree.map(_spread, tree, where)


def put_whole(placement: Placement, tree: PyTree) -> PyTree:
    """Host arrays, the same in every process, on every device."""
    if placement.mesh is None:
        return jax.device_put(tree)
    whole = meshes.replicated(placement.mesh)
    return jax.tree.map(lambda leaf: _spread(leaf, whole), tree)


def put_batch(placement: Placement, rows: PyTree) -> PyTree:
    """This process's examples of a batch (`rows_of`), cut over its devices."""
    if placement.mesh is None:
        return jax.device_put(rows)
    where = meshes.by_example(placement.mesh)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, where), rows)


def cut(placement: Placement, batch: PyTree) -> PyTree:
    """A whole batch, the same in every process, cut over the devices."""
    if placement.mesh is None:
        return batch
    rows = rows_of(placement, jax.tree.leaves(batch)[0].shape[0])
    return put_batch(placement, jax.tree.map(lambda leaf: np.asarray(leaf)[rows], batch))


def rows_of(placement: Placement, batch_size: int) -> slice:
    """Which examples of a batch this process's devices take; always an equal part."""
    if placement.mesh is None:
        return slice(0, batch_size)
    owners = [device.process_index for device in placement.mesh.devices.flat]
    share = batch_size // len(owners)
    first = owners.index(jax.process_index())
    return slice(first * share, (first + owners.count(jax.process_index())) * share)


def batch_fn(
    placement: Placement, made: Callable[[Any, Array, Array], PyTree]
) -> Callable[[Any, Array, Array], PyTree]:
    """A batch function whose batches are cut over the devices."""
    return made if placement.mesh is None else meshes.cut_batches(placement.mesh, made)


def loss(placement: Placement, given: LossFn) -> LossFn:
    """A loss whose parameters are whole on every device."""
    return given if placement.mesh is None else meshes.whole_params(placement.mesh, given)


def jit_options(placement: Placement, function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """What `jax.jit` must know, so that a program's results lie where its next call wants them."""
    if placement.mesh is None:
        return {}
    made = jax.eval_shape(function, *args)
    return {"out_shardings": meshes.shardings(placement.mesh, made, sharded=placement.sharded)}


def waits(placement: Placement) -> bool:
    """Whether a program must end before the next one starts.

    A CPU's devices wait for one another in threads of one pool: programs of several steps at a
    time use them up, and none comes to its end.
    """
    return placement.mesh is not None and jax.default_backend() == "cpu"


def host(leaf: Array | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The whole of an array on the host; every process must ask, where several hold it."""
    if isinstance(leaf, np.ndarray) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def local(placement: Placement, tree: PyTree) -> PyTree:
    """The whole of every array on this process's first device; every process must ask."""
    if placement.mesh is None:
        return tree
    device = jax.local_devices()[0]

    def one(leaf: Array) -> Array:
        if _is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)))
        return jax.device_put(host(leaf), device)

    return jax.tree.map(one, tree)


def differing(placement: Placement, tree: PyTree) -> list[str]:
    """Paths of the replicated arrays whose copies are not the same bits on all devices.

    Copies of other processes are compared too: every process must ask.
    """
    if placement.mesh is None:
        return []
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        if jax.process_count() > 1:
            copies += list(multihost_utils.process_allgather(copies[0]))
        if len({copy.tobytes() for copy in copies}) > 1:
            found.append(jax.tree_util.keystr(path))
    return found


def _spread(leaf: Any, where: NamedSharding) -> Array:
    if jax.process_count() == 1:
        return jax.device_put(leaf, where)
    # `jax.device_put` has no way to the devices of other processes: each takes its own part.
    if _is_key(leaf):
        return jax.random.wrap_key_data(_spread(jax.random.key_data(leaf), where))
    whole = host(leaf)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
