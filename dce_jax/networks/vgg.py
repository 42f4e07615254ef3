"""VGG with batch norm for small images: convolutions, batch norms and one linear layer."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks.gates import gate

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
    """

    depths: tuple[int, ...]
    widths: FrozenDict[str, int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits.

        Args:
          x: float[B, H, W, D] images.
          train: normalise by the batch's statistics and update the running ones.

        Returns:
          float32[B, num_classes].

        Raises:
          ValueError: images of another rank, or so small that the pools leave nothing.
        """
        self._check(x)
        x = x.astype(self.dtype)
        index, before = 0, None
        for depth in self.depths:
            for _ in range(depth):
                group = f"conv{index}"
                x = self._unit(x, before, group, index, train)
                index, before = index + 1, group
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = x.mean(axis=(1, 2))
        kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), (before, None))
        x = nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=kernel, name="head")(x)
        return x.astype(jnp.float32)

    def _unit(
        self, x: jax.Array, before: str | None, group: str, index: int, train: bool
    ) -> jax.Array:
        named = nn.with_logical_partitioning
        conv = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False, dtype=self.dtype)
        he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = conv(
            self.widths[group],
            kernel_init=named(he_normal, (None, None, before, group)),
            name=f"conv{index}",
        )(x)
        x = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            dtype=self.dtype,
            scale_init=named(nn.initializers.ones_init(), (group,)),
            bias_init=named(nn.initializers.zeros_init(), (group,)),
            name=f"norm{index}",
        )(x)
        return gate(self, nn.relu(x), group)

    def _check(self, x: jax.Array) -> None:
        smallest = 2 ** len(self.depths)
        if x.ndim != 4:
            raise ValueError(f"images must be float[B, H, W, D], got shape {x.shape}")
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"images of {x.shape[1]}x{x.shape[2]} would be pooled to nothing by "
                f"{len(self.depths)} pools: the smallest size is {smallest}x{smallest}; pad the "
                "images or choose a network with fewer stages"
            )

    def reward_norms(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Channel group -> paths of the norms whose gradients carry the group's reward."""
        return {group: ((f"norm{i}",),) for i, group in enumerate(self.widths)}


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
    if name not in LAYOUTS:
        raise ValueError(f"unknown VGG {name!r}: one of {sorted(LAYOUTS)}")
    if width <= 0:
        raise ValueError(f"width multiplier {width} must be positive")
    stages = LAYOUTS[name]
    sizes = [max(1, int(channels * width)) for stage in stages for channels in stage]
    return VGG(
        depths=tuple(len(stage) for stage in stages),
        widths=FrozenDict({f"conv{i}": size for i, size in enumerate(sizes)}),
        num_classes=num_classes,
        dtype=dtype,
    )
