"""Windows of images of any size: where they lie, and that the middle is scale-then-crop."""

import io

import numpy as np
import pytest
import tfds_dirs
from PIL import Image

from experiments import views

RNG = np.random.default_rng(0)
SIZES = [(500, 375), (375, 500), (31, 40), (3, 2), (1, 1), (1, 50), (900, 20)]


def noise(width, height):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_windows_lie_inside_the_image(width, height):
    rng = np.random.default_rng(1)
    for _ in range(300):
        left, top, right, bottom = views._random_box(width, height, rng)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_random_windows_have_every_area_shape_and_place_that_is_allowed():
    rng = np.random.default_rng(2)
    boxes = np.array([views._random_box(500, 375, rng) for _ in range(3000)])
    left, top, right, bottom = boxes.T
    area, ratio = (right - left) * (bottom - top) / (500 * 375), (right - left) / (bottom - top)
    assert 0.08 * 0.98 < area.min() < 0.1 and 0.95 < area.max() <= 1
    assert 0.75 * 0.98 < ratio.min() < 0.78 and 1.3 < ratio.max() < 4 / 3 * 1.02
    assert left.min() == top.min() == 0 and (right.max(), bottom.max()) == (500, 375)
    assert len(np.unique(left)) > 200 and len(np.unique(top)) > 150


@pytest.mark.parametrize(
    ("width", "height", "box"), [(900, 20, (1310 / 3, 0, 1390 / 3, 20)), (9, 90, (0, 39, 9, 51))]
)
def test_too_narrow_images_give_their_middle_of_the_longest_shape(width, height, box, monkeypatch):
    monkeypatch.setattr(views, "_TRIES", 0)
    assert views._random_box(width, height, RNG) == pytest.approx(box)


@pytest.mark.parametrize("view", [views.random_window, views.middle])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_views_have_one_size_whatever_the_image(view, width, height):
    for size in (1, 8, 32):
        cut = view(Image.fromarray(noise(width, height)), np.random.default_rng(0), size)
        assert (cut.shape, cut.dtype) == ((size, size, 3), np.uint8)
    plain = Image.new("RGB", (width, height), (10, 20, 30))
    flat = view(plain, np.random.default_rng(0), 8)
    np.testing.assert_array_equal(flat, np.broadcast_to(np.uint8([10, 20, 30]), (8, 8, 3)))


def test_a_random_window_is_the_scaled_crop_of_its_box():
    image = Image.fromarray(noise(60, 45))
    box = views._random_box(60, 45, np.random.default_rng(3))
    cut = views.random_window(image, np.random.default_rng(3), 16)
    # Cut first and scaled then, the borders of the window see less of the image.
    crop = image.crop(box).resize((16, 16), Image.Resampling.BILINEAR)
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(cut[inner].astype(int) - np.asarray(crop)[inner]).max() <= 2


@pytest.mark.parametrize("flipped", [False, True])
def test_the_middle_is_the_short_side_scaled_to_256_and_224_cut_out(flipped):
    pixels = noise(768, 512)
    scaled = Image.fromarray(pixels).resize((384, 256), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((80, 16, 304, 240)))
    if flipped:
        pixels, expected = (np.swapaxes(a, 0, 1) for a in (pixels, expected))
    found = views.middle(Image.fromarray(np.ascontiguousarray(pixels)), RNG, 224)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P")]
)
def test_all_modes_become_rgb(kind, mode):
    gray = np.full((6, 5, 3), 204, np.uint8)  # which the palette of the web has, too
    decoded = views.decode(tfds_dirs.encode(gray, kind, mode))
    assert (decoded.mode, decoded.size) == ("RGB", (5, 6))
    np.testing.assert_allclose(np.asarray(decoded), 204, atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_is_broken_is_refused(kind):
    whole = tfds_dirs.encode(noise(40, 30), kind)
    for part in (whole[: len(whole) // 2], whole[:30], b"", b"no image"):
        with pytest.raises(ValueError, match=r"(?i)truncated|not an image of a known format"):
            views.decode(part)
    assert Image.open(io.BytesIO(whole)).size == (40, 30)


def test_huge_images_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"Image size \(1200 pixels\) exceeds limit"):
        views.decode(tfds_dirs.encode(noise(40, 30)))
