"""The network whose latency is measured, and what decides in it."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax import compact, networks
from dce_jax.runtime import System, chain, store, systems
from dce_jax.types import Array, PyTree
from experiments import bench, records

IMAGE = 32
"""Images are of CIFAR's size."""


class Subject(NamedTuple):
    """A network and what decides in it.

    Attributes:
      module: the network.
      variables: collection -> tree.
      system: the network as a chain, its widths, its decision network.
      params: of the decision network.
      knob: what it is asked to spend.
      images: float32[N, H, W, D], any number.
    """

    module: nn.Module
    variables: PyTree
    system: System
    params: PyTree
    knob: float
    images: Array


def untrained(network: str, *, width: float, name: str, parts: int, images: int) -> Subject:
    """A named network with random weights: how long it takes does not depend on them.

    Args:
      network: name.
      width: multiplies its published widths.
      name: of the system that decides.
      parts: at how many widths a site's channels may run.
      images: random ones.

    Raises:
      ValueError: unknown names, a network that cannot be cut, or widths that it does not have.
    """
    module = networks.build(network, num_classes=10, width=width)
    shared = bench.prepare(module, batch=images, image_size=IMAGE, learning_rate=0.0, dispatch=1)
    state = bench.initial(shared, module)
    variables = {"params": state.params, **state.model_state}
    example = jax.ShapeDtypeStruct((1, IMAGE, IMAGE, 3), jnp.float32)
    links = chain.chain(module, shared.channels)
    system = systems.build(name, links, variables, example, parts=parts)
    found = jax.eval_shape(partial(systems.initial, system), jax.random.key(0))
    params = jax.device_put(bench.weights(found))
    middle = float(systems.at(system, jnp.zeros(())))
    return Subject(module, variables, system, params, middle, shared.data["image"])


def trained(workdir: Path, *, knob: float, images: int) -> Subject:
    """The network of a finished run of `experiments.runtime`, at its own weights.

    Args:
      workdir: of the run.
      knob: what it is asked to spend.
      images: random ones, of the shape that it was trained on.

    Raises:
      FileNotFoundError: no finished run there.
      ValueError: a damaged model.
    """
    found = records.read_json(workdir / "result.json")
    network = type(networks.build(found["network"], num_classes=2))
    shape = (1, *found["image_shape"])
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    system, variables, params = store.load(workdir / "model", network, example)
    module, _ = compact.load(workdir / "model" / store.NETWORK, network)
    drawn = jax.random.normal(jax.random.key(0), (images, *shape[1:]))
    return Subject(module, variables, system, params, knob, drawn)


def check_nested(subject: Subject) -> None:
    """Refuses systems whose images choose channels of their own, which no chunk can share.

    Raises:
      ValueError: the system orders channels per image.
    """
    if not systems.nested(subject.system):
        raise ValueError(
            f"{subject.system.name} chooses other channels for every image, so a batch cannot run "
            "in chunks: --batch 1"
        )
