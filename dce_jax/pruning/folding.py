"""Mean replacement: what a removed unit gave on average goes into its consumers' biases.

Evci 2018 (arXiv 1806.06068) and Evci, Le Roux, Castro and Bottou 2018: a unit that is cut out
leaves its mean behind. To the bias of each layer that read it comes what the unit gave to the
layer's outputs, averaged over examples and positions: of all constants the one with the least
squared error. That is exact where the unit is constant and every output reads as much of it:
kernels of one position, or no padding. With padding, outputs at the borders read less of it than
those in the middle, and all get the mean.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax.traverse_util import flatten_dict, unflatten_dict

from dce_jax import channels as maps
from dce_jax import forward, masks, means
from dce_jax.budget import check_group
from dce_jax.channels import ChannelMap, Leaf
from dce_jax.masks import Masks
from dce_jax.networks.gates import in_the_open
from dce_jax.signals.sites import Scene
from dce_jax.types import Array, Path, PyTree

InputMeans = dict[Path, Array]
"""Path of a layer -> float32[*window, D], as its kernel: what each entry reads, on average.

The mean is over examples and output positions; where the window lies on padding, it reads 0.
"""

_LAYERS = (nn.Conv, nn.Dense)
_REMEDY = (
    "; remove without folding and recalibrate statistics instead (dce_jax.compact.recalibrate)"
)


class CannotFoldError(ValueError):
    """Channels are read where their mean can go nowhere."""


class Route(NamedTuple):
    """Where the mean of what a layer reads goes.

    Attributes:
      layer: path of the layer.
      groups: along its inputs, as in `channels.AxisNames`.
      into: collection and path of the vector that takes it.
      sign: 1 for a bias, -1 for a norm's running mean.
    """

    layer: Path
    groups: tuple[str, ...]
    into: tuple[str, Path]
    sign: int


def fold(
    scene: Scene, batches: Sequence[Array], kept: Mapping[str, npt.NDArray[np.integer]]
) -> tuple[PyTree, PyTree]:
    """Folds the means of all channels that are about to go into those that read them.

    Call it before the channels are cut (`shrink`). The shift goes into the reading layer's bias;
    where it has none and its output is the very array that a batch norm takes, it is taken off the
    norm's running mean. A norm in training mode takes any shift off by itself: there folding
    changes inference alone.

    Args:
      scene: the network; its batch is not read.
      batches: float[B, ...] inputs, over which means are taken, in inference mode.
      kept: group -> integer[K], positions that stay; absent groups stay whole.

    Returns:
      Parameters and model state, at the widths that they had.

    Raises:
      CannotFoldError: channels that are read where their mean cannot go: see `routes`.
      ValueError: no batches, or an unknown group.
    """
    widths = maps.module_widths(scene.module)
    for group in kept:
        check_group(group, widths)
    losing = [group for group, stay in kept.items() if len(stay) < widths[group]]
    ways = routes(scene.module, scene.channels, batches[0], losing) if batches else ()
    taken = averages(scene, batches)
    return folded(scene.params, scene.model_state, taken, masks.of(kept, widths), ways)


def routes(
    module: nn.Module, channels: ChannelMap, example: Any, groups: Iterable[str]
) -> tuple[Route, ...]:
    """Where the means of groups' channels go; found by tracing, nothing is computed.

    Args:
      module: the network.
      channels: the map of the full-width network.
      example: inputs or their `jax.ShapeDtypeStruct`.
      groups: that lose channels.

    Raises:
      CannotFoldError: naming the layer and the remedy: one that is neither `nn.Conv` nor
        `nn.Dense`, or that runs more than once; one whose output meets neither a bias nor a batch
        norm, as where it is added to a residual stream.
    """
    losing, ways = set(groups), []
    runs, norms = _traced(module, example)
    vectors = {(leaf.collection, leaf.path) for leaf in channels.leaves}
    for leaf in channels.leaves:
        if losing.isdisjoint(group for axis in leaf.names.axes[:-1] for group in axis):
            continue
        layer, inputs = leaf.path[:-1], _input_groups(leaf)
        if inputs is None or runs.get(layer) != 1:
            raise CannotFoldError(
                f"{leaf.collection} leaf {maps.show(leaf.path)} reads groups that lose channels, "
                "but is no kernel of an nn.Conv or nn.Dense that runs once, so the channels' mean "
                f"cannot be folded there{_REMEDY}"
            )
        norm = norms.get(layer, ())
        norm = norm if runs.get(norm) == 1 else ()
        if ("params", (*layer, "bias")) in vectors:
            ways.append(Route(layer, inputs, ("params", (*layer, "bias")), 1))
        elif ("batch_stats", (*norm, "mean")) in vectors:
            ways.append(Route(layer, inputs, ("batch_stats", (*norm, "mean")), -1))
        else:
            raise CannotFoldError(
                f"layer {maps.show(layer)} reads groups that lose channels, but has no bias, and "
                "its output goes straight into no batch norm, so the channels' mean cannot be "
                f"folded there{_REMEDY}"
            )
    return tuple(ways)


def averages(scene: Scene, batches: Iterable[Array]) -> InputMeans:
    """`input_means` over all examples of some batches.

    Args:
      scene: the network; its batch is not read.
      batches: float[B, ...] inputs.

    Raises:
      ValueError: no batches.
    """

    @jax.jit
    def of(params: PyTree, state: PyTree, images: Array) -> InputMeans:
        return input_means(scene._replace(params=params, model_state=state), images)

    each = ((of(scene.params, scene.model_state, images), len(images)) for images in batches)
    found: InputMeans = means.over(each, "what layers read")
    return found


def input_means(scene: Scene, images: Array) -> InputMeans:
    """What every kernel entry of every layer that reads channels reads, in inference mode.

    Args:
      scene: the network; its batch is not read.
      images: float[B, ...].
    """
    found: InputMeans = {}
    readers = {leaf.path[:-1] for leaf in scene.channels.leaves if _input_groups(leaf)}

    def look(layer: nn.Module, x: Array, y: Array) -> None:
        del y
        if layer.path in readers:
            found[layer.path] = _mean_read(layer, x)

    _watched(scene.module, scene.params, scene.model_state, images, look)
    return found


def folded(
    params: PyTree,
    model_state: PyTree,
    taken: InputMeans,
    seen: Masks,
    ways: Iterable[Route],
) -> tuple[PyTree, PyTree]:
    """Parameters and model state with the means folded in; masks are data, so that it compiles.

    Args:
      params: parameters.
      model_state: collection -> tree.
      taken: of `averages`.
      seen: 1 for channels that stay, of every group.
      ways: of `routes`.
    """
    flat = flatten_dict({"params": params, **model_state})
    for layer, groups, (collection, path), sign in ways:
        kernel = flat["params", *layer, "kernel"]
        stay = jnp.concatenate([jnp.asarray(seen[group]) for group in groups])
        gone = (1.0 - stay).astype(kernel.dtype)
        read = taken[layer].astype(kernel.dtype).reshape(-1, gone.size)  # window, inputs
        kernel = kernel.reshape(*read.shape, -1)
        shift = jnp.einsum("td,d,tdf->f", read, gone, kernel, precision="highest")
        vector = flat[collection, *path]
        flat[collection, *path] = vector + sign * shift.astype(vector.dtype)
    tree = unflatten_dict(flat)
    return tree.pop("params"), {name: tree.get(name, {}) for name in model_state}


def _mean_read(layer: nn.Module, x: Array) -> Array:
    """What each kernel entry reads on average, for any window, stride, dilation and padding.

    A layer is linear in its kernel: the derivative of its mean output, one feature wide, is it.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    one = layer.clone(
        parent=None, features=1, use_bias=False, dtype=wide, param_dtype=wide, precision="highest"
    )

    def mean_output(params: PyTree) -> Array:
        output: Any = one.apply({"params": params}, x.astype(wide))
        return jnp.mean(output)

    shapes = nn.unbox(jax.eval_shape(one.init, jax.random.key(0), x)["params"])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.grad(mean_output)(zeros)["kernel"][..., 0]


def _input_groups(leaf: Leaf) -> tuple[str, ...] | None:
    """Groups along the inputs of a kernel, None where a leaf reads them otherwise or not at all."""
    *others, inputs, _ = leaf.names.axes if len(leaf.names.axes) > 1 else ((), ())
    plain = leaf.collection == "params" and leaf.path[-1] == "kernel" and not any(others)
    return inputs if plain and inputs else None


def _traced(module: nn.Module, example: Any) -> tuple[dict[Path, int], dict[Path, Path]]:
    """How often each layer runs, and layer -> the batch norm that takes its very output."""
    runs: dict[Path, int] = {}
    norms: dict[Path, Path] = {}
    made: list[tuple[Path, Array]] = []

    def look(layer: nn.Module, x: Array, y: Array) -> None:
        runs[layer.path] = runs.get(layer.path, 0) + 1
        if isinstance(layer, nn.BatchNorm):
            norms.update({path: layer.path for path, output in made if output is x})
        else:
            made.append((layer.path, y))

    def run(images: Array) -> None:
        variables = nn.unbox(forward.shapes(module, example))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
        state = {name: tree for name, tree in zeros.items() if name != "params"}
        _watched(module, zeros["params"], state, images, look)

    jax.eval_shape(run, example)
    return runs, norms


def _watched(
    module: nn.Module,
    params: PyTree,
    state: PyTree,
    images: Array,
    look: Callable[[nn.Module, Array, Array], None],
) -> None:
    """Runs a network in inference mode and shows input and output of its layers and norms."""

    def intercept(
        method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        y, layer = method(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(layer, (*_LAYERS, nn.BatchNorm)):
            look(layer, args[0], y)
        return y

    # Tapped, a network keeps all activations in the open (`networks.remat`).
    with in_the_open(), nn.intercept_methods(intercept):
        forward.apply(module, params, state, images, train=False)
