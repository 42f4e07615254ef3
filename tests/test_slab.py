"""Slabs: an exact inverse pair, checked against plain NumPy indexing; and the forward pass."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import (
    IMAGES,
    VECTORS,
    ConcatNet,
    ConvNet,
    FlattenNet,
    channel_map,
    compiled,
    mask,
    positions,
    same_bits,
    split,
    variables,
)

from dce_jax import budget, slab
from dce_jax.channels import AxisNames

FULL = {"a": 4, "b": 3, "c": 5}
CHOSEN = {"a": [1, 3], "b": [0]}

CASES = {
    "one axis": ((5, 4), ((), ("a",))),
    "two axes": ((2, 4, 3), ((), ("a",), ("b",))),
    "same group twice": ((4, 4), (("a",), ("a",))),
    "sequence": ((12, 3), (("a", "c", "b"), ("b",))),
    "repeated": ((12, 2), (("a", "a", "a"), ())),
    "absent group": ((5, 4), (("c",), ("a",))),
    "absent in a sequence": ((8, 2), (("c", "b"), ())),
    "never cut": ((5, 2), (("c",), ())),
    "scalar": ((), ()),
}


def indices(selection):
    return {group: np.asarray(chosen, np.int32) for group, chosen in selection.items()}


def rows(shape, axes, selection):
    pairs = zip(shape, axes, strict=True)
    return [positions(g, selection, FULL) if g else np.arange(size) for size, g in pairs]


def data(shape, dtype, seed=0):
    """Drawn on the host, which compiles nothing."""
    draw = np.random.default_rng(seed)
    return np.asarray(draw.normal(size=shape) * 100).astype(dtype)


def check_pair(leaf, new, axes, selection, lookup="index"):
    names = {"leaf": AxisNames(axes)}
    place = np.ix_(*rows(leaf.shape, axes, selection)) if axes else ()
    reference = np.asarray(leaf[place])
    new = np.asarray(new[tuple(slice(size) for size in reference.shape)])

    @jax.jit
    def run(leaf, new, chosen):
        tree = {"leaf": leaf}
        cut = slab.gather(tree, names, chosen, FULL, lookup=lookup)
        same = slab.scatter(tree, cut, names, chosen, FULL, lookup=lookup)
        back = slab.scatter(tree, {"leaf": new}, names, chosen, FULL, lookup=lookup)
        return cut, same, back, slab.gather(back, names, chosen, FULL, lookup=lookup)

    cut, same, back, again = run(leaf, new, indices(selection))
    expected = np.array(leaf)
    expected[place] = new
    same_bits(cut, {"leaf": reference})
    same_bits(same, {"leaf": leaf})
    same_bits(back, {"leaf": expected})
    same_bits(again, {"leaf": new})


@pytest.mark.parametrize("lookup", ["index", "one_hot"])
@pytest.mark.parametrize("case", CASES)
def test_gather_and_scatter_are_numpys_indexing_and_each_others_inverse(case, lookup):
    shape, axes = CASES[case]
    # NaN, infinities and a negative zero must travel as bits, too.
    leaf = data(shape, np.float32)
    odd = np.asarray([np.nan, -0.0, np.inf, -np.inf], np.float32)
    leaf.reshape(-1)[: odd.size] = odd[: leaf.size]
    check_pair(leaf, data(shape, jnp.float32, 1), axes, CHOSEN, lookup)


@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_random_leaves_and_selections(drawn):
    size = drawn.draw(st.integers(1, 3))
    axes = tuple(
        drawn.draw(st.lists(st.sampled_from("abc"), max_size=2).map(tuple)) for _ in range(size)
    )
    shape = tuple(sum(FULL[g] for g in groups) if groups else 2 for groups in axes)
    selection = {
        group: sorted(drawn.draw(st.sets(st.integers(0, width - 1), min_size=1)))
        for group, width in FULL.items()
        if drawn.draw(st.booleans())
    }
    dtype = drawn.draw(st.sampled_from([jnp.float32, jnp.bfloat16, jnp.int32]))
    lookup = drawn.draw(st.sampled_from(["index", "one_hot"]))
    check_pair(data(shape, dtype), data(shape, dtype, 1), axes, selection, lookup)


def test_trees_keep_their_structure():
    tree = {"x": {"w": data((5, 4), jnp.float32)}, "count": jnp.int32(3)}
    names = {"x": {"w": AxisNames(((), ("a",)))}, "count": AxisNames()}
    cut = slab.gather(tree, names, indices(CHOSEN), FULL)
    assert cut["x"]["w"].shape == (5, 2)
    assert int(cut["count"]) == 3


# The forward pass of a slab, against the full network with consumers' rows set to zero by hand.

FORWARD = {
    "conv": (ConvNet(), IMAGES, {"a": [0, 3], "b": [1, 2, 5]}),
    "concat": (ConcatNet(), VECTORS, {"a": [1], "b": [0, 2], "c": [0, 3, 4]}),
    "flatten": (FlattenNet(), IMAGES, {"a": [0, 2]}),
}


def zero_rows(params, kind, selection):
    """Consumers' rows by hand: nothing of the map is used."""
    new = jax.tree.map(np.array, params)

    def drop(layer, axis, width, group, offset=0):
        for i in set(range(width)) - set(selection[group]):
            kernel = np.moveaxis(new[layer]["kernel"], axis, 0)
            kernel[offset + i] = 0.0

    if kind == "conv":
        drop("conv_b", 2, 4, "a")
        drop("head", 0, 6, "b")
    if kind == "concat":
        drop("both", 0, 3, "a")
        drop("both", 0, 4, "b", offset=3)
        drop("stream", 0, 5, "c")
        drop("head", 0, 5, "c")
    if kind == "flatten":
        for position in range(4):
            drop("head", 0, 3, "a", offset=3 * position)
    return jax.tree.map(jnp.asarray, new)


@pytest.mark.parametrize("kind", FORWARD)
def test_slab_forward_equals_the_masked_full_forward(kind):
    module, example, chosen = FORWARD[kind]
    tree, found = variables(module, example), channel_map(module, example)
    params, state = split(tree)
    x = data(example.shape, jnp.float32, 5) / 100
    selection = indices(chosen)
    names = {name: found.names(name, part) for name, part in tree.items()}
    cut = jax.jit(lambda t, s: slab.gather(t, names, s, found.full))(tree, selection)
    thin = module.clone(widths=FrozenDict({g: len(c) for g, c in chosen.items()}))
    thin_params, thin_state = split(cut)
    masked = zero_rows(params, kind, chosen)
    for train in (False, True):
        full, full_state = compiled(module, train)(masked, state, x)
        narrow, narrow_state = compiled(thin, train)(thin_params, thin_state, x)
        np.testing.assert_allclose(full, narrow, rtol=1e-5, atol=1e-5)
        for path, value in jax.tree_util.tree_leaves_with_path(narrow_state):
            wide = full_state
            for key in path:
                wide = wide[key.key]
            group = path[1].key[-1]
            np.testing.assert_allclose(wide[np.asarray(chosen[group])], value, atol=1e-5)
    # The mask matters: other channels do change the output.
    unmasked, _ = compiled(module, False)(params, state, x)
    narrow, _ = compiled(thin, False)(thin_params, thin_state, x)
    assert np.max(np.abs(unmasked - narrow)) > 1e-2


# Selections that do not fit.

BUDGET = budget.from_widths({"a": 4, "b": 3}, {"a": 2, "b": 3})


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"a": [0, 1], "z": [0]}, r"unknown channel group 'z'"),
        ({}, r"the selection lacks group 'a', whose K < C"),
        ({"a": [0]}, r"selection of 'a' must be int32\[2\], got int32\[1\]"),
        ({"a": [[0, 1]]}, r"must be int32\[2\], got int32\[1, 2\]"),
        ({"a": [1, 0]}, r"sorted, distinct and in 0\.\.3, got \[1, 0\]"),
        ({"a": [1, 1]}, r"sorted, distinct"),
        ({"a": [-1, 1]}, r"in 0\.\.3, got \[-1, 1\]"),
        ({"a": [1, 4]}, r"in 0\.\.3, got \[1, 4\]"),
    ],
)
def test_selections_that_do_not_fit_are_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        slab.check_selection(indices(selection), BUDGET)


def test_selections_that_fit_are_accepted():
    slab.check_selection(indices({"a": [0, 3]}), BUDGET)
    slab.check_selection(indices({"a": [0, 3], "b": [0, 1, 2]}), BUDGET)
    with pytest.raises(ValueError, match=r"must be int32\[2\], got float32\[2\]"):
        slab.check_selection({"a": np.asarray([0.0, 1.0], np.float32)}, BUDGET)


def test_names_are_hashable_records_that_know_their_groups():
    names = AxisNames((("a", "b"), (), ("a",)))
    assert names.groups == {"a", "b"}
    assert names.cut((7, 2, 4), FULL, {"a": 1}) == (4, 2, 1)
    assert hash(names) == hash(dataclasses.replace(names))


def test_masks_of_the_helpers_agree_with_the_cut_shape():
    names = AxisNames((("a", "c"), ("b",)))
    touched = mask(names, CHOSEN, FULL, (9, 3))
    assert touched.sum() == np.prod(names.cut((9, 3), FULL, {"a": 2, "b": 1}))
