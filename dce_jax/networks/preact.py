"""Pre-activation bottleneck residual networks for CIFAR.

He, Zhang, Ren and Sun 2016, "Identity Mappings in Deep Residual Networks". A residual stream is one
channel group per stage; it is read through a norm and a ReLU everywhere, also by the 1x1
projection that begins a stage, as in the authors' code.
"""

from collections.abc import Iterator
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.remat import called
from dce_jax.networks.stages import Place, group_widths, places
from dce_jax.networks.units import norm_relu

LAYOUTS: dict[str, tuple[int, ...]] = {"resnet164": (18, 18, 18)}
"""Network name -> blocks per stage."""

STEM, SIZES = 16, (16, 32, 64)


class PreactBlock(nn.Module):
    """Norm, ReLU and convolution three times, added to the stream.

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
        _, before, inner, after, stride = self.place
        groups, y, beside = (before, *inner, after), x, x
        for i, (source, group) in enumerate(pairwise(groups)):
            parts = {source: self.widths[source]}
            y = norm_relu(self, y, parts, name=f"norm{i}", train=train, dtype=self.dtype)
            if i == 0 and before != after:
                beside = self._conv(y, before, after, "conv_shortcut", 1, stride)
            y = self._conv(y, source, group, f"conv{i}", *((3, stride) if i == 1 else (1, 1)))
        return beside + y

    def _conv(
        self, y: jax.Array, source: str, group: str, name: str, size: int, stride: int
    ) -> jax.Array:
        return layers.conv(
            self.widths, source, group, name=name, dtype=self.dtype, size=size, stride=stride
        )(y)


class PreactResNet(nn.Module):
    """A pre-activation bottleneck residual network, its widths data.

    Attributes:
      depths: blocks per stage.
      widths: channel group -> channels; `preact_widths` gives the groups.
      num_classes: outputs of the linear layer.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether blocks compute their activations again in the backward pass.
    """

    depths: tuple[int, ...]
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
        layers.check_images(x, 2 ** (len(self.depths) - 1))
        x = x.astype(self.dtype)
        x = layers.conv(self.widths, None, "stem", name="conv", dtype=self.dtype)(x)
        last = "stem"
        for place in self._places():
            block = PreactBlock(self.widths, place, self.dtype, name=place.name)
            x = called(PreactBlock.__call__, block, x, remat=self.remat, train=train)
            last = place.after
        parts = {last: self.widths[last]}
        x = norm_relu(self, x, parts, name="norm", train=train, dtype=self.dtype).mean(axis=(1, 2))
        return layers.logits(layers.head(self.num_classes, last, dtype=self.dtype)(x))

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms that carry its reward: every norm that reads it."""
        found: dict[str, tuple[tuple[str, ...], ...]] = {}
        for name, before, inner, after, _ in self._places():
            found[before] = (*found.get(before, ()), (name, "norm0"))
            found |= {group: ((name, f"norm{i}"),) for i, group in enumerate(inner, start=1)}
            last = after
        found[last] = (*found.get(last, ()), ("norm",))
        return found

    def _places(self) -> Iterator[Place]:
        return places(self.depths, bottleneck=True, stem="stem")


def preact_widths(
    depths: tuple[int, ...], sizes: tuple[int, ...], *, stem: int
) -> FrozenDict[str, int]:
    """Channel groups of a pre-activation network and their widths.

    Args:
      depths: blocks per stage.
      sizes: channels of the inner convolutions per stage; a stream has four times as many.
      stem: channels of the first convolution.
    """
    return group_widths(depths, sizes, bottleneck=True, stem=stem)


def preact(
    name: str, *, num_classes: int, dtype: jnp.dtype = jnp.float32, width: float = 1.0
) -> PreactResNet:
    """A full-width pre-activation network by name.

    Args:
      name: key of `LAYOUTS`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies every published width; rounded down, at least 1.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, LAYOUTS, "pre-activation ResNet")
    sizes = tuple(layers.scaled(size, width) for size in SIZES)
    return PreactResNet(
        depths=LAYOUTS[name],
        widths=preact_widths(LAYOUTS[name], sizes, stem=layers.scaled(STEM, width)),
        num_classes=num_classes,
        dtype=dtype,
    )
