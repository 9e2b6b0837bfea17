"""What bounds the problem? Above a ReLU a score grows with the image's contrast, without limit.

All is in units of standardised images: 0 is the data's mean, 1 its standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from oip_torch.base.checks import number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.tensors import rms, standardize

__all__ = ["Ball", "Constraint", "Limit", "Range", "Standardized"]

Limit = float | tuple[float, ...]
"""One number, or one per channel."""

_TINY = 1e-7  # keeps an image of zeros finite


class Constraint(Protocol):
    """One way to bound images, (batch, C, H, W), each by itself."""

    @property
    def summary(self) -> str:
        """In words, for pictures; "" for the method's way."""

    @property
    def fixes_mean(self) -> bool:
        """Whether every image gets the mean 0."""

    @property
    def fixes_contrast(self) -> bool:
        """Whether every image gets the same RMS."""

    def bound(self, x: Tensor) -> Tensor:
        """The images within the bounds; differentiable."""


@dataclass(frozen=True, kw_only=True)
class Standardized:
    """Each image has mean 0 and standard deviation 1, over all channels together; the method's way."""

    summary = ""
    fixes_mean = True
    fixes_contrast = True

    def bound(self, x: Tensor) -> Tensor:
        """See `Constraint`."""
        return standardize(x)


@dataclass(frozen=True, kw_only=True)
class Range:
    """Each pixel lies between two limits.

    Areas at a limit are exactly flat; where a max-pooling finds equal numbers there, rounding decides which pixel the
    gradient goes to, so that such images differ between batch sizes as they do between machines.

    Attributes:
        limits: (least, largest) value of a pixel, each one number or one per channel, in units of standardised images.
            "data": the domain's black and white; what real images reach is `Calibration.limits`.
        turns: standardising and clamping take turns so often: the image has mean 0 and standard deviation 1, and lies
            within the limits but for a little. 0: it is clamped alone, lies within the limits exactly, and has any mean
            and contrast, so that it may be of one colour. Its score then is of another contrast than real images have.
    """

    limits: tuple[Limit, Limit] | Literal["data"] = "data"
    turns: int = 12

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        object.__setattr__(self, "turns", whole("turns", self.turns, 0))
        limits = plain(self.limits)
        if limits != "data":
            if not isinstance(limits, tuple) or len(limits) != 2:
                raise InputError(f"limits are {shown(self.limits)}: expected (least, largest), or 'data'")
            limits = tuple(_limit(limit) for limit in limits)
            low, high = (np.atleast_1d(limit) for limit in limits)
            told = f"limits are {_in_words(limits[0])} and {_in_words(limits[1])}"
            if len(low) != len(high) and 1 not in (len(low), len(high)):
                raise InputError(f"{told}: expected as many of each, one for each channel")
            if self.turns and not low.max() < 0 < high.min():
                raise InputError(
                    f"{told}: expected a number below 0 and one above, in units of images of mean 0 and standard "
                    "deviation 1; with turns=0 any two, the smaller one first"
                )
            if not (low < high).all():
                raise InputError(f"{told}: expected the smaller one first")
        object.__setattr__(self, "limits", limits)

    @property
    def summary(self) -> str:
        """See `Constraint`."""
        ends = "the data's range" if self.limits == "data" else " to ".join(map(_in_words, self.limits))
        return f"pixels within {ends}" + ("" if self.turns else " with any mean and contrast")

    @property
    def fixes_mean(self) -> bool:
        """See `Constraint`."""
        return self.turns > 0

    @property
    def fixes_contrast(self) -> bool:
        """See `Constraint`."""
        return self.turns > 0

    def bound(self, x: Tensor) -> Tensor:
        """See `Constraint`."""
        assert self.limits != "data", "Decoder.of knows the data's"
        low, high = self.limits
        if isinstance(low, tuple) or isinstance(high, tuple):
            low, high = (x.new_tensor(limit).view(1, -1, 1, 1) for limit in (low, high))  # type: ignore[assignment]
        if not self.turns:
            return _clamped(x, low, high)
        x = standardize(x)
        for _ in range(self.turns):
            x = standardize(_clamped(x, low, high))
        return x


@dataclass(frozen=True, kw_only=True)
class Ball:
    """Each image has the same distance from the data's mean: its RMS over all channels and pixels is `radius`.

    Nothing is said of its mean, so that it may be of one colour. Standardised images lie on the ball of radius 1, too.

    Attributes:
        radius: above 0, in units of the data's standard deviation. A score that grows with the contrast would end on
            the ball's surface by itself; there the images are held.
    """

    radius: float = 1.0

    fixes_mean = False
    fixes_contrast = True

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        if number("radius", self.radius, "a number above 0") <= 0:
            raise InputError(f"radius is {self.radius}: expected a number above 0")
        object.__setattr__(self, "radius", float(plain(self.radius)))

    @property
    def summary(self) -> str:
        """See `Constraint`."""
        return f"images of RMS {self.radius:g} with any mean"

    def bound(self, x: Tensor) -> Tensor:
        """See `Constraint`."""
        return x * (self.radius / rms(x).clamp_min(_TINY))


class _Clamp(torch.autograd.Function):
    """x.clamp(low, high), whose gradient passes where a step along it leads back inside.

    torch's own is 0 outside: a pixel that has left the range once would never be moved again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Any, high: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.limits = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high), (gradient,) = ctx.saved_tensors, ctx.limits, gradients
        passes = ((x >= low) | (gradient > 0)) & ((x <= high) | (gradient < 0))
        return gradient * passes, None, None


def _clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    clamped: Tensor = _Clamp.apply(x, low, high)  # type: ignore[no-untyped-call]
    return clamped


def _limit(value: Any) -> Limit:
    if isinstance(value, tuple) and value:
        return tuple(float(number("a limit", each)) for each in value)
    return float(number("a limit", value))


def _in_words(limit: Limit) -> str:
    return " | ".join(f"{value:.3g}" for value in (limit if isinstance(limit, tuple) else (limit,)))
