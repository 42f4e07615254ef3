"""Counts against closed forms worked out by hand."""

from functools import partial
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dce_jax import cost

NHWC = ("NHWC", "HWIO", "NHWC")


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, kernel, strides=(1, 1), padding="SAME", **options):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, **options)


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3, 3), use_bias=False, name="conv0")(x)
        return nn.relu(nn.BatchNorm(use_running_average=True, name="norm0")(x))

    def head(self, x):
        return x @ jnp.ones((x.shape[-1], 5))


class Net(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        make = nn.remat(Block) if self.remat else Block
        x = make(4, name="first")(x)
        x = make(6, name="second")(x)
        return nn.Dense(10, name="classifier")(x.mean(axis=(1, 2)))


@pytest.mark.parametrize(
    ("x", "kernel", "options", "expected"),
    [
        (spec(2, 8, 8, 3), spec(3, 3, 3, 5), {}, 2 * 8 * 8 * 5 * 9 * 3),
        (spec(2, 8, 8, 3), spec(3, 3, 3, 5), {"strides": (2, 2)}, 2 * 4 * 4 * 5 * 9 * 3),
        (spec(2, 8, 8, 3), spec(3, 3, 3, 5), {"padding": "VALID"}, 2 * 6 * 6 * 5 * 9 * 3),
        (
            spec(2, 9, 9, 3),
            spec(3, 3, 3, 5),
            {"padding": "VALID", "rhs_dilation": (2, 2)},
            2 * 5 * 5 * 5 * 9 * 3,
        ),
        (spec(2, 8, 8, 6), spec(3, 3, 2, 9), {"feature_group_count": 3}, 2 * 64 * 9 * 9 * 2),
        (spec(2, 8, 8, 6), spec(3, 3, 1, 6), {"feature_group_count": 6}, 2 * 64 * 6 * 9),
        (spec(6, 8, 8, 3), spec(1, 5, 3, 6), {"batch_group_count": 3}, 2 * 64 * 6 * 5 * 3),
    ],
    ids=["plain", "strided", "valid", "dilated", "grouped", "depthwise", "batch-grouped"],
)
def test_convolutions(x, kernel, options, expected):
    assert cost.macs(partial(conv, **options), x, kernel) == expected


def test_transposed_convolution_counts_inputs_times_taps():
    def upsample(x, kernel):
        return conv(x, kernel, padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))

    # 5 positions grow to 9, and to 10 outputs; each input meets each of the 9 taps once, but for
    # the taps that fall off the left or right edge: per axis 10 outputs x 3 taps = 15 + 15.
    assert jax.eval_shape(upsample, spec(2, 5, 5, 3), spec(3, 3, 3, 4)).shape == (2, 10, 10, 4)
    assert cost.macs(upsample, spec(2, 5, 5, 3), spec(3, 3, 3, 4)) == 2 * 15 * 15 * 3 * 4

    def same(x, kernel):
        return conv(x, kernel, padding=((1, 1), (1, 1)), lhs_dilation=(2, 2))

    # 9 outputs, the first of which begins on the padding: 5 meet one input each, 4 meet two.
    assert cost.macs(same, spec(2, 5, 5, 3), spec(3, 3, 3, 4)) == 2 * 13 * 13 * 3 * 4


def test_products():
    assert cost.macs(jnp.dot, spec(7, 3), spec(3, 5)) == 7 * 3 * 5
    assert cost.macs(jnp.matmul, spec(4, 7, 3), spec(4, 3, 5)) == 4 * 7 * 3 * 5
    chain = partial(jnp.einsum, "bhd,bkd->bhk")
    assert cost.macs(chain, spec(2, 3, 5), spec(2, 4, 5)) == 2 * 3 * 4 * 5
    assert cost.macs(jnp.vdot, spec(11), spec(11)) == 11
    assert cost.macs(lambda x: jnp.tanh(x) * 2.0 + x.sum(), spec(3, 4)) == 0


def test_scan_counts_its_length_also_when_nested():
    def inner(w, carry):
        return lax.scan(lambda c, _: (c @ w, None), carry, length=3)[0]

    def outer(w, carry):
        return lax.scan(lambda c, _: (inner(w, c), None), carry, length=5)[0]

    assert cost.macs(inner, spec(4, 4), spec(2, 4)) == 3 * 2 * 4 * 4
    assert cost.macs(outer, spec(4, 4), spec(2, 4)) == 15 * 2 * 4 * 4

    def counted(w, carry):
        return lax.fori_loop(0, 6, lambda _, c: c @ w, carry)

    assert cost.macs(counted, spec(4, 4), spec(2, 4)) == 6 * 2 * 4 * 4


def test_inner_functions_are_counted_where_they_are_called():
    inner = jax.jit(lambda x, w: x @ w)
    wrapped = jax.jit(lambda x, w: inner(inner(x, w), w))
    assert cost.macs(wrapped, spec(2, 4), spec(4, 4)) == 2 * 32

    remat = jax.checkpoint(lambda x, w: jnp.sin(x @ w))
    assert cost.macs(remat, spec(2, 4), spec(4, 4)) == 32

    custom_jvp = jax.custom_jvp(lambda x, w: x @ w)
    custom_jvp.defjvp(lambda primals, tangents: (primals[0] @ primals[1], tangents[0] @ primals[1]))
    assert cost.macs(custom_jvp, spec(2, 4), spec(4, 4)) == 32

    custom_vjp = jax.custom_vjp(lambda x, w: x @ w)
    custom_vjp.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: (g @ saved[1].T, saved[1]))
    assert cost.macs(custom_vjp, spec(2, 4), spec(4, 4)) == 32


def test_rematerialisation_pays_its_forward_again():
    def loss(w, x, layer):
        return jnp.sum(jnp.sin(layer(layer(x, w), w)))

    plain = partial(loss, layer=lambda x, w: jnp.sin(x @ w))
    remat = partial(loss, layer=jax.checkpoint(lambda x, w: jnp.sin(x @ w)))
    forward = cost.macs(plain, spec(4, 4), spec(2, 4))
    extra = cost.macs(jax.grad(remat), spec(4, 4), spec(2, 4)) - cost.macs(
        jax.grad(plain), spec(4, 4), spec(2, 4)
    )
    assert extra == forward == 2 * 32


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_backward_costs_twice_the_forward(strides):
    def loss(x, kernel):
        return jnp.sum(jnp.square(conv(x, kernel, strides)))

    args = spec(2, 8, 8, 3), spec(3, 3, 3, 5)
    forward = cost.macs(loss, *args)
    assert forward == 2 * (8 // strides[0]) ** 2 * 5 * 9 * 3
    assert cost.macs(jax.grad(loss, argnums=1), *args) == 2 * forward
    assert cost.macs(jax.grad(loss, argnums=(0, 1)), *args) == 3 * forward


def test_vmap_multiplies():
    args = spec(7, 2, 8, 8, 3), spec(7, 3, 3, 3, 5)
    one = 2 * 64 * 5 * 27
    assert cost.macs(jax.vmap(conv), *args) == 7 * one
    assert cost.macs(jax.vmap(conv, (0, None)), args[0], spec(3, 3, 3, 5)) == 7 * one
    assert cost.macs(jax.vmap(conv, (None, 0)), spec(2, 8, 8, 3), args[1]) == 7 * one


def test_the_most_expensive_branch_counts():
    def choose(i, x, w):
        one, two = (lambda: x @ w), (lambda: (x @ w) @ w)
        return lax.switch(i, [one, two, lambda: x])

    i = jax.ShapeDtypeStruct((), jnp.int32)
    assert cost.macs(choose, i, spec(2, 4), spec(4, 4)) == 64

    def maybe(p, x, w):
        return lax.cond(p, lambda: x, lambda: x @ w)

    p = jax.ShapeDtypeStruct((), jnp.bool_)
    assert cost.macs(maybe, p, spec(2, 4), spec(4, 4)) == 32


def test_the_default_platforms_work_counts():
    def choose(x, w):
        return lax.platform_dependent(x, w, cpu=lambda x, w: (x @ w) @ w, default=jnp.dot)

    args = spec(2, 4), spec(4, 4)
    assert cost.macs(choose, *args) == 32
    assert cost.macs(jax.grad(lambda x, w: choose(x, w).sum(), argnums=(0, 1)), *args) == 96

    def named(x, w):
        return lax.platform_dependent(x, w, tpu=jnp.dot, cpu=lambda x, w: (x @ w) @ w)

    assert cost.macs(named, *args) == 64  # no default: the most


def test_while_loops_are_refused_only_where_they_hold_work():
    def run(x, w):
        with jax.named_scope("solver"):
            return lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c @ w, x)

    with pytest.raises(ValueError, match=r"while loop in solver holds 32 multiply-acc.*lax.scan"):
        cost.macs(run, spec(2, 4), spec(4, 4))
    with pytest.raises(ValueError, match="while loop in solver"):
        cost.layers(run, spec(2, 4), spec(4, 4))
    idle = partial(lax.while_loop, lambda c: c.sum() < 9.0, lambda c: c + 1.0)
    assert cost.macs(idle, spec(2, 4)) == 0


def test_ragged_products_are_refused():
    sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
    with pytest.raises(ValueError, match=r"ragged_dot.* cannot be read off the jaxpr"):
        cost.macs(lax.ragged_dot, spec(6, 4), spec(3, 4, 5), sizes)


CONV1, CONV2, DENSE = 2 * 64 * 4 * 27, 2 * 64 * 6 * 36, 2 * 6 * 10
LAYERS = (
    cost.LayerCost("first/conv0", CONV1),
    cost.LayerCost("second/conv0", CONV2),
    cost.LayerCost("classifier", DENSE),
)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit], ids=["plain", "jit"])
def test_layers_are_named_by_module(remat, wrap):
    net, x = Net(remat), spec(2, 8, 8, 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert cost.layers(wrap(net.apply), variables, x) == LAYERS
    assert cost.macs(wrap(net.apply), variables, x) == CONV1 + CONV2 + DENSE


@pytest.mark.parametrize("remat", [False, True])
def test_layers_of_a_gradient_merge_forward_and_backward(remat):
    net, x = Net(remat), spec(2, 8, 8, 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)

    def loss(variables, x):
        return jnp.sum(jnp.square(net.apply(variables, x)))

    found = dict(cost.layers(jax.grad(loss), variables, x))
    # The first convolution has no input gradient; rematerialisation pays one forward more.
    assert found == {
        "first/conv0": (2 + remat) * CONV1,
        "second/conv0": (3 + remat) * CONV2,
        "classifier": 3 * DENSE,
    }
    assert sum(found.values()) == cost.macs(jax.grad(loss), variables, x)


def test_layers_of_methods_scans_and_plain_code():
    class Looped(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = Block(3, name="block")
            x = block.head(block(x))
            step = nn.scan(
                lambda _, carry, __: (nn.Dense(5, name="dense")(carry), None),
                variable_broadcast="params",
                split_rngs={"params": False},
                length=3,
            )
            return step(self, x, None)[0] @ jnp.ones((5, 2))

    net, x = Looped(), spec(1, 4, 4, 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert dict(cost.layers(net.apply, variables, x)) == {
        "block/conv0": 16 * 3 * 27,
        "block": 16 * 3 * 5,
        "dense": 3 * 16 * 5 * 5,
        "": 16 * 5 * 2,
    }
    assert cost.layers(jnp.dot, spec(7, 3), spec(3, 5)) == (cost.LayerCost("", 105),)
    dense = nn.Dense(4)
    variables = jax.eval_shape(dense.init, jax.random.key(0), spec(2, 3))
    assert cost.layers(dense.apply, variables, spec(2, 3)) == (cost.LayerCost("Dense", 24),)


def test_layers_of_two_networks_keep_their_roots():
    def both(x, w):
        with jax.named_scope("teacher/conv0"):
            y = x @ w
        with jax.named_scope("student/conv0"):
            return x @ w, y

    names = [layer.name for layer in cost.layers(both, spec(2, 3), spec(3, 3))]
    assert names == ["teacher/conv0", "student/conv0"]


def test_published_counts_of_vgg16():
    class Vgg16(nn.Module):
        @nn.compact
        def __call__(self, x):
            for features, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
                for _ in range(convs):
                    x = nn.Conv(features, (3, 3), use_bias=False)(x)
                    x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
                x = nn.max_pool(x, (2, 2), (2, 2))
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    net, x = Vgg16(), spec(1, 32, 32, 3)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert cost.macs(net.apply, variables, x) == 313_201_664
    assert cost.parameters(variables["params"]) == 14_724_042


def test_parameters_unbox_axis_metadata():
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_logical_partitioning(nn.initializers.ones, ("in", "out"))
            return x @ self.param("w", init, (3, 5))

    boxed = Named().init(jax.random.key(0), jnp.ones((2, 3)))
    abstract = jax.eval_shape(Named().init, jax.random.key(0), jnp.ones((2, 3)))
    for tree in (boxed, abstract, nn.meta.unbox(boxed)):
        assert cost.parameters(tree) == 15
    assert cost.parameters({"w": jnp.ones((2, 3)), "scale": jnp.ones(())}) == 7
    assert cost.parameters({}) == 0


def test_memory_of_a_compiled_program():
    def fn(x, y):
        return jnp.dot(x, y), x + 1.0

    x, y = spec(64, 32), spec(32, 16)
    plain = cost.memory(jax.jit(fn).lower(x, y).compile())
    assert plain is not None
    outputs = (64 * 16 + 64 * 32) * 4
    assert (plain.arguments, plain.aliased) == ((64 * 32 + 32 * 16) * 4, 0)
    # The backend may add the pointers of its result tuple.
    assert outputs <= plain.outputs <= outputs + 64
    donated = cost.memory(jax.jit(fn, donate_argnums=0).lower(x, y).compile())
    assert donated is not None
    assert donated.aliased == 64 * 32 * 4
    chex.assert_equal(
        cost.peak_bytes(plain) - cost.peak_bytes(donated),
        64 * 32 * 4 + plain.temporaries - donated.temporaries,
    )


def test_peak_bytes_adds_and_subtracts():
    assert cost.peak_bytes(cost.Memory(1000, 200, 30, 4)) == 1226


def test_memory_without_an_account_is_none():
    assert cost.memory(SimpleNamespace(memory_analysis=lambda: None)) is None


def test_memory_wants_a_compiled_program():
    with pytest.raises(ValueError, match=r"compiled program, got function: pass jax\.jit"):
        cost.memory(lambda x: x)
