"""Lookups by one-hot product: the bits of lookups by index, whatever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from nets import batch, same_bits
from steps import dense_setup, host, jitted

from dce_jax import idle, lookups, slab, step
from dce_jax.channels import AxisNames

C = 6
BOTH = ("index", "one_hot")


def any_bits(shape, dtype):
    """Arrays of all bit patterns: quiet and signalling NaN, infinities, subnormals, both zeros."""
    size = np.dtype(dtype).itemsize
    draw = np.random.default_rng(size)
    raw = draw.integers(0, 256, (int(np.prod(shape)), size), np.uint8)
    found = raw.view(dtype).reshape(shape)
    if jnp.issubdtype(dtype, jnp.floating):
        special = np.asarray([np.inf, -np.inf, np.nan, -0.0, jnp.finfo(dtype).smallest_subnormal])
        found.reshape(-1)[: special.size] = special.astype(dtype)
    return found


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_a_one_hot_slab_has_the_bits_of_an_indexed_one(dtype):
    names, leaf = AxisNames((("a",), (), ("b",))), any_bits((C, 3, C), np.dtype(dtype))
    new = any_bits((C, 3, C), np.dtype(dtype))[::-1]

    def both_ways(chosen, lookup):
        selection = {"a": chosen, "b": chosen}

        @jax.jit
        def run(leaf, new):
            part = slab.gather(leaf, names, selection, {"a": C, "b": C}, lookup=lookup)
            new = new[: part.shape[0], :, : part.shape[2]]
            return part, slab.scatter(leaf, new, names, selection, {"a": C, "b": C}, lookup=lookup)

        return run(leaf, new)

    for chosen in ([C - 1], [1, 4], list(range(C))):
        chosen = np.asarray(chosen, np.int32)
        expected = leaf.copy()
        expected[np.ix_(chosen, range(3), chosen)] = new[: len(chosen), :, : len(chosen)]
        part, back = both_ways(chosen, "one_hot")
        same_bits(part, leaf[np.ix_(chosen, range(3), chosen)])
        same_bits(back, expected)


@pytest.mark.parametrize("dtype", [bool, np.complex64])
def test_what_no_product_can_carry_is_found_by_index(dtype):
    x = jnp.asarray(np.arange(10).reshape(2, 5) % 3, dtype)
    found = lookups.take(x, jnp.asarray([0, 3], jnp.int32), 1, "one_hot", unique=True)
    same_bits(found, x[:, np.array([0, 3])])


def test_no_matmul_precision_changes_a_bit():
    x, chosen = any_bits((5, C), np.dtype(np.float32)), np.asarray([0, 3], np.int32)
    for precision in ("bfloat16", "highest"):
        with jax.default_matmul_precision(precision):
            found = jax.jit(lambda x: lookups.take(x, chosen, 1, "one_hot", unique=True))(x)
        same_bits(found, x[:, chosen])


def test_entering_and_leaving_by_products_is_entering_and_leaving_by_index():
    pieces, state = dense_setup()
    decayed = jax.tree.map(lambda _: True, state.loop.params)
    pieces = pieces._replace(catch_up=idle.catch_up(1e-2, 0.1, steps=9, decayed=decayed))
    observe = jitted(step.observe, pieces)

    def run(pieces, state):
        enter, leave = (jitted(f, pieces) for f in (step.enter, step.leave))
        for i in range(3):
            inside, _ = observe(enter(state), batch(i, shape=(5,)))
            state, _ = leave(state, inside)
        return host(state)

    begin = step.start_dce(pieces, state.loop)
    by_index, by_product = (run(pieces._replace(lookup=way), begin) for way in BOTH)
    same_bits(by_index, by_product)
    assert len(np.unique(by_index.last["one"]["kernel"])) > 1  # selections did change


def test_an_unknown_lookup_is_refused():
    with pytest.raises(ValueError, match="unknown lookup 'onehot': one of index, one_hot"):
        dense_setup(lookup="onehot")


def test_a_run_by_products_ends_with_the_bits_of_a_run_by_index(tmp_path, monkeypatch):
    product, counted = lookups._product, []
    monkeypatch.setattr(lookups, "_product", lambda *args: counted.append(1) or product(*args))
    with runs.lab(tmp_path) as lab:
        _, by_index = lab.run()
        assert not counted
        _, by_product = lab.run(lookup="one_hot")
    assert counted
    first, second = runs.arrays_of(by_index), runs.arrays_of(by_product)
    assert [name for name in first if first[name] != second[name]] == []
