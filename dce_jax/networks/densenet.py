"""Densely connected networks for CIFAR: every layer reads all earlier ones of its block.

Huang, Liu, van der Maaten and Weinberger 2017, "Densely Connected Convolutional Networks". Each
layer's output is a channel group; a concatenation is a sequence of groups on one axis.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.remat import called
from dce_jax.networks.units import norm_relu


class Layout(NamedTuple):
    """A published network.

    Attributes:
      depths: layers per dense block.
      stem: channels of the first convolution.
      bottleneck: a 1x1 convolution to four times the growth rate before each 3x3.
      compression: channels behind a transition over those before it.
      growth: channels of each layer's output (k).
    """

    depths: tuple[int, ...]
    stem: int
    bottleneck: bool = False
    compression: float = 1.0
    growth: int = 12


LAYOUTS: dict[str, Layout] = {
    "densenet40": Layout((12, 12, 12), 16),
    "densenet40-24": Layout((12, 12, 12), 24),
    "densenet-bc100": Layout((16, 16, 16), 24, bottleneck=True, compression=0.5),
}
"""Network name -> layout. ``densenet40`` starts with 16 channels, as the one that Liu et al. 2017
prune; ``densenet40-24`` with 2 k."""


class Unit(NamedTuple):
    """A norm, ReLU and convolution over a concatenation: a layer of a block, or a transition.

    Attributes:
      name: of the unit's module and of the group that it writes; empty for the network's end.
      reads: groups that it reads, concatenated.
      transition: ends a block: a 1x1 convolution, then the image is halved.
    """

    name: str
    reads: tuple[str, ...]
    transition: bool


def units(depths: tuple[int, ...]) -> Iterator[Unit]:
    """Layers and transitions in order, and last what the linear layer reads.

    Args:
      depths: layers per dense block.
    """
    reads: tuple[str, ...] = ("stem",)
    for block, depth in enumerate(depths):
        for layer in range(depth):
            name = f"block{block}_layer{layer}"
            yield Unit(name, reads, False)
            reads = (*reads, name)
        if block < len(depths) - 1:
            yield Unit(f"transition{block}", reads, True)
            reads = (f"transition{block}",)
    yield Unit("", reads, False)


def densenet_widths(
    depths: tuple[int, ...],
    *,
    stem: int,
    growth: int,
    bottleneck: bool = False,
    compression: float = 1.0,
) -> FrozenDict[str, int]:
    """Channel groups of a DenseNet and their full widths, in the network's order.

    Args:
      depths: layers per dense block.
      stem: channels of the first convolution.
      growth: channels of each layer's output.
      bottleneck: see `Layout`; the inner groups are called ``<layer>_inner``.
      compression: see `Layout`; rounded down.
    """
    widths = {"stem": stem}
    for unit in units(depths):
        if unit.transition:
            widths[unit.name] = int(sum(widths[group] for group in unit.reads) * compression)
        elif unit.name:
            if bottleneck:
                widths[f"{unit.name}_inner"] = 4 * growth
            widths[unit.name] = growth
    return FrozenDict(widths)


class DenseUnit(nn.Module):
    """Norm, ReLU and convolution over a concatenation, with a bottleneck in a layer of its own.

    Attributes:
      widths: channel group -> channels, of the whole network.
      unit: groups that are read and written.
      inner: group of the bottleneck, None where there is none.
      dtype: compute type.
    """

    widths: FrozenDict[str, int]
    unit: Unit
    inner: str | None
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The new channels: float[B, H, W, C'], half as high and wide behind a transition."""
        name, source, transition = self.unit
        before: tuple[str, ...] | str = source
        parts = {group: self.widths[group] for group in source}
        x = norm_relu(self, x, parts, name="norm0", train=train, dtype=self.dtype)
        if self.inner is not None:
            x = layers.conv(
                self.widths, before, self.inner, name="conv0", dtype=self.dtype, size=1
            )(x)
            parts = {self.inner: self.widths[self.inner]}
            x = norm_relu(self, x, parts, name="norm1", train=train, dtype=self.dtype)
            before = self.inner
        size = 1 if transition else 3
        x = layers.conv(self.widths, before, name, name="conv", dtype=self.dtype, size=size)(x)
        return layers.halve(x) if transition else x


class DenseNet(nn.Module):
    """A densely connected network, its widths data.

    Attributes:
      depths: layers per dense block.
      widths: channel group -> channels; `densenet_widths` gives the groups.
      num_classes: outputs of the linear layer.
      bottleneck: see `Layout`.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether layers compute their activations again in the backward pass.
    """

    depths: tuple[int, ...]
    widths: FrozenDict[str, int]
    num_classes: int
    bottleneck: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits.

        Args:
          x: float[B, H, W, D] images.
          train: normalise by the batch's statistics and update the running ones.

        Returns:
          float32[B, num_classes]; float64 where ``dtype`` is.

        Raises:
          ValueError: images of another rank, or smaller than the strides together.
        """
        layers.check_images(x, 2 ** (len(self.depths) - 1))
        x = x.astype(self.dtype)
        x = layers.conv(self.widths, None, "stem", name="conv", dtype=self.dtype)(x)
        *inside, end = units(self.depths)
        for unit in inside:
            inner = self._inner(unit)
            layer = DenseUnit(self.widths, unit, inner, self.dtype, name=unit.name)
            new = called(DenseUnit.__call__, layer, x, remat=self.remat, train=train)
            x = new if unit.transition else jnp.concatenate([x, new], axis=-1)
        parts = {group: self.widths[group] for group in end.reads}
        x = norm_relu(self, x, parts, name="norm", train=train, dtype=self.dtype)
        x = x.mean(axis=(1, 2))
        return layers.logits(layers.head(self.num_classes, end.reads, dtype=self.dtype)(x))

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms that carry its reward: every norm that reads it.

        A norm over a concatenation holds several groups: `dce_jax.parts` tells where each lies.
        """
        found: dict[str, tuple[tuple[str, ...], ...]] = {}
        for unit in units(self.depths):
            path = (unit.name, "norm0") if unit.name else ("norm",)
            for group in unit.reads:
                found[group] = (*found.get(group, ()), path)
            inner = self._inner(unit)
            if inner is not None:
                found[inner] = ((unit.name, "norm1"),)
        return found

    def _inner(self, unit: Unit) -> str | None:
        has_one = self.bottleneck and unit.name and not unit.transition
        return f"{unit.name}_inner" if has_one else None


def densenet(
    name: str, *, num_classes: int, dtype: jnp.dtype = jnp.float32, width: float = 1.0
) -> DenseNet:
    """A full-width DenseNet by name.

    Args:
      name: key of `LAYOUTS`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies the stem and the growth rate; rounded down, at least 1.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, LAYOUTS, "DenseNet")
    depths, stem, bottleneck, compression, growth = LAYOUTS[name]
    widths = densenet_widths(
        depths,
        stem=layers.scaled(stem, width),
        growth=layers.scaled(growth, width),
        bottleneck=bottleneck,
        compression=compression,
    )
    return DenseNet(depths, widths, num_classes, bottleneck, dtype)
