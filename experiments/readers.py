"""Readers of what needs no download: the bundled digits, .npz files and folders of images."""

import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from experiments.dataset import (
    DataSet,
    Split,
    check_images,
    check_labels,
    make_dataset,
    require,
)

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SUFFIXES = (".png", ".jpg", ".jpeg")
_GRAY_MODES = ("1", "L")
_COLOUR_MODES = ("P", "RGB", "CMYK", "YCbCr")
_SHOW_FROM = 10_000  # images: below it reading takes a second or two, and a bar only flickers
_DIGITS_TEST = 360

T = TypeVar("T")


def track(items: Sequence[T], *, what: str) -> Any:
    """Iterates, with a progress bar on stderr where there are many items.

    Args:
      items: what to go through.
      what: text beside the bar.

    Returns:
      An iterable over ``items``.
    """
    if len(items) < _SHOW_FROM:
        return items
    progress = require("rich.progress", extra="training")
    console = require("rich.console", extra="training").Console(stderr=True)
    return progress.track(items, description=what, console=console, transient=True)


def read_digits() -> DataSet:
    """scikit-learn's bundled 8x8 digits: 1,437 training and 360 test images, 8x8x1.

    The split is stratified and the same for every seed. The pixels' 0 .. 16 become 0 .. 255.

    Returns:
      The data set ``digits``.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    datasets = require("sklearn.datasets", extra="training")
    selection = require("sklearn.model_selection", extra="training")
    digits = datasets.load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    train, test = selection.train_test_split(
        np.arange(len(labels)), test_size=_DIGITS_TEST, stratify=labels, random_state=0
    )
    return make_dataset(
        "digits",
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        num_classes=10,
    )


def _npz_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The four arrays of an .npz file."""
    try:
        # Opened here, because numpy leaves a file that is broken open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            missing = [key for key in _ARRAYS if key not in file]
            if missing:
                raise ValueError(f"{path} lacks {missing}: it holds {sorted(file.files)}")
            return {key: file[key] for key in _ARRAYS}
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


def read_npz(name: str) -> DataSet:
    """A user's own arrays.

    The number of classes is the largest training label + 1.

    Args:
      name: path of an .npz file with ``train_images``, ``train_labels``, ``test_images`` and
        ``test_labels``: images uint8[N, H, W, C] or uint8[N, H, W], labels integer[N].

    Returns:
      The data set.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an array is missing, or is not what it must be.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it must hold the arrays {_ARRAYS}")
    arrays = _npz_arrays(path)
    splits: list[Split] = []
    num_classes: int | None = None
    for part in ("train", "test"):
        images = check_images(arrays[f"{part}_images"], where=f"{path}: {part}_images")
        labels = check_labels(
            arrays[f"{part}_labels"],
            count=len(images),
            num_classes=num_classes,
            where=f"{path}: {part}_labels",
        )
        splits.append(Split(images, labels))
        num_classes = num_classes or int(labels.max()) + 1
    return make_dataset(name, *splits, num_classes=int(splits[0].labels.max()) + 1)


def is_image_folder(path: Path) -> bool:
    """Whether ``path`` is a folder with a ``train`` folder inside.

    Args:
      path: any path.

    Returns:
      True or False.
    """
    return (path / "train").is_dir()


def _class_names(folder: Path) -> list[str]:
    """Names of the class folders, sorted: the label is the position."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing; images go into {folder}{os.sep}CLASS{os.sep}*.png")
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _image_files(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """All image files of one split in a fixed order, with their labels."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = folder / name
        entries = sorted(inside.iterdir()) if inside.is_dir() else []
        found = [entry for entry in entries if entry.suffix.lower() in _SUFFIXES]
        files.extend(found)
        labels.extend([label] * len(found))
    if not files:
        raise ValueError(f"{folder}: no images ({', '.join(_SUFFIXES)}) in its class folders")
    return files, labels


def _decode(file: Path) -> npt.NDArray[np.uint8]:
    """One file as uint8[H, W, 1] (gray) or uint8[H, W, 3]."""
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(file) as image:
            if image.mode not in _GRAY_MODES + _COLOUR_MODES:
                raise ValueError(
                    f"{file}: pixel mode {image.mode!r} is not supported; save it as 8-bit gray "
                    "or RGB"
                )
            gray = image.mode in _GRAY_MODES
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return pixels[..., None] if gray else pixels


def _decode_all(files: Sequence[Path], *, what: str) -> npt.NDArray[np.uint8]:
    """All files as uint8[N, H, W, C]; gray ones become RGB where any other is RGB."""
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter lock
        decoded = pool.map(_decode, files)
        images = [next(decoded) for _ in track(files, what=what)]
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != images[0].shape[:2]:
            raise ValueError(
                f"{file} is {image.shape[0]}x{image.shape[1]} (H x W), but {files[0]} is "
                f"{images[0].shape[0]}x{images[0].shape[1]}; resize all images to one size first"
            )
    channels = max(image.shape[-1] for image in images)
    shape = (*images[0].shape[:2], channels)
    return np.stack([np.broadcast_to(image, shape) for image in images])


def read_folder(name: str) -> DataSet:
    """A user's own images: ``train/CLASS/*.png|jpg|jpeg`` and ``test/CLASS/*``.

    Labels are the positions of the sorted class names under ``train``.

    Args:
      name: path of the folder.

    Returns:
      The data set.

    Raises:
      ValueError: a split is missing or empty, a test class is unknown, an image cannot be read,
        or image sizes differ.
    """
    root = Path(name).expanduser()
    classes = _class_names(root / "train")
    unknown = sorted(set(_class_names(root / "test")) - set(classes))
    if unknown:
        raise ValueError(
            f"{root / 'test'}: classes {unknown} have no folder under train, which has {classes}"
        )
    train_files, train_labels = _image_files(root / "train", classes)
    test_files, test_labels = _image_files(root / "test", classes)
    # Both splits at once, so that one coloured image anywhere makes all of them RGB.
    images = _decode_all([*train_files, *test_files], what=f"reading {root.name}")
    labels = np.asarray(train_labels + test_labels, np.int32)
    cut = len(train_files)
    return make_dataset(
        name,
        Split(images[:cut], labels[:cut]),
        Split(images[cut:], labels[cut:]),
        num_classes=len(classes),
        class_names=tuple(classes),
    )
