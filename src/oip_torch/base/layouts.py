"""Where do the channels lie? In arrays last, as in Keras, and in tensors first, as in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["channels_first", "channels_last"]


def channels_first(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(batch, height, width, channels) → (batch, channels, height, width), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def channels_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(batch, channels, height, width) → (batch, height, width, channels); an array of another rank as it is."""
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
