"""TensorFlow Datasets (TFDS): images of one size in memory, all others as they are needed."""

import numpy as np

from experiments.dataset import DataSet, Split, check_labels, make_dataset
from experiments.readers import track
from experiments.tfds_encoded import read_encoded
from experiments.tfds_names import check_known, open_builder, prepare_command, quiet
from experiments.tfds_records import Records, features, read_record, records


def read_tfds(name: str, *, data_dir: str | None, image_size: int | None) -> DataSet:
    """A prepared TFDS image classification set.

    Images of one size are decoded into host memory; those of 28x28 (MNIST and its kin) are padded
    with zeros to 32x32, and ``notes`` says so. Images of different sizes stay on the disk.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.
      image_size: side of the windows that images of different sizes are cut to; else None.

    Returns:
      The data set.

    Raises:
      FileNotFoundError: not prepared; the message holds the command that prepares it.
      ValueError: unknown name, no data directory, an image size where there is nothing to cut or
        none where there is, or not a set of images and class labels.
    """
    check_known(name, data_dir)
    if data_dir is None:
        raise ValueError(
            f"{name} is read from a TFDS data directory; give one with data_dir. If it is not "
            f"prepared yet, run: {prepare_command(name, 'DIR')}"
        )
    shape = features(open_builder(name, data_dir)).image_shape
    if shape is None:
        if image_size is None:
            raise ValueError(
                f"{name}: image sizes differ; give the side that they are to be cut to with "
                "image_size, such as 224"
            )
        return read_encoded(name, data_dir=data_dir, image_size=image_size)
    if image_size is not None:
        raise ValueError(
            f"image_size is {image_size}, but all images of {name} are {shape[0]}x{shape[1]} and "
            "nothing is cut: leave image_size out"
        )
    return _in_memory(name, data_dir, shape)


def _in_memory(name: str, data_dir: str, shape: tuple[int, int, int]) -> DataSet:
    opened = [
        records(name, data_dir=data_dir, split=split, decoded=True) for split in ("train", "test")
    ]
    train, test = (_read_split(name, part, shape) for part in opened)
    notes: tuple[str, ...] = ()
    if shape[:2] == (28, 28):
        border = ((0, 0), (2, 2), (2, 2), (0, 0))
        train, test = (Split(np.pad(part.images, border), part.labels) for part in (train, test))
        notes = ("28x28 images padded to 32x32 with zeros",)
    facts = opened[0].features
    return make_dataset(
        name,
        train,
        test,
        num_classes=facts.num_classes,
        notes=notes,
        class_names=facts.class_names,
    )


def _read_split(name: str, opened: Records, shape: tuple[int, int, int]) -> Split:
    """Decodes all records of a split; about 5,000 small images a second."""
    count, facts = len(opened.source), opened.features
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int64)
    with quiet():
        for row in track(range(count), what=f"reading {name} {opened.split}"):
            record = read_record(name, opened, row)
            images[row] = record[facts.image_key]
            labels[row] = record[facts.label_key]
    where = f"{name}: {opened.split} labels"
    return Split(
        images, check_labels(labels, count=count, num_classes=facts.num_classes, where=where)
    )
