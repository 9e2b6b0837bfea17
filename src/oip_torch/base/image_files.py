"""Which images does a file or an array hold, and are they pixel values?"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from oip_torch.base.bounded import BoundedError, reading_limits, run_bounded
from oip_torch.base.errors import InputError
from oip_torch.base.files import existing_file
from oip_torch.base.limits import most_unpacked

__all__ = ["check_pixels", "images_sha256", "pixel_statistics", "read_data", "read_images"]


def read_images(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    """The images of an .npz file in the layout of Keras' `mnist.npz`: its array x_test, or else its only array.

    Returns:
        (N, height, width) or (N, height, width, channels), uint8 or another number type, values 0–255.

    Raises:
        InputError: missing or damaged file, no such array, other than images.
    """
    return _read(path)["x_test"]


def read_data(
    path: str | os.PathLike[str],
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any] | None, npt.NDArray[Any] | None]:
    """The images of an .npz file, as `read_images` gives them, and what is known of them.

    Returns:
        The images; y_test, (N,) whole numbers, or None where there are no labels; x_train, other images, or None;
        class_names, the classes' names as texts, or None.

    Raises:
        InputError: as `read_images`.
    """
    arrays = _read(path, "y_test", "x_train", "class_names")
    labels, training = arrays.get("y_test"), arrays.get("x_train")
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:  # as Keras' CIFAR-10 has them
        labels = labels[:, 0]
    training = None if training is None else check_pixels(training, f"{path}, x_train")
    return arrays["x_test"], labels, training, arrays.get("class_names")


def _read(path: str | os.PathLike[str], *besides: str) -> dict[str, npt.NDArray[Any]]:
    """The images, as x_test, and of these other arrays those that are there."""
    path = existing_file(path, "an .npz file with the images x_test, such as Keras' mnist.npz")
    expected = "expected an .npz file with the images x_test, such as Keras' mnist.npz"
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise InputError(f"{path} holds a single array in .npy format: {expected}; save it with np.savez")
    arguments = {"path": os.path.abspath(path), "wanted": "x_test", "besides": list(besides), "expected": expected}
    try:
        _, found = run_bounded(
            "oip_torch.base.npz:images", arguments, reading_limits(most_unpacked(path.stat().st_size))
        )
    except BoundedError as error:
        raise InputError(f"{path} is not readable as .npz ({error}): {expected}") from None
    check_pixels(found["x_test"], str(path))
    return found


def check_pixels(images: npt.ArrayLike, what: str) -> npt.NDArray[Any]:
    """The images as an array, if they are pixel values 0–255."""
    try:
        images = np.asarray(images)
    except ValueError:
        raise InputError(f"{what} are rows of different lengths: expected an array (N, height, width)") from None
    got = f"{what}: an array of shape {images.shape} and type {images.dtype}"
    if images.ndim not in (3, 4) or images.dtype.kind not in "uif":
        raise InputError(f"{got}: expected images, (N, height, width) or (N, height, width, channels), of numbers")
    if 0 in images.shape:
        raise InputError(f"{got} is empty: expected at least one image")
    low, high = float(images.min()), float(images.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{got} holds NaN or infinite values: expected finite pixel values, 0–255")
    if low < 0 or high > 255 or high <= 1:
        hint = "; multiply them by 255" if low >= 0 and high <= 1 else ""
        raise InputError(f"{got} has values from {low:g} to {high:g}: expected pixel values, 0–255{hint}")
    return images


def images_sha256(images: npt.NDArray[Any]) -> str:
    """Hexadecimal SHA-256 of number type, shape and bytes: the identity of a data set."""
    digest = hashlib.sha256(f"{images.dtype.str} {images.shape}".encode())
    for image in images:  # one by one, since the bytes of a strided or memory-mapped array are a copy
        digest.update(image.tobytes())
    return digest.hexdigest()


def pixel_statistics(images: npt.NDArray[Any]) -> tuple[list[float], list[float]]:
    """(N, height, width) or (N, height, width, channels) → mean and standard deviation by channel, of all pixels."""
    pixels = images[..., None] if images.ndim == 3 else images
    count, total, squares = 0, np.zeros(pixels.shape[3]), np.zeros(pixels.shape[3])
    for part in np.array_split(pixels, -(-len(pixels) // 1024)):  # in float64 all of them would fill the memory
        values = part.reshape(-1, part.shape[3]).astype(np.float64)
        count += len(values)
        total += values.sum(0)
        squares += (values**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    if not (std > 0).all():
        raise InputError(f"the images are of one colour (standard deviations {std.tolist()}): expected real images")
    return mean.tolist(), std.tolist()
