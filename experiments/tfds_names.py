"""Which data sets TensorFlow Datasets (TFDS) knows, and which of them lie prepared."""

import contextlib
import difflib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.dataset import require


def prepare_command(name: str, data_dir: str) -> str:
    """The command that prepares a data set.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.

    Returns:
      One shell line.
    """
    return shlex.join(["python", "-m", "experiments.data", "prepare", name, "--data_dir", data_dir])


def _tfds() -> ModuleType:
    return require("tensorflow_datasets", extra="data")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides TFDS's hints (install OpenCV, no dataset_info.json): errors here say it better.

    Yields:
      Nothing.
    """
    logging = require("absl.logging", extra="data")
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _names() -> list[str]:
    """TFDS's own data sets; asking for the community's would need the network."""
    return list(_tfds().list_builders(with_community_datasets=False))


def is_known(name: str, data_dir: str | None) -> bool:
    """Whether TFDS, or the data directory itself, has a data set of this name.

    Args:
      name: TFDS name, may carry a configuration or version: ``emnist/letters``, ``mnist:3.0.1``.
      data_dir: TFDS data directory or None.

    Returns:
      True or False.
    """
    base = re.split(r"[/:]", name)[0]
    if base in _names():
        return True
    return bool(base) and data_dir is not None and (Path(data_dir).expanduser() / base).is_dir()


def check_known(name: str, data_dir: str | None) -> None:
    """Refuses a name that no reader knows.

    Args:
      name: data set name.
      data_dir: TFDS data directory or None.

    Raises:
      ValueError: unknown name; the message gives the nearest known ones.
    """
    if is_known(name, data_dir):
        return
    near = difflib.get_close_matches(name, [*_names(), "digits"], n=4)
    hint = f"; nearest names: {', '.join(near)}" if near else ""
    raise ValueError(
        f"unknown data set {name!r}{hint}. Known are digits, the names of TensorFlow Datasets, "
        "a path that ends in .npz, and a folder with train/CLASS/*.png and test/CLASS/*.png"
    )


def open_builder(name: str, data_dir: str) -> Any:
    """The TFDS builder of a known data set, prepared or not.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.

    Returns:
      A ``tfds.core.DatasetBuilder``.

    Raises:
      ValueError: TFDS cannot describe the set without TensorFlow.
    """
    with quiet():
        try:
            return _tfds().builder(name, data_dir=str(Path(data_dir).expanduser()))
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{name}: TFDS cannot describe this data set without TensorFlow ({error}); "
                "save its images as an .npz file or a folder of class folders instead"
            ) from error


def is_prepared(name: str, data_dir: str) -> bool:
    """Whether a known data set lies prepared in the data directory.

    Args:
      name: TFDS name.
      data_dir: TFDS data directory.

    Returns:
      True or False.

    Raises:
      ValueError: TFDS cannot describe the set without TensorFlow.
    """
    builder = open_builder(name, data_dir)
    with quiet():
        return bool(builder.is_prepared())
