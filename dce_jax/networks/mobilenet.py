"""MobileNetV2 for 224x224 images, and for CIFAR.

Sandler, Howard, Zhu, Zhmoginov and Chen 2018, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks". A linear stream is one channel group per stage; the hidden group of a block holds
its expansion and its depthwise convolution, which acts on each channel alone. No dropout.
"""

from collections.abc import Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.gates import gate
from dce_jax.networks.remat import called

DEPTHS, SIZES = (1, 2, 3, 4, 3, 3, 1), (16, 24, 32, 64, 96, 160, 320)
STEM, LAST, EXPANSION = 32, 1280, 6

STRIDES: dict[str, tuple[int, ...]] = {
    "mobilenetv2": (2, 1, 2, 2, 2, 1, 2, 1),
    "mobilenetv2-cifar": (1, 1, 1, 2, 2, 1, 2, 1),
}
"""Network name -> stride of the first convolution, then of each stage's first block (Sandler et al.
2018, table 2). The variant for CIFAR is ours in this sense: the two strides that come first are 1,
so 32x32 images end at 4x4 positions."""


class Place(NamedTuple):
    """A block's groups.

    Attributes:
      name: of the block's module.
      before: group that it reads.
      hidden: group of its depthwise convolution; equal to ``before`` where nothing is expanded.
      after: group of the stream that it writes; equal to ``before`` but in a stage's first block.
      stride: of the depthwise convolution.
    """

    name: str
    before: str
    hidden: str
    after: str
    stride: int


def blocks(depths: tuple[int, ...], strides: tuple[int, ...]) -> Iterator[Place]:
    """The blocks in order; the very first has no expansion.

    Args:
      depths: blocks per stage.
      strides: of each stage's first block.
    """
    before = "stem"
    for stage, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
        for block in range(depth):
            name, after = f"stage{stage}_block{block}", f"stage{stage}"
            hidden = before if before == "stem" else f"{name}_hidden"
            yield Place(name, before, hidden, after, 1 if block else stride)
            before = after


def mobilenet_widths(
    depths: tuple[int, ...],
    sizes: tuple[int, ...],
    *,
    stem: int,
    last: int,
    expansion: int = EXPANSION,
) -> FrozenDict[str, int]:
    """Channel groups of a MobileNetV2 and their full widths, in the network's order.

    Args:
      depths: blocks per stage.
      sizes: channels of each stage's stream.
      stem: channels of the first convolution.
      last: channels of the last convolution.
      expansion: hidden channels over those of the stream that a block reads.
    """
    widths = {"stem": stem}
    for place in blocks(depths, (1,) * len(depths)):
        widths.setdefault(place.hidden, expansion * widths[place.before])
        widths.setdefault(place.after, sizes[int(place.after.removeprefix("stage"))])
    return FrozenDict(widths | {"last": last})


class InvertedResidual(nn.Module):
    """Expand, convolve each channel alone, project: the projection is linear.

    Attributes:
      widths: channel group -> channels, of the whole network.
      place: groups and stride.
      dtype: compute type.
    """

    widths: FrozenDict[str, int]
    place: Place
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """The stream behind the block: float[B, H / stride, W / stride, C']."""
        _, before, hidden, after, stride = self.place
        widths, dtype, y = self.widths, self.dtype, x
        if hidden != before:
            y = gate(self, y, before)
            y = layers.conv(widths, before, hidden, name="conv0", dtype=dtype, size=1)(y)
            y = nn.relu6(layers.norm(hidden, name="norm0", train=train, dtype=dtype)(y))
        y = layers.depthwise(widths, hidden, name="conv1", dtype=dtype, stride=stride)(y)
        y = nn.relu6(layers.norm(hidden, name="norm1", train=train, dtype=dtype)(y))
        y = gate(self, y, hidden)
        y = layers.conv(widths, hidden, after, name="conv2", dtype=dtype, size=1)(y)
        y = layers.norm(after, name="norm2", train=train, dtype=dtype)(y)
        return x + y if before == after else y


class MobileNetV2(nn.Module):
    """MobileNetV2, its widths data.

    Attributes:
      depths: blocks per stage.
      strides: of the first convolution, then of each stage's first block.
      widths: channel group -> channels; `mobilenet_widths` gives the groups.
      num_classes: outputs of the linear layer.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether blocks compute their activations again in the backward pass.
    """

    depths: tuple[int, ...]
    strides: tuple[int, ...]
    widths: FrozenDict[str, int]
    num_classes: int
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
        layers.check_images(x, 2 ** sum(stride == 2 for stride in self.strides))
        x = x.astype(self.dtype)
        x = self._unit(x, None, "stem", "0", train)
        before = "stem"
        for place in self._blocks():
            block = InvertedResidual(self.widths, place, self.dtype, name=place.name)
            x = called(InvertedResidual.__call__, block, x, remat=self.remat, train=train)
            before = place.after
        x = self._unit(gate(self, x, before), before, "last", "1", train)
        x = gate(self, x, "last").mean(axis=(1, 2))
        return layers.logits(layers.head(self.num_classes, "last", dtype=self.dtype)(x))

    def _unit(
        self, x: jax.Array, before: str | None, group: str, index: str, train: bool
    ) -> jax.Array:
        # The first convolution is 3x3, the last 1x1.
        size, stride = (3, self.strides[0]) if before is None else (1, 1)
        name, dtype = f"conv{index}", self.dtype
        x = layers.conv(
            self.widths, before, group, name=name, dtype=dtype, size=size, stride=stride
        )(x)
        return nn.relu6(layers.norm(group, name=f"norm{index}", train=train, dtype=dtype)(x))

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms whose gradients carry the group's reward.

        Of a stream every norm that writes it; of a hidden group the norm behind its depthwise
        convolution alone, because that norm cancels whatever an earlier one scales.
        """
        found: dict[str, tuple[tuple[str, ...], ...]] = {"last": (("norm1",),)}
        for name, _, hidden, after, _ in self._blocks():
            found[hidden] = ((name, "norm1"),)
            found[after] = (*found.get(after, ()), (name, "norm2"))
        return found

    def _blocks(self) -> Iterator[Place]:
        return blocks(self.depths, self.strides[1:])


def mobilenet(
    name: str, *, num_classes: int, dtype: jnp.dtype = jnp.float32, width: float = 1.0
) -> MobileNetV2:
    """A full-width MobileNetV2 by name.

    Args:
      name: key of `STRIDES`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies every published width; rounded down, at least 1.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, STRIDES, "MobileNet")
    widths = mobilenet_widths(
        DEPTHS,
        tuple(layers.scaled(size, width) for size in SIZES),
        stem=layers.scaled(STEM, width),
        last=layers.scaled(LAST, width),
    )
    return MobileNetV2(DEPTHS, STRIDES[name], widths, num_classes, dtype)
