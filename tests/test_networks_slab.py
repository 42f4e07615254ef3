"""Any selection, through every family's map: a slab is plain indexing, and so is its way back."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from families import TINY, example, quick_jit, random_budget, random_selection, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import bits

from dce_jax import channels, forward, slab

pytestmark = pytest.mark.one_set


@functools.cache
def named_shapes(family):
    """Shapes of a network's variables and the names of their axes."""
    boxed = forward.shapes(TINY[family], example(family))
    shapes, mapped = nn.unbox(boxed), channels.build(TINY[family], boxed)
    return shapes, {name: mapped.names(name, tree) for name, tree in shapes.items()}


def any_bits(draw, shapes):
    """Float32 arrays of any bits: NaN, infinities and both zeros among them."""
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(shapes))
    return jax.tree.map(
        lambda leaf: draw.integers(0, 2**32, leaf.shape, np.uint32).view(np.float32), shapes
    )


def indexed(leaf, part, name, chosen, full):
    """A leaf's slab, and the leaf with another slab in its place, by NumPy."""
    where, put = np.ix_(*rows(name, leaf.shape, chosen, full)), leaf.copy()
    put[where] = part
    return leaf[where], put


@pytest.mark.parametrize("budget_seed", [1, 2])
@pytest.mark.parametrize("family", TINY)
def test_any_selection_is_cut_and_put_back_as_numpy_indexes(family, budget_seed):
    bud, (shapes, names) = random_budget(family, budget_seed), named_shapes(family)

    @quick_jit
    def both(tree, part, chosen):
        cut = slab.gather(tree, names, chosen, bud.full)
        return cut, slab.scatter(tree, part, names, chosen, bud.full)

    thin = channels.with_widths(TINY[family], bud.compact)
    narrow = nn.unbox(forward.shapes(thin, example(family)))

    @settings(max_examples=40, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32 - 1))
    def check(seed):
        draw, chosen = np.random.default_rng(seed), random_selection(bud, seed)
        tree, part = any_bits(draw, shapes), any_bits(draw, narrow)
        found = zip(*map(jax.tree.leaves, both(tree, part, chosen)), strict=True)
        leaves = zip(*map(jax.tree.leaves, (tree, part, names)), strict=True)
        for got, given_leaf in zip(found, leaves, strict=True):
            expected = indexed(*given_leaf, chosen, bud.full)
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(bits(one), bits(other))

    check()
