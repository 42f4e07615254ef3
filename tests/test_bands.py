"""Few channels in bands: XLA's convolution of neighbouring columns as channels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_convolve import (
    assert_counts_and_keeps_as_much,
    assert_every_other_derivative,
    assert_same_with_gradients,
    assert_stays_sharded,
    convolutions,
    drawn,
    plain,
)

from dce_jax import bands
from dce_jax.convolve import convolve

PADDINGS = ["SAME", "VALID", ((1, 1), (1, 1)), ((0, 2), (0, 3)), ((2, 0), (5, 1)), ((1, 1), (3, 4))]


@settings(deadline=None, max_examples=20)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.sampled_from(PADDINGS),
    count=st.sampled_from([2, 4]),
    blocks=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_band_is_the_convolution(size, strides, padding, count, blocks, channels):
    width = count * strides[1] * blocks
    x, kernel = drawn(2, 5, width, channels[0]), drawn(*size, *channels, seed=1)
    expected = plain(x, kernel, strides, padding)
    found = partial(bands.convolve, count=count, strides=strides, padding=padding)
    assume(expected.size and expected.shape[2] % count == 0)  # `columns` asks for nothing else
    np.testing.assert_allclose(found(x, kernel), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "channels", "strides", "padding", "count"),
    [
        ((32, 32), (3, 4), (1, 1), "SAME", 8),
        ((32, 32), (4, 4), (1, 1), "SAME", 4),
        ((32, 32), (8, 8), (1, 1), "SAME", 2),
        ((32, 32), (3, 16), (1, 1), "SAME", 2),
        ((32, 32), (16, 3), (1, 1), "SAME", 2),
        ((32, 32), (16, 16), (1, 1), "SAME", 1),
        ((32, 32), (3, 17), (1, 1), "SAME", 1),
        ((32, 32), (1, 1), (1, 1), "SAME", 16),
        ((32, 32), (4, 8), (2, 2), "SAME", 2),
        ((32, 32), (4, 8), (2, 1), "SAME", 4),
        ((32, 32), (8, 16), (2, 2), "SAME", 1),
        ((4, 6), (4, 4), (1, 1), "SAME", 2),
        ((4, 7), (4, 4), (1, 1), "SAME", 1),
        ((4, 4), (4, 4), (1, 1), "SAME", 4),
        ((8, 8), (4, 4), (1, 1), "VALID", 2),
        ((8, 9), (4, 4), (1, 1), "VALID", 1),
        ((8, 8), (4, 4), (1, 1), ((1, 1), (2, 0)), 4),
    ],
)
def test_columns_are_as_many_as_pay_and_divide_both_widths(
    image, channels, strides, padding, count
):
    found = bands.columns((64, *image, channels[0]), (3, 3, *channels), strides, padding)
    assert found == count


@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 2), ((1, 1), (0, 1)))])
@pytest.mark.parametrize("widths", [(3, 4), (7, 3), (1, 1)])  # 7 gets a zero
def test_few_channels_and_their_gradients_are_the_convolution(widths, strides, padding):
    x, kernel = drawn(3, 6, 8, widths[0]), drawn(3, 3, *widths, seed=1)
    assert bands.columns((3, 6, 8, 8), (3, 3, 8, widths[1]), strides, padding) > 1
    assert_same_with_gradients(x, kernel, strides, padding)
    assert_counts_and_keeps_as_much(x, kernel)


def test_every_other_derivative_of_few_channels_is_that_of_the_convolution():
    assert_every_other_derivative(drawn(4, 6, 8, 3), drawn(3, 3, 3, 4, seed=1), plain, convolve)


def test_only_cpus_see_bands():
    x, kernel = drawn(3, 6, 8, 3), drawn(3, 3, 3, 4)
    band, own = "3x3x24x32xf32", "3x3x3x4xf32"
    for platform, kept, other in (("cpu", band, own), ("tpu", own, band), ("cuda", own, band)):
        fn = partial(convolve, strides=(1, 1), padding="SAME")
        lowered = jax.jit(fn).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        (line,) = [line for line in lowered.splitlines() if "stablehlo.convolution" in line]
        assert kept in line and other not in line, platform


def test_the_gradient_of_the_kernel_is_not_in_bands():
    x, kernel = drawn(3, 6, 8, 3), drawn(3, 3, 3, 4)
    slope = jax.grad(lambda k: convolve(x, k, (1, 1), "SAME").sum())
    text = jax.jit(slope).lower(kernel).as_text()
    (line,) = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert "3x6x8x3xf32" in line  # the images, as they are
    assert convolutions("cpu", slope, kernel) == 1


def test_a_sharded_batch_stays_sharded_in_bands():
    assert_stays_sharded(drawn(24, 6, 8, 3), drawn(3, 3, 3, 4), convolve)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_types_stay_xlas(dtype):
    x, kernel = drawn(3, 6, 8, 3, dtype=dtype), drawn(3, 3, 3, 4, dtype=dtype)
    lowered = jax.jit(partial(convolve, strides=(1, 1), padding="SAME")).lower(x, kernel).as_text()
    assert "3x3x3x4x" in lowered and "3x3x24x32x" not in lowered
