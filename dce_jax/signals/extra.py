"""Signals that are no points of the algebra: statistics of activations, distances, chance."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dce_jax import channels as maps
from dce_jax import saliency
from dce_jax.signals import reduction, sites
from dce_jax.signals.sites import Scene, Site
from dce_jax.types import Array, Path, Rewards

BINS = 8
"""Into how many equal intervals `mutual_information` quantises a channel's activation."""


class Extra(NamedTuple):
    """A signal outside the algebra.

    Attributes:
      value: ``(scene, key, name of the signal) -> {group: float[C]}``.
      signed: whether a value may be negative.
    """

    value: Callable[[Scene, Array, str], Rewards]
    signed: bool


class Moments(NamedTuple):
    """What one site's activations, or a group's, add up to over a batch.

    Attributes:
      elements: how many, per channel.
      mean: float[C].
      spread: float[C], sum of squared distances from the mean.
      positive: float[C], elements above 0.
      example_BC: float[B, C], mean of each example.
    """

    elements: float
    mean: Array
    spread: Array
    positive: Array
    example_BC: Array


def apoz(each: Moments, label_B: Array, classes: int) -> Array:
    """Share of activations above 0: one minus the average percentage of zeros behind a ReLU.

    Hu et al. 2016, "Network Trimming"; turned so that a larger value is worth more.
    """
    del label_B, classes
    return each.positive / each.elements


def mean(each: Moments, label_B: Array, classes: int) -> Array:
    """Mean activation over examples and positions (Molchanov et al. 2017, section 2.2)."""
    del label_B, classes
    return each.mean


def std(each: Moments, label_B: Array, classes: int) -> Array:
    """Standard deviation of the activation, likewise (Molchanov et al. 2017, section 2.2)."""
    del label_B, classes
    return jnp.sqrt(each.spread / each.elements)


def mutual_information(each: Moments, label_B: Array, classes: int) -> Array:
    """Information, in nats, that a channel's quantised activation gives about the label.

    Molchanov et al. 2017, section 2.2, name the criterion; the quantisation is our choice: the mean
    activation of an example, in `BINS` equal intervals between the batch's extremes.
    """
    x_BC = each.example_BC
    low, high = jnp.min(x_BC, axis=0), jnp.max(x_BC, axis=0)
    width = jnp.where(high > low, high - low, 1.0)
    share = (x_BC - low[None]) / width[None]
    bin_BC = jnp.clip(jnp.floor(share * BINS), 0, BINS - 1).astype(jnp.int32)
    seen = jax.nn.one_hot(bin_BC, BINS, dtype=x_BC.dtype)
    truth = jax.nn.one_hot(label_B, classes, dtype=x_BC.dtype)
    joint = jnp.einsum("bcq,bk->cqk", seen, truth) / x_BC.shape[0]
    apart = jnp.sum(joint, axis=2, keepdims=True) * jnp.sum(joint, axis=1, keepdims=True)
    terms = joint * (_log(joint) - _log(apart))
    return jnp.maximum(jnp.sum(terms, axis=(1, 2)), 0.0)


def geometric_median(scene: Scene, key: Array, signal: str) -> Rewards:
    """Sum of a filter's distances to all others: small near the geometric median (He et al. 2019).

    Kernels of several producing layers are one filter, laid end to end.
    """
    del key
    found = {}
    for group, paths in sites.kernels(scene.channels, signal).items():
        kernels = [reduction.precise(saliency.at(scene.params, path)) for path in paths]
        rows = jnp.concatenate([k.reshape(-1, k.shape[-1]) for k in kernels]).T
        # One filter at a time: all differences at once would be C times the kernels.
        found[group] = jax.lax.map(lambda one, rows=rows: _distances(rows, one), rows)
    return found


def uniform(scene: Scene, key: Array, signal: str) -> Rewards:
    """Uniform draws from [0, 1): the control that knows nothing."""
    del signal
    widths = maps.module_widths(scene.module)
    keys = jax.random.split(key, len(widths))
    draws = zip(widths.items(), keys, strict=True)
    return {group: jax.random.uniform(own, (width,)) for (group, width), own in draws}


def _statistic(base: str, of: Callable[[Moments, Array, int], Array]) -> Callable[..., Rewards]:
    def value(scene: Scene, key: Array, signal: str) -> Rewards:
        del key
        sites.checked(scene, base, signal)
        batch = sites.examples(scene, signal)
        seen: dict[Path, tuple[Site, Array]] = {}

        def tap(site: Site, y: Array) -> Array:
            seen[site.path] = (site, reduction.precise(y))
            return y

        classes = sites.run(scene, batch["image"], base, tap).shape[-1]
        return {
            group: of(moments, batch["label"], classes)
            for group, moments in _by_group(seen).items()
        }

    return value


def _by_group(seen: Mapping[Path, tuple[Site, Array]]) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for site, y in seen.values():
        for group, (start, size) in site.places.items():
            one = _moments(y[..., start : start + size])
            found[group] = _merged(found[group], one) if group in found else one
    return found


def _moments(y: Array) -> Moments:
    axes = tuple(range(y.ndim - 1))
    middle = jnp.mean(y, axis=axes)
    apart = y - middle.reshape(*(1,) * (y.ndim - 1), -1)
    return Moments(
        elements=y.size / y.shape[-1],
        mean=middle,
        spread=jnp.sum(jnp.square(apart), axis=axes),
        positive=jnp.sum(y > 0, axis=axes).astype(y.dtype),
        example_BC=jnp.mean(y, axis=axes[1:]),
    )


def _merged(one: Moments, two: Moments) -> Moments:
    """Moments of two sets together (Chan, Golub and LeVeque 1983)."""
    elements = one.elements + two.elements
    share = two.elements / elements
    return Moments(
        elements=elements,
        mean=one.mean + (two.mean - one.mean) * share,
        spread=one.spread + two.spread + jnp.square(two.mean - one.mean) * (one.elements * share),
        positive=one.positive + two.positive,
        example_BC=one.example_BC + (two.example_BC - one.example_BC) * share,
    )


def _distances(rows: Array, one: Array) -> Array:
    return jnp.sum(jnp.sqrt(jnp.sum(jnp.square(rows - one[None]), axis=1)))


def _log(values: Array) -> Array:
    return jnp.log(jnp.where(values > 0, values, 1.0))


BY_NAME: dict[str, Extra] = {
    **{
        f"{base}.{of.__name__}": Extra(_statistic(base, of), signed=of is mean)
        for base in ("activations", "units")
        for of in (apoz, mean, std, mutual_information)
    },
    "weights.geometric_median": Extra(geometric_median, signed=False),
    "random": Extra(uniform, signed=False),
}
