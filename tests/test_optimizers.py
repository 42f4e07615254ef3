"""The optimizers of a config, against their equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

from experiments import optimizers

RATE, DECAY = 0.1, 0.5
PARAMS = {"kernel": np.float32([[1.0, -2.0], [0.5, 3.0]]), "scale": np.float32([1.5, -0.5])}
GRADS = [
    {"kernel": np.float32([[0.3, 0.1], [-0.2, 0.0]]), "scale": np.float32([0.0, 0.0])},
    {"kernel": np.float32([[-0.1, 0.2], [0.4, 0.1]]), "scale": np.float32([0.2, 0.0])},
]


def sgd(p, g, moments, decay, step):
    """Nesterov momentum 0.9, decay inside the gradient."""
    del step
    g = g + decay * p
    m = 0.9 * moments.get("m", 0) + g
    moments["m"] = m
    return p - RATE * (g + 0.9 * m)


def adamw(p, g, moments, decay, step):
    m = 0.9 * moments.get("m", 0) + 0.1 * g
    v = 0.999 * moments.get("v", 0) + 0.001 * g**2
    moments |= {"m": m, "v": v}
    whole = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return p - RATE * (whole + decay * p)


def lion(p, g, moments, decay, step):
    del step
    m = moments.get("m", np.zeros_like(g))
    moments["m"] = 0.99 * m + 0.01 * g
    return p - RATE * (np.sign(0.9 * m + 0.1 * g) + decay * p)


@pytest.mark.parametrize("rule", [sgd, adamw, lion], ids=lambda rule: rule.__name__)
def test_two_updates_are_the_equations_and_only_kernels_decay(rule):
    config = runs.settings("x", optimizer=rule.__name__, weight_decay=DECAY)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes a count and floats
        tx = optimizers.build(config, lambda count: jnp.full_like(count, RATE, jnp.float32))
        params = jax.tree.map(jnp.asarray, PARAMS)
        state = tx.init(params)
        expected, moments = dict(PARAMS), {name: {} for name in PARAMS}
        for step, grads in enumerate(GRADS, start=1):
            updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
            params = optax.apply_updates(params, updates)
            for name, p in expected.items():
                decay = DECAY if name == "kernel" else 0.0
                expected[name] = rule(p, grads[name], moments[name], decay, step)
            for name, p in expected.items():
                np.testing.assert_allclose(params[name], p, rtol=1e-5)
    assert params["scale"][1] == PARAMS["scale"][1]  # no gradient, no decay: it does not move
