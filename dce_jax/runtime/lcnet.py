"""L-Net, C-Net and LC-Net: which blocks and channels an input needs, and how much each counts.

Xia, Yin, Dai and Jha 2020 (arXiv 2007.15151). Known to us are the three nets' tasks: L-Net decides
which layers an input skips, C-Net which channels, both learn scales for what is kept, and LC-Net is
both, trained jointly. Everything else is our choice: a predictor of one hidden layer per site on
the pooled feature map; decisions by the sign of a logit, with logistic noise while training and
gradients straight through (those of the sigmoid); scales of twice a sigmoid; a budget that is an
input of the predictors, and a squared distance to it in the loss.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax.runtime.choice import Choice
from dce_jax.runtime.costs import Costs
from dce_jax.runtime.forward import Policy
from dce_jax.types import Array, PyTree

_KEPT = nn.initializers.constant(2.0)
"""Logits begin high: a network is whole before it learns what it can do without."""


class Salience(nn.Module):
    """Logits and scales of every site's branch and channels.

    Attributes:
      widths: channels per site.
      layers: whether branches are decided.
      channels: whether channels are.
      hidden: features of the predictor.
    """

    widths: tuple[int, ...]
    layers: bool
    channels: bool
    hidden: int = 16

    @nn.compact
    def __call__(self, pooled: Array, knob: Array, *, site: int) -> dict[str, tuple[Array, Array]]:
        """``layers`` and ``channels`` -> (logits, scales): float32[B, 1] and float32[B, C].

        Args:
          pooled: float32[B, C'].
          knob: float32[B], the budget between -1 and 1.
          site: index.
        """
        seen = jnp.concatenate([pooled, knob[:, None]], axis=-1)
        seen = nn.relu(nn.Dense(self.hidden, name=f"hidden{site}")(seen))
        found = {}
        for kind, size in (("layers", 1), ("channels", self.widths[site])):
            if getattr(self, kind):
                logits = nn.Dense(size, bias_init=_KEPT, name=f"{kind}{site}")(seen)
                scales = 2.0 * nn.sigmoid(
                    nn.Dense(size, kernel_init=nn.initializers.zeros, name=f"{kind}_scale{site}")(
                        seen
                    )
                )
                found[kind] = (logits, scales)
        return found


def policy(
    module: Salience,
    params: PyTree,
    levels: Sequence[Sequence[int]],
    knob: Array,
    *,
    key: Array | None = None,
    noise: Array | float = 1.0,
) -> Policy:
    """Decisions by sign; a site's note is its share of work, float32[B], with a gradient.

    Args:
      module: the predictors.
      params: their parameters.
      levels: per site its widths.
      knob: float32[] or float32[B], the budget between -1 and 1.
      key: training: logits are noisy, and what is not kept is multiplied by zero instead of not
        being run, so that gradients reach it.
      noise: scale of the noise.
    """

    def decide(site: int, pooled: Array, carry: None) -> tuple[Choice, None, Array]:
        wide = jnp.broadcast_to(knob, pooled.shape[:1])
        found: Any = module.apply({"params": params}, pooled, wide, site=site)
        own = None if key is None else jax.random.fold_in(key, site)
        choice, work = _decided(found, levels[site], own, noise)
        return choice, carry, work

    return decide


def _decided(
    found: dict[str, tuple[Array, Array]],
    widths: Sequence[int],
    key: Array | None,
    noise: Array | float,
) -> tuple[Choice, Array]:
    scale = order = share = None
    train = key is not None
    for_channels, for_layers = (None, None) if key is None else jax.random.split(key)
    positive = jnp.asarray([width for width in widths if width], jnp.int32)
    some = next(iter(found.values()))[0]
    level = jnp.full(some.shape[0], positive.size - 1, jnp.int32)
    work = jnp.ones(some.shape[0], jnp.float32)
    if "channels" in found:
        logits, scales = found["channels"]
        logits, hard, soft = _straight(logits, for_channels, noise)
        count = jnp.sum(hard > 0, axis=-1)
        level = jnp.searchsorted(positive, jnp.maximum(count, 1)).astype(jnp.int32)
        order = jnp.argsort(-logits, axis=-1).astype(jnp.int32)
        scale, mean = hard * scales, soft.mean(axis=-1)
        work = positive[level] / widths[-1] + mean - jax.lax.stop_gradient(mean)
    if "layers" in found:
        logits, scales = found["layers"]
        _, hard, _ = _straight(logits, for_layers, noise)
        share = (hard * scales)[:, 0]
        level = jnp.where(hard[:, 0] > 0, level + int(widths[0] == 0), 0)
        work = work * hard[:, 0]
    if train:
        level, order = jnp.full_like(level, len(widths) - 1), None
    return Choice(level, order, scale, share), work


def _straight(logits: Array, key: Array | None, noise: Array | float) -> tuple[Array, Array, Array]:
    """Noisy logits; 1 where they are positive, with the gradient of their sigmoid; the sigmoid."""
    if key is not None:
        logits = logits + noise * jax.random.logistic(key, logits.shape)
    soft = nn.sigmoid(logits)
    hard = (logits > 0).astype(soft.dtype)
    return logits, hard + soft - jax.lax.stop_gradient(soft), soft


def share(costs: Costs, work: Sequence[Array]) -> Array:
    """Multiply-accumulates of every image, as a share of the whole network's: float32[B].

    A site costs its share of work, times that of the site whose channels it reads, and its
    shortcut; what decides is not counted.

    Args:
      costs: of the network.
      work: per site float32[B], notes of `policy`.
    """
    total = jnp.asarray(costs.always / costs.full, jnp.float32)
    before: Any = 1.0
    for table, around, mine in zip(costs.sites, costs.around, work, strict=True):
        read = before if table.shape[0] > 1 else 1.0
        branch = jnp.asarray((table[-1, -1] - around) / costs.full, jnp.float32)
        total = total + around / costs.full + branch * mine * read
        before = mine
    return total


def budget_term(costs: Costs, work: Sequence[Array], budget: Array) -> Array:
    """Squared distance of mean multiply-accumulates to a budget, averaged over images: float32[].

    The mean is that of all images with the same budget, so that one may need more than another.

    Args:
      costs: of the network.
      work: per site float32[B], notes of `policy`.
      budget: float32[] or float32[B], shares of the whole network's.
    """
    found = share(costs, work)
    wanted = jnp.broadcast_to(budget, found.shape)
    alike = (wanted[:, None] == wanted[None, :]).astype(found.dtype)
    return jnp.square(alike @ found / alike.sum(axis=1) - wanted).mean()
