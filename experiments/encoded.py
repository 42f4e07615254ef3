"""Splits whose images stay encoded on the disk until a batch needs them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Record(NamedTuple):
    """One example as it is stored.

    Attributes:
      image: an encoded image (JPEG, PNG), of any size.
      label: checked class index.
      name: how messages call it.
    """

    image: bytes
    label: int
    name: str


class Encoded(NamedTuple):
    """One part of a data set of images of different sizes, too large to be decoded at once.

    Attributes:
      read: row -> its record; may be called from many threads.
      rows: int64[N], the reader's rows that belong to this part.
      size: S, every image is cut to S x S when it is decoded.
    """

    read: Callable[[int], Record]
    rows: npt.NDArray[np.int64]
    size: int

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.rows)
