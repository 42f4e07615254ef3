"""Optimizer state that can travel with the channels: matched to parameters, or refused by name."""

from dataclasses import dataclass
from typing import Any

import jax
import optax

from dce_jax.channels import AxisNames, path_names, show
from dce_jax.types import PyTree


def optimizer_names(tx: optax.GradientTransformation, params: PyTree, names: PyTree) -> PyTree:
    """The names tree of an optimizer's state, proved against the optimizer's own shapes.

    Args:
      tx: the optimizer.
      params: full-width parameters (arrays or shapes).
      names: names tree of ``params``.

    Raises:
      ValueError: an optimizer whose state does not have its parameters' shapes (adafactor, sm3,
        lbfgs) or carries work from step to step (MultiSteps, apply_every, sam), naming the leaf.
    """
    state = jax.eval_shape(tx.init, params)
    _refuse_unfinished(state)
    try:
        paired = optax.tree_map_params(
            tx,
            _pair,
            state,
            params,
            names,
            transform_non_params=lambda leaf: _Moment(leaf.shape, leaf.shape, AxisNames()),
            is_leaf=_is_masked,
        )
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            "this optimizer's state does not mirror the parameters, so its moments cannot travel "
            f"with the channels: {reason}. Use SGD, Adam, AdamW, Lion or another optimizer whose "
            "state has its parameters' shapes"
        ) from error
    for path, moment in jax.tree_util.tree_leaves_with_path(paired):
        if moment.shape != moment.parameter_shape:
            raise ValueError(
                f"optimizer state leaf {show(path_names(path))} has shape {moment.shape}, its "
                f"parameter {moment.parameter_shape}: such moments (adafactor, sm3, lbfgs) cannot "
                "be gathered channel by channel; use SGD, Adam, AdamW or Lion"
            )
    return jax.tree.map(lambda moment: moment.names, paired)


@dataclass(frozen=True)
class _Moment:
    """One leaf of an optimizer's state beside the parameter it belongs to."""

    shape: tuple[int, ...]
    parameter_shape: tuple[int, ...]
    names: AxisNames


def _pair(leaf: Any, parameter: Any, names: AxisNames) -> Any:
    return leaf if _is_masked(leaf) else _Moment(leaf.shape, parameter.shape, names)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


# They add up gradients, or perturb parameters, in one step and settle it in a later one, by which
# time other channels may execute.
_UNFINISHED = (optax.MultiStepsState, optax.ApplyEvery, optax.contrib.SAMState)


def _is_unfinished(x: Any) -> bool:
    return isinstance(x, _UNFINISHED)


def _refuse_unfinished(state: PyTree) -> None:
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_unfinished):
        if _is_unfinished(node):
            raise ValueError(
                f"optimizer state {show(path_names(path)) or '(root)'} is {type(node).__name__}: "
                "such an optimizer (MultiSteps, apply_every, sam) finishes in one step what it "
                "began in another, when other channels may execute; use a larger batch or SGD, "
                "Adam, AdamW or Lion alone"
            )
