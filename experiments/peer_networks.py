"""The same networks in PyTorch, for the benchmark's peers: equal widths, names and parameters.

A network is built from the project's own module, and takes its variables, so that both compute
the same function from the same start. It needs torch; nothing else in the project imports it.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import flax.linen
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dce_jax import networks
from dce_jax.networks.stages import places
from dce_jax.types import PyTree

COLOURS = 3


def conv(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the image's size."""
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


class Vgg(nn.Module):
    """`dce_jax.networks.VGG` with its layers' names."""

    def __init__(self, module: networks.VGG) -> None:
        super().__init__()
        self.depths = module.depths
        sizes = [COLOURS, *module.widths.values()]
        for i, (before, after) in enumerate(pairwise(sizes)):
            self.add_module(f"conv{i}", conv(before, after))
            self.add_module(f"norm{i}", nn.BatchNorm2d(after))
        self.head = nn.Linear(sizes[-1], module.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float[B, num_classes], of images float[B, D, H, W]."""
        index = 0
        for depth in self.depths:
            for i in range(index, index + depth):
                x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
                x = functional.relu(x, inplace=True)
            index += depth
            x = functional.max_pool2d(x, 2)
        return self.head(x.mean(dim=(2, 3)))


class Block(nn.Module):
    """A residual branch beside a shortcut, as `dce_jax.networks.resnet.Block`."""

    def __init__(self, sizes: list[int], stride: int, *, projection: bool) -> None:
        super().__init__()
        self.count = len(sizes) - 1
        strided = self.count - 2  # the 3x3 of a bottleneck, the first of two
        for i, (before, after) in enumerate(pairwise(sizes)):
            size = 3 if i == strided or self.count == 2 else 1
            self.add_module(f"conv{i}", conv(before, after, size, stride if i == strided else 1))
            self.add_module(f"norm{i}", nn.BatchNorm2d(after))
        self.projection = projection
        if projection:
            self.conv_shortcut = conv(sizes[0], sizes[-1], 1, stride)
            self.norm_shortcut = nn.BatchNorm2d(sizes[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream behind the block."""
        y = x
        for i in range(self.count):
            y = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count - 1:
                y = functional.relu(y, inplace=True)
        if self.projection:
            x = self.norm_shortcut(self.conv_shortcut(x))
        return functional.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """`dce_jax.networks.ResNet` with projections, and its layers' names."""

    def __init__(self, module: networks.ResNet) -> None:
        super().__init__()
        self.large, widths = module.large, module.widths
        stem = "stem" if module.bottleneck else "stage0"
        size, stride = (7, 2) if module.large else (3, 1)
        self.conv = conv(COLOURS, widths[stem], size, stride)
        self.norm = nn.BatchNorm2d(widths[stem])
        self.blocks, last = [], stem
        for name, before, inner, after, stride in places(
            module.depths, bottleneck=module.bottleneck, stem=stem
        ):
            sizes = [widths[group] for group in (before, *inner, after)]
            self.add_module(name, Block(sizes, stride, projection=before != after))
            self.blocks.append(name)
            last = after
        self.head = nn.Linear(widths[last], module.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, float[B, num_classes], of images float[B, D, H, W]."""
        x = functional.relu(self.norm(self.conv(x)), inplace=True)
        if self.large:
            x = functional.max_pool2d(x, 3, 2, padding=1)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.head(x.mean(dim=(2, 3)))


def build(module: flax.linen.Module, params: PyTree) -> nn.Module:
    """A network in PyTorch that computes what ``module`` computes with ``params``.

    Its batch norms hold fresh running statistics, which a training step does not read.

    Args:
      module: a VGG, or a ResNet whose shortcuts are projections, at any widths.
      params: its parameters.

    Raises:
      TypeError: another network.
      RuntimeError: a parameter without a counterpart on the other side, or of another shape.
    """
    if not isinstance(module, networks.VGG | networks.ResNet):
        raise TypeError(f"{type(module).__name__} has no counterpart in PyTorch")
    network = Vgg(module) if isinstance(module, networks.VGG) else ResNet(module)
    missing, unknown = network.load_state_dict(_weights(params), strict=False)
    learned = {name for name, _ in network.named_parameters()}
    if unknown or learned & set(missing):
        raise RuntimeError(f"parameters differ: {unknown}, {sorted(learned & set(missing))}")
    return network


def _weights(params: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found |= _weights(value, f"{prefix}{name}.")
        else:
            key, leaf = "bias" if name == "bias" else "weight", np.array(value)
            # Kernels are HWIO here and OIHW there; the head's is DF here and FD there.
            axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, (0,))
            found[prefix + key] = torch.from_numpy(leaf.transpose(axes).copy())
    return found
