"""Unit gates: where a network lets per-example saliency be read off."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

GATES = "gates"
"""Variable collection that holds gates; absent in ordinary training and inference."""

Tap: TypeAlias = Callable[[tuple[str, ...], Mapping[str, int], jax.Array], jax.Array]
"""``(path of the calling module, parts as in `gate_parts`, y) -> y`` to go on with."""

_TAP: ContextVar[Tap | None] = ContextVar("tap", default=None)


@contextmanager
def tapping(tap: Tap) -> Iterator[None]:
    """Shows every gated ``y`` to a function while a network is called, and goes on with its answer.

    For signals that need more than a gate's gradient; the network is traced anew each time.

    Args:
      tap: sees ``y`` before it meets its gate.
    """
    token = _TAP.set(tap)
    try:
        yield
    finally:
        _TAP.reset(token)


def in_the_open() -> AbstractContextManager[None]:
    """Keeps activations out of `jax.checkpoint`, for functions that watch a network's layers."""
    return tapping(_as_it_is)


def _as_it_is(path: tuple[str, ...], parts: Mapping[str, int], y: jax.Array) -> jax.Array:
    del path, parts
    return y


def gate(module: nn.Module, y: jax.Array, group: str) -> jax.Array:
    """Multiplies ``y`` by the gate of a channel group, where gates were handed in.

    The gradient with respect to a gate of ones is the sum over positions of ``y * dL/dy``, per
    example and channel (Molchanov et al. 2017). Without a ``gates`` collection this is the
    identity and costs nothing. Call it inside a compact ``__call__``, once per module and group.

    Args:
      module: the calling Linen module.
      y: float[B, ..., C], the channels of ``group`` on the last axis.
      group: channel group.

    Returns:
      float[B, ..., C].
    """
    return gate_parts(module, y, {group: y.shape[-1]})


def gate_parts(module: nn.Module, y: jax.Array, parts: Mapping[str, int]) -> jax.Array:
    """`gate` where several groups lie one after another on the last axis.

    Args:
      module: the calling Linen module.
      y: float[B, ..., sum of the parts].
      parts: channel group -> its channels, in the axis's order.

    Returns:
      float[B, ..., sum of the parts].
    """
    if module.is_initializing():
        return y
    tap = _TAP.get()
    if tap is not None:
        y = tap(module.path, parts, y)
    gates = handed_in(module, y.shape[0], parts, y.dtype)
    return y if gates is None else y * spread(gates, y.ndim)


def tapped() -> bool:
    """Whether a function watches what is gated (`tapping`)."""
    return _TAP.get() is not None


def handed_in(
    module: nn.Module, batch: int, parts: Mapping[str, int], dtype: jnp.dtype
) -> jax.Array | None:
    """The gates of one place, one after another; None where none were handed in.

    Args:
      module: the calling Linen module, not initialising.
      batch: B.
      parts: channel group -> its channels, in the axis's order.
      dtype: of gates that are made here, because they are asked for or others of the place exist.

    Returns:
      float[B, sum of the parts], or None.
    """
    names = {name_of(group): size for group, size in parts.items()}
    mutable = module.is_mutable_collection(GATES)
    if not (mutable or any(module.has_variable(GATES, name) for name in names)):
        return None
    gates = [
        module.variable(GATES, name, jnp.ones, (batch, size), dtype).value
        if mutable or module.has_variable(GATES, name)
        else jnp.ones((batch, size), dtype)
        for name, size in names.items()
    ]
    return gates[0] if len(gates) == 1 else jnp.concatenate(gates, axis=-1)


def spread(gates: jax.Array, ndim: int) -> jax.Array:
    """float[B, C] -> float[B, 1, ..., C] with ``ndim`` axes."""
    return gates.reshape(gates.shape[0], *(1,) * (ndim - 2), gates.shape[-1])


def name_of(group: str) -> str:
    """What a group's gates are called in a module's part of the collection."""
    return f"gate:{group}"  # a bare group name could clash with a submodule's
