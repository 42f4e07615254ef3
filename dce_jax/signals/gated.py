"""First-order sums read off a gate per channel: no derivative of a full activation is kept.

The gradient in a gate of zeros that adds ``gate * d`` to a site's activations is the sum of ``d g``
over positions: with ``d = 1`` that of ``g``, with ``d = -x`` that of ``-x g``. For a convolution or
product with kernel w and bias b, ``sum of w dL/dw`` over a channel's kernel is ``sum of (y - b)
dL/dy`` over its outputs y, so the same gate gives the weights' sum without per-example kernels.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp

from dce_jax.signals import curvature, sites
from dce_jax.signals.curvature import Point
from dce_jax.signals.elements import along
from dce_jax.signals.sites import Scene, Site
from dce_jax.types import Array, Path

Direction: TypeAlias = Callable[[Site, Array], Array]
"""``(site, activations) -> d``, of their shape."""


def direction(
    scene: Scene, base: str, pointwise: str, centres: Mapping[Path, Array]
) -> Direction | None:
    """What the gate of a metric multiplies, or None where no gate gives the metric's sum.

    Args:
      scene: the network.
      base: name of the base.
      pointwise: name of the metric.
      centres: path -> float[C] to be taken off the activations, or {}.
    """
    if pointwise == "g" and base != "weights":
        return lambda _, y: jnp.ones_like(y)
    if pointwise != "taylor":
        return None
    if base == "weights":
        return lambda site, y: _without(_bias(scene, site), y)
    return lambda site, y: _without(centres.get(site.path), y)


def total(
    scene: Scene,
    base: str,
    found: Mapping[Path, Site],
    direction: Direction,
    image: Array,
    label: Array,
) -> Point:
    """``sum of d g`` over the positions of every site, of one example.

    Args:
      scene: the network.
      base: name of the base.
      found: its sites.
      direction: d.
      image: one input.
      label: int[].

    Returns:
      Path of the site -> float[C].
    """
    zeros = {path: jnp.zeros(site.shape[-1:], site.dtype) for path, site in found.items()}

    def loss(gates: Point) -> Array:
        def tap(site: Site, y: Array) -> Array:
            d = jax.lax.stop_gradient(direction(site, y))
            return y + along(gates[site.path], y.ndim) * d

        return curvature.loss(sites.run(scene, image[None], base, tap)[0], label)

    return jax.grad(loss)(zeros)


def _without(centre: Array | None, y: Array) -> Array:
    return -y if centre is None else along(centre, y.ndim) - y


def _bias(scene: Scene, site: Site) -> Array | None:
    layer = scene.params
    for name in site.path:
        layer = layer[name]
    return layer.get("bias")
