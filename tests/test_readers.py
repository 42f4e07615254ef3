"""A user's own images, from .npz files and folders, and the statistics of their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import dataset
from experiments.data import load

RNG = np.random.default_rng(0)


def arrays(**changes):
    values = {
        "train_images": RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(6) % 3,
        "test_images": RNG.integers(0, 256, (4, 4, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(4) % 3,
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def npz(tmp_path, **changes):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changes))
    return str(path)


def save(path: Path, shape, mode="RGB", value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = RNG.integers(0, 256, (*shape, *channels), dtype=np.uint8)
    pixels = pixels if value is None else np.full_like(pixels, value)
    Image.fromarray(pixels).save(path)
    return pixels


def folder(tmp_path, mode="RGB"):
    kept = {}
    for part, names in (("train", ("cat", "ant")), ("test", ("ant",))):
        for name in names:
            for i in range(2):
                path = tmp_path / part / name / f"{i}.png"
                kept[part, name, i] = save(path, (4, 5), mode)
    return kept


# Statistics


def test_statistics_are_those_of_the_training_images(tmp_path):
    values = arrays()
    own = load(npz(tmp_path, **values), data_dir=None)
    scaled = values["train_images"] / 255
    np.testing.assert_allclose(own.mean, scaled.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(own.std, scaled.std((0, 1, 2)), atol=1e-12)


def test_statistics_count_every_chunk(monkeypatch):
    images = arrays()["train_images"]
    whole = dataset.pixel_statistics(images)
    monkeypatch.setattr(dataset, "_CHUNK", 4)
    assert dataset.pixel_statistics(images) == whole


def test_a_constant_channel_has_std_one():
    images = arrays()["train_images"].copy()
    images[..., 1] = 7
    mean, std = dataset.pixel_statistics(images)
    assert std[1] == 1.0
    assert mean[1] == pytest.approx(7 / 255)


# npz


def test_npz_is_read_as_it_is(tmp_path):
    values = arrays()
    own = load(npz(tmp_path, **values), data_dir=None)
    np.testing.assert_array_equal(own.train.images, values["train_images"])
    np.testing.assert_array_equal(own.test.labels, values["test_labels"])
    assert own.train.labels.dtype == np.int32
    assert (own.num_classes, own.image_shape, own.notes) == (3, (4, 5, 3), ())
    assert own.class_names == ()


def test_npz_gray_images_get_one_channel(tmp_path):
    values = arrays()
    gray = {key: values[key][..., 0] for key in ("train_images", "test_images")}
    own = load(npz(tmp_path, **gray), data_dir=None)
    assert own.image_shape == (4, 5, 1)
    np.testing.assert_array_equal(own.train.images[..., 0], gray["train_images"])


def test_npz_says_which_classes_have_no_images(tmp_path):
    own = load(npz(tmp_path, train_labels=np.arange(6) % 3 + 1), data_dir=None)
    assert own.num_classes == 4
    assert own.notes == ("1 of 4 classes have no training image",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((6, 4, 5, 3), np.float32)}, "dtype float32.*must be uint8"),
        ({"train_images": np.zeros((6, 60), np.uint8)}, r"\(6, 60\) has rank 2"),
        ({"test_images": np.zeros((4, 3, 32, 32), np.uint8)}, "channels-first.*transpose"),
        ({"test_images": np.zeros((0, 4, 5, 3), np.uint8)}, "holds no images"),
        ({"test_images": np.zeros((4, 5, 5, 3), np.uint8)}, r"\(4, 5, 3\).*\(5, 5, 3\)"),
        ({"train_labels": np.arange(5) % 3}, "train_labels: 5 labels for 6 images"),
        ({"train_labels": np.zeros((6, 3), np.int32)}, "rank 2.*argmax"),
        ({"train_labels": np.zeros(6)}, "dtype float64.*integers"),
        ({"train_labels": np.array([0, 1, 2, 0, -1, 2])}, "label -1 at index 4"),
        ({"train_labels": np.array([0, 1, 2, 0, 2**40, 2])}, "label 1099511627776 at index 4"),
        ({"test_labels": np.array([0, 3, 1, 2])}, r"test_labels: label 3 at index 1.*0 \.\. 2"),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(4, int)}, "1 class; .*2"),
        ({"test_labels": None}, r"lacks \['test_labels'\].*train_images"),
        ({"train_labels": np.array([None] * 6)}, "not a readable|allow_pickle"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(npz(tmp_path, **changes), data_dir=None)


def test_npz_broken_or_missing(tmp_path):
    path = Path(npz(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load(str(path), data_dir=None)
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist.*train_images"):
        load(str(tmp_path / "none.npz"), data_dir=None)


# Folders


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_folder_labels_are_sorted_class_names(tmp_path, mode):
    kept = folder(tmp_path, mode)
    own = load(str(tmp_path), data_dir=None)
    assert own.train.labels.tolist() == [0, 0, 1, 1]
    assert own.test.labels.tolist() == [0, 0]
    assert own.image_shape == (4, 5, 3 if mode == "RGB" else 1)
    assert own.class_names == ("ant", "cat")
    expected = kept["train", "cat", 1].reshape(own.image_shape)
    np.testing.assert_array_equal(own.train.images[3], expected)
    np.testing.assert_array_equal(
        own.test.images[0], kept["test", "ant", 0].reshape(own.image_shape)
    )


def test_folder_order_is_that_of_the_names(tmp_path):
    """And not that of the file system."""
    for i, name in enumerate("ecadfb"):
        for number in (2, 0, 1):
            value = 10 * "abcdef".index(name) + number
            save(tmp_path / "train" / name / f"{number}.png", (4, 5), value=value)
        save(tmp_path / "test" / name / "0.png", (4, 5), value=i)
    own = load(str(tmp_path), data_dir=None)
    expected = [10 * label + number for label in range(6) for number in range(3)]
    assert own.train.images[:, 0, 0, 0].tolist() == expected
    assert own.test.images[:, 0, 0, 0].tolist() == ["ecadfb".index(name) for name in "abcdef"]


def test_folder_one_coloured_image_makes_all_rgb(tmp_path):
    folder(tmp_path, "L")
    save(tmp_path / "test" / "ant" / "2.PNG", (4, 5), "RGB")
    own = load(str(tmp_path), data_dir=None)
    assert own.image_shape == (4, 5, 3)
    np.testing.assert_array_equal(own.train.images[..., 0], own.train.images[..., 2])


def test_folder_reads_jpeg_and_skips_other_files(tmp_path):
    folder(tmp_path)
    save(tmp_path / "train" / "ant" / "z.jpg", (4, 5), value=200)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    own = load(str(tmp_path), data_dir=None)
    assert own.train.labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(own.train.images[2], 200, atol=2)


def test_folder_refuses_other_sizes(tmp_path):
    folder(tmp_path)
    save(tmp_path / "test" / "ant" / "odd.png", (7, 5))
    with pytest.raises(ValueError, match=r"odd\.png is 7x5 .*ant.0\.png is 4x5; resize"):
        load(str(tmp_path), data_dir=None)


def test_folder_refuses_what_is_no_image(tmp_path):
    folder(tmp_path)
    path = tmp_path / "train" / "ant" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"):
        load(str(tmp_path), data_dir=None)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image"):
        load(str(tmp_path), data_dir=None)
    save(path, (4, 5), "RGBA")
    with pytest.raises(ValueError, match=r"1\.png: pixel mode 'RGBA'"):
        load(str(tmp_path), data_dir=None)


def test_folder_refuses_missing_or_unknown_parts(tmp_path):
    folder(tmp_path)
    save(tmp_path / "test" / "dog" / "0.png", (4, 5))
    with pytest.raises(ValueError, match=r"\['dog'\] have no folder under train.*'ant', 'cat'"):
        load(str(tmp_path), data_dir=None)
    for path in sorted((tmp_path / "test").rglob("*.png")):
        path.unlink()
    (tmp_path / "test" / "dog").rmdir()
    with pytest.raises(ValueError, match="test: no images"):
        load(str(tmp_path), data_dir=None)
    (tmp_path / "test" / "ant").rmdir()
    (tmp_path / "test").rmdir()
    with pytest.raises(ValueError, match="test is missing"):
        load(str(tmp_path), data_dir=None)
