"""Networks: ordinary Linen modules that take their widths as data."""

import difflib
from collections.abc import Callable
from functools import partial

from dce_jax.networks.gates import gate
from dce_jax.networks.vgg import LAYOUTS, VGG, vgg

NETWORKS: dict[str, Callable[..., VGG]] = {name: partial(vgg, name) for name in LAYOUTS}
"""Name -> constructor ``(num_classes, dtype=..., width=...)`` of a full-width network."""


def build(name: str, **options: object) -> VGG:
    """Builds a full-width network by name.

    Raises:
      ValueError: unknown name, with the nearest known one.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown network {name!r}{hint} The networks are {sorted(NETWORKS)}")
    return NETWORKS[name](**options)


__all__ = ["NETWORKS", "VGG", "build", "gate", "vgg"]
