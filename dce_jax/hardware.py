"""Which widths pay on a device: its tiles, the budgets that fill them, and those that cannot.

A tensor is cut into tiles, and a tile that is filled in part takes as long as a full one. The
multiples are the vendors' (`docs/hardware.md` names them) and, for the CPU, measured.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dce_jax.budget import Budget
from dce_jax.types import Widths

TPU_LANES = 128
"""Channels lie along the 128 lanes of a TPU's vector and matrix units."""


def multiple_of(device: jax.Device, dtype: Any) -> int:
    """The multiple in which a width pays: any other costs as much as the next larger multiple.

    Args:
      device: only its platform and kind are read.
      dtype: in which the network computes.

    Returns:
      128 on a TPU; on an NVIDIA GPU 8 for 16-bit types and 4 for float32 (TensorFloat-32); 1 where
      nothing is known.
    """
    if device.platform == "tpu":
        return TPU_LANES
    if device.platform in ("gpu", "cuda") and "nvidia" in device.device_kind.lower():
        return {2: 8, 4: 4}.get(jnp.dtype(dtype).itemsize, 1)
    return 1


def whole(widths: Widths, multiple: int) -> tuple[str, ...]:
    """Groups that fill no tile even at full width: cutting them gains nothing.

    Args:
      widths: group -> C.
      multiple: `multiple_of` the device.
    """
    return tuple(group for group, width in widths.items() if width < multiple)


def same_cost(width: int, full: int, multiple: int) -> int:
    """The largest width up to ``full`` that takes as many tiles as ``width`` does.

    Args:
      width: K.
      full: C.
      multiple: `multiple_of` the device.
    """
    return min(-(-width // multiple) * multiple, full)


def wasted(budget: Budget, multiple: int) -> dict[str, tuple[int, int]]:
    """Budgets that cannot run faster than larger ones.

    Args:
      budget: K per group.
      multiple: `multiple_of` the device.

    Returns:
      Group -> (K, the largest width that costs the same).
    """
    found = {g: (k, same_cost(k, c, multiple)) for g, c, k in budget.entries}
    return {group: (k, more) for group, (k, more) in found.items() if more > k}
