"""What is decided for an input at a site: how much of it runs, and how that counts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dce_jax.types import Array


class Choice(NamedTuple):
    """Decisions of B inputs at one site; B is 1 where a batch shares them.

    Attributes:
      level: int32[B], index into the site's widths.
      order: int32[B, C], its channels, those that run first; None: by their index (nested groups).
      scale: float[B, C] that channels are multiplied by, not negative; None: ones.
      share: float[B] that a residual branch is multiplied by; None: one.
    """

    level: Array
    order: Array | None = None
    scale: Array | None = None
    share: Array | None = None


def gates(choice: Choice, widths: Sequence[int]) -> Array:
    """What every channel is multiplied by where all of them are computed.

    Args:
      choice: of a site.
      widths: of the site, rising.

    Returns:
      float[B, C], zero for channels that do not run.
    """
    executed = ranks(choice, widths[-1]) < jnp.asarray(widths)[choice.level][:, None]
    if choice.scale is None:
        return executed.astype(jnp.float32)
    return jnp.where(executed, choice.scale, 0.0)


def shares(choice: Choice, widths: Sequence[int]) -> Array | None:
    """What a branch is multiplied by: float[B], zero where it is skipped; None: always one."""
    if widths[0] > 0:
        return choice.share
    runs = choice.level > 0
    if choice.share is None:
        return runs.astype(jnp.float32)
    return jnp.where(runs, choice.share, 0.0)


def ranks(choice: Choice, width: int) -> Array:
    """Place of every channel in a choice's order: int32[B or 1, C]."""
    if choice.order is None:
        return jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.argsort(choice.order, axis=-1).astype(jnp.int32)


def each(choice: Choice, batch: int) -> Choice:
    """The decisions of every one of so many inputs, where they may share them."""
    wide: Choice = jax.tree.map(
        lambda field: jnp.broadcast_to(field, (batch, *field.shape[1:])), choice
    )
    return wide


def row(choice: Choice, rows: slice | Array) -> Choice:
    """The decisions of some of the inputs."""
    kept: Choice = jax.tree.map(lambda field: field[rows], choice)
    return kept
