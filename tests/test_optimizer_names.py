"""Optimizers: gathered moments are those of an optimizer of the narrow network, or refused."""

import jax
import optax
import pytest
from nets import ConvNet, channel_map, variables
from steps import cut_params

from dce_jax import moments

NARROW = {"a": 2, "b": 3}


def decayed(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "vector", params)


ACCEPTED = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(1e-3),
    "adamw": lambda: optax.adamw(optax.cosine_decay_schedule(1e-3, 10), mask=decayed),
    "lion": lambda: optax.lion(1e-3),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "masked": lambda: optax.chain(optax.masked(optax.trace(0.9), decayed), optax.scale(-0.1)),
    "partition": lambda: optax.partition(
        {"kernel": optax.adamw(1e-3), "vector": optax.sgd(0.1, momentum=0.9)}, labels
    ),
    "inject": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_moments_are_gathered_to_the_narrow_optimizers_own_shapes(name):
    found, tx = channel_map(ConvNet()), ACCEPTED[name]()
    params = variables(ConvNet())["params"]
    names, cut = cut_params(found, params, NARROW)
    opt_names = moments.optimizer_names(tx, params, names)
    gathered = jax.eval_shape(lambda p: cut(tx.init(p), opt_names), params)
    narrow = jax.eval_shape(lambda p: tx.init(cut(p, names)), params)
    assert jax.tree.structure(gathered) == jax.tree.structure(narrow)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(t)] for t in (gathered, narrow)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.adafactor(1e-3), r"state leaf 0/v_row/conv_a/kernel has shape \(1,\), .*adafactor"),
        (optax.sm3(1e-3), r"state does not mirror the parameters.*Use SGD, Adam, AdamW, Lion"),
        (optax.lbfgs(1e-3), r"state does not mirror the parameters|lbfgs\) cannot be gathered"),
        (optax.flatten(optax.adam(1e-3)), r"state does not mirror the parameters"),
        (optax.novograd(1e-3), r"0/nu/conv_a/kernel has shape \(\), its parameter \(3, 3, 3, 4\)"),
        (
            optax.MultiSteps(optax.adam(1e-3), every_k_schedule=2),
            r"state \(root\) is MultiStepsState: .* finishes in one step what it began in another",
        ),
        (
            optax.chain(
                optax.clip(1.0),
                optax.MultiSteps(optax.adam(1e-3), 2).gradient_transformation(),
            ),
            r"optimizer state 1 is MultiStepsState",
        ),
        (optax.chain(optax.apply_every(4), optax.sgd(0.1)), r"optimizer state 0 is ApplyEvery"),
        (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)), r"state \(root\) is SAMState"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_optimizers_are_refused_by_name(tx, message):
    params = variables(ConvNet())["params"]
    names = channel_map(ConvNet()).names("params", params)
    with pytest.raises(ValueError, match=message):
        moments.optimizer_names(tx, params, names)
