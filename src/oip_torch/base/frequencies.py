"""Which frequencies does an image of this size have, and in which ring does each of them lie?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["frequencies", "rings"]


def frequencies(height: int, width: int) -> npt.NDArray[np.float64]:
    """(height, width): of each place of `np.fft.fft2`, in cycles per shorter edge, whatever the direction."""
    shorter = min(height, width)
    fy, fx = np.fft.fftfreq(height)[:, None] * shorter, np.fft.fftfreq(width)[None, :] * shorter
    return np.asarray(np.hypot(fy, fx))


def rings(height: int, width: int) -> npt.NDArray[np.int64]:
    """(height, width): the frequencies rounded to whole cycles, 1 or more.

    A frequency below half a cycle per shorter edge, along the longer edge, belongs to the longest wavelengths; so does
    the frequency 0, which is no wavelength, and which users of this leave out.
    """
    return np.asarray(np.maximum(np.rint(frequencies(height, width)), 1), np.int64)
