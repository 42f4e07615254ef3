"""The shipped recipes on other data sets, with the words that their docstrings give."""

import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tfds_dirs
from absl import flags
from ml_collections import config_flags

from experiments import checks, config, data, lengths, sources, train

RNG = np.random.default_rng(0)
RECIPES = ("vgg19", "resnet56", "resnet164", "densenet40")
CIFAR100 = ["--config.dataset", "cifar100"]
SIZES = {"train": 200, "test": 20}
SVHN = ["--config.dataset", "svhn_cropped", "--config.flip=False", "--config.epochs", "20"]


def parsed(recipe, data_dir, *words):
    """A config as the command line makes it, in flags of its own."""
    path = Path(config.__file__).parent / "configs" / f"{recipe}.py"
    argv = ["train", f"--config={path}", "--config.data_dir", data_dir, *words]
    known = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where ml_collections looks for the fields to override
        known(argv)
        return known.config


def records(count, classes, **more):
    labels = np.arange(count) % classes
    pixels = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    pixels[..., 1] //= 2  # so that every channel has statistics of its own
    return [
        {"image": tfds_dirs.encode(image, "PNG"), "label": label, **more}
        for image, label in zip(pixels, labels, strict=True)
    ], pixels


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Name -> (data directory, classes, training images)."""
    root, found = tmp_path_factory.mktemp("tfds"), {}
    for name, classes, more in (
        ("cifar100", 100, {"coarse_label": 7, "id": b"train_0"}),
        ("svhn_cropped", 10, {}),
    ):
        parts = {part: records(count, classes, **more) for part, count in SIZES.items()}
        written = {part: held for part, (held, _) in parts.items()}
        found[name] = tfds_dirs.write(root, name, written), classes, parts["train"][1]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # how ml_collections loads a file
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("words", "flip", "epochs"), [(CIFAR100, True, 160), (SVHN, False, 20)])
def test_the_words_of_a_docstring_make_a_run_of_that_data_set(
    prepared, recipe, words, flip, epochs
):
    data_dir, classes, pixels = prepared[words[1]]
    settings = parsed(recipe, data_dir, *words)
    checks.check(settings)
    assert (settings.network, settings.dataset) == (recipe, words[1])
    read = data.load(settings.dataset, data_dir=settings.data_dir, image_size=settings.image_size)
    assert (read.num_classes, read.image_shape, read.notes) == (classes, (32, 32, 3), ())
    assert read.train.labels.tolist() == (np.arange(200) % classes).tolist()  # not the coarse ones
    np.testing.assert_array_equal(read.train.images, pixels)
    np.testing.assert_allclose(read.mean, pixels.mean((0, 1, 2)) / 255, atol=1e-12)
    np.testing.assert_allclose(read.std, pixels.std((0, 1, 2)) / 255, atol=1e-12)
    assert sources.augmentation(settings) == sources.Augment(crop=4, flip=flip)
    assert lengths.run_length(settings, 200) == epochs * (200 // 64)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_such_a_run_trains(prepared, tmp_path, monkeypatch):
    data_dir, _, _ = prepared["cifar100"]
    settings = parsed("vgg19", data_dir, *CIFAR100)
    settings.update(network="tiny", method="dense", steps=2, recalibration_examples=64)
    monkeypatch.setattr(train.report, "write", lambda _: None)
    with runs.cheap(tmp_path / "cache"):
        found = train.train(settings, tmp_path / "w")
    assert (found["dataset"], found["steps"]) == ("cifar100", 2)
    assert found["test_accuracy"] * 20 == pytest.approx(round(found["test_accuracy"] * 20))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_recipe_of_imagenet_reads_a_prepared_directory(tmp_path):
    splits = {"train": tfds_dirs.photos(300), "validation": tfds_dirs.photos(20)}
    data_dir = tfds_dirs.write(tmp_path, "imagenet2012", splits)
    settings = parsed("resnet50_imagenet", data_dir)
    checks.check(settings)
    read = data.load(settings.dataset, data_dir=settings.data_dir, image_size=settings.image_size)
    assert (read.num_classes, read.image_shape) == (1000, (224, 224, 3))
    source = sources.open_source(settings, read, 1, start_step=0)
    batch = source.data_at(0)
    assert (batch["image"].shape, batch["image"].dtype) == ((256, 224, 224, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((256,), np.int32)
    # 1,281,167 images: 90 epochs of 5,004 whole batches.
    assert lengths.run_length(settings, 1_281_167) == 450_360
