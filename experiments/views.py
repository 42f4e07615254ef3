"""Encoded images of any size as square windows of one size: at random, or the middle.

A window is cut and scaled in one pass, with Pillow's filter that averages where it shrinks. An
image smaller than the window is enlarged.
"""

import io
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from experiments.dataset import require

View: TypeAlias = Callable[[Any, np.random.Generator, int], npt.NDArray[np.uint8]]
"""``(RGB image of Pillow's, generator, S) -> uint8[S, S, 3]``."""

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

_AREA = (0.08, 1.0)  # share of the image's area that a random window covers
_RATIO = (3 / 4, 4 / 3)  # its width over its height
_TRIES = 10
_MARGIN = 256 / 224  # the short side when the middle is cut out, in windows


def decode(encoded: bytes) -> Any:
    """An encoded image as Pillow's, in RGB: gray and CMYK are converted, transparency is dropped.

    Args:
      encoded: contents of an image file.

    Returns:
      A ``PIL.Image.Image`` of mode RGB.

    Raises:
      ValueError: broken, cut short, not an image, or one of more than Pillow's limit of pixels.
      ModuleNotFoundError: Pillow is not installed.
    """
    pil = require("PIL.Image", extra="data")
    try:
        with pil.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except pil.UnidentifiedImageError as error:  # its text holds the address of the buffer
        raise ValueError("not an image of a known format") from error
    except (OSError, SyntaxError, pil.DecompressionBombError) as error:
        # All three are what Pillow makes of broken headers; the last also of huge images.
        raise ValueError(str(error)) from error


def random_window(image: Any, rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """A window of random area and shape at a random place, as in Szegedy et al. 2015, section 6.

    Args:
      image: of Pillow's, RGB.
      rng: where the window is drawn from.
      size: S.

    Returns:
      uint8[S, S, 3].
    """
    width, height = image.size
    return _scaled(image, _random_box(width, height, rng), size)


def middle(image: Any, rng: np.random.Generator, size: int) -> npt.NDArray[np.uint8]:
    """The middle, as if the short side were scaled to 256 and 224 cut out, whatever the size.

    Args:
      image: of Pillow's, RGB.
      rng: not used.
      size: S.

    Returns:
      uint8[S, S, 3].
    """
    del rng
    width, height = image.size
    side = min(width, height) * size / round(size * _MARGIN)
    return _scaled(image, _central_box(width, height, side, side), size)


def _random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    low, high = _RATIO
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*_AREA)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    # Too long or too narrow for most draws: the largest window of an allowed shape, in the middle.
    return _central_box(width, height, min(width, height * high), min(height, width / low))


def _central_box(width: int, height: int, w: float, h: float) -> Box:
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _scaled(image: Any, box: Box, size: int) -> npt.NDArray[np.uint8]:
    bilinear = require("PIL.Image", extra="data").Resampling.BILINEAR
    return np.asarray(image.resize((size, size), bilinear, box=box))
