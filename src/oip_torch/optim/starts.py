"""Which image does an ascent begin with?

A start is a sum of components, from long wavelengths to short ones: strategy 0 of the method enlarges squares of random
numbers, each as coarse as one length scale; or Fourier bands with random phases. Which wavelengths are in the start
decides what is found, and whether anything is found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.base.checks import is_whole, number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.frequencies import frequencies
from oip_torch.base.image_files import images_sha256
from oip_torch.base.tensors import standardize

__all__ = ["Key", "StartSettings", "components", "enlarge", "given_images", "random_stream", "start_images"]

Key = tuple[int, ...]
"""(map, start number), or (map, start number, candidate number): with seed and layer, all that an image's random
numbers depend on. Candidate 0 is the start itself."""


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """How start images are made.

    Attributes:
        kind: "scales" or "fourier".
        sides: of "scales": the side of each square of random numbers, in grid points along the image's shorter edge;
            the longer edge gets proportionally more, so that the cells are square. None: 3/28, 1/4, 1/2 and 1 of the
            shorter edge, which for 28x28 are the article's 3, 7, 14 and 28 (its text says 4, its code has 3).
        factors: with which each component is added; None: 0.5 for all, as in the article.
        exponent: of "fourier": a in the amplitude spectrum 1/f^a; photographs have about 1, white noise has 0.
        lowest, highest: of "fourier": the band of frequencies, in cycles per shorter edge; None: no upper limit.
        bands: of "fourier": into how many components the band is cut, evenly in log f (see `AscentSettings.stages`).
    """

    kind: Literal["scales", "fourier"] = "scales"
    sides: tuple[int, ...] | None = None
    factors: tuple[float, ...] | None = None
    exponent: float = 1.0
    lowest: float = 1.0
    highest: float | None = None
    bands: int = 4

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        if self.kind not in ("scales", "fourier"):
            raise InputError(f"kind of start is {shown(self.kind)}: expected 'scales' or 'fourier'")
        if self.sides is not None:
            sides = self.sides if isinstance(self.sides, tuple) else (self.sides,)
            if not sides or not all(is_whole(side) and side >= 1 for side in sides):
                raise InputError(f"sides are {shown(self.sides)}: expected whole numbers, at least one, each 1 or more")
            object.__setattr__(self, "sides", sides)
        if self.factors is not None:
            given = self.factors if isinstance(self.factors, tuple) else (self.factors,)
            factors = tuple(float(number("a factor", factor, "finite numbers")) for factor in given)
            if not any(factors):
                raise InputError(f"factors are {shown(self.factors)}: expected finite numbers, not all 0")
            if len(factors) != self.count:
                raise InputError(f"{len(factors)} factors for {self.count} components: expected one for each")
            object.__setattr__(self, "factors", factors)
        whole("bands", self.bands, 1)
        number("exponent", self.exponent)
        highest = math.inf if self.highest is None else number("highest", self.highest)
        if not 0 < number("lowest", self.lowest) < highest:
            raise InputError(
                f"lowest and highest are {self.lowest} and {self.highest}: expected 0 < lowest < highest, "
                "in cycles per shorter edge"
            )

    @property
    def count(self) -> int:
        """How many components a start has."""
        if self.kind == "fourier":
            return self.bands
        return 4 if self.sides is None else len(self.sides)

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        """(rows, columns) of every square of random numbers, for an image of this size."""
        shorter = min(height, width)
        sides = self.sides or tuple(max(1, round(shorter * share)) for share in (3 / 28, 1 / 4, 1 / 2, 1))
        return [(round(side * height / shorter), round(side * width / shorter)) for side in sides]


def random_stream(seed: int, layer: str, key: Key) -> np.random.Generator:
    """The random numbers of one image: they depend on these alone, not on the batch or the order of the work."""
    if seed < 0:
        raise InputError(f"seed is {seed}: expected 0 or more")
    name = int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little")
    map_index, start, *candidate = key
    number = [c for c in candidate if c > 0]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, name, map_index, start, *number])))


def components(
    shape: tuple[int, int, int],
    keys: Sequence[Key],
    *,
    layer: str = "",
    seed: int = 0,
    settings: StartSettings | None = None,
) -> Tensor:
    """The components of start images, from the longest wavelengths to the shortest, each times its factor.

    Args:
        shape: (channels, height, width).
        keys: (map, start) or (map, start, candidate) of each image.
        layer: name of the layer, which is part of the random stream's key.
        seed: 0 or more.
        settings: which wavelengths.

    Returns:
        (count, len(keys), channels, height, width), float32, on the CPU.
    """
    settings = settings or StartSettings()
    if len(shape) != 3 or not all(is_whole(side) and side > 0 for side in shape):
        raise InputError(f"the images' shape is {shown(shape)}: expected (channels, height, width)")
    streams = [random_stream(seed, layer, key) for key in keys]
    if settings.kind == "fourier":
        parts = torch.from_numpy(np.stack([_fourier(shape, stream, settings) for stream in streams], axis=1))
    else:
        channels, height, width = shape
        scales = []
        for rows, columns in settings.grids(height, width):
            grid = np.stack([stream.uniform(-1.0, 1.0, (channels, rows, columns)) for stream in streams])
            scales.append(enlarge(torch.from_numpy(grid.astype(np.float32)), height, width))
        parts = torch.stack(scales)
    factors = settings.factors or (0.5,) * settings.count
    return parts * torch.tensor(factors, device=parts.device)[:, None, None, None, None]


def start_images(
    shape: tuple[int, int, int],
    keys: Sequence[Key],
    *,
    layer: str = "",
    seed: int = 0,
    settings: StartSettings | None = None,
) -> Tensor:
    """The start images of the ascents `keys`: the sum of their `components`, standardised.

    Returns:
        (len(keys), channels, height, width), float32, on the CPU.
    """
    return standardize(components(shape, keys, layer=layer, seed=seed, settings=settings).sum(0))


def given_images(images: Any, shape: tuple[int, int, int], maps: int, starts: int) -> tuple[Tensor, str]:
    """Start images of one's own, standardised, one for each ascent.

    Args:
        images: an array or tensor, (N, height, width, channels), of any scale; N is 1, `maps` or `maps` · `starts`.
        shape: (channels, height, width).
        maps: how many there are; the images belong to them in their order,
        starts: each with so many starts, one after the other.

    Returns:
        (maps · starts, channels, height, width), float64, on the CPU; and the SHA-256 of what was given.

    Raises:
        InputError: other shapes or counts, no finite numbers, an image of one value.
    """
    channels, height, width = shape
    expected = f"(N, {height}, {width}, {channels})"
    try:
        array = np.asarray(images.detach().cpu().numpy() if isinstance(images, Tensor) else images)
    except (TypeError, ValueError):  # rows of different lengths, or numbers that NumPy does not have
        array = np.empty(0, object)
    if array.dtype.kind not in "uif" or array.shape[1:] != (height, width, channels):
        what = f"an array of shape {array.shape} and type {array.dtype}" if array.dtype.kind != "O" else shown(images)
        raise InputError(f"start is {what}: expected images of numbers, {expected}")
    if len(array) not in (1, maps, maps * starts):
        several = f", {maps * starts} for each of their {starts} starts" if starts > 1 else ""
        raise InputError(f"start holds {len(array)} images: expected 1, or {maps} for each map{several}")
    values = array.astype(np.float64)
    flat = (np.ptp(values, axis=(1, 2, 3)) == 0) | ~np.isfinite(values).all((1, 2, 3))
    if flat.any():
        raise InputError(
            f"image {int(flat.argmax())} of start is of one value, or holds NaN or infinite values: expected one with "
            "a pattern, which can be standardised"
        )
    values /= np.abs(values).max((1, 2, 3), keepdims=True)  # so that no square leaves the range of the numbers
    centred = values - values.mean((1, 2, 3), keepdims=True)
    tensor = torch.from_numpy((centred / centred.std((1, 2, 3), keepdims=True)).transpose(0, 3, 1, 2).copy())
    return tensor.repeat_interleave(maps * starts // len(array), dim=0), images_sha256(array)


def _fourier(
    shape: tuple[int, int, int], stream: np.random.Generator, settings: StartSettings
) -> npt.NDArray[np.float32]:
    """(bands, channels, height, width): random phases, amplitudes 1/f^a within the band, 0 outside."""
    _, height, width = shape
    frequency = frequencies(height, width)
    top = float(frequency.max()) if settings.highest is None else settings.highest
    edges = np.geomspace(settings.lowest, max(top, settings.lowest * (1 + 1e-9)), settings.bands + 1)
    # The phases of real noise are those of a real image; drawing them directly would have to respect its symmetry.
    spectrum = np.fft.fft2(stream.standard_normal(shape))
    phases = spectrum / np.maximum(np.abs(spectrum), 1e-30)
    amplitude = np.where(frequency > 0, np.maximum(frequency, 1e-9) ** -settings.exponent, 0.0)
    tiny = 1e-9
    bands = []
    for index in range(settings.bands):
        last = index == settings.bands - 1
        below = frequency <= edges[index + 1] + tiny if last else frequency < edges[index + 1] - tiny
        bands.append(np.fft.ifft2(phases * amplitude * (below & (frequency >= edges[index] - tiny))).real)
    parts = np.stack(bands) * shape[1] * shape[2]
    return np.asarray(parts / max(float(parts.sum(0).std()), 1e-30), np.float32)


def enlarge(images: Tensor, height: int, width: int) -> Tensor:
    """(batch, channels, rows, columns) → (batch, channels, height, width), as TensorFlow's anti-aliased bicubic resize.

    Both use Keys' kernel with a = -0.5 and half-pixel centres, and weigh only the points inside at the border.
    """
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
