"""Parts of networks that run one after another: what lies between two decisions.

Each is an ordinary Linen module on the variables of the network that it is a part of, so a
network of which every part runs whole is that network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from dce_jax.networks import layers
from dce_jax.networks.gates import gate


class Unit(nn.Module):
    """Convolution, norm, ReLU and, behind the last unit of a stage, a 2x2 max pool; then a gate.

    Attributes:
      widths: channel group -> channels.
      before: group of its inputs; None for images.
      group: of its outputs.
      dtype: compute type.
      size: of the kernel.
      pool: whether a stage ends here.
    """

    widths: FrozenDict[str, int]
    before: str | None
    group: str
    dtype: jnp.dtype
    size: int = 3
    pool: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """float[B, H, W, C], halved in H and W where it pools."""
        x = layers.conv(
            self.widths, self.before, self.group, name="conv", dtype=self.dtype, size=self.size
        )(x.astype(self.dtype))
        x = nn.relu(layers.norm(self.group, name="norm", train=train, dtype=self.dtype)(x))
        x = layers.max_of_four(x) if self.pool else x
        # Behind the pool, where zeros of a gate make no ties.
        return gate(self, x, self.group)


class Head(nn.Module):
    """Mean over positions and the linear layer.

    Attributes:
      before: group of its inputs.
      num_classes: outputs.
      dtype: compute type.
    """

    before: str
    num_classes: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Logits, float32[B, num_classes]."""
        del train
        x = gate(self, x, self.before).mean(axis=(1, 2))
        return layers.logits(layers.head(self.num_classes, self.before, dtype=self.dtype)(x))
