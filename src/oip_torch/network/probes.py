"""Which images is a network verified on, and what is a layer's output known by there?

The same images and signs must come out in every process, on every machine and with every NumPy version, since what is
stored in a file is compared with what they give. So they are made from the raw 64-bit words of Philox, whose stream
NumPy guarantees (NEP 19), and not by the distributions of `Generator`, which may change.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import numpy.typing as npt

from oip_torch.network.domain import Domain

__all__ = ["BEFORE", "digits", "fingerprint", "noise", "standardized"]

BEFORE = "before:"
"""Where arrays go by their layer, BEFORE + the layer stands for what goes into its activation."""

Images = npt.NDArray[np.float32]


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> Images:
    """`count` images of noise, float32, (count, height, width, channels), each of mean 0 and standard deviation 1.

    Half of each image's variance is coarse (8x8 blocks of one value), as in real images: white noise alone hardly
    excites deep layers.
    """
    height, width, channels = shape
    coarse_shape = (-(-height // 8), -(-width // 8), channels)
    fine_size, coarse_size = height * width * channels, int(np.prod(coarse_shape))
    images = np.empty((count, *shape))
    for index in range(count):
        # A key per image: the first image is the same one, whatever the count.
        words = np.random.Philox(key=[seed, index]).random_raw(fine_size + coarse_size)
        uniform = (words >> np.uint64(11)) * 2.0**-52 - 1.0
        coarse = uniform[fine_size:].reshape(coarse_shape).repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
        images[index] = uniform[:fine_size].reshape(shape) + coarse
    return standardized(images)


def digits(count: int, shape: tuple[int, int, int], domain: Domain) -> Images:
    """`count` (≤ 32) real MNIST test digits, float32, (count, height, width, channels), as the network takes them.

    For other sizes than 28x28 they are enlarged by repeating pixels and cut or padded with background; for several
    channels, repeated.
    """
    height, width, channels = shape
    with resources.files("oip_torch").joinpath("data/digits.npy").open("rb") as file:
        images = np.load(file, allow_pickle=False)[:count]
    factor = max(1, -(-min(height, width) // 28))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    canvas = np.zeros((len(images), height, width), np.float32)
    rows, columns = min(height, images.shape[1]), min(width, images.shape[2])
    top, left = (images.shape[1] - rows) // 2, (images.shape[2] - columns) // 2
    down, right = (height - rows) // 2, (width - columns) // 2
    canvas[:, down : down + rows, right : right + columns] = images[:, top : top + rows, left : left + columns]
    return np.asarray(domain.of_pixels(canvas[..., None].repeat(channels, axis=3)), np.float32)


def standardized(images: npt.NDArray[np.floating]) -> Images:
    """Each image brought to mean 0 and population standard deviation 1, float32."""
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axes, keepdims=True)
    return np.asarray(centred / centred.std(axes, keepdims=True), np.float32)


def fingerprint(activations: npt.NDArray[np.floating]) -> tuple[float, ...]:
    """Four numbers that a layer's output on one probe is known by: mean, RMS, maximum, and a random projection.

    `activations`: any shape, in Keras' layout (NHWC). The projection has fixed ±1 signs and is divided by √n, so that
    it is of the size of the RMS and moves when any single value moves.
    """
    values = np.asarray(activations, np.float64).ravel()
    words = np.random.Philox(key=1).random_raw(-(-values.size // 64))
    signs = np.unpackbits(words.astype("<u8").view(np.uint8))[: values.size] * 2.0 - 1.0
    projection = float(values @ signs / np.sqrt(values.size))
    return float(values.mean()), float(np.sqrt(np.mean(values**2))), float(values.max()), projection
