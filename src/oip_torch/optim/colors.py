"""How do the channels of what is optimised become those of the image?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from oip_torch.base.checks import number, plain, shown
from oip_torch.base.errors import InputError
from oip_torch.base.image_files import check_pixels

__all__ = ["Decorrelated"]

_NATURAL = (0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03)
"""Square root of the colour correlation of ImageNet's images, red, green, blue, as published with lucid
(github.com/tensorflow/lucid, lucid/optvis/param/color.py)."""
_SINGULAR = 1e-4  # the smallest singular value over the largest: below it colours could not be told apart


@dataclass(frozen=True, kw_only=True)
class Decorrelated:
    """The image's channels are mixtures of those that are optimised: x = M θ at each pixel.

    In real images the channels rise and fall together. With M Mᵀ their correlation, equal steps of θ lead to colours
    that are as frequent in the data as each other (Olah et al., "Feature Visualization", Distill 2017). The start is
    noise in θ, so that its channels are correlated as the data's are.

    Attributes:
        matrix: M, as many rows and columns as the image has channels. Its scale does not matter: uncorrelated channels
            of RMS 1 give channels of RMS 1, all together.
    """

    matrix: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        rows = plain(self.matrix)
        if (
            not isinstance(rows, tuple)
            or not rows
            or not all(isinstance(r, tuple) and len(r) == len(rows) for r in rows)
        ):
            raise InputError(f"matrix is {shown(self.matrix)}: expected as many rows as columns, one for each channel")
        rows = tuple(tuple(float(number("a number of the matrix", value)) for value in row) for row in rows)
        sizes = np.linalg.svd(np.array(rows), compute_uv=False)
        if not sizes[-1] > _SINGULAR * sizes[0]:
            raise InputError(
                f"matrix is {shown(rows)}: expected one that can be inverted; these channels always move together"
            )
        object.__setattr__(self, "matrix", rows)

    @classmethod
    def natural(cls) -> Decorrelated:
        """By the correlation of natural images' red, green and blue, as published with lucid."""
        return cls(matrix=_NATURAL)

    @classmethod
    def of(cls, images: npt.ArrayLike) -> Decorrelated:
        """By the correlation of these images' channels: the symmetric square root of their matrix.

        Of the correlation, not of the covariance, since images are optimised in units of each channel's standard
        deviation (see `Domain`).

        Args:
            images: (N, height, width, channels), pixel values 0–255.

        Raises:
            InputError: no such images, one channel, or channels that are all alike.
        """
        array = check_pixels(images, "the images")
        if array.ndim != 4 or array.shape[3] < 2:
            raise InputError(
                f"the images are an array of shape {array.shape}: expected two channels or more, at the end"
            )
        pixels = array.reshape(-1, array.shape[3]).astype(np.float64)
        if not (pixels.std(0) > 0).all():
            raise InputError("a channel of the images is of one value: expected real images")
        values, vectors = np.linalg.eigh(np.corrcoef(pixels, rowvar=False))
        return cls(matrix=plain((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T))

    @property
    def summary(self) -> str:
        """In words, for pictures."""
        return "decorrelated colours"

    def mix(self, x: Tensor) -> Tensor:
        """(batch, C, H, W) → the image's channels."""
        return self._turned(x, self._scaled())

    def separate(self, x: Tensor) -> Tensor:
        """The inverse of `mix`."""
        return self._turned(x, np.asarray(np.linalg.inv(self._scaled()), np.float64))

    def _scaled(self) -> npt.NDArray[np.float64]:
        matrix = np.array(self.matrix)
        return np.asarray(matrix * math.sqrt(len(matrix)) / np.linalg.norm(matrix))

    @staticmethod
    def _turned(x: Tensor, matrix: npt.NDArray[np.float64]) -> Tensor:
        return (x.new_tensor(matrix) @ x.flatten(2)).view_as(x)
