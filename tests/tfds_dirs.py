"""Small prepared TFDS directories, and images for them that lose little in the encoding."""

import io
from typing import Any

import numpy as np
from PIL import Image

from experiments.synthetic import file_of, write

__all__ = ["encode", "file_of", "photos", "write"]


def encode(pixels: np.ndarray, kind: str = "JPEG", mode: str | None = None) -> bytes:
    """An image file's bytes; JPEG keeps only roughly what it is given."""
    image = Image.fromarray(pixels)
    held = io.BytesIO()
    (image.convert(mode) if mode else image).save(held, kind)
    return held.getvalue()


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
