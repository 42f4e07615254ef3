"""Runtime neural pruning: a Markov decision process, layer by layer, learned by Q-learning.

Lin, Rao, Lu and Zhou, NIPS 2017. At each site a network sees the pooled feature map, encodes it
(an encoder per site), passes it to a recurrent network that all sites share, and gives a value to
each of k actions; action i runs the first i of k nested channel groups. The sizes of encoder and
recurrent network are not known to us and are our choice. So is that the price is an input: one
trained network serves a range of prices, where theirs is trained for one.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.runtime.choice import Choice
from dce_jax.runtime.forward import Policy
from dce_jax.types import Array, PyTree


class Decider(nn.Module):
    """Values of the actions at every site.

    Attributes:
      sites: how many.
      actions: k.
      encoded: features of a pooled map.
      hidden: of the recurrent network.
    """

    sites: int
    actions: int
    encoded: int = 32
    hidden: int = 32

    def setup(self) -> None:
        """Layers: an encoder per site, the rest shared."""
        self.encoders = [nn.Dense(self.encoded) for _ in range(self.sites)]
        self.cell = nn.GRUCell(self.hidden)
        self.values = nn.Dense(self.actions)

    def __call__(
        self, pooled: Array, carry: Array | None, knob: Array, *, site: int
    ) -> tuple[Array, Array]:
        """Values float32[B, k] and the carry of the next site.

        Args:
          pooled: float32[B, C].
          carry: float32[B, hidden] of the site before; None at the first.
          knob: float32[B], the price between -1 and 1.
          site: index.
        """
        seen = jnp.concatenate([nn.relu(self.encoders[site](pooled)), knob[:, None]], axis=-1)
        if carry is None:
            carry = jnp.zeros((pooled.shape[0], self.hidden), seen.dtype)
        carry, out = self.cell(carry, seen)
        return self.values(out), carry


def policy(
    module: Decider,
    params: PyTree,
    knob: Array,
    price: Array,
    *,
    epsilon: Array | float = 0.0,
    key: Array | None = None,
) -> Policy:
    """Epsilon-greedy decisions; the note of a site is its values, float32[B, k].

    A value is what the network says plus ``(i - 1) p``, what the action itself costs: that part
    need not be learned (our choice).

    Args:
      module: the network that decides.
      params: its parameters.
      knob: float32[] or float32[B], the price between -1 (the highest) and 1.
      price: p, of the same shape, not positive.
      epsilon: share of decisions that are drawn uniformly instead.
      key: for them; None: all are greedy.
    """

    def decide(site: int, pooled: Array, carry: Any) -> tuple[Choice, Any, Array]:
        wide = jnp.broadcast_to(knob, pooled.shape[:1])
        found: Any = module.apply({"params": params}, pooled, carry, wide, site=site)
        values, carry = found
        groups = jnp.arange(module.actions, dtype=values.dtype)
        values = values + jnp.broadcast_to(price, wide.shape)[:, None] * groups[None, :]
        level = jnp.argmax(values, axis=-1).astype(jnp.int32)
        if key is not None:
            drawn, which = jax.random.split(jax.random.fold_in(key, site))
            explore = jax.random.bernoulli(drawn, epsilon, level.shape)
            level = jnp.where(
                explore, jax.random.randint(which, level.shape, 0, module.actions), level
            )
        return Choice(level), carry, values

    return decide


def squared_error(
    values: Sequence[Array],
    levels: Sequence[Array],
    losses: Array,
    price: Array,
    *,
    alpha: Array | float,
    gamma: float,
) -> Array:
    """Mean squared temporal difference of a pass over all sites.

    Reward ``(i - 1) p`` at each site, and at the last one less ``alpha`` times the loss; target
    ``r + gamma max Q`` of the next site (Lin et al. 2017, equations 5 and 6). No gradient flows
    through the target.

    Args:
      values: per site float32[B, k].
      levels: per site int32[B], actions taken, from 0.
      losses: float32[B], classification loss at the end, or what it is above another one of the
        same images, which no action changes: the best actions are the same.
      price: p, float32[B] or float32[], not positive: what one channel group costs.
      alpha: weight of the loss; such that alpha times it is about 1.
      gamma: discount.
    """
    following = [*(v.max(axis=-1) for v in values[1:]), None]
    errors = []
    for mine, level, after in zip(values, levels, following, strict=True):
        reward = level.astype(jnp.float32) * price
        target = reward - alpha * losses if after is None else reward + gamma * after
        taken = jnp.take_along_axis(mine, level[:, None], axis=-1)[:, 0]
        errors.append(jnp.square(jax.lax.stop_gradient(target) - taken))
    return jnp.stack(errors).mean()


def random_policy(actions: int, key: Array) -> Policy:
    """Uniform decisions: what a network is first trained under, so that all of them are tried."""
    return partial(_random, actions, key)


def _random(
    actions: int, key: Array, site: int, pooled: Array, carry: None
) -> tuple[Choice, None, None]:
    shape = pooled.shape[:1]
    level = jax.random.randint(jax.random.fold_in(key, site), shape, 0, actions)
    return Choice(level.astype(jnp.int32)), carry, None
