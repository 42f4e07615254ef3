"""What a run will hold in memory, before anything is compiled."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dce_jax import cost, forward
from dce_jax.types import PyTree
from experiments import pruners
from experiments.setup import Run, initial_variables, model_state, train_key
from experiments.summary import MIB


class Footprint(NamedTuple):
    """Bytes, all devices together.

    Attributes:
      whole: parameters, moments and statistics at full width; 0 where nothing of full width trains.
      training: the same of the network that a step trains: the slab, or the only network.
      batch: images and labels of a step.
      kept: what the backward pass finds from the forward pass (`cost.kept_bytes`).
    """

    whole: int
    training: int
    batch: int
    kept: int


def footprint(run: Run) -> Footprint:
    """Bytes of a run's states, batch and activations; traced, not compiled."""
    method = run.config.method
    whole = method == "dense" or pruners.prunes(run.config)  # pruning begins with all channels
    trained = run.module if whole else run.thin
    shapes = jax.eval_shape(lambda: initial_variables(trained, run.data, run.config))
    slabs = method in ("dce", "random")
    return Footprint(
        whole=_state_bytes(run, run.shapes) if slabs else 0,
        training=_state_bytes(run, shapes),
        batch=cost.tree_bytes(_batch(run)),
        kept=kept(trained, shapes, _batch(run)),
    )


def line(found: Footprint) -> str:
    """One line for the terminal."""
    whole = f"full-width state {mib(found.whole)}, slab " if found.whole else "state "
    return (
        f"memory of a step: {whole}{mib(found.training)}, batch {mib(found.batch)}, "
        f"kept for the backward pass at most {mib(found.kept)}"
    )


def _state_bytes(run: Run, variables: PyTree) -> int:
    return cost.tree_bytes((variables, jax.eval_shape(run.tx.init, variables["params"])))


def _batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    size = run.config.batch_size
    return {
        "image": jax.ShapeDtypeStruct((size, *run.data.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }


def kept(module: nn.Module, variables: PyTree, batch: PyTree) -> int:
    """Bytes that the loss's backward pass finds (`cost.kept_bytes`).

    Args:
      module: the network.
      variables: its collections, unboxed, or their shapes.
      batch: images and labels, or their shapes.
    """
    loss = forward.classification_loss(module)

    def value(params: PyTree, state: PyTree, batch: PyTree) -> jax.Array:
        return loss(params, state, {}, batch, train_key(0))[0]

    return cost.kept_bytes(value, variables["params"], model_state(variables), batch)


def mib(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / MIB:.1f} MiB"
