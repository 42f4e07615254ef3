"""Convolutions equal to XLA's, derivatives and counts too: as products, and summed over parts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from dce_jax import convolve as module
from dce_jax import cost, networks
from dce_jax.convolve import CHANNELS_LAST, convolve


def drawn(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def plain(x, kernel, strides, padding, **options):
    """The reference: XLA's own."""
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST, **options
    )


def primitives(fn, *args):
    """Names of what a traced function calls, but for inner functions."""
    return {eqn.primitive.name for eqn in jax.make_jaxpr(fn)(*args).eqns}


PADDINGS = st.one_of(
    st.sampled_from(["SAME"]),
    st.tuples(*[st.tuples(st.integers(2, 4), st.integers(2, 4))] * 2),
)


@settings(deadline=None, max_examples=12)
@given(
    sides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.sampled_from([(3, 3), (5, 5), (3, 5), (2, 4), (1, 1)]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=PADDINGS,
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 3),
)
def test_it_is_the_convolution_and_so_are_its_gradients(
    sides, size, strides, padding, widths, batch
):
    x, kernel = drawn(batch, *sides, widths[0]), drawn(*size, *widths, seed=1)
    assert_same_with_gradients(x, kernel, strides, padding)


@pytest.mark.parametrize(("side", "product"), [(1, True), (2, True), (3, False), (8, False)])
def test_only_images_smaller_than_the_kernel_are_products(side, product):
    x, kernel = drawn(2, side, side, 20), drawn(3, 3, 20, 4)  # too many channels for bands
    used = primitives(lambda x, k: convolve(x, k, (1, 1), "SAME"), x, kernel)
    assert ("dot_general" in used, "conv_general_dilated" in used) == (product, not product)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 3, 2, 4), {"feature_group_count": 2}),
        ((3, 3, 1, 8), {"feature_group_count": 4}),
        ((3, 3, 4, 4), {"rhs_dilation": (2, 2)}),
        ((3, 3, 4, 4), {"lhs_dilation": (2, 2)}),
    ],
)
def test_grouped_and_dilated_convolutions_stay_xlas(kernel, options):
    x, kernel, pads = drawn(2, 2, 2, 4), drawn(*kernel), ((2, 2), (2, 2))
    found = convolve(x, kernel, (1, 1), pads, **options)
    np.testing.assert_array_equal(found, plain(x, kernel, (1, 1), pads, **options))


@pytest.mark.parametrize(("side", "size"), [(1, 3), (2, 3), (2, 4), (2, 5)])
def test_a_kernel_that_fits_nowhere_leaves_no_positions(side, size):
    x, kernel = drawn(2, side, side, 3), drawn(size, size, 3, 4)
    expected = plain(x, kernel, (1, 1), "VALID")
    assert convolve(x, kernel, (1, 1), "VALID").shape == expected.shape == (2, 0, 0, 4)


def test_nor_does_one_that_fits_in_one_direction_only():
    x, kernel = drawn(2, 2, 8, 3), drawn(3, 3, 3, 4)
    expected = plain(x, kernel, (2, 2), "VALID")
    assert convolve(x, kernel, (2, 2), "VALID").shape == expected.shape == (2, 0, 3, 4)


def test_channels_first_stay_xlas():
    x, kernel = drawn(2, 4, 2, 2), drawn(3, 3, 4, 5)
    numbers = ("NCHW", "HWIO", "NCHW")
    found = convolve(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    expected = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(found, expected)


def test_it_counts_as_much_forward_and_backward():
    x, kernel = drawn(3, 2, 2, 4), drawn(3, 3, 4, 5)
    for fn in (plain, convolve):
        forward = cost.macs(lambda x, k, fn=fn: fn(x, k, (1, 1), "SAME"), x, kernel)
        assert forward == 3 * 2 * 2 * 9 * 4 * 5
        loss = jax.grad(lambda x, k, fn=fn: fn(x, k, (1, 1), "SAME").sum(), argnums=(0, 1))
        assert cost.macs(loss, x, kernel) == 3 * forward


def test_types_and_second_derivatives_are_those_of_the_convolution():
    x, kernel = drawn(2, 2, 2, 3, dtype=jnp.bfloat16), drawn(3, 3, 3, 4, dtype=jnp.bfloat16)
    assert convolve(x, kernel, (1, 1), "SAME").dtype == jnp.bfloat16
    x, kernel, along = drawn(2, 2, 2, 3), drawn(3, 3, 3, 4), drawn(3, 3, 3, 4, seed=5)
    bent = []
    for fn in (plain, convolve):
        loss = jax.grad(lambda k, fn=fn: jnp.sum(jnp.tanh(fn(x, k, (1, 1), "SAME"))))
        bent.append(jax.jvp(loss, (kernel,), (along,))[1])
    np.testing.assert_allclose(bent[1], bent[0], rtol=1e-4, atol=1e-5)


def test_the_last_layers_of_a_vgg_are_products():
    network = networks.build("vgg16", num_classes=10, width=0.5)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(lambda v, x: network.apply(v, x))(variables, x)
    text = str(traced)
    assert text.count("conv_general_dilated[") == 10  # 13 layers, of which three see 2x2


def assert_same_with_gradients(x, kernel, strides, padding, fns=(plain, convolve)):
    (expected, pull), (found, pulled) = (
        jax.vjp(lambda x, k, fn=fn: fn(x, k, strides, padding), x, kernel) for fn in fns
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    slope = drawn(*expected.shape, seed=2)
    for mine, its in zip(pulled(slope), pull(slope), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)


@pytest.fixture
def large(monkeypatch):
    """A kernel of 3x3x4x5 is large."""
    monkeypatch.setattr(module, "LARGE_BYTES", 4 * 9 * 4 * 5)


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 1), ((1, 1), (0, 2)))])
def test_a_large_kernel_over_few_positions_is_a_product_on_a_cpu(large, strides, padding):
    x, kernel = drawn(1, 4, 4, 4), drawn(3, 3, 4, 5, seed=1)

    fn = partial(convolve, strides=strides, padding=padding)
    assert_same_with_gradients(x, kernel, strides, padding)
    assert cost.macs(fn, x, kernel) == cost.macs(
        lambda x, k: plain(x, k, strides, padding), x, kernel
    )
    for platform, count in (("cpu", 0), ("tpu", 1), ("cuda", 1)):
        assert convolutions(platform, fn, x, kernel) == count, platform


def test_a_product_for_few_positions_counts_and_keeps_as_much(large):
    x, kernel = drawn(1, 4, 4, 4), drawn(3, 3, 4, 5)
    assert_counts_and_keeps_as_much(x, kernel)


def assert_counts_and_keeps_as_much(x, kernel, fns=(plain, convolve)):
    counts, bytes_kept = [], []
    for fn in fns:

        def loss(k, x, fn=fn):
            return jnp.sum(jnp.tanh(fn(jnp.sin(x), k, (1, 1), "SAME")))

        counts.append(cost.macs(jax.grad(loss, argnums=(0, 1)), kernel, x))
        bytes_kept.append(cost.kept_bytes(loss, kernel, x))
    assert counts[0] == counts[1]
    # But for a few numbers, such as which platform it is.
    assert bytes_kept[0] <= bytes_kept[1] <= bytes_kept[0] + 16


def test_many_positions_and_small_kernels_are_no_products(large):
    x, kernel = drawn(1, 4, 4, 4), drawn(3, 3, 4, 5)

    def count(x, k):
        return convolutions("cpu", lambda x, k: convolve(x, k, (1, 1), "SAME"), x, k)

    assert count(x, kernel) == 0
    assert count(drawn(2, 4, 4, 4), kernel) == 1  # 32 positions
    assert count(x, kernel[..., :4]) == 1


@pytest.fixture
def parts(monkeypatch):
    """Batches of small images fall into parts of two."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(module, "PART_BYTES", 2400)


def test_batches_fall_into_the_fewest_equal_parts_that_are_small(monkeypatch):
    x, kernel = drawn(12, 5, 5, 4), drawn(3, 3, 4, 6)
    whole = partial(plain, strides=(1, 1), padding="SAME")
    one = 4 * (5 * 5 * 4 + 5 * 5 * 6)  # bytes of an image and its outputs
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for images, count in [(12, 1), (11, 2), (6, 2), (5, 3), (4, 3), (2, 6), (1, 12), (0.5, 12)]:
        monkeypatch.setattr(module, "PART_BYTES", images * one)
        assert module._parts(whole, x, kernel) == count, images
    monkeypatch.setattr(module, "PART_BYTES", 6 * one)
    assert module._parts(whole, x[:7], kernel) == 7  # a prime number of images
    half = module._parts(whole, x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert half == 1
    # Each device has as many images of a part as any other.
    for devices, count in [(1, 12), (2, 6), (3, 4), (4, 3), (5, 1), (12, 1), (16, 1)]:
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        monkeypatch.setattr(module, "PART_BYTES", one)
        assert module._parts(whole, x, kernel) == count, devices


@pytest.mark.parametrize("batch", [1, 7, 12])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 2), ((1, 1), (0, 1)))])
def test_gradients_in_parts_are_those_of_the_convolution(parts, batch, strides, padding):
    x, kernel = drawn(batch, 6, 5, 4), drawn(3, 3, 4, 5, seed=1)
    expected, pull = jax.vjp(lambda x, k: plain(x, k, strides, padding), x, kernel)
    found, pulled = jax.vjp(lambda x, k: convolve(x, k, strides, padding), x, kernel)
    np.testing.assert_array_equal(found, expected)
    slope = drawn(*expected.shape, seed=2)
    for mine, its in zip(pulled(slope), pull(slope), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-4)
    alone = jax.grad(lambda k: jnp.vdot(convolve(x, k, strides, padding), slope))(kernel)
    np.testing.assert_allclose(alone, pull(slope)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", [(4, 5), (7, 13)])
def test_every_other_derivative_in_parts_is_that_of_the_convolution(parts, widths):
    x, kernel = drawn(12, 6, 5, widths[0]), drawn(3, 3, *widths, seed=1)
    assert_every_other_derivative(x, kernel, plain, convolve)


def assert_every_other_derivative(x, kernel, *fns):
    along = (drawn(*x.shape, seed=2), drawn(*kernel.shape, seed=3))
    found = []
    for fn in fns:

        def loss(x, k, fn=fn):
            return jnp.sum(jnp.tanh(fn(x, k, (1, 1), "SAME")))

        def length(x, k, loss=loss):
            return jnp.sum(jax.grad(loss, argnums=1)(x, k) ** 2)

        slopes = jax.grad(loss, argnums=(0, 1))
        forward = jax.jvp(loss, (x, kernel), along)[1]
        one = jax.jvp(lambda k, loss=loss: loss(x, k), (kernel,), along[1:])[1]
        bent = jax.jvp(slopes, (x, kernel), along)[1]
        twice = jax.grad(length, argnums=(0, 1))(x, kernel)
        several = jax.vmap(slopes, (0, None))(jnp.stack([x, -x]), kernel)
        kept = jax.grad(jax.checkpoint(loss), argnums=1)(x, kernel)
        still = jax.jvp(lambda y, loss=loss: y * loss(x, kernel), (2.0,), (3.0,))
        found.append((forward, one, bent, twice, several, kept, still))
    for mine, its in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(mine, its, rtol=2e-3, atol=2e-3)


def convolutions(platform, fn, *args):
    lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("stablehlo.convolution")


def test_only_gradients_on_a_cpu_are_in_parts(parts):
    x, kernel = drawn(12, 6, 5, 4), drawn(3, 3, 4, 5)

    def fn(x, k):
        return convolve(x, k, (1, 1), "SAME").sum()

    both = jax.grad(fn, argnums=(0, 1))
    for platform, count in (("cpu", 6), ("tpu", 1), ("cuda", 1)):
        assert convolutions(platform, fn, x, kernel) == 1
        # The sum needs no outputs, so what is left is the gradients of inputs and of the kernel.
        assert convolutions(platform, both, x, kernel) == 1 + count, platform
        assert convolutions(platform, jax.grad(fn, argnums=1), x, kernel) == count, platform


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 1), ((1, 1), (0, 2)))])
def test_one_by_one_kernels_are_products_on_a_cpu(parts, strides, padding):
    x, kernel = drawn(12, 6, 5, 7), drawn(1, 1, 7, 13, seed=1)

    def fn(x, k):
        return jnp.sum(jnp.tanh(convolve(x, k, strides, padding)))

    both = jax.grad(fn, argnums=(0, 1))
    for platform, count in (("cpu", 0), ("tpu", 3), ("cuda", 3)):
        assert convolutions(platform, both, x, kernel) == count, platform
    # A choice by platform would round what XLA keeps in float32 between narrower layers.
    assert convolutions("cpu", both, x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)) == 3
    assert_same_with_gradients(x, kernel, strides, padding)
    assert_counts_and_keeps_as_much(x, kernel)


def test_every_other_derivative_of_a_one_by_one_kernel_is_that_of_the_convolution():
    assert_every_other_derivative(drawn(5, 4, 3, 4), drawn(1, 1, 4, 5, seed=1), plain, convolve)


def test_a_sharded_batch_of_a_one_by_one_kernel_stays_sharded():
    assert_stays_sharded(drawn(24, 6, 5, 4), drawn(1, 1, 4, 4), convolve)


def test_products_of_one_by_one_kernels_are_of_matrices():
    # Over several axes of positions XLA would copy images transposed for the kernel's gradient.
    x, kernel = drawn(4, 8, 8, 6), drawn(1, 1, 6, 5, seed=1)
    both = jax.grad(lambda x, k: jnp.sum(convolve(x, k, (1, 1), "SAME") ** 2), argnums=(0, 1))
    lowered = jax.jit(both).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    products = [line for line in lowered.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) == 3
    assert all("256x" in line and "4x8x8" not in line for line in products), products


def test_parts_count_as_much_as_the_convolution(parts):
    x, kernel = drawn(12, 6, 5, 4), drawn(3, 3, 4, 5)
    loss = jax.grad(lambda x, k: convolve(x, k, (1, 1), "SAME").sum(), argnums=(0, 1))
    assert cost.macs(loss, x, kernel) == 3 * 12 * 6 * 5 * 9 * 4 * 5


def test_parts_keep_as_much_as_the_convolution(parts):
    assert_counts_and_keeps_as_much(drawn(12, 6, 5, 4), drawn(3, 3, 4, 5))


@pytest.mark.parametrize("widths", [(7, 13), (4, 15), (7, 8), (25, 3), (120, 2)])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 1), ((1, 1), (0, 2)))])
def test_slow_widths_are_the_convolution_and_get_zeros_on_a_cpu(widths, strides, padding):
    # Of an odd number of columns none are joined (test_bands.py).
    x, kernel = drawn(3, 5, 3, widths[0]), drawn(3, 3, *widths, seed=1)

    fn = partial(convolve, strides=strides, padding=padding)
    assert_same_with_gradients(x, kernel, strides, padding)
    own = f"3x3x{widths[0]}x{widths[1]}xf32"
    full = "3x3x" + "x".join(str(module._filled(width)) for width in widths) + "xf32"
    assert own != full
    for platform, kept in (("cpu", full), ("tpu", own), ("cuda", own)):
        lowered = jax.jit(fn).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        (line,) = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
        assert kept in line, platform
    assert_counts_and_keeps_as_much(x, kernel)


def test_other_widths_get_none():
    same = (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 20, 24, 32, 40, 48, 64, 65, 112, 119, 128, 129, 255)
    assert [module._filled(width) for width in same] == list(same)
    slow = {7: 8, 13: 16, 15: 16, 25: 32, 31: 32, 49: 64, 63: 64, 120: 128, 127: 128}
    assert {width: module._filled(width) for width in slow} == slow


def test_a_sharded_batch_stays_sharded_in_parts(parts, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert_stays_sharded(drawn(24, 6, 5, 4), drawn(3, 3, 4, 5), convolve)


def assert_stays_sharded(x, kernel, fn):
    devices = np.array(jax.devices()[:4])
    mesh = jax.sharding.Mesh(devices, ("batch",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    slope = jax.jit(jax.grad(lambda k, x: jnp.sum(jnp.tanh(fn(x, k, (1, 1), "SAME")))))
    alone = slope(kernel, x)
    over = slope.lower(kernel, jax.device_put(x, spread)).compile()
    np.testing.assert_allclose(over(kernel, jax.device_put(x, spread)), alone, rtol=1e-4, atol=1e-4)
    text = over.as_text()
    assert "all-reduce" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def depthwise(x, kernel, strides, padding):
    return convolve(x, kernel, strides, padding, feature_group_count=x.shape[3])


def grouped(x, kernel, strides, padding):
    """The reference: XLA's own."""
    return plain(x, kernel, strides, padding, feature_group_count=x.shape[3])


@settings(deadline=None, max_examples=12)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.sampled_from([(3, 3), (5, 5), (2, 4), (1, 1)]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=PADDINGS,
    channels=st.integers(2, 5),
    batch=st.integers(1, 3),
)
def test_channels_alone_are_the_convolution_and_so_are_their_gradients(
    sides, size, strides, padding, channels, batch
):
    x, kernel = drawn(batch, *sides, channels), drawn(*size, 1, channels, seed=1)
    assert_same_with_gradients(x, kernel, strides, padding, fns=(grouped, depthwise))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_channels_alone_add_up_in_float32(dtype):
    x, kernel = drawn(2, 9, 8, 5, dtype=dtype), drawn(3, 3, 1, 5, seed=1, dtype=dtype)
    found, pulled = jax.vjp(lambda x, k: depthwise(x, k, (2, 1), "SAME"), x, kernel)
    exact, pull = jax.vjp(
        lambda x, k: grouped(x, k, (2, 1), "SAME"),
        x.astype(jnp.float32),
        kernel.astype(jnp.float32),
    )
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, exact.astype(dtype))
    for mine, its in zip(pulled(found), pull(found.astype(jnp.float32)), strict=True):
        assert mine.dtype == dtype
        np.testing.assert_allclose(
            mine.astype(jnp.float32), its, rtol=4 * jnp.finfo(dtype).eps, atol=1e-4
        )


def test_every_other_derivative_of_channels_alone_is_that_of_the_convolution():
    assert_every_other_derivative(drawn(12, 6, 5, 4), drawn(3, 3, 1, 4, seed=1), grouped, depthwise)


@pytest.mark.parametrize("multiplier", [1, 2])
def test_only_on_a_cpu_and_only_channels_alone_are_sums(multiplier):
    x, kernel = drawn(2, 6, 5, 4), drawn(3, 3, 1, 4 * multiplier)

    def loss(x, k):
        return jnp.sum(jnp.tanh(depthwise(x, k, (1, 1), "SAME")))

    for platform, count in (("cpu", 3 * (multiplier - 1)), ("tpu", 3), ("cuda", 3)):
        slopes = jax.grad(loss, argnums=(0, 1))
        assert convolutions(platform, slopes, x, kernel) == count, platform


def test_channels_alone_count_and_keep_as_much():
    x, kernel = drawn(3, 6, 5, 4), drawn(3, 3, 1, 4)
    assert_counts_and_keeps_as_much(x, kernel, fns=(grouped, depthwise))
    assert cost.macs(lambda x, k: depthwise(x, k, (1, 1), "SAME"), x, kernel) == 3 * 6 * 5 * 9 * 4


def test_a_sharded_batch_of_channels_alone_stays_sharded():
    assert_stays_sharded(drawn(24, 6, 5, 4), drawn(3, 3, 1, 4), depthwise)


def test_depthwise_layers_are_sums():
    network = networks.build("mobilenetv2-cifar", num_classes=10, width=0.125)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)
    # Of 17 blocks all but the first have two convolutions that are not depthwise. On a CPU they,
    # with kernels of 1x1, are products.
    assert convolutions("cpu", network.apply, variables, x) == 1
    assert convolutions("tpu", network.apply, variables, x) == 1 + 1 + 2 * 16 + 1 + 17
