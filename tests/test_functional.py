"""Every functional layer against the plain full layer with its channels masked, and its cost."""

import re
from functools import partial
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core as jax_core

from dce_jax import cost
from dce_jax import functional as dce

B, H, D, F = 3, 6, 7, 10
DTYPES = [jnp.float32, jnp.bfloat16]
TOLERANCE = {jnp.float32: 1e-6, jnp.bfloat16: 4e-2}


def normal(seed, *shape, dtype=jnp.float32):
    # NumPy makes test data without compiling anything.
    drawn = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(drawn.astype(np.float32).astype(dtype))


def choose(seed, width, K):
    return jnp.asarray(np.sort(np.random.default_rng(seed).permutation(width)[:K]).astype(np.int32))


def mask(width, indices):
    return (jnp.arange(width)[:, None] == indices[None, :]).any(axis=1)


def masked(x, indices):
    on = mask(x.shape[-1], indices).reshape((1,) * (x.ndim - 1) + (-1,))
    return jnp.where(on, x, jnp.zeros_like(x))


def full_conv(x, kernel, bias=None, **options):
    kernel = kernel.astype(x.dtype)
    options = {"window_strides": (1, 1), "padding": "SAME"} | options
    y = lax.conv_general_dilated(x, kernel, **options, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y if bias is None else y + bias.astype(x.dtype).reshape(1, 1, 1, -1)


def shapes(fn, *args):
    """Every shape that an equation of fn's jaxpr writes, at any depth."""

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.shape for v in eqn.outvars)
            for value in eqn.params.values():
                if isinstance(value, (jax_core.Jaxpr, jax_core.ClosedJaxpr)):
                    yield from walk(value)

    return set(walk(jax.make_jaxpr(fn)(*args)))


def assert_close(a, b, dtype=jnp.float32):
    assert a.dtype == b.dtype
    a, b = (np.asarray(v).astype(np.float32) for v in (a, b))
    limit = max(1.0, np.abs(b).max()) * TOLERANCE[dtype]
    np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def assert_only(grad, axis, indices):
    """Entries off the indices are exactly zero, those on them are not all zero."""
    on = np.isin(np.arange(grad.shape[axis]), indices)
    rest = np.moveaxis(np.asarray(grad), axis, 0).astype(np.float32)
    assert not rest[~on].any()
    assert all(row.any() for row in rest[on])


CONV_OPTIONS = [
    {},
    {"strides": (2, 1), "padding": "VALID"},
    {"dilation": (1, 2), "padding": ((2, 1), (0, 3))},
]


@pytest.mark.parametrize(
    ("inputs", "outputs", "dtype", "options"),
    [
        (4, 6, jnp.float32, CONV_OPTIONS[0]),
        (4, 6, jnp.bfloat16, CONV_OPTIONS[0]),
        (1, 1, jnp.float32, CONV_OPTIONS[1]),
        (D, F, jnp.float32, CONV_OPTIONS[2]),
        (D, F, jnp.bfloat16, CONV_OPTIONS[1]),
    ],
)
def test_conv_equals_the_masked_full_layer(inputs, outputs, dtype, options):
    x, weight = normal(0, B, H, H, D, dtype=dtype), normal(3, B, 1, 1, F, dtype=dtype)
    kernel, bias = normal(1, 3, 3, D, F), normal(2, F)
    i, o = choose(0, D, inputs), choose(1, F, outputs)
    plain = {
        "window_strides": options.get("strides", (1, 1)),
        "padding": options.get("padding", "SAME"),
        "rhs_dilation": options.get("dilation", (1, 1)),
    }

    def slab(x, kernel, bias):
        y = dce.conv(dce.select(x, i), kernel, o, bias=bias, **options)
        return jnp.sum(jnp.square(y.values) * weight[..., o]), dce.expand(y, F)

    def full(x, kernel, bias):
        y = masked(full_conv(masked(x, i), kernel, bias, **plain), o)
        return jnp.sum(jnp.square(y) * weight), y

    ours = jax.jit(jax.value_and_grad(slab, (0, 1, 2), has_aux=True))(x, kernel, bias)
    theirs = jax.jit(jax.value_and_grad(full, (0, 1, 2), has_aux=True))(x, kernel, bias)
    assert_close(ours[0][1], theirs[0][1], dtype)
    for mine, plain_grad in zip(ours[1], theirs[1], strict=True):
        assert_close(mine, plain_grad, dtype)
    assert_only(ours[1][1], 2, i)
    assert_only(ours[1][1], 3, o)
    assert_only(ours[1][2], 0, o)


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank", "dtype"),
    [
        (4, 6, 2, jnp.float32),
        (4, 6, 3, jnp.bfloat16),
        (1, 1, 2, jnp.float32),
        (D, F, 1, jnp.float32),
    ],
)
def test_dense_equals_the_masked_full_layer(inputs, outputs, rank, dtype):
    x = normal(0, *(3, 5)[: rank - 1], D, dtype=dtype)
    kernel, bias = normal(1, D, F), normal(2, F)
    i, o = choose(0, D, inputs), choose(1, F, outputs)

    def slab(kernel, bias):
        y = dce.expand(dce.dense(dce.select(x, i), kernel, o, bias=bias), F)
        return jnp.sum(jnp.square(y)), y

    def full(kernel, bias):
        y = jnp.matmul(masked(x, i), kernel.astype(dtype))
        y = masked(y + bias.astype(dtype).reshape((1,) * (rank - 1) + (-1,)), o)
        return jnp.sum(jnp.square(y)), y

    ours = jax.jit(jax.value_and_grad(slab, (0, 1), has_aux=True))(kernel, bias)
    theirs = jax.jit(jax.value_and_grad(full, (0, 1), has_aux=True))(kernel, bias)
    assert_close(ours[0][1], theirs[0][1], dtype)
    jax.tree.map(partial(assert_close, dtype=dtype), ours[1], theirs[1])
    assert_only(ours[1][0], 0, i)
    assert_only(ours[1][0], 1, o)


def test_whole_inputs_and_outputs_are_arrays():
    # Of an odd number of columns none are joined: the very program of the reference.
    x, kernel, bias = normal(0, B, H, H + 1, D), normal(1, 3, 3, D, F), normal(2, F)
    o = choose(1, F, 4)
    chex.assert_trees_all_equal(dce.conv(x, kernel, bias=bias), full_conv(x, kernel, bias))
    y = dce.conv(x, kernel, o, bias=bias)
    assert_close(y.values, full_conv(x, kernel, bias)[..., o])
    chex.assert_trees_all_equal(y.indices, o)
    matrix = kernel[0, 0]
    flat = bias.reshape(1, 1, 1, -1)
    assert_close(dce.dense(x, matrix, bias=bias), x @ matrix + flat)
    assert_close(dce.dense(x, matrix, o).values, (x @ matrix)[..., o])


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("K", "dtype"), [(1, jnp.float32), (4, jnp.float32), (4, jnp.bfloat16), (F, jnp.float32)]
)
def test_batch_norm_equals_flax(K, dtype, train):
    x = 2.0 + 3.0 * normal(0, B, H, H, F, dtype=dtype)
    scale, bias, mean = normal(1, F), normal(2, F), normal(3, F)
    var = jnp.square(normal(4, F)) + 0.5
    i = choose(0, F, K)
    layer = nn.BatchNorm(not train, momentum=0.8, epsilon=1e-3)

    def slab(scale, bias):
        norm = partial(dce.batch_norm, train=train, momentum=0.8, epsilon=1e-3)
        y, statistics = norm(dce.select(x, i), scale, bias, mean, var)
        y = dce.expand(y, F)
        return jnp.mean(jnp.sin(y)), (y, statistics)

    def full(scale, bias):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": mean, "var": var},
        }
        y, updated = layer.apply(variables, x.astype(jnp.float32), mutable="batch_stats")
        y, new = masked(y.astype(dtype), i), updated["batch_stats"]
        return jnp.mean(jnp.sin(y)), (y, (new["mean"], new["var"]))

    ours = jax.jit(jax.value_and_grad(slab, (0, 1), has_aux=True))(scale, bias)
    theirs = jax.jit(jax.value_and_grad(full, (0, 1), has_aux=True))(scale, bias)
    assert_close(ours[0][1][0], theirs[0][1][0], dtype)
    for mine, plain in zip(ours[1], theirs[1], strict=True):
        assert_close(mine, plain, dtype)
        assert_only(mine, 0, i)

    idle = ~np.isin(np.arange(F), i)
    for new, old, plain in zip(ours[0][1][1], (mean, var), theirs[0][1][1], strict=True):
        np.testing.assert_array_equal(new[idle], old[idle])
        assert_close(new[i], plain[i])
        assert bool(jnp.any(new[i] != old[i])) == train


@pytest.mark.parametrize(("Ka", "Kb"), [(4, 3), (1, 1), (F, F), (6, 7)], ids=lambda k: str(k))
def test_add_of_different_channels_is_the_union(Ka, Kb):
    xa, xb = normal(0, B, H, F), normal(1, B, H, F)
    ia, ib = choose(0, F, Ka), choose(1, F, Kb)

    def slab(xa, xb):
        return dce.add(dce.select(xa, ia), dce.select(xb, ib), width=F)

    y = jax.jit(slab)(xa, xb)
    union = sorted({*ia.tolist(), *ib.tolist()})
    assert y.values.shape == (B, H, min(F, Ka + Kb))
    assert y.indices.dtype == jnp.int32
    assert y.indices[: len(union)].tolist() == union
    assert all(i >= F for i in y.indices[len(union) :].tolist())
    assert len(set(y.indices.tolist())) == y.indices.size
    assert not y.values[..., len(union) :].any()
    chex.assert_trees_all_equal(dce.expand(y, F), masked(xa, ia) + masked(xb, ib))

    weight = normal(2, B, H, F)
    grads = jax.grad(lambda *x: jnp.sum(dce.expand(slab(*x), F) * weight), (0, 1))(xa, xb)
    chex.assert_trees_all_equal(grads, (masked(weight, ia), masked(weight, ib)))


def test_add_of_the_same_channels_costs_nothing():
    x, i = normal(0, B, F), choose(0, F, 4)

    def slab(x, i):
        return dce.add(dce.select(x, i), dce.select(2.0 * x, i))

    y = jax.jit(slab)(x, i)
    chex.assert_trees_all_equal(y, dce.Slab(3.0 * x[:, i], i))
    equal = dce.Slab(y.values, jnp.array(i))
    with pytest.raises(ValueError, match=r"one and the same array of indices: pass width="):
        dce.add(y, equal)
    # The size of a union follows from the sizes alone, never from what the indices hold.
    union = dce.add(y, equal, width=F)
    assert union.values.shape == (B, 8)
    chex.assert_trees_all_equal(dce.expand(union, F), 2.0 * dce.expand(y, F))


def test_empty_slots_reach_no_channel():
    """Layers on a union with empty slots, filled with rubbish, equal those on the union alone."""
    x, kernel = normal(0, B, H, H, F), normal(1, 3, 3, F, D)
    i = jnp.asarray([1, 4, 8], jnp.int32)
    y = dce.add(dce.select(x, i), dce.select(x, i), width=F)
    assert int(jnp.sum(y.indices >= F)) == 3
    dirty = dce.Slab(jnp.where((y.indices < F).reshape(1, 1, 1, -1), y.values, 1e3), y.indices)
    clean = 2.0 * masked(x, i)
    o = choose(2, D, 4)

    chex.assert_trees_all_equal(dce.expand(dirty, F), clean)
    assert_close(dce.conv(dirty, kernel, o).values, full_conv(clean, kernel)[..., o])
    assert_close(dce.dense(dirty, kernel[0, 0]), clean @ kernel[0, 0])
    again = dce.add(dirty, dce.select(x, o), width=F)
    chex.assert_trees_all_equal(dce.expand(again, F), clean + masked(x, o))
    joined = dce.concatenate([dirty, dirty], [F, F])
    assert len(set(joined.indices.tolist())) == 12
    chex.assert_trees_all_equal(dce.expand(joined, 2 * F), jnp.concatenate([clean] * 2, -1))

    ones = jnp.ones(F)
    normed, (mean, var) = dce.batch_norm(dirty, ones, ones, ones, ones, train=True)
    np.testing.assert_array_equal(normed.values[..., 3:], 0.0)
    assert ((mean == 1.0) == ~mask(F, i)).all()
    assert jnp.isfinite(var).all()


def test_outputs_may_have_empty_slots():
    x, kernel, bias = normal(0, B, H, H, D), normal(1, 3, 3, D, F), normal(2, F)
    o = jnp.asarray([2, 5, F], jnp.int32)
    y = dce.conv(x, kernel, o, bias=bias)
    assert_close(y.values[..., :2], full_conv(x, kernel, bias)[..., o[:2]])
    np.testing.assert_array_equal(y.values[..., 2], 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_concatenate_offsets_the_channels(dtype):
    widths, counts = (D, F, 4), (3, 1, 4)
    xs = [normal(n, B, H, w, dtype=dtype) for n, w in enumerate(widths)]
    chosen = [choose(n, w, k) for n, (w, k) in enumerate(zip(widths, counts, strict=True))]

    def slab(*xs):
        return dce.concatenate([dce.select(*pair) for pair in zip(xs, chosen, strict=True)], widths)

    y = jax.jit(slab)(*xs)
    assert y.values.shape == (B, H, sum(counts))
    offsets = (0, D, D + F)
    expected = [i + o for i, o in zip(chosen, offsets, strict=True)]
    np.testing.assert_array_equal(y.indices, np.concatenate(expected))
    plain = jnp.concatenate([masked(x, i) for x, i in zip(xs, chosen, strict=True)], -1)
    chex.assert_trees_all_equal(dce.expand(y, sum(widths)), plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K", [1, 4, F])
def test_select_and_expand(K, dtype):
    x, i = normal(0, B, H, F, dtype=dtype), choose(0, F, K)

    def roundtrip(x):
        return dce.expand(dce.select(x, i), F)

    chex.assert_trees_all_equal(roundtrip(x), masked(x, i))
    chex.assert_trees_all_equal(dce.select(roundtrip(x), i), dce.Slab(x[..., i], i))
    weight = normal(1, B, H, F, dtype=dtype)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(roundtrip(x) * weight)))(x)
    chex.assert_trees_all_equal(grad, masked(weight, i))


@pytest.mark.parametrize("options", CONV_OPTIONS, ids=["same", "strided", "dilated"])
def test_conv_costs_what_a_narrow_one_costs(options):
    B, H, D, F, inputs, outputs = 2, 16, 32, 48, 8, 12
    spec = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    i, o = (jax.ShapeDtypeStruct((k,), jnp.int32) for k in (inputs, outputs))
    x = spec((B, H, H, inputs))

    def slab(values, kernel, i, o):
        return jnp.sum(jnp.sin(dce.conv(dce.Slab(values, i), kernel, o, **options).values))

    def narrow(values, kernel):
        return jnp.sum(jnp.sin(dce.conv(values, kernel, **options)))

    for wrap in (lambda fn: fn, partial(jax.grad, argnums=(0, 1))):
        ours = cost.macs(wrap(slab), x, spec((3, 3, D, F)), i, o)
        assert ours == cost.macs(wrap(narrow), x, spec((3, 3, inputs, outputs)))
        assert 0 < ours * 12 < cost.macs(wrap(narrow), spec((B, H, H, D)), spec((3, 3, D, F)))
        written = shapes(wrap(slab), x, spec((3, 3, D, F)), i, o)
        assert not [s for s in written if len(s) == 4 and s[0] == B and s[-1] in (D, F)]
        assert [s for s in written if len(s) == 4 and s[0] == B and s[-1] == outputs]


def test_dense_costs_what_a_narrow_one_costs():
    B, D, F, inputs, outputs = 5, 32, 48, 8, 12
    spec = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    i, o = (jax.ShapeDtypeStruct((k,), jnp.int32) for k in (inputs, outputs))

    def slab(values, kernel, i, o):
        return jnp.sum(jnp.sin(dce.dense(dce.Slab(values, i), kernel, o).values))

    args = spec((B, inputs)), spec((D, F)), i, o
    assert cost.macs(slab, *args) == B * inputs * outputs
    assert cost.macs(jax.grad(slab, (0, 1)), *args) == 3 * B * inputs * outputs
    written = shapes(jax.grad(slab, (0, 1)), *args)
    assert not {(B, D), (B, F)} & written
    assert (B, outputs) in written


C, K, CLASSES = 12, 5, 4


def init_net(seed=0):
    return {
        "gate": normal(seed, C),
        "conv0": 0.3 * normal(seed + 1, 3, 3, 3, C),
        "scale": 1.0 + 0.1 * normal(seed + 2, C),
        "bias": normal(seed + 3, C),
        "conv1": 0.2 * normal(seed + 4, 3, 3, C, C),
        "head": normal(seed + 5, 2 * C, CLASSES),
    }


def slab_net(params, statistics, x, *, sizes):
    """Two selections made inside: the first by a parameter, the second by the input."""
    _, first = lax.top_k(params["gate"], sizes[0])  # not sorted, on purpose
    h, statistics = dce.batch_norm(
        dce.conv(x, params["conv0"], first),
        params["scale"],
        params["bias"],
        *statistics,
        train=True,
    )
    h = dce.Slab(jax.nn.relu(h.values), h.indices)
    second = lax.top_k(jnp.sin(jnp.arange(1.0, C + 1) * (1.0 + x.mean())), sizes[1])[1]
    y = dce.add(h, dce.conv(h, params["conv1"], second), width=C)
    y = dce.concatenate([y, h], [C, C])
    y = dce.Slab(y.values.mean(axis=(1, 2)), y.indices)
    return dce.dense(y, params["head"]), statistics


def masked_net(params, statistics, x, *, sizes):
    _, first = lax.top_k(params["gate"], sizes[0])
    norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = {
        "params": {"scale": params["scale"], "bias": params["bias"]},
        "batch_stats": dict(zip(("mean", "var"), statistics, strict=True)),
    }
    h, updated = norm.apply(variables, full_conv(x, params["conv0"]), mutable="batch_stats")
    h = masked(jax.nn.relu(h), first)
    second = lax.top_k(jnp.sin(jnp.arange(1.0, C + 1) * (1.0 + x.mean())), sizes[1])[1]
    y = h + masked(full_conv(h, params["conv1"]), second)
    y = jnp.concatenate([y, h], -1).mean(axis=(1, 2))
    on = mask(C, first)
    new = [jnp.where(on, updated["batch_stats"][k], v) for k, v in variables["batch_stats"].items()]
    return y @ params["head"], tuple(new)


@pytest.mark.parametrize(
    ("sizes", "batch"), [((K, 4), 5), ((1, 1), 1), ((C, C), 3)], ids=["some", "one", "all"]
)
def test_a_net_that_selects_inside_equals_the_masked_net(sizes, batch):
    statistics = (jnp.zeros(C), jnp.ones(C))
    x = normal(9, batch, 7, 7, 3)

    def loss(params, net):
        logits, new = net(params, statistics, x, sizes=sizes)
        return jnp.sum(jnp.square(logits)), (logits, new)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnames="net")
    (ours_loss, ours), our_grads = grad(init_net(), net=slab_net)
    (_, theirs), their_grads = grad(init_net(), net=masked_net)
    assert jnp.isfinite(ours_loss)
    for mine, plain in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_close(mine, plain)
    for name, mine in our_grads.items():
        limit = 1e-5 * max(1.0, np.abs(their_grads[name]).max())
        np.testing.assert_allclose(mine, their_grads[name], rtol=0, atol=limit)
    first = lax.top_k(init_net()["gate"], sizes[0])[1]
    assert_only(our_grads["conv0"], 3, first)
    assert not our_grads["gate"].any()


def test_new_indices_compile_nothing():
    traces = chex.assert_max_traces(n=1)

    @jax.jit
    @traces
    def step(x, kernel, i, o):
        return dce.expand(dce.conv(dce.select(x, i), kernel, o), F)

    x, kernel = normal(0, B, H, H, D), normal(1, 3, 3, D, F)
    for seed in range(4):
        i, o = choose(seed, D, 3), choose(seed + 9, F, 4)
        expected = masked(full_conv(masked(x, i), kernel), o)
        chex.assert_trees_all_close(step(x, kernel, i, o), expected, atol=1e-5)


def test_layers_may_run_in_a_scan():
    kernel, i = normal(1, F, F), choose(0, F, 4)

    def turn(slab, _):
        return dce.Slab(jnp.sin(dce.dense(slab, kernel, slab.indices).values), slab.indices), None

    y, _ = lax.scan(turn, dce.select(normal(0, B, F), i), length=3)
    expected = masked(normal(0, B, F), i)
    for _ in range(3):
        expected = masked(jnp.sin(expected @ kernel), i)
    assert_close(dce.expand(y, F), expected)


X, KERNEL, IDS = jnp.ones((2, 4, 4, 5)), jnp.ones((3, 3, 5, 6)), jnp.arange(3, dtype=jnp.int32)
SLAB = dce.Slab(jnp.ones((2, 4, 4, 3)), IDS)
V = jnp.ones(5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dce.select(X, V), r"indices must be int32\[K\], got float32\[5\]"),
        (lambda: dce.select(X, IDS[None]), r"indices must be int32\[K\], got int32\[1, 3\]"),
        (lambda: dce.select(X, jnp.arange(6)), "K = 6 indices must be between 1 and the width 5"),
        (lambda: dce.select(X, IDS[:0]), "K = 0 indices must be between 1 and the width 5"),
        (lambda: dce.select(jnp.ones(()), IDS), r"select needs float\[..., C\], got a scalar"),
        (lambda: dce.expand(SLAB, 2), "K = 3 indices must be between 1 and the width 2"),
        (
            lambda: dce.expand(dce.Slab(X, IDS), 9),
            r"slab of float32\[2, 4, 4, 5\] with .* \[3\]",
        ),
        (lambda: dce.conv(X[0], KERNEL), r"conv needs float\[B, H, W, channels\], got shape"),
        (lambda: dce.conv(X, KERNEL[0]), r"kernel must have rank 4, got shape \(3, 5, 6\)"),
        (lambda: dce.conv(X[..., 1:], KERNEL), "input of 4 channels, but the kernel takes 5"),
        (lambda: dce.conv(X, KERNEL, jnp.arange(7)), "K = 7 .* the width 6"),
        (lambda: dce.conv(SLAB, KERNEL[:, :, :2]), "K = 3 .* the width 2"),
        (lambda: dce.conv(X, KERNEL, bias=V), r"bias must be float\[6\] .*, got \(5,\)"),
        (lambda: dce.conv(X.astype(jnp.int32), KERNEL), "input must be floating, got int32"),
        (lambda: dce.dense(X, KERNEL), r"kernel must have rank 2, got shape \(3, 3, 5, 6\)"),
        (lambda: dce.batch_norm(SLAB, V, V, V, V[1:], train=True), r"float\[C\] alike, got"),
        (lambda: dce.batch_norm(SLAB, *(V[:2],) * 4, train=True), "K = 3 .* the width 2"),
        (
            lambda: dce.batch_norm(SLAB, V, V, V, V, train=True, momentum=1.1),
            r"momentum = 1.1 must be in \[0, 1\]",
        ),
        (
            lambda: dce.batch_norm(SLAB, V, V, V, V, train=True, epsilon=0.0),
            "epsilon = 0.0 must be positive",
        ),
        (lambda: dce.add(SLAB, dce.Slab(SLAB.values[0], IDS), width=5), "must be alike but for"),
        (
            lambda: dce.add(SLAB, dce.Slab(SLAB.values.astype(jnp.bfloat16), IDS), width=5),
            "must be alike but for channels",
        ),
        (lambda: dce.add(SLAB, SLAB, width=2), "K = 3 indices must be between 1 and the width 2"),
        (lambda: dce.concatenate([], []), "0 slabs and 0 widths"),
        (lambda: dce.concatenate([SLAB], [5, 5]), "1 slabs and 2 widths"),
        (
            lambda: dce.concatenate([SLAB, dce.Slab(SLAB.values[:1], IDS)], [5, 5]),
            r"alike but for channels, got slab of float32\[2, 4, 4, 3\].*\[1, 4, 4, 3\]",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_documented_example_runs():
    text = (Path(__file__).parents[1] / "docs" / "functional.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(compile(code, "docs/functional.md", "exec"), names)
    assert names["logits"].shape == (5, 10)
    assert jnp.isfinite(names["logits"]).all()
    assert int(jnp.sum(names["statistics"][0] != 0)) == names["K"]
