"""LeNet-5 as pruning papers use it: two 5x5 convolutions and a hidden linear layer, no norms.

LeCun, Bottou, Bengio and Haffner 1998, with the widths and the ReLU of later work. There are no
norms to read rewards off: `gate_taylor` and the algebra's signals serve.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.gates import gate
from dce_jax.networks.layers import named

LAYOUTS: dict[str, tuple[int, ...]] = {"lenet5": (20, 50, 500), "lenet-small": (8, 16, 64)}
"""Network name -> widths of the convolutions, then of the hidden layer: Caffe's LeNet, and the
network on which Evci 2018 (arXiv 1806.06068) finds dead units."""

SIZE = 5
"""Of the square kernels, which are not padded."""


class LeNet(nn.Module):
    """LeNet-5, its widths data.

    Attributes:
      convolutions: how many; each ends in a 2x2 max pool. Linear layers follow.
      widths: channel group ``conv<i>`` -> channels, then ``dense<i>`` -> units.
      num_classes: outputs of the last linear layer.
      dtype: compute type, float32 or bfloat16; parameters are float32.
    """

    convolutions: int
    widths: FrozenDict[str, int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits.

        Args:
          x: float[B, H, W, D] images.
          train: changes nothing here.

        Returns:
          float32[B, num_classes]; float64 where ``dtype`` is.

        Raises:
          ValueError: images of another rank, or so small that nothing is left.
        """
        del train
        layers.check_images(x, smallest(self.convolutions))
        x, before = x.astype(self.dtype), None
        names = tuple(self.widths)
        for group in names[: self.convolutions]:
            x = layers.max_of_four(gate(self, nn.relu(self._conv(before, group)(x)), group))
            before = group
        axis: layers.Axis = (before,) * (x.shape[1] * x.shape[2]) if before else None
        x = x.reshape(x.shape[0], -1)
        for group in names[self.convolutions :]:
            x = gate(self, nn.relu(self._dense(axis, group)(x)), group)
            axis = group
        return layers.logits(layers.head(self.num_classes, axis, dtype=self.dtype)(x))

    def _conv(self, before: str | None, group: str) -> nn.Conv:
        return nn.Conv(
            self.widths[group],
            kernel_size=(SIZE, SIZE),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=named(layers.he_fan_in, (None, None, before, group)),
            bias_init=named(nn.initializers.zeros_init(), (group,)),
            name=group,
        )

    def _dense(self, before: layers.Axis, group: str) -> nn.Dense:
        return nn.Dense(
            self.widths[group],
            dtype=self.dtype,
            kernel_init=named(layers.he_fan_in, (before, group)),
            bias_init=named(nn.initializers.zeros_init(), (group,)),
            name=group,
        )


def smallest(convolutions: int) -> int:
    """Side of the smallest image of which so many convolutions and pools leave one position."""
    side = 1
    for _ in range(convolutions):
        side = 2 * side + SIZE - 1
    return side


def lenet(
    name: str, *, num_classes: int, dtype: jnp.dtype = jnp.float32, width: float = 1.0
) -> LeNet:
    """A full-width LeNet by name.

    Args:
      name: key of `LAYOUTS`.
      num_classes: outputs.
      dtype: compute type.
      width: multiplies every layer's width; rounded down, at least 1.

    Raises:
      ValueError: unknown name or a width that is not positive.
    """
    layers.check_name(name, LAYOUTS, "LeNet")
    groups = ("conv0", "conv1", "dense0")
    sizes = [layers.scaled(size, width) for size in LAYOUTS[name]]
    return LeNet(2, FrozenDict(zip(groups, sizes, strict=True)), num_classes, dtype)
