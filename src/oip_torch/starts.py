"""Which image does an ascent begin with?

Strategy 0 of the method: squares of random numbers, each as coarse as one length scale, are enlarged to the image's
size and added up. Which wavelengths are in the start decides what is found, and whether anything is found.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.errors import InputError

__all__ = ["StartSettings", "random_stream", "standardize", "start_images"]


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """How start images are made.

    `sides`: the side of each square of random numbers, in grid points along the image's shorter edge; the longer edge
    gets proportionally more, so that the grid's cells are square. None: 3/28, 1/4, 1/2 and 1 of the shorter edge,
    which for 28x28 are the article's 3, 7, 14 and 28 (its text says 4, 7, 14, 28; its code has 3). A long side gives
    short wavelengths. `factors`: with which each enlarged square is added; None: 0.5 for all, as in the article.
    """

    sides: tuple[int, ...] | None = None
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.sides is not None:
            object.__setattr__(self, "sides", tuple(int(side) for side in self.sides))
            if not self.sides or min(self.sides) < 1:
                raise InputError(f"sides are {self.sides}: expected at least one, each 1 or more")
        if self.factors is not None:
            object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))
            if not all(map(math.isfinite, self.factors)) or not any(self.factors):
                raise InputError(f"factors are {self.factors}: expected finite numbers, not all 0")
            count = 4 if self.sides is None else len(self.sides)
            if len(self.factors) != count:
                raise InputError(f"{len(self.factors)} factors for {count} sides: expected one for each")

    def scales(self, height: int, width: int) -> list[tuple[int, int, float]]:
        """(rows, columns, factor) of every square, for an image of this size."""
        shorter = min(height, width)
        sides = self.sides or tuple(max(1, round(shorter * share)) for share in (3 / 28, 1 / 4, 1 / 2, 1))
        factors = self.factors or (0.5,) * len(sides)
        return [
            (round(side * height / shorter), round(side * width / shorter), factor)
            for side, factor in zip(sides, factors, strict=True)
        ]


def random_stream(seed: int, layer: str, map_index: int, start: int) -> np.random.Generator:
    """The random numbers of one image: they depend on these four alone, not on the batch or the order of the work."""
    name = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, map_index, start])))


def start_images(
    shape: tuple[int, int, int],
    keys: Sequence[tuple[int, int]],
    *,
    layer: str = "",
    seed: int = 0,
    settings: StartSettings | None = None,
) -> Tensor:
    """The start images of the ascents `keys`.

    Args:
        shape: (channels, height, width).
        keys: (map, start number) of each image.
        layer: name of the layer, which is part of the random stream's key.
        seed: 0 or more.
        settings: which length scales.

    Returns:
        (len(keys), channels, height, width), float32, on the CPU, each standardised.
    """
    if seed < 0:
        raise InputError(f"seed is {seed}: expected 0 or more")
    channels, height, width = shape
    scales = (settings or StartSettings()).scales(height, width)
    streams = [random_stream(seed, layer, *key) for key in keys]
    total = torch.zeros(len(keys), *shape)
    for rows, columns, factor in scales:
        grids = np.stack([stream.uniform(-1.0, 1.0, (channels, rows, columns)) for stream in streams])
        total += factor * enlarge(torch.from_numpy(grids.astype(np.float32)), height, width)
    return standardize(total)


def enlarge(images: Tensor, height: int, width: int) -> Tensor:
    """(batch, channels, rows, columns) → (batch, channels, height, width), as TensorFlow's anti-aliased bicubic resize.

    Both use Keys' kernel with a = -0.5 and half-pixel centres, and weigh only the points inside at the border.
    """
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)


def standardize(images: Tensor) -> Tensor:
    """(x - mean) / max(std, 1/√N) for each image of (batch, channels, height, width); std of the population.

    As `tf.image.per_image_standardization`; the floor keeps uniform images finite.
    """
    std, mean = torch.std_mean(images, dim=(1, 2, 3), correction=0, keepdim=True)
    return (images - mean) / std.clamp_min(1.0 / math.sqrt(images[0].numel()))
