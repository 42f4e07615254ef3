"""Crop, flip and normalisation against plain slices and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.augment import Augment, augment_batch, normalise

SHAPE = (6, 5, 3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (23, *SHAPE), dtype=np.uint8)
MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)


def plain(images):
    return (images.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)


def oracle(image, shift_y, shift_x, mirror, pad):
    """The window of the padded image, cut with plain slices."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    y, x = pad + shift_y, pad + shift_x
    window = padded[y : y + height, x : x + width]
    return window[:, ::-1] if mirror else window


def windows(image, augment):
    """(shift_y, shift_x, mirror) -> the image that this draw gives."""
    pad = augment.crop
    mirrors = (False, True) if augment.flip else (False,)
    shifts = range(-pad, pad + 1)
    return {
        oracle(image, y, x, mirror, pad).tobytes(): (y, x, mirror)
        for y in shifts
        for x in shifts
        for mirror in mirrors
    }


@pytest.mark.parametrize("augment", [Augment(2, True), Augment(2, False), Augment(0, True)])
def test_augment_draws_every_window_and_nothing_else(augment):
    image = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
    expected = windows(image, augment)
    many = jnp.asarray(np.broadcast_to(image, (1500, *SHAPE)))
    out = np.asarray(jax.jit(augment_batch, static_argnums=2)(jax.random.key(1), many, augment))
    assert out.dtype == np.uint8
    drawn = [expected.get(window.tobytes()) for window in out]
    assert None not in drawn
    assert set(drawn) == set(expected.values())
    counts = [drawn.count(draw) for draw in expected.values()]
    assert max(counts) < 1.8 * 1500 / len(expected)


def test_augment_is_exact_at_the_lowest_matmul_precision():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    with jax.default_matmul_precision("bfloat16"):
        out = augment_batch(jax.random.key(0), jnp.asarray(values), Augment(flip=True, crop=1))
    assert np.asarray(out)[0].tobytes() in windows(values[0], Augment(1, True))


def test_no_augmentation_leaves_images_alone():
    images = jnp.asarray(IMAGES)
    assert augment_batch(jax.random.key(0), images, Augment()) is images


def test_augment_refuses():
    with pytest.raises(ValueError, match="crop is -1"):
        Augment(crop=-1)
    with pytest.raises(ValueError, match=r"crop is 5, but images are 6x5.*at most 4"):
        augment_batch(jax.random.key(0), jnp.asarray(IMAGES), Augment(crop=5))


def test_normalise_equals_numpy_and_gives_the_dtype():
    images = jnp.asarray(IMAGES)
    np.testing.assert_allclose(normalise(images, MEAN, STD), plain(IMAGES), atol=1e-6)
    low = normalise(images, MEAN, STD, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, normalise(images, MEAN, STD).astype(jnp.bfloat16))
    one = normalise(images[0], MEAN, STD)
    np.testing.assert_allclose(one, plain(IMAGES[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mean", "std", "message"),
    [
        (jnp.float32, MEAN, STD, "float32, but raw pixels must be uint8"),
        (jnp.uint8, MEAN[:2], STD, "3 channels"),
        (jnp.uint8, MEAN, STD[:1], "3 channels"),
        (jnp.uint8, MEAN, (0.2, 0.0, 0.4), "positive std"),
    ],
)
def test_normalise_refuses(dtype, mean, std, message):
    with pytest.raises(ValueError, match=message):
        normalise(jnp.zeros((2, *SHAPE), dtype), mean, std)
