"""Which maps of a layer are most alike?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from oip_torch.analysis.image_statistics import best_correlations, unit_spectra

__all__ = ["MOST", "by_images", "nearest"]

MOST = 24
"""So many of each map's most similar ones are told."""
_SIDES = (512, 32), (1 << 30, 16)  # up to so many maps images are compared at this size: 2,000 take half a minute

Floats = npt.NDArray[np.float64]


def by_images(images: npt.NDArray[np.floating]) -> list[list[tuple[int, float]]]:
    """Of each image the most similar others, by the largest correlation over all shifts.

    Args:
        images: (N, height, width, channels); larger ones than 32 pixels are first reduced to that, more than 512 to 16.

    Returns:
        For each image (position, correlation) of at most `MOST` others, the most similar first.
    """
    height, width = images.shape[1:3]
    most = next(side for count, side in _SIDES if len(images) <= count)
    if (side := max(height, width)) > most:
        size = max(1, round(height * most / side)), max(1, round(width * most / side))
        tensor = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        images = F.interpolate(tensor, size=size, mode="area").numpy().transpose(0, 2, 3, 1)
    spectra = unit_spectra(images)
    return [_most(best_correlations(spectrum, spectra, images.shape[1:3]), row) for row, spectrum in enumerate(spectra)]


def nearest(likeness: Floats, chosen: npt.NDArray[np.int64]) -> list[list[tuple[int, float]]]:
    """Of each chosen map the most similar chosen others, by a matrix of correlations; none where it is undefined.

    Args:
        likeness: (maps, maps), NaN where undefined.
        chosen: (M,) which maps; positions in the result are among these.
    """
    own = likeness[np.ix_(chosen, chosen)]
    return [_most(values, row) for row, values in enumerate(own)]


def _most(values: Floats, row: int) -> list[tuple[int, float]]:
    known = [index for index in np.argsort(-values, kind="stable").tolist() if np.isfinite(values[index])]
    return [(index, round(float(values[index]), 3)) for index in known if index != row][:MOST]
