"""A block whose branch is silenced is its shortcut: no count of parameters or MACs shows that."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict, unflatten_dict

from dce_jax.networks.mobilenet import InvertedResidual
from dce_jax.networks.mobilenet import Place as MobilePlace
from dce_jax.networks.preact import PreactBlock
from dce_jax.networks.resnet import Block
from dce_jax.networks.stages import Place

WIDTHS = FrozenDict({"a": 4, "h": 3, "g": 2, "b": 8})


def residual(after, stride):
    return Block(WIDTHS, Place("x", "a", ("h",), after, stride), "padding", jnp.float32)


def preact(after, stride):
    return PreactBlock(WIDTHS, Place("x", "a", ("h", "g"), after, stride), jnp.float32)


def mobile(after, stride):
    return InvertedResidual(WIDTHS, MobilePlace("x", "a", "h", after, stride), jnp.float32)


def silenced(block, last, x):
    """The block's output where the last layer of its branch gives zeros."""
    tree = flatten_dict(nn.unbox(jax.jit(lambda k: block.init(k, x, train=False))(KEY)))
    tree["params", *last] = jnp.zeros_like(tree["params", *last])
    return jax.jit(lambda t: block.apply(t, x, train=False))(unflatten_dict(tree))


KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, (2, 4, 4, 4)), jnp.float32)
LAST = {residual: ("norm1", "scale"), preact: ("conv2", "kernel"), mobile: ("norm2", "scale")}


@pytest.mark.parametrize("make", LAST)
def test_within_a_stage_the_stream_passes_unchanged(make):
    np.testing.assert_array_equal(silenced(make("a", 1), LAST[make], IMAGES), IMAGES)


def test_between_stages_the_padded_stream_passes_every_second_position():
    found = silenced(residual("b", 2), LAST[residual], IMAGES)
    expected = jnp.pad(IMAGES[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2)))
    np.testing.assert_array_equal(found, expected)


def test_between_stages_a_mobile_block_has_no_shortcut():
    assert not np.any(silenced(mobile("b", 1), LAST[mobile], IMAGES))


def test_between_stages_a_preactivation_block_projects():
    found = silenced(preact("b", 2), LAST[preact], IMAGES)
    assert found.shape == (2, 2, 2, 8)
    assert np.all(np.std(found, axis=(0, 1, 2)) > 0)
