"""What all steps of the benchmark share: images, optimizer and states before the first step."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax

from dce_jax import channels as maps
from dce_jax import forward, training
from dce_jax.channels import ChannelMap
from dce_jax.types import Array, PyTree


class Bench(NamedTuple):
    """What all variants share.

    Attributes:
      module: the network at full width.
      channels: its channel map.
      tx: the optimizer.
      data: {"image": float32[B, H, W, D], "label": int32[B]} on the device.
      dispatch: training steps per dispatch; 1 on the CPU (jax-ml/jax#12868).
    """

    module: nn.Module
    channels: ChannelMap
    tx: optax.GradientTransformation
    data: dict[str, Array]
    dispatch: int


def prepare(
    module: nn.Module,
    *,
    batch: int,
    image_size: int,
    learning_rate: float,
    dispatch: int,
    depth: int = 3,
    classes: int = 10,
) -> Bench:
    """Puts random images on the device and builds what the variants share.

    Args:
      module: the network at full width.
      batch: B.
      image_size: H = W.
      learning_rate: of `optimizer`.
      dispatch: training steps per dispatch.
      depth: channels of an image.
      classes: of the network.

    Raises:
      ValueError: the network refuses images of that size.
    """
    draw = np.random.default_rng(0)
    images = draw.normal(size=(batch, image_size, image_size, depth)).astype(np.float32)
    labels = draw.integers(classes, size=batch).astype(np.int32)
    data = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    # The named networks' maps are proved by the tests; here shapes suffice, and cost no seconds.
    channels = maps.build(module, forward.shapes(module, data["image"]))
    return Bench(module, channels, optimizer(learning_rate), data, dispatch)


def optimizer(learning_rate: float) -> optax.GradientTransformation:
    """SGD with momentum 0.9 and an L2 term of 5e-4, the optimizer of all cost figures."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(learning_rate, momentum=0.9))


def start(
    module: nn.Module, tx: optax.GradientTransformation, key: Array, images: Array
) -> training.LoopState:
    """The state of a network before its first step; pure, for `jax.jit` and `jax.eval_shape`.

    Args:
      module: the network, at any width.
      tx: the optimizer.
      key: PRNG key.
      images: float32[B, H, W, D]; one example is enough.
    """
    variables = nn.unbox(forward.initial(module, key, images))
    params = variables.pop("params")
    return training.start(params, variables, tx, key)


def shapes(bench: Bench, module: nn.Module) -> training.LoopState:
    """Shapes of the state of a network of the benchmark.

    Args:
      bench: what the variants share.
      module: the network, at any width.
    """
    begin = partial(start, module, bench.tx)
    return jax.eval_shape(begin, jax.random.key(0), bench.data["image"])


def initial(bench: Bench, module: nn.Module) -> training.LoopState:
    """The state of a network of the benchmark before its first step, in arrays of its own.

    Args:
      bench: what the variants share.
      module: the network, at any width.
    """
    found = shapes(bench, module)
    state = training.LoopState(
        params=weights(found.params),
        model_state=jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), found.model_state),
        opt_state=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found.opt_state),
        key=jax.random.key(0),
        step=jnp.zeros((), jnp.int32),
    )
    return jax.device_put(state, may_alias=False)  # its buffers are given up


def weights(found: PyTree) -> PyTree:
    """Random parameters from the host, in NumPy arrays; ones where there is one axis.

    Compiling an initialiser's draws takes seconds, and what a step costs does not depend on them.

    Args:
      found: their shapes.
    """
    return jax.tree.map(partial(_weights, np.random.default_rng(1)), found)


def _weights(draw: np.random.Generator, leaf: jax.ShapeDtypeStruct) -> npt.NDArray[np.floating]:
    if len(leaf.shape) < 2:
        return np.ones(leaf.shape, leaf.dtype)
    scale = np.sqrt(2.0 / np.prod(leaf.shape[:-1]))
    return (scale * draw.normal(size=leaf.shape)).astype(leaf.dtype)
