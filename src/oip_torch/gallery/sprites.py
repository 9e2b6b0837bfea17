"""How do many pictures become few image files that a page can hold?"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from oip_torch.base.drawing import Ends, shade

__all__ = ["LOOKS", "Sheet", "Tiling", "encoded", "tiled"]

Pixels = npt.NDArray[np.uint8]

LOOKS = {"data": "data", "strongest": "grey"}
"""The two ways of looking → what `shade` calls them: in the data's range, and each at its own contrast."""

_MOST_SIDE = 64  # pixels: up to here pictures are kept as they are, without loss
_MOST_LARGE = 256  # of the one larger picture that a map has where its pictures are reduced
_AT_ONCE = 64  # pictures that are shaded at one time, in float64
# WebP, since it is smaller: of 256 images of 28×28 347 bytes each, as PNG at its highest level 847. More effort than
# this takes 100 times as long and gains 0.5 %.
_LOSSLESS = {"lossless": True, "quality": 50, "method": 2}
_LOSSY = {"quality": 82, "method": 4}


@dataclass(frozen=True)
class Tiling:
    """Which size pictures of a network have on the page.

    Attributes:
        height, width: of the network's images, in pixels.
    """

    height: int
    width: int

    @property
    def reduced(self) -> bool:
        """Whether the pictures are smaller than the images, and stored with loss."""
        return max(self.height, self.width) > _MOST_SIDE

    @property
    def tile(self) -> tuple[int, int]:
        """(height, width) of a picture on a sheet."""
        return self._at_most(_MOST_SIDE)

    @property
    def large(self) -> tuple[int, int] | None:
        """(height, width) of the one larger picture of each map; None where the tiles are the images themselves."""
        return self._at_most(_MOST_LARGE) if self.reduced else None

    def _at_most(self, side: int) -> tuple[int, int]:
        scale = min(1.0, side / max(self.height, self.width))
        return max(1, round(self.height * scale)), max(1, round(self.width * scale))


@dataclass(frozen=True)
class Sheet:
    """Pictures of one size, row by row in one image file.

    Attributes:
        data: the WebP file in base64.
        columns: pictures per row.
        count: how many there are.
        width, height: of the file, in pixels.
    """

    data: str
    columns: int
    count: int
    width: int
    height: int


def tiled(
    images: npt.NDArray[np.floating], ends: Ends | None, look: str, size: tuple[int, int], together: bool = False
) -> Pixels:
    """Standardised images as pictures of this size: uint8, (N, height, width, 3).

    Args:
        images: (N, height, width, channels).
        ends: black and white of the data, see `shade`.
        look: one of `LOOKS`.
        size: (height, width), the images' own or less; less is the mean over areas.
        together: whether the images are one row, whose contrast is that of all of them together.
    """
    if not len(images):
        return np.empty((0, *size, 3), np.uint8)
    step = len(images) if together else _AT_ONCE
    parts = [
        _resized(shade(images[first : first + step], ends, LOOKS[look], together), size)
        for first in range(0, len(images), step)
    ]
    return np.concatenate(parts)


def _resized(shades: npt.NDArray[np.floating], size: tuple[int, int]) -> Pixels:
    """(N, height, width, 3), 0 to 1, as pixels of this size."""
    if shades.shape[1:3] != size:
        tensor = torch.from_numpy(np.ascontiguousarray(shades.transpose(0, 3, 1, 2)))
        shades = F.interpolate(tensor, size=size, mode="area").numpy().transpose(0, 2, 3, 1)
    return np.asarray(np.rint(255 * shades), np.uint8)


def encoded(pictures: Iterator[Pixels] | list[Pixels], lossless: bool) -> Sheet:
    """Pictures (n, height, width, 3) of one size, given part by part, as one sheet."""
    from matplotlib.image import imsave

    every = np.concatenate(list(pictures))
    count, height, width, _ = every.shape
    columns = max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    canvas = np.zeros((rows * columns, height, width, 3), np.uint8)
    canvas[:count] = every
    canvas = canvas.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    buffer = io.BytesIO()
    imsave(buffer, canvas, format="webp", pil_kwargs=dict(_LOSSLESS if lossless else _LOSSY))
    data = base64.b64encode(buffer.getvalue()).decode()
    return Sheet(data, columns, count, columns * width, rows * height)
