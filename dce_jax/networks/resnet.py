"""Post-activation residual networks: for CIFAR (basic block) and for 224x224 images.

He, Zhang, Ren and Sun 2016, "Deep Residual Learning for Image Recognition". A residual stream is
one channel group per stage, written by every block of the stage; each block has inner groups of
its own. ResNet-50 takes its stride in the 3x3 convolution, not in the first 1x1.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.gates import gate
from dce_jax.networks.remat import called
from dce_jax.networks.shortcut import pad_channels
from dce_jax.networks.stages import Place, group_widths, places
from dce_jax.networks.units import norm_relu

PADDING, PROJECTION = "padding", "projection"
SHORTCUTS = (PADDING, PROJECTION)


class Layout(NamedTuple):
    """A published network: blocks and block width per stage, and which of its two forms it has.

    Attributes:
      depths: blocks per stage.
      sizes: channels of the inner convolutions per stage.
      bottleneck: 1x1, 3x3, 1x1 with four times as many channels at the end; else two 3x3.
      large: for 224x224 images: a 7x7 convolution of stride 2 and a max pool come first.
    """

    depths: tuple[int, ...]
    sizes: tuple[int, ...]
    bottleneck: bool = False
    large: bool = False


LAYOUTS: dict[str, Layout] = {
    **{
        f"resnet{6 * n + 2}": Layout((n, n, n), (16, 32, 64))
        for n in (3, 5, 9, 18)  # 20, 32, 56 and 110 layers
    },
    "resnet18": Layout((2, 2, 2, 2), (64, 128, 256, 512), large=True),
    "resnet50": Layout((3, 4, 6, 3), (64, 128, 256, 512), bottleneck=True, large=True),
}
"""Network name -> layout (He et al. 2016, sections 4.1 and 4.2)."""


class Block(nn.Module):
    """A residual branch beside a shortcut, added and then rectified.

    Attributes:
      widths: channel group -> channels, of the whole network.
      place: groups and stride.
      shortcut: ``padding`` or ``projection``, where the stream changes its group.
      dtype: compute type.
    """

    widths: FrozenDict[str, int]
    place: Place
    shortcut: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, share: jax.Array | None = None, skip: bool = False
    ) -> jax.Array:
        """The stream behind the block.

        Args:
          x: float[B, H, W, C], the stream before it.
          train: normalise by the batch's statistics and update the running ones.
          share: float[B] that an example's branch is multiplied by; None: one.
          skip: leave the branch out, as shares of zero do, but do not compute it.

        Returns:
          float[B, H / stride, W / stride, C'].
        """
        _, before, inner, after, stride = self.place
        y = gate(self, x, before)
        beside = x if before == after else self._beside(y, train)
        if skip:
            return nn.relu(beside)
        groups = (before, *inner, after)
        strided = len(inner) - 1  # the 3x3 of a bottleneck, the first of two
        for i, (source, group) in enumerate(pairwise(groups)):
            y = layers.conv(
                self.widths,
                source,
                group,
                name=f"conv{i}",
                dtype=self.dtype,
                size=3 if i == strided or len(inner) == 1 else 1,
                stride=stride if i == strided else 1,
            )(y)
            if group in inner:
                parts = {group: self.widths[group]}
                y = norm_relu(self, y, parts, name=f"norm{i}", train=train, dtype=self.dtype)
            else:
                y = layers.norm(group, name=f"norm{i}", train=train, dtype=self.dtype)(y)
        if share is not None:
            y = y * share.astype(y.dtype)[:, None, None, None]
        return nn.relu(y + beside)

    def _beside(self, x: jax.Array, train: bool) -> jax.Array:
        _, before, _, after, stride = self.place
        if self.shortcut == PADDING:
            # Indexing with a stride is a gather in jax 0.7.
            x = jax.lax.slice(x, (0, 0, 0, 0), x.shape, (1, stride, stride, 1))
            return pad_channels(self, x, before, after, self.widths[after])
        x = layers.conv(
            self.widths,
            before,
            after,
            name="conv_shortcut",
            dtype=self.dtype,
            size=1,
            stride=stride,
        )(x)
        return layers.norm(after, name="norm_shortcut", train=train, dtype=self.dtype)(x)


class ResNet(nn.Module):
    """A post-activation residual network, its widths data.

    Attributes:
      depths: blocks per stage.
      widths: channel group -> channels; `group_widths` gives the groups.
      num_classes: outputs of the linear layer.
      shortcut: what joins two stages: ``padding`` takes every second position and adds the old
        channels to the middle of the new ones (option A, no parameters), ``projection`` is a 1x1
        convolution with a norm (option B).
      bottleneck: see `Layout`.
      large: see `Layout`.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether blocks compute their activations again in the backward pass.
    """

    depths: tuple[int, ...]
    widths: FrozenDict[str, int]
    num_classes: int
    shortcut: str = PROJECTION
    bottleneck: bool = False
    large: bool = False
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
          ValueError: images of another rank, or smaller than the strides together; an unknown
            shortcut.
        """
        layers.check_name(self.shortcut, SHORTCUTS, "shortcut")
        layers.check_images(x, 2 ** (len(self.depths) - 1 + 2 * self.large))
        x = x.astype(self.dtype)
        size, stride = (7, 2) if self.large else (3, 1)
        stem, dtype = self._stem(), self.dtype
        x = layers.conv(
            self.widths, None, stem, name="conv", dtype=dtype, size=size, stride=stride
        )(x)
        x = nn.relu(layers.norm(stem, name="norm", train=train, dtype=dtype)(x))
        if self.large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        last = stem
        for place in self.places():
            block = Block(self.widths, place, self.shortcut, dtype, name=place.name)
            x = called(Block.__call__, block, x, remat=self.remat, train=train)
            last = place.after
        x = gate(self, x, last).mean(axis=(1, 2))
        return layers.logits(layers.head(self.num_classes, last, dtype=dtype)(x))

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms whose gradients carry the group's reward.

        An inner group's own norm; of a stream every norm that writes it. The ``padding`` shortcut
        writes without a norm: its share of a later stage's reward is in the gates alone.
        """
        found: dict[str, tuple[tuple[str, ...], ...]] = {self._stem(): (("norm",),)}
        for name, before, inner, after, _ in self.places():
            found |= {group: ((name, f"norm{i}"),) for i, group in enumerate(inner)}
            written = [(name, f"norm{len(inner)}")]
            if before != after and self.shortcut == PROJECTION:
                written.append((name, "norm_shortcut"))
            found[after] = (*found.get(after, ()), *written)
        return found

    def _stem(self) -> str:
        return "stem" if self.bottleneck else "stage0"

    def places(self) -> Iterator[Place]:
        """The blocks, in order."""
        return places(self.depths, bottleneck=self.bottleneck, stem=self._stem())


def resnet(
    name: str,
    *,
    num_classes: int,
    dtype: jnp.dtype = jnp.float32,
    width: float = 1.0,
    shortcut: str | None = None,
) -> ResNet:
    """A full-width residual network by name.

    Args:
      name: key of `LAYOUTS`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies every published width; rounded down, at least 1.
      shortcut: None is the published one: ``padding`` for CIFAR, ``projection`` for 224x224.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, LAYOUTS, "ResNet")
    depths, sizes, bottleneck, large = LAYOUTS[name]
    sizes = tuple(layers.scaled(size, width) for size in sizes)
    stem = layers.scaled(64, width) if bottleneck else None
    return ResNet(
        depths=depths,
        widths=group_widths(depths, sizes, bottleneck=bottleneck, stem=stem),
        num_classes=num_classes,
        shortcut=shortcut or (PROJECTION if large else PADDING),
        bottleneck=bottleneck,
        large=large,
        dtype=dtype,
    )
