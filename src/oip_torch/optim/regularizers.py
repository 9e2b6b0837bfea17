"""What should an image have little of? Scores of the image alone, (batch,); larger is more of it.

    map_mean - 0.1 * total_variation

They read the image as it is optimised, `Place.INPUT`, (batch, C, H, W): in the units of images of mean 0 and standard
deviation 1 where nothing else bounds the problem. They shape the image, and are not part of the scores of results.

**How to choose a weight.** A step follows the direction of the sum's gradient, so that what counts is how large the
regulariser's gradient is beside that of the map's score. Scores of maps differ by a factor of 100 within one layer, and
one weight is little to a strong map and all to a weak one. Begin with a tenth of the score that the map reaches without
it (`oips.scores`), and double or halve it until the picture is as it should be. `AscentSettings.smoothness` is the form
of the total variation that needs no such choice: a share of the direction of each step, whatever the map's scores are.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from oip_torch.base.checks import number, plain
from oip_torch.base.errors import InputError
from oip_torch.optim.terms import Objective, Place, ScoreFunction, Term

__all__ = ["high_frequencies", "l1", "l2", "total_variation"]


def _of_image(name: str, score: ScoreFunction) -> Objective:
    """An objective that reads the image."""
    return Objective((Term(name=name, score=score, reads=Place.INPUT, grows=False),))


def _total_variation(images: Tensor, channels: Tensor) -> Tensor:
    """(batch, C, H, W) → (batch,): see `total_variation`."""
    across, down = images.diff(dim=3).abs(), images.diff(dim=2).abs()
    mean: Tensor = (across.flatten(1).sum(1) + down.flatten(1).sum(1)) / images[0].numel()
    return mean


def _mean_size(images: Tensor, channels: Tensor) -> Tensor:
    """(batch, C, H, W) → (batch,): see `l1`."""
    return images.abs().flatten(1).mean(1)


def _mean_square(images: Tensor, channels: Tensor) -> Tensor:
    """(batch, C, H, W) → (batch,): see `l2`."""
    return images.square().flatten(1).mean(1)


def _above(images: Tensor, channels: Tensor, *, above: float) -> Tensor:
    """(batch, C, H, W) → (batch,): see `high_frequencies`."""
    count, height, width = images.shape[1:]
    cycles = _cycles(height, width, images)
    spectrum = torch.fft.fft2(images, norm="forward")  # then the squares sum up to the mean square (Parseval)
    power: Tensor = (spectrum.real.square() + spectrum.imag.square()) * (cycles > above) / count
    return power.flatten(1).sum(1)


def _cycles(height: int, width: int, like: Tensor) -> Tensor:
    """(height, width): of each frequency of `fft2`, how many cycles of it lie along the shorter edge."""
    shorter = min(height, width)
    down, across = (torch.fft.fftfreq(n, device=like.device, dtype=like.dtype) * shorter for n in (height, width))
    return torch.hypot(down[:, None], across[None, :])


def _fits_cycles(size: tuple[int, ...], where: str, *, above: float) -> None:
    _, height, width = size
    finest = float(_cycles(height, width, torch.empty(0, dtype=torch.float64)).max())
    if above >= finest:
        raise InputError(
            f"high_frequencies has above={above:g}, but images of {height}×{width} pixels have none above {finest:.3g} "
            f"cycles per shorter edge: expected less, such as {finest / 3:.2g}"
        )


total_variation = _of_image("total_variation", _total_variation)
"""Σ (|x(r, c + 1) - x(r, c)| + |x(r + 1, c) - x(r, c)|) / number of values: how much neighbouring pixels differ.

An area of one value has none, an edge as much as it is high and long, whether it is sharp or not; noise has the most.
White noise of standard deviation 1 has 2.2 at 28×28 pixels, an MNIST digit 0.4. The anisotropic form of Rudin, Osher
and Fatemi, "Nonlinear total variation based noise removal algorithms", 1992."""

l1 = _of_image("l1", _mean_size)
"""mean of |x|: how far the pixels are from 0, grey. Less of it leaves most pixels near 0 and few far from it.

Images of mean 0 and standard deviation 1 have at most 1 (two values), noise 0.8, an MNIST digit 0.7."""

l2 = _of_image("l2", _mean_square)
"""mean of x²: the square of the image's norm over the number of its values, as in Simonyan et al., "Deep inside
convolutional networks", 2014.

It is constant, 1, while images are standardised one by one, and then leads nowhere: the standardisation takes back what
it does, and of each step less is left for the map. It matters where something else bounds the problem."""


def high_frequencies(above: float) -> Objective:
    """The mean square of that part of the image that is finer than `above` cycles per shorter edge.

    For images of mean 0 and standard deviation 1 that is a share of their variance, 0 to 1: above 7 cycles 0.8 for
    white noise, 0.5 for OIPs of the default, 0.1 for MNIST digits. The frequencies are those of
    `image_statistics.radial_power_spectrum`, without rounding; those of a Fourier transform, for which left and right
    edge are neighbours: where they differ, that is an edge, and counts.

    Args:
        above: cycles per shorter edge of the image, 0 or more; 7 is a period of four pixels for 28.

    Raises:
        InputError: no number of 0 or more; and when the image's size is known, more than its pixels can show.
    """
    above = float(plain(number("above", above, "a number of 0 or more")))
    if above < 0:
        raise InputError(f"above is {above:g}: expected a number of 0 or more, in cycles per shorter edge")
    term = Term(
        name=f"high_frequencies({above:g})",
        score=partial(_above, above=above),
        reads=Place.INPUT,
        grows=False,
        fits=partial(_fits_cycles, above=above),
    )
    return Objective((term,))
