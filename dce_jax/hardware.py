"""Which widths pay on a device: the multiples it computes in, and budgets that waste them.

A tensor is cut into tiles, and a tile that is filled in part takes as long as a full one. The
multiples are the vendors' own advice and, for CPUs, measured; `docs/hardware.md` has both.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dce_jax.budget import Budget
from dce_jax.types import Widths

TPU_LANES = 128
"""Numbers side by side in a TPU's registers and matrix units, where channels lie."""

CPU_FLOATS = 16
"""Float32 numbers in a register of a CPU with AVX-512."""


def multiple_of(device: jax.Device, dtype: Any) -> int:
    """The multiple of channels in which a device computes best.

    Args:
      device: only its platform and kind are read.
      dtype: in which the network computes.

    Returns:
      128 on a TPU; on an NVIDIA GPU 8 for types of 16 bits and 4 for float32 (TensorFloat-32); 16
      on a CPU; 1 where nothing is known.
    """
    if device.platform == "tpu":
        return TPU_LANES
    if device.platform == "cpu":
        return CPU_FLOATS
    if "nvidia" in device.device_kind.lower():
        return {2: 8, 4: 4}.get(jnp.dtype(dtype).itemsize, 1)
    return 1


def rounding(widths: Widths, device: jax.Device, dtype: Any) -> tuple[int, tuple[str, ...]]:
    """What budgets are rounded to on a device.

    Args:
      widths: group -> C.
      device: where the network runs.
      dtype: in which it computes.

    Returns:
      The device's multiple, and the groups that are narrower than it and stay whole.

    Raises:
      ValueError: all groups are narrower, so that nothing could be cut.
    """
    multiple = multiple_of(device, dtype)
    narrow = tuple(group for group, width in widths.items() if width < multiple)
    if len(narrow) == len(widths):
        raise ValueError(
            f"a {device.device_kind} wants multiples of {multiple} channels in "
            f"{jnp.dtype(dtype).name}, but no group has as many (the widest has "
            f"{max(widths.values())}): set multiple_of to a number from 1 to that"
        )
    return multiple, narrow


def wasted(budget: Budget, device: jax.Device, dtype: Any) -> dict[str, tuple[int, int]]:
    """Budgets that cannot run faster than larger ones, because they fill as many tiles.

    A CPU has no such rule that holds for every width: there nothing is said without measuring.

    Args:
      budget: K per group.
      device: where the network runs.
      dtype: in which it computes.

    Returns:
      Group -> (K, the largest width up to C that fills the same tiles).
    """
    multiple = 1 if device.platform == "cpu" else multiple_of(device, dtype)
    found = {}
    for group, width, chosen in budget.entries:
        filled = min(-(-chosen // multiple) * multiple, width)
        if filled > chosen:
            found[group] = (chosen, filled)
    return found


def warnings(budget: Budget, device: jax.Device, dtype: Any) -> tuple[str, ...]:
    """`wasted` in words: one sentence for each pair of widths, () where nothing is wasted."""
    groups: dict[tuple[int, int], list[str]] = {}
    for group, widths in wasted(budget, device, dtype).items():
        groups.setdefault(widths, []).append(group)
    multiple = multiple_of(device, dtype)
    return tuple(
        f"{chosen} channels cannot run faster than {filled} on {device.device_kind}, which "
        f"computes {jnp.dtype(dtype).name} in multiples of {multiple}: {_listed(names)}"
        for (chosen, filled), names in groups.items()
    )


def _listed(names: Sequence[str]) -> str:
    return f"group{'s' if len(names) > 1 else ''} {', '.join(names)}"
