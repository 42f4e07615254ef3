"""Per-example sums of pointwise values over the elements of each channel."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from dce_jax.signals import elements, pointwise, reduction, sites
from dce_jax.signals.curvature import Curvature, Point
from dce_jax.signals.elements import Base
from dce_jax.signals.reduction import Sums
from dce_jax.signals.sites import Places, Scene, Site
from dce_jax.types import Array, Path, PyTree

Wanted: TypeAlias = Mapping[str, Collection[str]]
"""Pointwise metric -> reductions that are asked of it."""

CENTRED = ("centred", "centred_units")
"""Bases whose values are distances from their mean."""

GroupSums: TypeAlias = dict[str, dict[str, Sums]]
"""Pointwise metric -> channel group -> sums."""


def of_base(
    scene: Scene,
    base: str,
    wanted: Wanted,
    signal: str,
    *,
    second: Curvature,
    key: Array,
    chunk: int | None = None,
) -> GroupSums:
    """Sums of every wanted pointwise metric of one base.

    Args:
      scene: the network and its examples.
      base: name of the base.
      wanted: what is asked.
      signal: for messages.
      second: how second derivatives are computed.
      key: for estimates; every example gets its own.
      chunk: examples at a time, None for all at once.

    Returns:
      float[B, C] each; float[1, C] where examples do not matter.

    Raises:
      ValueError: see `dce_jax.signals.sites`.
    """
    if base == "weights" and _order(wanted) == 0:
        kernels = elements.weights(scene, signal)
        found = _reduced(kernels.places, wanted, (kernels.point,))
        return jax.tree.map(lambda sums: sums[None], found)
    batch = sites.examples(scene, signal)
    middles = centres(scene, base, signal) if base in CENTRED else {}

    def many(params: PyTree, state: PyTree, middles: Point, *rows: Array) -> GroupSums:
        inside = scene._replace(params=params, model_state=state)
        of = _base(inside, base, wanted, signal, middles)
        return jax.vmap(partial(_one, of, wanted, second))(*rows)

    size = batch["label"].shape[0]
    whole = (batch["image"], batch["label"], jax.random.split(key, size))
    # What the function closes over would be compiled into it as constants.
    run = partial(jax.jit(many), scene.params, scene.model_state, middles)
    parts = [
        run(*(rows[begin : begin + (chunk or size)] for rows in whole))
        for begin in range(0, size, chunk or size)
    ]
    return jax.tree.map(lambda *each: jnp.concatenate(each), *parts)


def centres(scene: Scene, base: str, signal: str) -> Point:
    """Mean of every site's activations over examples and positions: path -> float[C].

    Args:
      scene: the network and its examples.
      base: of `CENTRED`.
      signal: for messages.
    """

    def means(params: PyTree, state: PyTree, images: Array) -> Point:
        found: Point = {}

        def tap(site: Site, y: Array) -> Array:
            found[site.path] = jnp.mean(y, axis=tuple(range(y.ndim - 1)))
            return y

        sites.run(scene._replace(params=params, model_state=state), images, base, tap)
        return found

    images = sites.examples(scene, signal)["image"]
    return jax.jit(means)(scene.params, scene.model_state, images)


def _order(wanted: Wanted) -> int:
    return max(pointwise.BY_NAME[name].order for name in wanted)


def _base(scene: Scene, base: str, wanted: Wanted, signal: str, middles: Point) -> Base:
    if base != "weights":
        found = sites.checked(scene, base, signal)
        return elements.activations(scene, base, found, middles)
    # With y = w * x + b, the sum of w dL/dw over a filter is that of (y - b) dL/dy over positions:
    # the same number without a copy of the kernels' derivatives per example.
    products = all(
        name == "taylor" and set(asked) <= reduction.OF_THE_TOTAL for name, asked in wanted.items()
    )
    found = sites.affine(scene, signal) if products else {}
    if found:
        return elements.activations(scene, base, found, sites.biases(scene, found))
    return elements.weights(scene, signal)


def _one(
    of: Base, wanted: Wanted, second: Curvature, image: Array, label: Array, key: Array
) -> GroupSums:
    values = elements.evaluate(of, image, label, key, order=_order(wanted), second=second)
    return _reduced(of.places, wanted, values)


def _reduced(places: Mapping[Path, Places], wanted: Wanted, values: Sequence[Point]) -> GroupSums:
    """Sums of pointwise values, all sites of a group together.

    Args:
      places: path -> groups on the last axis.
      wanted: metrics.
      values: x, and g and h where a metric takes them: path -> float[..., C].
    """

    def metric(name: str) -> dict[Path, Sums]:
        value, order = pointwise.BY_NAME[name]
        return {
            path: reduction.sums(value(*(each[path] for each in values[: order + 1])))
            for path in places
        }

    return {name: _by_group(places, metric(name)) for name in wanted}


def _by_group(places: Mapping[Path, Places], sums: Mapping[Path, Sums]) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for path, groups in places.items():
        for group, (start, size) in groups.items():
            part = jax.tree.map(lambda total, s=start, n=size: total[s : s + n], sums[path])
            before = found.get(group)
            found[group] = part if before is None else jax.tree.map(jnp.add, before, part)
    return found
