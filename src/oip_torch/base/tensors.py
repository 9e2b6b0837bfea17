"""What is done with images as tensors: per-image standardisation, their RMS, and the way from arrays and back."""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from oip_torch.base.layouts import channels_first, channels_last

__all__ = ["rms", "standardize", "to_array", "to_tensor", "with_rms_of"]


def standardize(images: Tensor) -> Tensor:
    """(x - mean) / max(std, 1/√N) for each image of (batch, channels, height, width); std of the population.

    As `tf.image.per_image_standardization`; the floor keeps uniform images finite.
    """
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return centred / rms(centred).clamp_min(1.0 / math.sqrt(images[0].numel()))


def rms(images: Tensor) -> Tensor:
    """Root of the mean square of each image: (batch, channels, height, width) → (batch, 1, 1, 1)."""
    norm: Tensor = torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)
    return norm / math.sqrt(images[0].numel())


def with_rms_of(images: Tensor, others: Tensor) -> Tensor:
    """The images with the RMS of the others, one by one, around 0; an image of zeros stays so."""
    return images * (rms(others) / rms(images).clamp_min(1e-30))


def to_tensor(
    images: npt.NDArray[Any], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """(batch, height, width, channels) → (batch, channels, height, width), by default on the CPU, in its own dtype."""
    return torch.from_numpy(channels_first(images)).to(device=device, dtype=dtype)


def to_array(tensor: Tensor) -> npt.NDArray[Any]:
    """(batch, channels, height, width) → (batch, height, width, channels); of another rank as it is. On the CPU."""
    return channels_last(tensor.detach().cpu().numpy())
