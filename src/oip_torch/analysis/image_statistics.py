"""What can be said of images by themselves: their wavelengths, and how far they agree?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from oip_torch.base.errors import InputError
from oip_torch.base.frequencies import rings

__all__ = [
    "best_correlations",
    "cross_correlation",
    "cross_correlations",
    "radial_power_spectrum",
    "spectrum_distance",
    "unit_spectra",
]

_TINY_POWER = 1e-12  # of the variance: an absent wavelength counts as that much, so that its logarithm is finite

Floats = npt.NDArray[np.float64]


def radial_power_spectrum(images: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """How an image's variance is shared out among wavelengths.

    Ring r, from 1 on, holds the frequencies that are r cycles per shorter edge long, rounded, in any direction, and in
    all channels; the mean (frequency 0) is left out. The sum over the rings is the variance, 1 for a standardised image
    (Parseval's theorem). Radially averaged spectra are the usual way to compare images of natural scenes: Field,
    "Relations between the statistics of natural images and the response properties of cortical cells", 1987.

    Args:
        images: (N, height, width, channels).

    Returns:
        (N, rings), with about 0.7 · the shorter edge rings for a square.
    """
    _, height, width, channels = images.shape
    ring = rings(height, width)
    power = np.abs(np.fft.fft2(images, axes=(1, 2))) ** 2 / (channels * (height * width) ** 2)
    power[:, 0, 0] = 0.0
    flat = power.sum(-1).reshape(len(images), -1)
    return np.asarray(flat @ (ring.reshape(-1, 1) == np.arange(1, int(ring.max()) + 1)), np.float64)


def cross_correlation(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """The best normalised cross-correlation of two images over all circular shifts, -1 to 1.

        max over shifts s of   Σ (a(p) - ā) (b(p + s) - b̄) / (N σ_a σ_b)

    Computed by FFT. An image has 1 with any rolled copy of itself. Uniform images have 0 with all.

    Args:
        a: (height, width, channels).
        b: of the same shape. The channels move together, and the means are over all of them.
    """
    if a.shape != b.shape or a.ndim != 3:
        raise InputError(f"images of shapes {a.shape} and {b.shape}: expected the same (height, width, channels)")
    return float(cross_correlations(np.stack([a, b]))[0, 1])


def cross_correlations(images: npt.NDArray[np.floating]) -> Floats:
    """`cross_correlation` of each image with each: (S, height, width, channels) → (S, S), symmetric."""
    spectra = unit_spectra(images)
    result = np.empty((len(images), len(images)))
    for row, spectrum in enumerate(spectra):  # one row at a time: all pairs of large images would fill the memory
        result[row, row:] = result[row:, row] = best_correlations(spectrum, spectra[row:], images.shape[1:3])
    return result


def unit_spectra(images: npt.NDArray[np.floating]) -> npt.NDArray[np.complex128]:
    """(N, height, width, channels) → their transforms, of mean 0 and norm 1 each, as `best_correlations` takes them."""
    values = np.asarray(images, np.float64)
    values = values - values.mean((1, 2, 3), keepdims=True)
    norms = np.sqrt((values**2).sum((1, 2, 3), keepdims=True))
    return np.fft.rfft2(values / np.where(norms > 0, norms, 1.0), axes=(1, 2))


def best_correlations(
    a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128], size: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """`cross_correlation` row by row, from `unit_spectra` of images of this (height, width): (N,)."""
    best = np.fft.irfft2((a.conj() * b).sum(-1), s=size, axes=(1, 2)).max((1, 2))
    return np.asarray(np.clip(best, -1.0, 1.0))


def spectrum_distance(images: npt.NDArray[np.floating], spectrum: Floats) -> Floats:
    """(N, height, width, channels) and (rings,) → (N,): see `Quality.spectrum_distance`."""
    own = np.log10(np.maximum(radial_power_spectrum(images), _TINY_POWER))
    data = np.log10(np.maximum(spectrum, _TINY_POWER))
    return np.asarray(np.sqrt(np.mean((own - data) ** 2, axis=1)))
