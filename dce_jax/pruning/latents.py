"""Layer latents: what makes saliencies of different layers comparable, as two numbers a layer.

Chin, Zhang and Marculescu (arXiv 1810.00518) add one number per layer to its channels' saliencies
and rank all channels together; their successor LeGR (arXiv 1904.12368) scales them first:
``alpha_l * saliency + kappa_l``. A layer here is a channel group, so that coupled layers share
their latents as they share their channels. Which channel of a group is the least does not change.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dce_jax.budget import check_group


class Latents(NamedTuple):
    """Two numbers per channel group; plain floats, which JSON keeps exactly.

    Attributes:
      scale: group -> alpha, positive; 1.0 where layers are only shifted.
      shift: group -> kappa, in the unit of the scaled saliencies.
    """

    scale: dict[str, float]
    shift: dict[str, float]


def identity(groups: Iterable[str]) -> Latents:
    """Latents that change nothing: the uncompensated global ranking."""
    names = list(groups)
    return Latents(dict.fromkeys(names, 1.0), dict.fromkeys(names, 0.0))


def check(latents: Latents, groups: Iterable[str]) -> None:
    """Refuses latents that are not of a network's groups, or that cannot rank.

    Args:
      latents: of any origin.
      groups: all channel groups of the network.

    Raises:
      ValueError: an unknown or a missing group, a number that is not finite, or a scale that is not
        positive, which would turn a layer's own order around.
    """
    known = tuple(groups)
    for name, values in latents._asdict().items():
        for group in values:
            check_group(group, known)
        missing = [group for group in known if group not in values]
        if missing:
            raise ValueError(
                f"the latents have no {name} of groups {missing}: all layers are ranked together, "
                "so learn latents on this network"
            )
        for group, value in values.items():
            if not np.isfinite(value) or (name == "scale" and value <= 0):
                limit = "finite and positive" if name == "scale" else "finite"
                raise ValueError(f"{name} of group {group!r} is {value}: it must be {limit}")


def compensated(
    saliencies: Mapping[str, npt.ArrayLike], latents: Latents
) -> dict[str, npt.NDArray[np.float64]]:
    """``scale * saliency + shift`` of every channel, on the host in float64.

    Args:
      saliencies: group -> float[C], of every group of the latents.
      latents: of the same groups.

    Raises:
      ValueError: see `check`.
    """
    check(latents, saliencies)
    return {
        group: latents.scale[group] * np.asarray(values, np.float64) + latents.shift[group]
        for group, values in saliencies.items()
    }


def spreads(saliencies: Mapping[str, npt.ArrayLike]) -> dict[str, float]:
    """Standard deviation of every group's saliencies: the unit in which shifts are tried."""
    return {group: float(np.std(np.asarray(v, np.float64))) for group, v in saliencies.items()}
