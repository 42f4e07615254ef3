"""Where the activations of a channel group are, and how a network is run with them in the open.

Activations are the outputs of the layers that produce a group: of every `flax.linen.Conv` or
`Dense` whose kernel has the group alone on its last axis, a depthwise convolution included. Units
are what the network gates: a group's channels as their consumers read them, behind the activation
function. A group's elements at several sites are one set: sums run over all of them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax

from dce_jax import channels as maps
from dce_jax import forward, saliency
from dce_jax.channels import ChannelMap
from dce_jax.networks.gates import in_the_open, tapping
from dce_jax.types import Array, Path, PyTree

UNITS = "units"
GATED = (UNITS, "centred_units")
"""Bases that are read where a network gates them."""

Places: TypeAlias = Mapping[str, tuple[int, int]]
"""Channel group -> ``(start, size)`` on the last axis of a site or kernel."""


class Scene(NamedTuple):
    """What signals are read off.

    Attributes:
      module: the network, at the widths of ``params``; its output is float[B, classes].
      channels: the map of the full-width network.
      params: parameters.
      model_state: collection -> tree; {} where there is none.
      batch: ``{"image": float[B, ...], "label": int[B]}``, or None: weights without derivatives
        need no examples.
    """

    module: nn.Module
    channels: ChannelMap
    params: PyTree
    model_state: PyTree
    batch: Mapping[str, Array] | None = None


class Site(NamedTuple):
    """One place of a network where activations are read.

    Attributes:
      path: of the layer; of a gate, its module's and then its groups.
      places: the groups that lie there.
      shape: of the activations of one example.
      dtype: of the activations.
      affine: whether they are known to be a product with the layer's kernel, plus its bias.
    """

    path: Path
    places: Places
    shape: tuple[int, ...]
    dtype: Any
    affine: bool


Tap: TypeAlias = Callable[[Site, Array], Array]
"""``(site, float[B, ..., C]) -> float[B, ..., C]`` to go on with."""


def plain(scene: Scene, images: Array) -> Array:
    """Logits in inference mode: float[B, ...] -> float[B, classes]."""
    return forward.apply(scene.module, scene.params, scene.model_state, images, train=False)[0]


def run(scene: Scene, images: Array, base: str, tap: Tap) -> Array:
    """Logits in inference mode; ``tap`` sees the activations at every site.

    Args:
      scene: the network.
      images: float[B, ...].
      base: of `GATED`, or anything else: outputs of the layers that produce groups.
      tap: what to go on with at a site.

    Returns:
      float[B, classes].
    """
    if base in GATED:
        with tapping(lambda path, parts, y: tap(_gate_site(path, parts, y), y)):
            return plain(scene, images)
    # Tapped, a network keeps all activations in the open (`networks.remat`).
    with in_the_open(), nn.intercept_methods(_interceptor(scene.channels, tap)):
        return plain(scene, images)


def checked(scene: Scene, base: str, signal: str) -> dict[Path, Site]:
    """Every site of a base, found by tracing the network; nothing is computed.

    Args:
      scene: the network; its batch gives the shape of an example.
      base: as for `run`.
      signal: for messages.

    Raises:
      ValueError: no examples, a layer that runs twice, or a group without a site.
    """
    if base not in GATED:
        kernels(scene.channels, signal)
    found = _find(scene, base, signal)
    for site, times in found.values():
        if times > 1:
            raise ValueError(
                f"{maps.show(site.path)} runs {times} times in a forward pass, so signal "
                f"{signal!r} has no one place to read there: give each call a layer of its own"
            )
    only = {path: site for path, (site, _) in found.items()}
    _check_groups(scene, base, signal, only)
    return only


def affine(scene: Scene, signal: str) -> dict[Path, Site]:
    """The layers that produce groups, if all of them are plain convolutions or products, or {}.

    Args:
      scene: as for `checked`.
      signal: for messages.

    Raises:
      ValueError: no examples.
    """
    found = _find(scene, "activations", signal)
    layers = {path[:-1] for paths in maps.producers(scene.channels).values() for path in paths}
    if found.keys() != layers or any(times > 1 or not s.affine for s, times in found.values()):
        return {}
    return {path: site for path, (site, _) in found.items()}


def biases(scene: Scene, found: Mapping[Path, Site]) -> dict[Path, Array]:
    """Bias of every layer that has one: path of the layer -> float[C]."""
    layers = {path: saliency.at(scene.params, path) for path in found}
    return {path: layer["bias"] for path, layer in layers.items() if "bias" in layer}


def kernels(channels: ChannelMap, signal: str) -> dict[str, tuple[Path, ...]]:
    """Group -> paths of the kernels that produce it.

    Args:
      channels: the network's map.
      signal: for the message.

    Raises:
      ValueError: a group that no kernel produces alone.
    """
    found = maps.producers(channels)
    for group, paths in found.items():
        if not paths:
            raise ValueError(
                f"signal {signal!r} reads the layers that produce group {group!r}, but no kernel "
                f"has {group!r} alone on its last axis: produce the group by a layer of its own"
                + _OR_UNITS
            )
    return found


def examples(scene: Scene, signal: str) -> Mapping[str, Array]:
    """The batch of a scene.

    Raises:
      ValueError: there is none.
    """
    if scene.batch is None or not {"image", "label"} <= scene.batch.keys():
        raise ValueError(
            f"signal {signal!r} is read off labelled examples, but none were given: hand in a "
            'batch {"image": float[B, ...], "label": int[B]}'
        )
    return scene.batch


def _find(scene: Scene, base: str, signal: str) -> dict[Path, tuple[Site, int]]:
    found: dict[Path, tuple[Site, int]] = {}

    def look(site: Site, y: Array) -> Array:
        found[site.path] = (site, found.get(site.path, (site, 0))[1] + 1)
        return y

    images = examples(scene, signal)["image"]
    jax.eval_shape(lambda x: run(scene, x, base, look), images[:1])
    return found


_LAYERS = (nn.Conv, nn.Dense)
_OR_UNITS = (
    ", or call dce_jax.networks.gate(self, y, group) where it is read and take the base 'units'"
)


def _check_groups(scene: Scene, base: str, signal: str, found: Mapping[Path, Site]) -> None:
    seen = {group for site in found.values() for group in site.places}
    if base in GATED:
        remedy = "call dce_jax.networks.gate(self, y, group) where its channels are read"
    else:
        remedy = "hold its kernel in an nn.Conv or nn.Dense and call that" + _OR_UNITS
    for group in scene.channels.full:
        if group not in seen:
            raise ValueError(
                f"signal {signal!r} finds no {base} of group {group!r} in the network: {remedy}"
            )


def _gate_site(path: Path, parts: Mapping[str, int], y: Array) -> Site:
    places, start = {}, 0
    for group, size in parts.items():
        places[group] = (start, size)
        start += size
    return Site((*path, *parts), places, y.shape[1:], y.dtype, False)


def _interceptor(channels: ChannelMap, tap: Tap) -> Callable[..., Any]:
    layers = dict(_layers(maps.producers(channels)))

    def intercept(
        method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        y, layer, path = method(*args, **kwargs), context.module, context.module.path
        # The output of any other module that holds a kernel need not be the kernel's product.
        if (
            context.method_name != "__call__"
            or not isinstance(layer, _LAYERS)
            or path not in layers
        ):
            return y
        places = {layers[path]: (0, y.shape[-1])}
        return tap(Site(path, places, y.shape[1:], y.dtype, type(layer) in _LAYERS), y)

    return intercept


def _layers(producers: Mapping[str, Iterable[Path]]) -> Iterable[tuple[Path, str]]:
    return ((path[:-1], group) for group, paths in producers.items() for path in paths)
