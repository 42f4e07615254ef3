"""What every reader returns: checked arrays of images and labels, and what describes them."""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.encoded import Encoded

_CHUNK = 4096  # images counted at a time: bincount works on 8-byte copies


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
      images: uint8[N, H, W, C].
      labels: int32[N].
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels)


class DataSet(NamedTuple):
    """An image classification set, in host memory or read as it is needed.

    Attributes:
      name: as it was asked for.
      train: training split.
      test: test split, of the same image shape; encoded where the training split is.
      num_classes: labels are 0 .. num_classes - 1.
      image_shape: (H, W, C).
      mean: per channel, of the training images divided by 255; of encoded ones, ImageNet's.
      std: per channel, likewise; 1.0 for a channel that is constant.
      notes: what was done to the images that a reader of a result must know.
      class_names: one per class; () where the set names none.
    """

    name: str
    train: Split | Encoded
    test: Split | Encoded
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...]
    class_names: tuple[str, ...] = ()


def require(module: str, *, extra: str) -> ModuleType:
    """Imports an optional dependency, or says what to install.

    Args:
      module: dotted module name.
      extra: the project's extra that brings it.

    Returns:
      The module.

    Raises:
      ModuleNotFoundError: the module, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{module} cannot be imported (missing: {error.name}); "
            f"install the {extra!r} extra: pip install 'dce-jax[{extra}]'",
            name=error.name,
        ) from error


def check_images(images: Any, *, where: str) -> npt.NDArray[np.uint8]:
    """Refuses what is not uint8[N, H, W, C] (or uint8[N, H, W], gray).

    Args:
      images: array-like.
      where: how the message calls it.

    Returns:
      uint8[N, H, W, C].

    Raises:
      ValueError: wrong dtype, wrong rank, channels not last, or no images.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(
            f"{where}: dtype {images.dtype}, but images must be uint8 from 0 to 255; "
            "convert them, e.g. (255 * x).round().astype(numpy.uint8) for floats in [0, 1]"
        )
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{where}: shape {images.shape} has rank {images.ndim}, but images must be "
            "[N, H, W, C] or, for gray ones, [N, H, W]"
        )
    if images.ndim == 3:
        images = images[..., None]
    if 0 in images.shape:
        raise ValueError(f"{where}: shape {images.shape} holds no images; give at least one")
    if images.shape[-1] > 4 and images.shape[1] in (1, 3):
        raise ValueError(
            f"{where}: shape {images.shape} looks channels-first, but images must be "
            "[N, H, W, C]; use numpy.transpose(images, (0, 2, 3, 1))"
        )
    return images


def check_labels(
    labels: Any, *, count: int, num_classes: int | None, where: str
) -> npt.NDArray[np.int32]:
    """Refuses labels that are not ``count`` integers from 0 to ``num_classes - 1``.

    Args:
      labels: array-like, integer[N].
      count: N, the number of images.
      num_classes: the number of classes, or None where the labels themselves define it.
      where: how the message calls it.

    Returns:
      int32[N].

    Raises:
      ValueError: wrong dtype, rank or length, or a label out of range.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise ValueError(
            f"{where}: dtype {labels.dtype}, but labels must be integers: one class index per image"
        )
    if labels.ndim != 1:
        raise ValueError(
            f"{where}: shape {labels.shape} has rank {labels.ndim}, but labels must be [N]; "
            "one-hot labels become indices with .argmax(-1)"
        )
    if len(labels) != count:
        raise ValueError(f"{where}: {len(labels)} labels for {count} images; give one per image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 and num_classes is None:
        at = int(np.flatnonzero(labels == low)[0])
        raise ValueError(f"{where}: label {low} at index {at}: labels must not be negative")
    limit = np.iinfo(np.int32).max if num_classes is None else num_classes
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        at = int(np.flatnonzero(labels == bad)[0])
        raise ValueError(
            f"{where}: label {bad} at index {at} is out of range; "
            f"labels must be 0 .. {limit - 1} ({limit} classes)"
        )
    return labels.astype(np.int32)


def pixel_statistics(
    images: npt.NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of images / 255, from exact counts.

    Args:
      images: uint8[N, H, W, C].

    Returns:
      (mean, std), each of length C; a constant channel has std 1.0.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        for channel, row in enumerate(counts):
            row += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(axis=1)
    constant = (counts > 0).sum(axis=1) == 1
    std = np.where(constant, 1.0, np.sqrt(variance))
    return tuple(mean.tolist()), tuple(std.tolist())


def take(split: Split | Encoded, rows: npt.NDArray[np.integer] | slice) -> Split | Encoded:
    """Some images of a split, with their labels; encoded ones are not read.

    Args:
      split: images and labels.
      rows: integer[M], places in the split, or a slice of them.

    Returns:
      A split of M images.
    """
    if isinstance(split, Encoded):
        return split._replace(rows=split.rows[rows])
    return Split(split.images[rows], split.labels[rows])


def make_dataset(
    name: str,
    train: Split,
    test: Split,
    *,
    num_classes: int,
    notes: tuple[str, ...] = (),
    class_names: tuple[str, ...] = (),
) -> DataSet:
    """Puts two splits together and measures the training images.

    Args:
      name: as it was asked for.
      train: checked training split.
      test: checked test split.
      num_classes: number of classes.
      notes: see ``DataSet``.
      class_names: see ``DataSet``.

    Returns:
      The data set.

    Raises:
      ValueError: the splits' image shapes differ, or there are fewer than two classes.
    """
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{name}: training images are {train.images.shape[1:]} (H, W, C), test images "
            f"{test.images.shape[1:]}; bring both to one shape"
        )
    if num_classes < 2:
        raise ValueError(f"{name}: {num_classes} class; a classifier needs at least 2")
    absent = num_classes - len(np.unique(train.labels))
    if absent:
        notes = (*notes, f"{absent} of {num_classes} classes have no training image")
    mean, std = pixel_statistics(train.images)
    height, width, channels = train.images.shape[1:]
    shape = (height, width, channels)
    return DataSet(name, train, test, num_classes, shape, mean, std, notes, class_names)
