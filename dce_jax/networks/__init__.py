"""Networks: ordinary Linen modules that take their widths as data."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from dce_jax.networks.densenet import LAYOUTS as DENSENETS
from dce_jax.networks.densenet import DenseNet, densenet
from dce_jax.networks.gates import gate, gate_parts
from dce_jax.networks.lenet import LAYOUTS as LENETS
from dce_jax.networks.lenet import LeNet, lenet
from dce_jax.networks.mobilenet import STRIDES as MOBILENETS
from dce_jax.networks.mobilenet import MobileNetV2, mobilenet
from dce_jax.networks.preact import LAYOUTS as PREACTS
from dce_jax.networks.preact import PreactResNet, preact
from dce_jax.networks.resnet import LAYOUTS as RESNETS
from dce_jax.networks.resnet import PROJECTION, ResNet, resnet
from dce_jax.networks.vgg import LAYOUTS as VGGS
from dce_jax.networks.vgg import VGG, vgg

Network: TypeAlias = VGG | ResNet | PreactResNet | DenseNet | MobileNetV2 | LeNet
"""Any network here: a module with ``widths``; all but `LeNet` have norms and ``reward_norms()``."""

NETWORKS: dict[str, Callable[..., Network]] = {
    **{name: partial(vgg, name) for name in VGGS},
    **{name: partial(resnet, name) for name in RESNETS},
    **{
        f"{name}-projection": partial(resnet, name, shortcut=PROJECTION)
        for name, layout in RESNETS.items()
        if not layout.large  # those for 224x224 have no other shortcut
    },
    **{name: partial(preact, name) for name in PREACTS},
    **{name: partial(densenet, name) for name in DENSENETS},
    **{name: partial(mobilenet, name) for name in MOBILENETS},
    **{name: partial(lenet, name) for name in LENETS},
}
"""Name -> constructor ``(num_classes, dtype=..., width=...)`` of a full-width network."""


def build(name: str, **options: object) -> Network:
    """Builds a full-width network by name.

    Raises:
      ValueError: unknown name, with the nearest known one.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown network {name!r}{hint} The networks are {sorted(NETWORKS)}")
    return NETWORKS[name](**options)


__all__ = [
    "NETWORKS",
    "VGG",
    "DenseNet",
    "LeNet",
    "MobileNetV2",
    "Network",
    "PreactResNet",
    "ResNet",
    "build",
    "densenet",
    "gate",
    "gate_parts",
    "lenet",
    "mobilenet",
    "preact",
    "resnet",
    "vgg",
]
