"""Which image do the numbers stand for that an ascent moves? They need not be its pixels.

What bounds the image is another question (`optim.constraint`), and so is how its channels mix (`optim.colors`).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.base.checks import number, plain, shown
from oip_torch.base.errors import InputError
from oip_torch.base.frequencies import frequencies, rings
from oip_torch.base.tensors import standardize

__all__ = ["Blurred", "Fourier", "Image", "Pen", "Phases", "Pixels", "total_variation_gradient"]


class Image(Protocol):
    """One way from what is optimised to an image; both are (batch, C, H, W)."""

    @property
    def summary(self) -> str:
        """What is special about it, in words, for pictures; "" for the method's way."""

    @property
    def has_scale(self) -> bool:
        """Whether mean and contrast of what `decode` gives are meant, and not the pattern alone."""

    @property
    def has_places(self) -> bool:
        """Whether the numbers lie where the pixels do, so that to subtract their mean takes the image's away."""

    def check(self, height: int, width: int) -> None:
        """Raise an `InputError` where images of this size cannot be made."""

    def decode(self, parameters: Tensor) -> Tensor:
        """The images, before they are bounded."""

    def encode(self, images: Tensor) -> Tensor:
        """Numbers that stand for these images, or come near to it; linear."""


class _OfPixels:
    """What ways have in common whose numbers lie where the pixels do."""

    has_scale: ClassVar[bool] = True
    has_places: ClassVar[bool] = True

    def check(self, height: int, width: int) -> None:
        """See `Image`."""

    def encode(self, images: Tensor) -> Tensor:
        """See `Image`."""
        return images


@dataclass(frozen=True, kw_only=True)
class Pixels(_OfPixels):
    """The image itself, bounded after each step; the method's way."""

    summary = ""

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return parameters


@dataclass(frozen=True, kw_only=True)
class Blurred(_OfPixels):
    """x = G θ, with a Gaussian blur G of `sigma` pixels: no pattern finer than that."""

    sigma: float = 0.9

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        _positive(self, "sigma")

    @property
    def summary(self) -> str:
        """See `Image`."""
        return f"blurred pixels (sigma {self.sigma:g})"

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return _blur(parameters, self.sigma)


@dataclass(frozen=True, kw_only=True)
class Pen(_OfPixels):
    """x = sigmoid(k · (standardize(G θ) - t)): paper, and ink where θ is high.

    Which values paper and ink have is the constraint's; where that leaves the mean free, the drawing is standardised
    first.

    Attributes:
        sharpness: k, how sharp the ink's edge is.
        threshold: t, in standard deviations of G θ: the higher, the less ink.
        sigma: of the blur G, in pixels: the pen's width.
    """

    sharpness: float = 2.0
    threshold: float = 1.0
    sigma: float = 1.0

    has_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        _positive(self, "sharpness", "sigma")
        object.__setattr__(self, "threshold", plain(self.threshold))
        number("threshold", self.threshold)

    @property
    def summary(self) -> str:
        """See `Image`."""
        return f"a pen (width {self.sigma:g}, sharpness {self.sharpness:g}, threshold {self.threshold:g})"

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        height = standardize(_blur(parameters, self.sigma))
        return torch.sigmoid(self.sharpness * (height - self.threshold))


@dataclass(frozen=True, kw_only=True)
class Fourier:
    """x = H (s · θ): waves with the amplitudes s · θ, where s falls as 1/max(f, 1/longest edge)^exponent.

    A step of the same size in all of θ changes long wavelengths most, as they are the strongest in real images (Olah et
    al., "Feature Visualization", Distill 2017). H is the discrete Hartley transform: real, orthonormal, and its own
    inverse (Bracewell, 1983); f is in cycles per pixel. White noise of RMS 1 gives images of RMS 1.

    Attributes:
        exponent: 0 or more. 0: all wavelengths alike, so that the ascent is that of the pixels.
    """

    exponent: float = 1.0

    has_scale: ClassVar[bool] = True
    has_places: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        _exponent(self)

    @property
    def summary(self) -> str:
        """See `Image`."""
        return f"Fourier coefficients (scaled by 1/f^{self.exponent:g})"

    def check(self, height: int, width: int) -> None:
        """See `Image`."""

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        return _hartley(parameters * self._scale(parameters))

    def encode(self, images: Tensor) -> Tensor:
        """See `Image`."""
        return _hartley(images) / self._scale(images)

    def _scale(self, like: Tensor) -> Tensor:
        return torch.from_numpy(_fourier_scale(like.shape[2], like.shape[3], self.exponent)).to(like)


@dataclass(frozen=True, kw_only=True)
class Phases(_OfPixels):
    """x = F⁻¹(A · F θ / |F θ|): the amplitudes A are fixed, and the phases alone move (F is the Fourier transform).

    Real images have amplitudes that hardly differ, and phases that do: with the data's amplitudes no wavelength can be
    made stronger than the data have it. Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude
    Constrained Optimization" (MACO), 2023; there the phases themselves are the parameters, and the amplitudes are a
    mean over images, frequency by frequency. The image has mean 0 and RMS 1, as long as the constraint leaves it so.

    Attributes:
        exponent: without a profile, of the amplitudes 1/f^exponent; 0 or more.
        profile: the variance of the wavelengths, ring by ring, as `Calibration.spectrum` has it, the longest first; one
            number of 0 or more for each ring of the images' size. The frequencies of a ring share it evenly. None:
            amplitudes of 1/f^exponent.
    """

    exponent: float = 1.0
    profile: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        _exponent(self)
        profile = plain(self.profile)
        if profile is not None:
            values = profile if isinstance(profile, tuple) else ()
            numbers = all(not isinstance(each, tuple) and number("a ring of the profile", each) >= 0 for each in values)
            if not numbers or not any(values):
                raise InputError(
                    f"profile is {shown(self.profile)}: expected one number of 0 or more for each ring, not all 0, as "
                    "calibration.spectrum has them, or None"
                )
            profile = tuple(map(float, values))
        object.__setattr__(self, "profile", profile)

    @property
    def summary(self) -> str:
        """See `Image`."""
        amplitudes = f"1/f^{self.exponent:g}" if self.profile is None else "of a given spectrum"
        return f"phases alone (amplitudes {amplitudes})"

    def check(self, height: int, width: int) -> None:
        """See `Image`."""
        count = int(rings(height, width).max())
        if self.profile is not None and len(self.profile) != count:
            raise InputError(
                f"the profile has {len(self.profile)} rings: expected {count}, which images of {height}x{width} pixels "
                "have; take the spectrum of a calibration of this network"
            )

    def decode(self, parameters: Tensor) -> Tensor:
        """See `Image`."""
        height, width = parameters.shape[2:]
        amplitudes = torch.from_numpy(_amplitudes(height, width, self.exponent, self.profile)).to(parameters)
        x: Tensor = torch.fft.irfft2(amplitudes[:, : width // 2 + 1] * _phases(parameters), s=(height, width))
        return x

    def even(self, parameters: Tensor) -> Tensor:
        """Numbers of the same phases with amplitudes that are all alike, of RMS 1; they stand for the same image.

        A step turns a phase the more, the smaller its amplitude is: so all of them turn as if they were the parameters.
        """
        height, width = parameters.shape[2:]
        x: Tensor = torch.fft.irfft2(_phases(parameters), s=(height, width), norm="ortho")
        return x


def total_variation_gradient(x: Tensor) -> Tensor:
    """Of the sum of |difference to the right| and |difference below|, for each image by itself; 0 where they are 0."""
    across, below = x.diff(dim=3).sign(), x.diff(dim=2).sign()
    return F.pad(across, (1, 0)) - F.pad(across, (0, 1)) + F.pad(below, (0, 0, 1, 0)) - F.pad(below, (0, 0, 0, 1))


@functools.lru_cache(maxsize=8)
def _fourier_scale(height: int, width: int, exponent: float) -> npt.NDArray[np.float64]:
    """(height, width): see `Fourier`; its RMS is 1."""
    frequency = frequencies(height, width) / min(height, width)
    scale = np.maximum(frequency, 1 / max(height, width)) ** -exponent
    return np.asarray(scale / np.sqrt(np.mean(scale**2)))


@functools.lru_cache(maxsize=8)
def _amplitudes(height: int, width: int, exponent: float, profile: tuple[float, ...] | None) -> npt.NDArray[np.float64]:
    """(height, width): of each frequency, 0 for the mean, such that the image has RMS 1: see `Phases`."""
    frequency, ring = frequencies(height, width), rings(height, width)
    if profile is None:
        power = np.maximum(frequency, 1e-9) ** (-2 * exponent)
    else:
        counts = np.bincount(ring[frequency > 0], minlength=len(profile) + 1)
        power = (np.array((0.0, *profile)) / np.maximum(counts, 1))[ring]
    power = np.where(frequency > 0, power, 0.0)
    return np.asarray(height * width * np.sqrt(power / power.sum()))


def _phases(x: Tensor) -> Tensor:
    """(batch, C, H, W // 2 + 1) complex numbers of length 1; 0, as their gradient, where x has no such wavelength."""
    turned: Tensor = torch.fft.rfft2(x, norm="ortho")
    return turned / turned.abs().clamp_min(1e-12)


def _hartley(x: Tensor) -> Tensor:
    """Over the last two dimensions: Σ x · (cos + sin), orthonormal, and its own inverse."""
    turned: Tensor = torch.fft.fft2(x, norm="ortho")
    return turned.real - turned.imag


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


def _positive(of: Any, *names: str) -> None:
    for name in names:
        value = plain(getattr(of, name))
        if number(name, value, "a number above 0") <= 0:
            raise InputError(f"{name} is {value}: expected a number above 0")
        object.__setattr__(of, name, value)


def _exponent(of: Any) -> None:
    value = plain(of.exponent)
    if number("exponent", value, "a number of 0 or more") < 0:
        raise InputError(f"exponent is {value}: expected a number of 0 or more")
    object.__setattr__(of, "exponent", float(value))
