"""An ordinary training step, at any width: dense, scratch, committed and pruned networks alike.

`plain` knows neither selections nor budgets. `observed` is the same step with what its gradients
say of the channels beside it: dynamic steps (`dce_jax.step`) and pruning read their signals there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dce_jax.types import Array, Evidence, LossFn, PyTree

BATCH, LOSS, SELECT, SIGNAL = 0, 1, 2, 3  # purposes that the key of a step is folded with


class LoopState(NamedTuple):
    """What an ordinary training step carries, at any width.

    Attributes:
      params: parameters.
      model_state: collection -> tree (``batch_stats``); {} where there is none.
      opt_state: the optimizer's state.
      key: PRNG key of the run; a step's own key is folded in from ``step``.
      step: int32[], steps taken.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: Array
    step: Array


def whole_batch(data: PyTree, step: Array, key: Array) -> PyTree:
    """The batch function of loops that hand in a ready batch."""
    del step, key
    return data


def start(
    params: PyTree, model_state: PyTree, tx: optax.GradientTransformation, key: Array
) -> LoopState:
    """The state of a network before its first step, at any width."""
    return LoopState(params, model_state, tx.init(params), key, jnp.zeros((), jnp.int32))


def plain(
    tx: optax.GradientTransformation,
    loss: LossFn,
    batch_fn: Callable[[Any, Array, Array], PyTree],
    loop: LoopState,
    data: PyTree,
) -> tuple[LoopState, dict[str, Array]]:
    """One ordinary optax step: dense, scratch and committed training alike.

    Returns:
      The state after the step, and metrics (float32[] ``loss`` and what the loss reports).
    """
    loop, metrics, _ = observed(tx, loss, batch_fn, loop, data, None)
    return loop, metrics


def observed(
    tx: optax.GradientTransformation,
    loss: LossFn,
    batch_fn: Callable[[Any, Array, Array], PyTree],
    loop: LoopState,
    data: PyTree,
    gate_shapes: PyTree | None,
) -> tuple[LoopState, dict[str, Array], Evidence]:
    """`plain`, with what the step's own gradients say of the channels.

    Args:
      tx: the optimizer.
      loss: of the network at the widths of ``loop``.
      batch_fn: makes the batch of ``data``.
      loop: the network and its optimizer.
      data: what ``batch_fn`` takes.
      gate_shapes: `forward.gate_shapes` of the network, where gates are to be read.
    """
    batch = batch_fn(data, loop.step, step_key(loop, BATCH))
    evidence, model_state, metrics = evidence_of(loss, loop, batch, gate_shapes)
    updates, opt_state = tx.update(evidence.grads, loop.opt_state, loop.params)
    params = optax.apply_updates(loop.params, updates)
    after = LoopState(params, model_state, opt_state, loop.key, loop.step + 1)
    return after, metrics, evidence


def evidence_of(
    loss: LossFn, loop: LoopState, batch: PyTree, gate_shapes: PyTree | None
) -> tuple[Evidence, PyTree, dict[str, Array]]:
    """What one batch says of a network's channels; nothing is updated.

    Args:
      loss: of the network at the widths of ``loop``.
      loop: the network.
      batch: what the loss takes.
      gate_shapes: `forward.gate_shapes` of the network, where gates are to be read.

    Returns:
      Evidence, the model state after the forward pass, and metrics.

    Raises:
      ValueError: gates, of which each example has one, and a batch of which it cannot be told how
        many examples it holds.
    """
    size = _examples(batch) if gate_shapes else 0
    gates = jax.tree.map(lambda g: jnp.ones((size, *g.shape[1:]), g.dtype), gate_shapes or {})

    def total(params: PyTree, gates: PyTree) -> tuple[Array, tuple[PyTree, dict[str, Array]]]:
        return loss(params, loop.model_state, gates, batch, step_key(loop, LOSS))

    differentiate = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    (value, (model_state, metrics)), (grads, gate_grads) = differentiate(loop.params, gates)
    evidence = Evidence(
        params=loop.params,
        grads=grads,
        gates=_by_group(gate_grads),
        model_state=loop.model_state,
        batch=batch,
        key=step_key(loop, SIGNAL),
    )
    return evidence, model_state, {"loss": value, **metrics}


def _examples(batch: PyTree) -> int:
    """B, the first axis of every leaf of a batch that is not a single number."""
    sizes = {
        jax.tree_util.keystr(path): leaf.shape[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        if leaf.ndim
    }
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"the signal reads a gate per example, but the batch's leaves have {sizes} first "
            "entries: close the loss over what is not one per example"
        )
    return int(next(iter(sizes.values())))


def repeat(
    step: Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]], length: int
) -> Callable[[PyTree, PyTree], tuple[PyTree, dict[str, Array]]]:
    """Many steps in one dispatch (`jax.lax.scan`), metrics stacked; for GPU and TPU.

    Not for the CPU, where XLA runs a convolution's backward pass inside a loop body about 20
    times slower (jax-ml/jax#12868).
    """

    def steps(state: PyTree, data: PyTree) -> tuple[PyTree, dict[str, Array]]:
        return jax.lax.scan(lambda carry, _: step(carry, data), state, None, length=length)

    return steps


def step_key(loop: LoopState, purpose: int) -> Array:
    """The key of the step that ``loop`` is about to take, for one purpose."""
    return jax.random.fold_in(jax.random.fold_in(loop.key, loop.step), purpose)


def _by_group(gates: PyTree) -> dict[str, tuple[Array, ...]]:
    found: dict[str, tuple[Array, ...]] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(gates):
        group = str(path[-1].key).removeprefix("gate:")
        found[group] = (*found.get(group, ()), value)
    return found
