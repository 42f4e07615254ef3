"""The pool written as slices is the pool that windows define, in value and gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dce_jax.networks import layers


def windows(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 6, 2), (3, 7, 7, 1), (1, 2, 3, 2)])
def test_slices_and_windows_agree(shape):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.permutation(int(np.prod(shape))).reshape(shape), jnp.float32)
    y, pull = jax.vjp(layers.max_of_four, x)
    expected, pull_windows = jax.vjp(windows, x)
    np.testing.assert_array_equal(y, expected)
    weights = jnp.asarray(draw.normal(size=y.shape), jnp.float32)
    np.testing.assert_array_equal(pull(weights)[0], pull_windows(weights)[0])


def test_equal_values_share_the_gradient():
    x = jnp.zeros((1, 2, 2, 1))
    np.testing.assert_array_equal(jax.grad(lambda x: layers.max_of_four(x).sum())(x), x + 0.25)


def test_nan_is_not_hidden():
    x = jnp.zeros((1, 2, 2, 1)).at[0, 1, 1, 0].set(jnp.nan)
    assert np.isnan(layers.max_of_four(x)).all()
