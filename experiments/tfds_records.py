"""Prepared TensorFlow Datasets (TFDS) opened as random-access records, without TensorFlow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.dataset import require
from experiments.tfds_names import open_builder, prepare_command, quiet


class Features(NamedTuple):
    """What a TFDS image classification set consists of.

    Attributes:
      image_key: name of the image feature.
      label_key: name of the label feature.
      image_shape: (H, W, C), or None where sizes differ.
      num_classes: number of classes.
      class_names: one per class.
    """

    image_key: str
    label_key: str
    image_shape: tuple[int, int, int] | None
    num_classes: int
    class_names: tuple[str, ...]


class Records(NamedTuple):
    """One split as random-access records.

    Attributes:
      split: the set's own name for it.
      source: ``source[i]`` is a dict with an image and a label; ``len(source)`` = N >= 1.
      features: what its dicts hold.
    """

    split: str
    source: Sequence[Any]
    features: Features


def features(builder: Any) -> Features:
    """Which features of a set are the image and its label.

    Args:
      builder: a ``tfds.core.DatasetBuilder``; its data need not be prepared.

    Returns:
      The features.

    Raises:
      ValueError: not a set of uint8 images and class labels.
    """
    known = dict(builder.info.features)
    keys = builder.info.supervised_keys or ("image", "label")
    image, label = known.get(keys[0]), known.get(keys[1])
    classes = getattr(label, "num_classes", None)
    names = tuple(getattr(label, "names", ()))
    shape: Any = getattr(image, "shape", ())
    dtype = getattr(image, "np_dtype", None)
    if classes is None or len(shape) != 3 or dtype != np.uint8:
        raise ValueError(
            f"{builder.name} is not an image classification set: it has {known}; "
            "needed are a uint8 image [H, W, C] and a class label"
        )
    shape = None if None in shape else shape
    return Features(keys[0], keys[1], shape, classes, names)


def _split_name(builder: Any, split: str) -> str:
    """The set's own name for a split: some call their only labelled test part validation."""
    names = list(builder.info.splits)
    if not names or split in names:
        return split
    if split == "test" and "validation" in names:
        return "validation"
    raise ValueError(f"{builder.name} has no split {split!r}; it has {names}")


def records(name: str, *, data_dir: str, split: str, decoded: bool) -> Records:
    """Opens one split for random access, reading nothing yet.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.
      split: ``train`` or ``test`` (``validation`` where a set has no test split).
      decoded: whether records hold uint8[H, W, C] images, or else the bytes of image files.

    Returns:
      The records.

    Raises:
      FileNotFoundError: not prepared; the message holds the command that prepares it.
      ValueError: not an image classification set, no such split, an empty one, or prepared in a
        file format without random access.
    """
    builder = open_builder(name, data_dir)
    found, own_name = features(builder), _split_name(builder, split)
    skip = require("tensorflow_datasets", extra="data").decode.SkipDecoding
    with quiet():
        try:
            source = builder.as_data_source(
                split=own_name, decoders=None if decoded else {found.image_key: skip()}
            )
        except (NotImplementedError, AssertionError, FileNotFoundError) as error:
            if builder.is_prepared():
                raise ValueError(
                    f"{name} in {data_dir} is prepared in a file format without random access; "
                    f"prepare it anew elsewhere: {prepare_command(name, 'OTHER_DIR')}"
                ) from error
            raise FileNotFoundError(
                f"{name} is not prepared in {data_dir}; run\n  {prepare_command(name, data_dir)}"
            ) from error
    if len(source) == 0:
        raise ValueError(f"{name}: split {own_name!r} is empty")
    return Records(own_name, source, found)


def read_record(name: str, opened: Records, row: int) -> dict[str, Any]:
    """One record.

    Args:
      name: TFDS name.
      opened: its split.
      row: 0 .. N - 1.

    Returns:
      Feature name -> value.

    Raises:
      ValueError: the record's file is damaged.
    """
    try:
        return opened.source[row]
    except RuntimeError as error:  # array_record's, for a file that is missing or cut
        raise ValueError(
            f"{name}: record {row} of split {opened.split!r} is damaged ({error}); delete the "
            "folder of the data set and prepare it again"
        ) from error
