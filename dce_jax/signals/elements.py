"""Value, gradient and second derivative of every element of a base, for one example.

A base is given as a `Base`: a point and the logits as a function of it. For activations the point
is a perturbation of zeros at every site; for weights it is the kernels. Everything here is of one
example; `dce_jax.signals.sums` maps it over a batch.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from dce_jax import saliency
from dce_jax.signals import curvature, sites
from dce_jax.signals.curvature import Blocks, Curvature, Point
from dce_jax.signals.sites import Places, Scene, Site
from dce_jax.types import Array, Path


class Elements(NamedTuple):
    """Elements of a base; ``g`` and ``h`` are {} where nobody asked.

    Attributes:
      x: path -> values.
      g: path -> first derivatives of the example's loss.
      h: path -> second derivatives, the Hessian's diagonal.
    """

    x: Point
    g: Point
    h: Point


class Base(NamedTuple):
    """What signals are functions of.

    Attributes:
      places: path -> groups on the last axis.
      point: where derivatives are taken; the same for every example.
      logits: ``(point, float[...] one image) -> (float[classes], values x)``.
      blocks: see `curvature.Blocks`.
    """

    places: Mapping[Path, Places]
    point: Point
    logits: Callable[[Point, Array], tuple[Array, Point]]
    blocks: Blocks


def activations(scene: Scene, name: str, found: Mapping[Path, Site], centres: Point) -> Base:
    """Activations as a base.

    Args:
      scene: the network.
      name: of the base.
      found: its sites.
      centres: path -> float[C] to be taken off the values, or {}.
    """
    zeros = {path: jnp.zeros(site.shape, site.dtype) for path, site in found.items()}

    def logits(point: Point, image: Array) -> tuple[Array, Point]:
        seen: Point = {}

        def tap(site: Site, y: Array) -> Array:
            centre = centres.get(site.path)
            seen[site.path] = y[0] if centre is None else y[0] - _along(centre, y.ndim - 1)
            return y + point[site.path][None]

        return sites.run(scene, image[None], name, tap)[0], seen

    places = {path: site.places for path, site in found.items()}
    return Base(places, zeros, logits, [list(zeros)])


def weights(scene: Scene, signal: str) -> Base:
    """Kernels of the producing layers as a base; biases are not part of it.

    Args:
      scene: the network.
      signal: for messages.
    """
    paths = sites.kernels(scene.channels, signal)
    point = {path: saliency.at(scene.params, path) for each in paths.values() for path in each}
    flat = flatten_dict(scene.params)

    def logits(point: Point, image: Array) -> tuple[Array, Point]:
        params = unflatten_dict({**flat, **point})
        return sites.plain(scene._replace(params=params), image[None])[0], point

    places = {
        path: {group: (0, point[path].shape[-1])} for group, each in paths.items() for path in each
    }
    # Logits bend in the product of two layers' kernels, so each is probed alone.
    return Base(places, point, logits, [[path] for path in point])


def evaluate(
    base: Base, image: Array, label: Array, key: Array, *, order: int, second: Curvature
) -> Elements:
    """Elements of one example.

    Args:
      base: what they are of.
      image: one input.
      label: int[].
      key: for estimates.
      order: highest derivative that is needed, 0 to 2.
      second: how second derivatives are computed.
    """
    if order == 0:
        return Elements(base.logits(base.point, image)[1], {}, {})

    def loss(point: Point) -> tuple[Array, Point]:
        logits, x = base.logits(point, image)
        return curvature.loss(logits, label), x

    g, x = jax.grad(loss, has_aux=True)(base.point)
    if order == 1:
        return Elements(x, g, {})

    def logits_of(point: Point) -> Array:
        return base.logits(point, image)[0]

    return Elements(x, g, second(logits_of, base.point, label, key, base.blocks))


def _along(vector: Array, ndim: int) -> Array:
    return vector.reshape(*(1,) * (ndim - 1), -1)
