"""Slots: some channels of an activation, each with the index of the channel it belongs to.

What `dce_jax.functional` stands on: lookups by index, their inverse, and empty slots. An index of
the group's width or more marks an empty slot; it reads as a fill value and writes nowhere.
"""

from typing import NamedTuple

import jax.numpy as jnp

from dce_jax.types import Array


class Slab(NamedTuple):
    """Some channels of an activation.

    Attributes:
      values: float[..., K].
      indices: int32[K], which channel of the full width each value belongs to: distinct, never
        negative, in any order. An index of ``width`` or more marks an empty slot: its values
        are zero where it is made, and no function here lets them reach a channel.
    """

    values: Array
    indices: Array


def take(x: Array, indices: Array, *, axis: int, fill: int = 0) -> Array:
    """Entries at ``indices``, ``fill`` where those are out of range."""
    # Indices are distinct, empty slots included, so the gradient is a scatter without collisions.
    return jnp.take(x, indices, axis=axis, mode="fill", fill_value=fill, unique_indices=True)


def slot_of(indices: Array, width: int) -> Array:
    """int32[C]: the slot of each channel, K where the channel is in none."""
    K = indices.shape[0]
    absent = jnp.full((width,), K, jnp.int32)
    slots = jnp.arange(K, dtype=jnp.int32)
    return absent.at[indices].set(slots, mode="drop", unique_indices=True)


def distinct(indices: Array, width: int) -> Array:
    """Gives every empty slot a number of its own, beyond the channels."""
    beyond = jnp.arange(indices.shape[0], dtype=jnp.int32) + width
    return jnp.where(indices < width, indices, beyond)


def channels(vector: Array, indices: Array | None, like: Array) -> Array:
    """The executed entries of a vector, in the dtype of ``like`` and ready to broadcast to it."""
    if indices is not None:
        vector = take(vector, indices, axis=0)
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))


def moved(running: Array, batch: Array, indices: Array, momentum: float) -> Array:
    """Running statistics float[C] after one update of the executed entries by float[K]."""
    old = take(running, indices, axis=0)
    new = momentum * old + (1.0 - momentum) * batch.astype(running.dtype)
    return running.at[indices].set(new, mode="drop", unique_indices=True)


def checked_slab(x: Slab, width: int) -> Array:
    """The indices of a slab of a group of ``width`` channels.

    Raises:
      ValueError: not one index per value, or what `checked_indices` refuses.
    """
    K = x.values.shape[-1] if x.values.ndim else 0
    if x.indices.shape != (K,):
        raise ValueError(f"{described(x)} needs one index per value of its last axis")
    return checked_indices(x.indices, width)


def checked_indices(indices: Array, width: int) -> Array:
    """The indices as an array.

    Raises:
      ValueError: they are not int32[K] with 1 <= K <= ``width``.
    """
    indices = jnp.asarray(indices)
    if indices.ndim != 1 or indices.dtype != jnp.int32:
        raise ValueError(f"indices must be int32[K], got {indices.dtype}{list(indices.shape)}")
    if not 1 <= indices.shape[0] <= width:
        raise ValueError(f"K = {indices.shape[0]} indices must be between 1 and the width {width}")
    return indices


def described(x: Slab) -> str:
    """A slab's dtype and shapes, for messages."""
    return f"slab of {x.values.dtype}{list(x.values.shape)} with indices {list(x.indices.shape)}"
