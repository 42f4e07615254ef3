"""Small prepared TFDS directories: real array_record files, written without TensorFlow."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as protos


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None) -> bytes:
    """An image file's bytes; JPEG keeps only roughly what it is given."""
    image = Image.fromarray(pixels)
    held = io.BytesIO()
    (image.convert(mode) if mode else image).save(held, kind)
    return held.getvalue()


def write(root: Path, name: str, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Writes a set that TFDS knows as TFDS prepares it, and gives the data directory.

    Args:
      root: TFDS data directory.
      name: TFDS name.
      splits: split -> records, each feature bytes or an integer.
    """
    version = str(tfds.builder(name, data_dir=str(root)).version)
    folder = root / name / version
    folder.mkdir(parents=True)
    for split, records in splits.items():
        writer = ArrayRecordWriter(str(file_of(folder, split)), "group_size:1")
        for record in records:
            writer.write(_example(record))
        writer.close()
    described = [
        {
            "name": split,
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": "1",
            "shardLengths": [str(len(records))],
        }
        for split, records in splits.items()
    ]
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(root)


def file_of(folder: Path, split: str) -> Path:
    """The only file of a split; ``folder`` is that of the set's version."""
    return folder / f"{folder.parent.name}-{split}.array_record-00000-of-00001"


def photos(count: int, *, first: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Records as ImageNet's: JPEG files of many sizes; labels count on from ``first``."""
    draw = np.random.default_rng(seed)
    found = []
    for label in range(first, first + count):
        height, width = draw.integers(9, 40, 2)
        # Blocks of one colour, so that little is lost in the encoding.
        pixels = draw.integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
        pixels = pixels.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
        name = f"n{label:08d}.JPEG".encode()
        found.append({"image": encode(pixels), "label": label, "file_name": name})
    return found


def _example(record: dict[str, Any]) -> bytes:
    made = protos.Example()
    for key, value in record.items():
        feature = made.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(int(value))
    return made.SerializeToString()
