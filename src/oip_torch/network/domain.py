"""How does a pixel become what the network takes, and what do its data look like there?

An ascent works on images that are standardised one by one, or bounded otherwise in the same units. A network sees such
an image x as mean + std · x, with the mean and standard deviation of its data in its own input units. For a network
that was trained on data which were standardised as a whole, as the article's was, that is x itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oip_torch.base.errors import InputError

__all__ = [
    "MNIST_MEAN",
    "MNIST_STD",
    "NATURAL_MEAN",
    "NATURAL_STD",
    "Domain",
    "check_channels",
    "check_domain",
    "find_domain",
]

MNIST_MEAN, MNIST_STD = 33.318421, 78.567490
"""Mean and standard deviation of MNIST's 60,000 training images, all pixels together, on the 0–255 scale."""

NATURAL_MEAN, NATURAL_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's training images by channel, red, green, blue, on the 0–255 scale: the figures that torchvision's
documentation of its pretrained models gives as 0.485 … 0.229 …"""

_OWN_STD = 20.0, 127.0
"""Standard deviations, on the 0–255 scale, that a data set can have; 1, 127.5 and 255 are mere changes of scale."""
_LARGEST_INPUT = 16.0  # what comes out of a first Rescaling or Normalization stays below, if it was meant for the input

Floats = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """How pixels become inputs, and what the data look like in input units; each one number, or one per channel.

    Attributes:
        pixel_mean, pixel_std: what is done outside the network to a pixel p of 0 to 255: (p - pixel_mean) / pixel_std.
        mean, std: of the data, in the network's input units.
        black, white: the ends of what the data can hold, in input units.
        source: how this is known, in words.
    """

    pixel_mean: Floats = (0.0,)
    pixel_std: Floats = (1.0,)
    mean: Floats = (0.0,)
    std: Floats = (1.0,)
    black: Floats = (0.0,)
    white: Floats = (255.0,)
    source: str = "not known"

    def __post_init__(self) -> None:
        """Check the values."""
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if field.name != "source" and not (values and all(map(math.isfinite, values))):
                raise InputError(f"{field.name} of the domain is {values}: expected finite numbers")
        if min(self.pixel_std) <= 0 or min(self.std) <= 0:
            raise InputError(f"pixel_std is {self.pixel_std}, std is {self.std}: expected numbers above 0")
        if not (np.asarray(self.white) > np.asarray(self.black)).all():
            raise InputError(f"the range is {self.black} to {self.white}: expected the first below the second")

    @property
    def is_standard(self) -> bool:
        """Whether the data have mean 0 and standard deviation 1 there, so that images go in as they are."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def to_input(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Standardised images (…, channels) as the network takes them."""
        if self.is_standard:
            return images
        return np.asarray(np.asarray(self.mean) + np.asarray(self.std) * images, images.dtype)

    def of_pixels(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Pixels of 0 to 255, (…, channels), as the network takes them."""
        return np.asarray((pixels - np.asarray(self.pixel_mean)) / np.asarray(self.pixel_std))

    def is_like(self, other: Domain) -> bool:
        """Whether a network sees the same image in both."""
        return (self.is_standard and other.is_standard) or (self.mean, self.std) == (other.mean, other.std)

    @property
    def ends(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Black and white in the units of standardised images, one number or one per channel."""
        black, white = (
            (np.asarray(end) - np.asarray(self.mean)) / np.asarray(self.std) for end in (self.black, self.white)
        )
        return black, white

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Domain:
        """What `to_dict` gave, also after a way through JSON."""
        numbers = {field.name for field in dataclasses.fields(cls)} - {"source"}
        given = {name: tuple(float(value) for value in data[name]) for name in numbers if name in data}
        return cls(**given, source=str(data.get("source", "not known")))


def find_domain(
    shape: tuple[int, int, int],
    *,
    scale: tuple[Sequence[float], Sequence[float]] | None = None,
    first_layers: Sequence[dict[str, Any]] = (),
    data: tuple[Sequence[float], Sequence[float]] | None = None,
    limits: tuple[float, float] | None = None,
) -> Domain:
    """The domain of a network, from what is known of it.

    Args:
        shape: (height, width, channels) of its input.
        scale: mean and standard deviation, on the 0–255 scale, that were applied outside the network.
        first_layers: what the network itself does to its input first: {"kind": "Rescaling", "scale": s, "offset": o} or
            {"kind": "Normalization", "mean": […], "std": […]}.
        data: mean and standard deviation of the data's pixels, on the 0–255 scale, as measured.
        limits: the least and the largest value that an input can have.

    Returns:
        The domain; its `source` says what was given, and what was assumed.

    Raises:
        InputError: as many numbers as there are no channels, or a range without an extent.
    """
    told: list[str] = []
    digits = shape == (28, 28, 1)
    inside = first_layers[0] if first_layers else None
    if scale is not None:
        pixel_mean, pixel_std = (tuple(map(float, part)) for part in scale)
        if not pixel_std or not min(pixel_std) > 0:
            raise InputError(f"std is {pixel_std}: expected numbers above 0")
        told.append(f"inputs are (pixel - {_shown(pixel_mean)}) / {_shown(pixel_std)}, as given")
    elif limits is not None:
        low, high = limits
        if not low < high:
            raise InputError(f"the range is {low:g} to {high:g}: expected the first below the second")
        pixel_mean, pixel_std = (-low * 255 / (high - low),), (255 / (high - low),)
        told.append(f"inputs run from {low:g} to {high:g}, as given")
    elif inside is not None:
        pixel_mean, pixel_std = (0.0,), ((1.0,) if _takes_pixels(inside) else (255.0,))
        what = "0–255" if _takes_pixels(inside) else "0–1"
        told.append(f"the network begins with {inside['kind']}, so pixels are taken to go in as {what}")
    elif digits:
        pixel_mean, pixel_std = (MNIST_MEAN,), (MNIST_STD,)
        told.append(
            f"the input is 28×28×1, so MNIST's standardisation is assumed: mean {MNIST_MEAN}, standard deviation "
            f"{MNIST_STD}"
        )
    else:
        pixel_mean, pixel_std = (0.0,), (1.0,)
        told.append(
            "nothing was said of what is done to the pixels before the network, so they are taken to go in as 0–255 "
            "(if they were divided by 255: --std 255 --mean 0)"
        )
    check_channels("mean and std", (pixel_mean, pixel_std), shape[2])
    data_mean, data_std, of = _data(shape, scale, data)
    check_channels("the data's mean and std", (data_mean, data_std), shape[2])
    if data is None and inside is not None and inside["kind"] == "Normalization" and scale is None:
        mean, std, of = tuple(inside["mean"]), tuple(inside["std"]), "as the network's own Normalization has them"
    else:
        scales = np.asarray(pixel_std)
        mean = tuple(((np.asarray(data_mean) - np.asarray(pixel_mean)) / scales).tolist())
        std = tuple((np.asarray(data_std) / scales).tolist())
    told.append(f"the data's mean there is {_shown(mean)}, its standard deviation {_shown(std)}, {of}")
    ends = limits or (None, None)
    black, white = (
        (end,) if end is not None else tuple(((pixel - np.asarray(pixel_mean)) / np.asarray(pixel_std)).tolist())
        for pixel, end in zip((0.0, 255.0), ends, strict=True)
    )
    return Domain(
        pixel_mean=pixel_mean, pixel_std=pixel_std, mean=mean, std=std, black=black, white=white, source="; ".join(told)
    )


def _takes_pixels(layer: dict[str, Any]) -> bool:
    """Whether a first layer is made for inputs of 0–255, and not of 0–1."""
    if layer["kind"] == "Normalization":
        return bool(np.max(np.asarray(layer["mean"]) + 2 * np.asarray(layer["std"])) > 2.0)
    return abs(255 * float(layer["scale"]) + float(layer["offset"])) <= _LARGEST_INPUT


def _data(
    shape: tuple[int, int, int],
    scale: tuple[Sequence[float], Sequence[float]] | None,
    data: tuple[Sequence[float], Sequence[float]] | None,
) -> tuple[Sequence[float], Sequence[float], str]:
    """Mean and standard deviation of the data on the 0–255 scale, and how they are known."""
    if data is not None:
        return *data, "as measured on the data"
    if scale is not None and all(_OWN_STD[0] <= value <= _OWN_STD[1] for value in scale[1]):
        return *scale, "since the standardisation given is taken to be the data's own"
    if shape == (28, 28, 1):
        return (MNIST_MEAN,), (MNIST_STD,), "MNIST's being assumed"
    natural = NATURAL_MEAN, NATURAL_STD
    mean, std = natural if shape[2] == 3 else ((sum(part) / len(part),) for part in natural)
    return mean, std, "natural images' being assumed"


def check_domain(domain: Domain, channels: int) -> None:
    """Raise an `InputError` where a domain has neither one number nor one for each channel."""
    for field in dataclasses.fields(domain):
        if field.name != "source":
            check_channels(f"{field.name} of the domain", [getattr(domain, field.name)], channels)


def check_channels(what: str, numbers: Sequence[Sequence[float]], channels: int) -> None:
    """Raise an `InputError` where there is neither one number nor one for each channel."""
    if {len(part) for part in numbers} - {1, channels}:
        got = " and ".join(str(len(part)) for part in numbers)
        raise InputError(f"{what}: got {got} numbers, expected 1, or one for each of the {channels} channels")


def _shown(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
