"""What is optimised, and which image does it stand for?

The numbers that an ascent moves need not be the image's pixels. `decode` makes the image of them, and `constrain`
brings them back, after each step, to what bounds the problem.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.base.checks import number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.tensors import standardize

__all__ = ["Blurred", "Image", "Pen", "Pixels", "Views", "image_of", "total_variation_gradient"]


class Image(Protocol):
    """One way from what is optimised to an image; both are (batch, C, H, W)."""

    @property
    def summary(self) -> str:
        """What is special about it, in words, for pictures; "" for the method's way."""

    def decode(self, parameters: Tensor) -> Tensor:
        """The images, each of mean 0 and standard deviation 1."""

    def constrain(self, parameters: Tensor) -> Tensor:
        """The parameters after a step, within what bounds the problem."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The image itself, standardised after each step; the method's way.

    Attributes:
        limits: (least, largest) value of a pixel, in units of standardised images: the steps go on within the data's
            range, by turns of standardising and clamping. "data": the domain's black and white, or what real images
            reach, see `AscentSettings.strokes`. None: no limits. Areas at a limit are exactly flat; where a max-pooling
            finds equal numbers there, rounding decides which pixel the gradient goes to, so that such images differ
            between batch sizes as they do between machines.
        turns: how often the two take turns after each step; they meet where they can.
    """

    limits: tuple[float, float] | Literal["data"] | None = None
    turns: int = 12

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        object.__setattr__(self, "turns", whole("turns", self.turns, 1))
        limits = plain(self.limits)
        if limits is not None and limits != "data":
            if not isinstance(limits, tuple) or len(limits) != 2:
                raise InputError(f"limits are {shown(self.limits)}: expected (least, largest), 'data' or None")
            low, high = (float(number("a limit", limit)) for limit in limits)
            if not low < 0 < high:
                raise InputError(
                    f"limits are {low:g} and {high:g}: expected a number below 0 and one above, in units of images of "
                    "mean 0 and standard deviation 1"
                )
            limits = low, high
        object.__setattr__(self, "limits", limits)

    @property
    def summary(self) -> str:
        """See `Image`."""
        if self.limits is None:
            return ""
        ends = "the data's range" if self.limits == "data" else f"{self.limits[0]:.3g} to {self.limits[1]:.3g}"
        return f"pixels within {ends}"

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return parameters

    def constrain(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        x = standardize(parameters)
        if self.limits is not None and self.limits != "data":
            for _ in range(self.turns):
                x = standardize(x.clamp(*self.limits))
        return x


@dataclass(frozen=True, kw_only=True)
class Blurred:
    """x = standardize(G θ), with a Gaussian blur G of `sigma` pixels: no pattern finer than that."""

    sigma: float = 0.9

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("sigma", self.sigma)

    @property
    def summary(self) -> str:
        """See `Image`."""
        return f"blurred pixels (sigma {self.sigma:g})"

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return standardize(_blur(parameters, self.sigma))

    def constrain(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return standardize(parameters)


@dataclass(frozen=True, kw_only=True)
class Pen:
    """x = standardize(sigmoid(k · (standardize(G θ) - t))): paper, and ink where θ is high.

    Attributes:
        sharpness: k, how sharp the ink's edge is.
        threshold: t, in standard deviations of G θ: the higher, the less ink.
        sigma: of the blur G, in pixels: the pen's width.
    """

    sharpness: float = 2.0
    threshold: float = 1.0
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        _positive("sharpness", self.sharpness)
        _positive("sigma", self.sigma)
        number("threshold", self.threshold)

    @property
    def summary(self) -> str:
        """See `Image`."""
        return f"a pen (width {self.sigma:g}, sharpness {self.sharpness:g}, threshold {self.threshold:g})"

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        height = standardize(_blur(parameters, self.sigma))
        return standardize(torch.sigmoid(self.sharpness * (height - self.threshold)))

    def constrain(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return standardize(parameters)


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the network sees at each step: the image under one random rotation, scaling and shift, edges repeated.

    A pattern that survives them does not hang on single pixels. Each image has random numbers of its own.

    Attributes:
        rotation: by at most so many degrees, either way.
        scale: by at most this share, larger or smaller.
        shift: by at most so many pixels, in both directions.
        fade: the share of the steps at which their size has fallen to 0, linearly; None: the same size to the end.
    """

    rotation: float = 10.0
    scale: float = 0.1
    shift: float = 1.5
    fade: float | None = 0.7

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("rotation", "scale", "shift"):
            if number(name, getattr(self, name), "a number of 0 or more") < 0:
                raise InputError(f"{name} is {getattr(self, name)}: expected a number of 0 or more")
        if self.scale >= 1:
            raise InputError(f"scale is {self.scale}: expected a number below 1")
        if self.fade is not None and not 0 < number("fade", self.fade) <= 1:
            raise InputError(f"fade is {self.fade}: expected a number above 0, at most 1, or None")

    @property
    def summary(self) -> str:
        """In words, for pictures."""
        until = "to the end" if self.fade is None else f"fading out at {self.fade:.0%} of the steps"
        return f"seen under random views {until}"

    def size(self, done: float) -> float:
        """At a share `done` of the steps, 0 to 1."""
        return 1.0 if self.fade is None else max(0.0, 1.0 - done / self.fade)

    def see(self, x: Tensor, draws: Tensor, size: float) -> Tensor:
        """Images (n, C, H, W) as they are seen, by uniform numbers (n, 4) of -1 to 1, in so much of the full size."""
        if size == 0:
            return x
        angle, zoom, down, right = (draws * size).to(x).unbind(1)
        angle, zoom = angle * math.radians(self.rotation), 1 + zoom * self.scale
        height, width = x.shape[2:]
        cosine, sine = zoom * torch.cos(angle), zoom * torch.sin(angle)
        rows = [
            torch.stack([cosine, -sine * (height / width), right * (2 * self.shift / width)], 1),
            torch.stack([sine * (width / height), cosine, down * (2 * self.shift / height)], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def total_variation_gradient(x: Tensor) -> Tensor:
    """Of the sum of |difference to the right| and |difference below|, for each image by itself; 0 where they are 0."""
    across, below = x.diff(dim=3).sign(), x.diff(dim=2).sign()
    return F.pad(across, (1, 0)) - F.pad(across, (0, 1)) + F.pad(below, (0, 0, 1, 0)) - F.pad(below, (0, 0, 0, 1))


def image_of(data: dict[str, Any]) -> Pixels | Blurred | Pen:
    """The way that `dataclasses.asdict` gave, after a way through JSON: told by its fields."""
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    for kind in (Pixels, Blurred, Pen):
        if given.keys() == {field.name for field in dataclasses.fields(kind)}:
            return kind(**given)
    raise InputError(f"no way to make images has the settings {', '.join(map(str, data))}")


def _blur(x: Tensor, sigma: float) -> Tensor:
    """(batch, C, H, W), each channel convolved with a Gaussian; edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    places = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    channels = x.shape[1]
    x = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, weights.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, weights.transpose(2, 3).expand(channels, 1, -1, 1), groups=channels)


def _positive(name: str, value: Any) -> None:
    if number(name, value, "a number above 0") <= 0:
        raise InputError(f"{name} is {value}: expected a number above 0")
