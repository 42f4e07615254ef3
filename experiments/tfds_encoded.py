"""TFDS sets whose images differ in size, such as ImageNet: cut to one size as they are needed."""

from functools import partial
from typing import Any

import numpy as np

from experiments.dataset import DataSet
from experiments.encoded import Encoded, Record
from experiments.tfds_names import open_builder
from experiments.tfds_records import Records, read_record, records

# Mean and deviation of ImageNet's training images, as networks for such images commonly take them:
# measuring would decode a whole training split before the first step.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read_encoded(name: str, *, data_dir: str, image_size: int) -> DataSet:
    """A prepared TFDS set of images of different sizes; only its index is read.

    Evaluated is ``test``; or ``validation``, where a set has no test split or hides its labels.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.
      image_size: S, side of the windows that images are cut to.

    Returns:
      The data set, of S x S images in RGB.

    Raises:
      FileNotFoundError: not prepared; the message holds the command that prepares it.
      ValueError: see ``tfds_records.records``.
    """
    train, test = (
        records(name, data_dir=data_dir, split=split, decoded=False) for split in ("train", "test")
    )
    if _hides_labels(name, test) and "validation" in open_builder(name, data_dir).info.splits:
        test = records(name, data_dir=data_dir, split="validation", decoded=False)
    notes = [
        f"images cut to {image_size}x{image_size}: random windows in training, else the middle"
    ]
    if test.split != "test":
        notes.append(f"evaluated on the split {test.split!r}")
    return DataSet(
        name,
        _split(name, train, image_size),
        _split(name, test, image_size),
        num_classes=train.features.num_classes,
        image_shape=(image_size, image_size, 3),
        mean=MEAN,
        std=STD,
        notes=tuple(notes),
        class_names=train.features.class_names,
    )


def _hides_labels(name: str, opened: Records) -> bool:
    """Whether a split is one whose labels were never published: TFDS writes -1."""
    return int(read_record(name, opened, 0)[opened.features.label_key]) == -1


def _split(name: str, opened: Records, image_size: int) -> Encoded:
    return Encoded(partial(_read, name, opened), np.arange(len(opened.source)), image_size)


def _read(name: str, opened: Records, row: int) -> Record:
    """One record, its label checked.

    Raises:
      ValueError: a damaged file, or a label out of range.
    """
    found, classes = read_record(name, opened, row), opened.features.num_classes
    said = f"{name}: record {row} of split {opened.split!r}{_file_name(found)}"
    label = int(found[opened.features.label_key])
    if not 0 <= label < classes:
        raise ValueError(
            f"{said}: label {label} is out of range; labels must be 0 .. {classes - 1}"
        )
    return Record(found[opened.features.image_key], label, said)


def _file_name(record: dict[str, Any]) -> str:
    """`` (n01440764_10026.JPEG)``, or nothing where a set does not tell."""
    name = record.get("file_name", b"")
    return f" ({name.decode(errors='replace')})" if name else ""
