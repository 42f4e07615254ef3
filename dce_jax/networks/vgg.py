"""VGG with batch norm for small images: convolutions, batch norms and one linear layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.remat import called
from dce_jax.networks.units import norm_relu

LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "vgg11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
    "vgg-small": ((32,) * 2, (64,) * 2, (128,) * 2),
    "vgg-digits": ((32,) * 2, (64,) * 2, (128,) * 2),
}
"""Network name -> widths per stage; a stage ends in a 2x2 max pool (Simonyan and Zisserman 2015,
with the classifier of the CIFAR variants: Liu et al. 2017). The last two are our own."""


class VGG(nn.Module):
    """VGG for small images, its widths data.

    Attributes:
      depths: convolutions per stage; each stage ends in a 2x2 max pool.
      widths: channel group ``conv<i>`` -> channels of convolution i.
      num_classes: outputs of the linear layer.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether layers compute their activations again in the backward pass.
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
          ValueError: images of another rank, or so small that the pools leave nothing.
        """
        layers.check_images(x, 2 ** len(self.depths))
        x = x.astype(self.dtype)
        index, before = 0, None
        for depth in self.depths:
            for _ in range(depth):
                group = f"conv{index}"
                static = {"before": before, "group": group, "index": index, "train": train}
                x = called(VGG._unit, self, x, remat=self.remat, **static)
                index, before = index + 1, group
            x = layers.max_of_four(x)
        x = x.mean(axis=(1, 2))
        x = layers.head(self.num_classes, before, dtype=self.dtype)(x)
        return layers.logits(x)

    def _unit(
        self, x: jax.Array, *, before: str | None, group: str, index: int, train: bool
    ) -> jax.Array:
        x = layers.conv(self.widths, before, group, name=f"conv{index}", dtype=self.dtype)(x)
        parts = {group: self.widths[group]}
        return norm_relu(self, x, parts, name=f"norm{index}", train=train, dtype=self.dtype)

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms whose gradients carry the group's reward."""
        return {group: ((f"norm{group.removeprefix('conv')}",),) for group in self.widths}


def vgg(name: str, *, num_classes: int, dtype: jnp.dtype = jnp.float32, width: float = 1.0) -> VGG:
    """A full-width VGG by name.

    Args:
      name: key of `LAYOUTS`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies every layer's published width; rounded down, at least 1.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, LAYOUTS, "VGG")
    sizes = [layers.scaled(channels, width) for stage in LAYOUTS[name] for channels in stage]
    return VGG(
        depths=tuple(len(stage) for stage in LAYOUTS[name]),
        widths=FrozenDict({f"conv{i}": size for i, size in enumerate(sizes)}),
        num_classes=num_classes,
        dtype=dtype,
    )
