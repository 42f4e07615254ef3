"""Trained systems in use: images and a knob in, logits and what they cost out."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dce_jax.runtime import costs, forward, systems
from dce_jax.runtime.execute import MASKED, SWITCHED, Execution
from dce_jax.runtime.systems import System
from dce_jax.types import Array, PyTree


def predictor(
    system: System, variables: PyTree, params: PyTree, execution: Execution = MASKED
) -> Callable[[Array, float], tuple[Array, Array]]:
    """A function of images and a knob, compiled once per shape of the images.

    For single images it holds large kernels in tiles too (`systems.tiled`).

    Args:
      system: what `store.load` gives.
      variables: of the network.
      params: of what decides.
      execution: `SWITCHED` for single images, `chunked(size)` for batches of nested choices.

    Returns:
      ``(float[B, H, W, D] images, knob) -> (float32[B, num_classes] logits, float32[B] or [1]
      multiply-accumulates as a share of the whole network's, decisions included)``. It raises
      ValueError where the knob lies outside of the system's span.
    """

    @jax.jit
    def run(variables: PyTree, params: PyTree, images: Array, knob: Array) -> tuple[Array, Array]:
        policy = systems.policy(system, params, knob)
        found = forward.run(system.chain, system.levels, variables, images, policy, execution)
        return found.logits, costs.share(system.costs, found.choices, system.deciding)

    @functools.cache
    def prepared(shape: tuple[int, ...]) -> PyTree:
        if execution is not SWITCHED or shape[0] > 1:
            return variables
        with jax.ensure_compile_time_eval():  # they are kept, and a trace may be the first to ask
            return systems.tiled(system, variables, jax.ShapeDtypeStruct(shape, jnp.float32))

    def predict(images: Array, knob: float) -> tuple[Array, Array]:
        systems.check_knob(system, knob)
        return run(prepared(images.shape), params, images, jnp.float32(knob))

    return predict
