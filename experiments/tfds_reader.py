"""TensorFlow Datasets (TFDS) read as random-access files, without TensorFlow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.dataset import DataSet, Split, check_labels, make_dataset
from experiments.readers import track
from experiments.tfds_names import check_known, open_builder, prepare_command, quiet


class Records(NamedTuple):
    """One split as random-access records, and what its features say.

    Attributes:
      source: ``source[i]`` is a dict with ``image_key`` and ``label_key``; ``len(source)`` = N.
      image_key: name of the image feature.
      label_key: name of the label feature.
      image_shape: (H, W, C).
      num_classes: number of classes.
    """

    source: Sequence[Any]
    image_key: str
    label_key: str
    image_shape: tuple[int, int, int]
    num_classes: int


def _features(builder: Any) -> tuple[str, str, tuple[int, int, int], int]:
    """Image key, label key, (H, W, C) and number of classes, or a refusal."""
    features = dict(builder.info.features)
    keys = builder.info.supervised_keys or ("image", "label")
    image, label = features.get(keys[0]), features.get(keys[1])
    classes = getattr(label, "num_classes", None)
    shape: Any = getattr(image, "shape", ())
    dtype = getattr(image, "np_dtype", None)
    if classes is None or len(shape) != 3 or dtype != np.uint8:
        raise ValueError(
            f"{builder.name} is not an image classification set: it has {features}; "
            "needed are a uint8 image [H, W, C] and a class label"
        )
    if None in shape:
        raise ValueError(
            f"{builder.name}: image sizes differ ({shape}); resize the images to one size and "
            "give them as an .npz file or a folder of class folders"
        )
    height, width, channels = shape
    return keys[0], keys[1], (height, width, channels), classes


def _split_name(builder: Any, split: str) -> str:
    """The set's own name for a split: some call their only labelled test part validation."""
    names = list(builder.info.splits)
    if not names or split in names:
        return split
    if split == "test" and "validation" in names:
        return "validation"
    raise ValueError(f"{builder.name} has no split {split!r}; it has {names}")


def records(name: str, *, data_dir: str, split: str) -> Records:
    """Opens one split for random access, reading nothing yet.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.
      split: ``train`` or ``test`` (``validation`` where a set has no test split).

    Returns:
      The records.

    Raises:
      FileNotFoundError: not prepared; the message holds the command that prepares it.
      ValueError: not an image classification set, no such split, or prepared in a file format
        without random access.
    """
    builder = open_builder(name, data_dir)
    image_key, label_key, shape, classes = _features(builder)
    with quiet():
        try:
            source = builder.as_data_source(split=_split_name(builder, split))
        except (NotImplementedError, AssertionError, FileNotFoundError) as error:
            if builder.is_prepared():
                raise ValueError(
                    f"{name} in {data_dir} is prepared in a file format without random access; "
                    f"prepare it anew elsewhere: {prepare_command(name, 'OTHER_DIR')}"
                ) from error
            raise FileNotFoundError(
                f"{name} is not prepared in {data_dir}; run\n  {prepare_command(name, data_dir)}"
            ) from error
    return Records(source, image_key, label_key, shape, classes)


def _read_split(name: str, opened: Records, split: str) -> Split:
    """Decodes all records of a split; about 5,000 small images a second."""
    count = len(opened.source)
    if count == 0:
        raise ValueError(f"{name}: split {split!r} is empty")
    images = np.empty((count, *opened.image_shape), np.uint8)
    labels = np.empty(count, np.int64)
    with quiet():
        for i in track(range(count), what=f"reading {name} {split}"):
            try:
                record = opened.source[i]
            except RuntimeError as error:  # array_record's, for a file that is missing or cut
                raise ValueError(
                    f"{name}: record {i} of split {split!r} is damaged ({error}); delete the "
                    "folder of the data set and prepare it again"
                ) from error
            images[i] = record[opened.image_key]
            labels[i] = record[opened.label_key]
    where = f"{name}: {split} labels"
    return Split(
        images, check_labels(labels, count=count, num_classes=opened.num_classes, where=where)
    )


def read_tfds(name: str, *, data_dir: str | None) -> DataSet:
    """A prepared TFDS image classification set, decoded into host memory.

    Images of 28x28 (MNIST and its kin) are padded with zeros to 32x32, and ``notes`` says so.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: not prepared; the message holds the command that prepares it.
      ValueError: unknown name, no data directory, or not a set of images and class labels.
    """
    check_known(name, data_dir)
    if data_dir is None:
        raise ValueError(
            f"{name} is read from a TFDS data directory; give one with data_dir. If it is not "
            f"prepared yet, run: {prepare_command(name, 'DIR')}"
        )
    opened = {split: records(name, data_dir=data_dir, split=split) for split in ("train", "test")}
    train, test = (_read_split(name, opened[split], split) for split in ("train", "test"))
    notes: tuple[str, ...] = ()
    if opened["train"].image_shape[:2] == (28, 28):
        border = ((0, 0), (2, 2), (2, 2), (0, 0))
        train, test = (Split(np.pad(part.images, border), part.labels) for part in (train, test))
        notes = ("28x28 images padded to 32x32 with zeros",)
    return make_dataset(name, train, test, num_classes=opened["train"].num_classes, notes=notes)
