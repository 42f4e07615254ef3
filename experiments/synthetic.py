"""Prepared TFDS directories of made-up records: real array_record files, without TensorFlow."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.dataset import require

_LONG = 500  # pixels of a typical photo's longer side, as ImageNet's have
_RATIOS = (4 / 3, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 1.0)  # longer over shorter
_UPRIGHT = 0.25  # share of photos that stand
_PATCH = 32  # pixels of an image's coarse structure
_GRAIN = 18.0  # deviation of its noise: with _QUALITY some 110 kB a photo, as in ImageNet
_QUALITY = 90


def write(root: Path, name: str, splits: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Writes a set that TFDS knows as TFDS prepares it.

    Args:
      root: TFDS data directory.
      name: TFDS name.
      splits: split -> records, each feature bytes or an integer.

    Returns:
      The data directory.

    Raises:
      ModuleNotFoundError: TFDS is not installed.
    """
    version = str(require("tensorflow_datasets", extra="data").builder(name, data_dir=root).version)
    folder = root / name / version
    folder.mkdir(parents=True)
    described = []
    for split, records in splits.items():
        described.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(_write_split(file_of(folder, split), records))],
            }
        )
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return str(root)


def file_of(folder: Path, split: str) -> Path:
    """The only file of a split; ``folder`` is that of the set's version."""
    return folder / f"{folder.parent.name}-{split}.array_record-00000-of-00001"


def photo(draw: np.random.Generator) -> bytes:
    """A JPEG file of about 500x375 pixels and 110 kB: coarse colours under fine noise."""
    pil = require("PIL.Image", extra="data")
    long = _LONG * np.exp(draw.normal(0.0, 0.1))
    size = [round(long), round(long / draw.choice(_RATIOS))]
    width, height = size[::-1] if draw.random() < _UPRIGHT else size
    coarse = draw.integers(0, 256, (height // _PATCH + 2, width // _PATCH + 2, 3), np.uint8)
    smooth = pil.fromarray(coarse).resize((width, height), pil.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + draw.normal(0.0, _GRAIN, (height, width, 1))
    held = io.BytesIO()
    pil.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(held, "JPEG", quality=_QUALITY)
    return held.getvalue()


def photos(count: int, *, classes: int, seed: int) -> Iterable[dict[str, Any]]:
    """Records as ImageNet's, one by one.

    Args:
      count: how many.
      classes: labels are drawn from 0 .. classes - 1.
      seed: of everything.
    """
    draw = np.random.default_rng(seed)
    for index in range(count):
        name = f"synthetic_{index:08d}.JPEG".encode()
        yield {"image": photo(draw), "label": int(draw.integers(classes)), "file_name": name}


def _write_split(path: Path, records: Iterable[Mapping[str, Any]]) -> int:
    module = require("array_record.python.array_record_module", extra="data")
    writer, count = module.ArrayRecordWriter(str(path), "group_size:1"), 0
    for record in records:
        writer.write(_example(record))
        count += 1
    writer.close()
    return count


def _example(record: Mapping[str, Any]) -> bytes:
    protos = require("tensorflow_datasets.proto.tf_example_generated_pb2", extra="data")
    made = protos.Example()
    for key, value in record.items():
        feature = made.features.feature[key]
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(int(value))
    return made.SerializeToString()
