"""Step functions on several devices, and what their copies hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from families import quick_jit
from jax.sharding import PartitionSpec

from dce_jax import mesh as meshes
from dce_jax import step


def mesh_of(count):
    return meshes.data_mesh(jax.devices()[:count])


def place(mesh, tree, *, sharded=False):
    """States and whatever stands beside them, on the devices of a mesh."""
    return jax.device_put(tree, meshes.shardings(mesh, tree, sharded=sharded))


def cut(mesh, data):
    return jax.device_put(data, meshes.by_example(mesh))


def lowered(mesh, function, *args, sharded=False):
    """A step function of placed arguments, its results placed likewise."""
    out = meshes.shardings(mesh, jax.eval_shape(function, *args), sharded=sharded)
    return quick_jit(function, out_shardings=out).lower(*args)


def over(mesh, pieces):
    """Pieces whose batches are cut and whose slabs are whole."""
    return pieces._replace(
        loss=meshes.whole_params(mesh, pieces.loss),
        batch_fn=meshes.cut_batches(mesh, pieces.batch_fn),
    )


def fused(mesh, pieces, state, data, *, sharded=False):
    """A compiled step of a selection each, and the state to begin with."""
    state = place(mesh, state, sharded=sharded)
    function = functools.partial(step.fused, over(mesh, pieces))
    return lowered(mesh, function, state, cut(mesh, data), sharded=sharded).compile(), state


def check_copies(tree, count):
    """Asserts that replicated leaves hold the same bits on every device; returns how many did."""
    found = 0
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        assert len(leaf.addressable_shards) == count
        if leaf.sharding.spec == PartitionSpec():
            copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            assert {copy.tobytes() for copy in copies} == {copies[0].tobytes()}
            found += 1
    return found
