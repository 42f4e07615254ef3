"""Activations computed again: the same numbers, less kept, and what a run says of its memory."""

from functools import partial

import families
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax import channels, cost, forward, signals
from dce_jax.networks import gates
from dce_jax.types import Evidence


def setup(name):
    module = families.TINY[name]
    data = families.data(name)
    found = nn.unbox(forward.initial(module, jax.random.key(0), data["image"]))
    return module, found.pop("params"), found, data


def value(module, params, state, gated, data):
    loss = forward.classification_loss(module)
    return loss(params, state, gated, data, jax.random.key(1))


@pytest.mark.parametrize("name", ("vgg", "padding", "dense", "mobile"))
def test_loss_statistics_and_gradients_are_the_same_and_less_is_kept(name):
    module, params, state, data = setup(name)
    gated = forward.gate_shapes(module, data["image"])
    gated = jax.tree.map(lambda g: jnp.ones(g.shape, g.dtype), gated)

    def both(module):
        of = jax.value_and_grad(partial(value, module), argnums=(0, 2), has_aux=True)
        return families.quick_jit(of)(params, state, gated, data)

    def kept(module):
        def plain(params, state, data):
            return value(module, params, state, {}, data)[0]

        return cost.kept_bytes(plain, params, state, data)

    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, both(module.clone(remat=True)), both(module))
    assert kept(module.clone(remat=True)) < 0.8 * kept(module)


def test_watched_activations_stay_in_the_open():
    module, params, state, data = setup("vgg")
    seen = []

    def tap(path, parts, y):
        seen.append(y)
        return y

    with gates.tapping(tap):
        forward.apply(module.clone(remat=True), params, state, data["image"], train=False)
    assert len(seen) == 3 and all(bool(jnp.all(jnp.isfinite(y))) for y in seen)


@pytest.mark.parametrize("signal", ["activations.taylor.abs_sum.l2", "activations.std"])
def test_signals_of_activations_do_not_mind(signal):
    module, params, state, data = setup("vgg")
    mapped = channels.build(module, forward.shapes(module, data["image"]))
    seen = Evidence(params, params, {}, state, data, jax.random.key(0))

    def values(module):
        return signals.signal(signal, module, mapped).value(seen)

    jax.tree.map(np.testing.assert_array_equal, values(module.clone(remat=True)), values(module))


def test_kept_bytes_of_a_product_are_those_of_its_factors():
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((5, 3), (3, 2)))
    # The derivative of sin needs the product, that with respect to w needs x.
    found = cost.kept_bytes(lambda w, x: jnp.sum(jnp.sin(x @ w)), w, x)
    assert found == 4 * (5 * 3 + 5 * 2)
    assert cost.tree_bytes({"a": x, "b": jax.ShapeDtypeStruct((2,), jnp.bfloat16)}) == 64
