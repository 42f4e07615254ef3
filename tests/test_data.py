"""Data sets by name: the bundled digits, TFDS without TensorFlow, and names that are refused."""

import hashlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tensorflow_datasets.testing  # loads the mocks: tfds offers them lazily

from experiments import readers, tfds_names, tfds_records
from experiments.data import load


def test_digits_split_is_fixed_and_stratified():
    digits = load("digits", data_dir=None)
    assert digits.train.images.shape == (1437, 8, 8, 1)
    assert digits.test.images.shape == (360, 8, 8, 1)
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int32
    assert (digits.num_classes, digits.image_shape, digits.notes) == (10, (8, 8, 1), ())
    for split in (digits.train, digits.test):
        share = np.bincount(split.labels, minlength=10) / len(split.labels)
        np.testing.assert_allclose(share, 0.1, atol=0.005)
    # Which images are in the test split must not depend on versions of anything.
    digest = hashlib.sha256(digits.test.images.tobytes() + digits.test.labels.tobytes())
    assert digest.hexdigest()[:16] == "eb33daa4a6fa9662"


def test_digits_use_the_whole_range_and_lose_nothing():
    digits = load("digits", data_dir=None)
    levels = np.unique(digits.train.images)
    assert (levels[0], levels[-1], len(levels)) == (0, 255, 17)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory):
    with tfds.testing.mock_data(num_examples=9):
        return load("cifar10", data_dir=str(tmp_path_factory.mktemp("tfds")))


def test_tfds_arrays_equal_the_records(tmp_path, cifar10):
    with tfds.testing.mock_data(num_examples=9):
        source = tfds.data_source("cifar10", split="test", data_dir=tmp_path, download=False)
        records = [source[i] for i in range(9)]
    assert cifar10.num_classes == 10
    assert cifar10.image_shape == (32, 32, 3)
    assert cifar10.class_names == tuple("0123456789")  # mocked: TFDS knows no better ones
    np.testing.assert_array_equal(cifar10.test.images, [r["image"] for r in records])
    np.testing.assert_array_equal(cifar10.test.labels, [r["label"] for r in records])
    assert cifar10.test.labels.dtype == np.int32


def test_tfds_28x28_is_padded_with_zeros_and_says_so(tmp_path):
    with tfds.testing.mock_data(num_examples=3):
        source = tfds.data_source("mnist", split="train", data_dir=tmp_path, download=False)
        inner = np.stack([source[i]["image"] for i in range(3)])
        mnist = load("mnist", data_dir=str(tmp_path))
    assert mnist.image_shape == (32, 32, 1)
    assert "28x28 images padded to 32x32 with zeros" in mnist.notes
    np.testing.assert_array_equal(mnist.train.images[:, 2:30, 2:30], inner)
    border = mnist.train.images.copy()
    border[:, 2:30, 2:30] = 0
    assert border.max() == 0


def test_tfds_is_read_without_tensorflow(tmp_path):
    """In a process where any import of TensorFlow fails as a test, not as a missing package."""
    script = (
        "import sys, types, importlib.abc, importlib.machinery\n"
        "class Trap(importlib.abc.MetaPathFinder, importlib.abc.Loader):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            return importlib.machinery.ModuleSpec(name, self)\n"
        "    def exec_module(self, module): sys.exit('imported')\n"
        "sys.meta_path.insert(0, Trap())\n"
        "import tensorflow_datasets as tfds\n"
        "from experiments.data import load\n"
        "with tfds.testing.mock_data(num_examples=2):\n"
        "    print(load('svhn_cropped', data_dir=sys.argv[1]).image_shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stdout) == (0, "(32, 32, 3)\n"), done.stderr


@pytest.mark.parametrize("label", [-1, 10])
def test_tfds_refuses_labels_out_of_range(tmp_path, label):
    def as_data_source(self, split, **kwargs):
        return [{"image": np.zeros((32, 32, 3), np.uint8), "label": i} for i in (0, label)]

    with (
        tfds.testing.mock_data(as_data_source_fn=as_data_source),
        pytest.raises(
            ValueError, match=rf"cifar10: train labels: label {label} at index 1.*0 \.\. 9"
        ),
    ):
        load("cifar10", data_dir=str(tmp_path))


def test_tfds_refuses_an_empty_split(tmp_path):
    with (
        tfds.testing.mock_data(as_data_source_fn=lambda *_args, **_kwargs: []),
        pytest.raises(ValueError, match="split 'train' is empty"),
    ):
        load("cifar10", data_dir=str(tmp_path))


def test_tfds_unprepared_gives_the_command(tmp_path):
    command = f"python -m experiments.data prepare cifar100 --data_dir {tmp_path}$"
    with pytest.raises(FileNotFoundError, match=command):
        load("cifar100", data_dir=str(tmp_path))


def test_tfds_prepared_without_random_access_says_so(tmp_path, monkeypatch):
    builder = tfds_names.open_builder("cifar10", str(tmp_path))
    monkeypatch.setattr(type(builder), "is_prepared", lambda _self: True)
    with pytest.raises(ValueError, match=r"without random access.*--data_dir OTHER_DIR"):
        load("cifar10", data_dir=str(tmp_path))


def test_tfds_without_data_dir():
    with pytest.raises(ValueError, match=r"give one with data_dir.*prepare cifar10 --data_dir DIR"):
        load("cifar10", data_dir=None)


def test_tfds_reports_damaged_files(tmp_path):
    def broken(_source, _position):
        raise RuntimeError("chunk header hash mismatch")

    source = type("Source", (), {"__len__": lambda _: 3, "__getitem__": broken})
    with (
        tfds.testing.mock_data(as_data_source_fn=lambda *_args, **_kwargs: source()),
        pytest.raises(ValueError, match=r"record 0 of split 'train' is damaged \(chunk header"),
    ):
        load("cifar10", data_dir=str(tmp_path))


def test_tfds_split_names():
    def builder(*splits):
        return SimpleNamespace(name="made_up", info=SimpleNamespace(splits=dict.fromkeys(splits)))

    assert tfds_records._split_name(builder("train", "validation", "test"), "test") == "test"
    assert tfds_records._split_name(builder("train", "validation"), "test") == "validation"
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train', 'extra'\]"):
        tfds_records._split_name(builder("train", "extra"), "test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", "unknown data set 'cifr10'; nearest names: cifar10"),
        ("digit", "nearest names: digits"),
        ("no/such", r"unknown data set 'no/such'\. Known are digits"),
        ("ag_news_subset", "not an image classification set.*'title'"),
        ("caltech101", "image sizes differ; give the side .* with image_size, such as 224"),
    ],
)
def test_names_that_are_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits", "image_size is 64, but digits is read as it is: only TFDS sets whose"),
        ("own.npz", "image_size is 64, but own.npz is read as it is"),
        ("cifar10", "image_size is 64, but all images of cifar10 are 32x32 .*: leave image_size"),
    ],
)
def test_an_image_size_where_nothing_is_cut_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load(name, data_dir=str(tmp_path), image_size=64)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'dce-jax\[data\]'"):
        load("cifar10", data_dir="anywhere")


def test_progress_changes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(readers, "_SHOW_FROM", 1)
    assert list(readers.track(range(5), what="reading")) == list(range(5))
    assert capsys.readouterr().out == ""
