"""How alike are a picture and real images to someone who reads strokes, or ink, or looks at one small piece of it?

Plain functions of images: no network, no layer. What is made of them is in `legibility`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Grain", "drawn_windows", "nearest", "similarities", "windows"]

_ORIENTATIONS = 8  # unsigned: a stroke's two edges count alike, ink on paper as paper on ink
_STROKE_BLUR, _INK_BLUR = 0.7, 1.0  # pixels of an image of 28x28, as all lengths here
_SHIFTS = (-2, -1, 0, 1, 2)
_FLAT = 0.1  # standard deviation of a window, where an image's is 1
_FLAT_KEPT = 0.1  # the share of flat windows that is kept: they are nearly all the same
_AT_ONCE = 1 << 24  # numbers of a table of products: 64 MiB


@dataclass(frozen=True, kw_only=True)
class Grain:
    """The lengths that go with an image's size: those of 28x28 pixels, times its shorter edge over 28.

    Images of twice that edge or more are first reduced by a whole factor: what a person reads there is as coarse, and
    windows of thousands of numbers have no near neighbours.

    Attributes:
        factor: by which images are reduced, the mean of so many by so many pixels for each; 1: not at all.
        unit: pixels of the reduced image for one of 28x28.
        window, stride: side of a window and the way to the next one, in pixels of the reduced image.
        cell, cell_stride: likewise of the cells that strokes are counted in.
    """

    factor: int
    unit: float
    window: int
    stride: int
    cell: int
    cell_stride: int

    @classmethod
    def of(cls, height: int, width: int) -> Grain:
        """For images of this size."""
        factor = max(1, min(height, width) // 28)
        unit = min(height, width) // factor / 28
        window, stride, cell, cell_stride = (max(1, round(length * unit)) for length in (9, 2, 8, 4))
        return cls(factor=factor, unit=unit, window=window, stride=stride, cell=max(cell, 2), cell_stride=cell_stride)

    def reduce(self, images: Tensor) -> Tensor:
        """(N, channels, height, width) → the same with both sides over `factor`; pixels that are over fall away."""
        return images if self.factor == 1 else F.avg_pool2d(images, self.factor)

    def reduced_share(self, images: Tensor) -> Tensor:
        """(N,): how much of each image's energy, the sum of its squares, `reduce` leaves."""
        if self.factor == 1:
            return images.new_ones(len(images))
        height, width = (side // self.factor * self.factor for side in images.shape[2:])
        before = images[:, :, :height, :width].square().sum((1, 2, 3))
        after = self.reduce(images).square().sum((1, 2, 3)) * self.factor**2
        return torch.where(before > 0, after / before.clamp_min(1e-30), 1.0)


def similarities(pictures: Tensor, real: Tensor, grain: Grain) -> Tensor:
    """How alike each picture and each real image are to two readers, -1 to 1.

    Strokes: correlation of the square roots of histograms of gradients (after Dalal and Triggs, "Histograms of Oriented
    Gradients for Human Detection", 2005). Ink: the largest correlation over shifts by up to two pixels each way.

    Args:
        pictures: (N, channels, height, width), reduced.
        real: (U, channels, height, width), reduced.
        grain: of both.

    Returns:
        (2, N, U): strokes, ink.
    """
    of_strokes = _strokes(pictures, grain) @ _strokes(real, grain).T
    theirs, of_ink = _unit(_blur(real, _INK_BLUR * grain.unit).flatten(1)).T, torch.empty_like(of_strokes)
    blurred = _blur(pictures, _INK_BLUR * grain.unit)
    rows = max(1, _AT_ONCE // (len(_SHIFTS) ** 2 * max(len(real), theirs.shape[0])))
    for first in range(0, len(pictures), rows):
        moved = _shifted(blurred[first : first + rows], grain)
        products = _unit(moved.flatten(2)).flatten(0, 1) @ theirs
        of_ink[first : first + rows] = products.view(len(moved), -1, len(real)).amax(0)
    return torch.stack([of_strokes, of_ink])


def windows(images: Tensor, grain: Grain) -> Tensor:
    """(N, channels, height, width), reduced → (N, places, channels · window · window), every `stride` pixels."""
    return F.unfold(images, grain.window, stride=grain.stride).transpose(1, 2)


def drawn_windows(images: Tensor, grain: Grain, each: int, generator: torch.Generator) -> Tensor:
    """Windows at `each` places of every image, or at all if there are fewer, most of the flat ones left out.

    Args:
        images: (N, channels, height, width), reduced.
        grain: of these.
        each: 1 or more.
        generator: of the places, on the CPU, so that every device has the same.

    Returns:
        (n, channels · window · window).
    """
    # A view of the windows at all places: of 60,000 digits all of them would be 8 GB.
    every = images.unfold(2, grain.window, 1).unfold(3, grain.window, 1)
    rows, columns = every.shape[2:4]
    places = torch.rand(len(images), rows * columns, generator=generator).topk(min(each, rows * columns)).indices
    whose = torch.arange(len(images))[:, None].expand_as(places)
    taken = every[whose.flatten(), :, (places // columns).flatten(), (places % columns).flatten()].flatten(1)
    chance = torch.rand(len(taken), generator=generator).to(images.device)
    return taken[(taken.std(1, correction=0) >= _FLAT) | (chance < _FLAT_KEPT)]


def nearest(pieces: Tensor, bank: Tensor) -> Tensor:
    """The squared distance of each piece from the nearest one of the bank: (n, size), (q, size) → (n,).

    By matrix products, ‖w - q‖² - ‖w‖² = (-2w, 1)·(q, ‖q‖²), in parts of 64 MiB: the table of all pairs is never held.
    """
    columns = 8192
    rows = _AT_ONCE // columns
    longer = torch.cat([-2.0 * pieces, pieces.new_ones(len(pieces), 1)], 1)
    table = pieces.new_empty(rows * columns)  # one for all parts: a new one each time costs half of the time again
    least = pieces.new_full((len(pieces),), math.inf)
    for start in range(0, len(bank), columns):
        some = bank[start : start + columns]
        squared = torch.cat([some, some.square().sum(1, keepdim=True)], 1).T.contiguous()
        for first in range(0, len(pieces), rows):
            part = longer[first : first + rows]
            found = table[: len(part) * len(some)].view(len(part), len(some))
            torch.mm(part, squared, out=found)
            own = least[first : first + rows]
            torch.minimum(own, found.amin(1), out=own)
    return (least + pieces.square().sum(1)).clamp_min(0.0)


def _strokes(images: Tensor, grain: Grain) -> Tensor:
    """(N, channels, height, width) → (N, features), each of mean 0 and norm 1.

    A gradient's length is shared out between the two orientations next to its own.
    """
    grey = _blur(images.mean(1, keepdim=True), _STROKE_BLUR * grain.unit)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    down = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    place = torch.atan2(down, across).remainder(math.pi) * (_ORIENTATIONS / math.pi)
    bins = torch.arange(_ORIENTATIONS, device=images.device)[None, :, None, None]
    apart = (place - bins).abs()
    share = (1.0 - torch.minimum(apart, _ORIENTATIONS - apart)).clamp_min(0.0)
    cell = min(grain.cell, *grey.shape[2:])
    counted = F.avg_pool2d(torch.hypot(across, down) * share, cell, stride=grain.cell_stride)
    return _unit(counted.clamp_min(0.0).sqrt().flatten(1))


def _shifted(images: Tensor, grain: Grain) -> Tensor:
    """(N, channels, height, width) → (25, N, channels, height, width), edges repeated."""
    height, width = images.shape[2:]
    steps = [round(shift * grain.unit) for shift in _SHIFTS]
    most = max(steps)
    padded = F.pad(images, (most, most, most, most), mode="replicate") if most else images
    return torch.stack(
        [padded[:, :, most + y : most + y + height, most + x : most + x + width] for y in steps for x in steps]
    )


def _blur(images: Tensor, sigma: float) -> Tensor:
    """By a Gaussian, cut off at three standard deviations, edges repeated."""
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (at / sigma).square())
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    groups = images.shape[1]
    along = F.conv2d(F.pad(images, (reach, reach, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=groups)
    return F.conv2d(F.pad(along, (0, 0, reach, reach), mode="replicate"), kernel[:, :, :, None], groups=groups)


def _unit(features: Tensor) -> Tensor:
    """Each of mean 0 and norm 1 along the last axis, so that products are correlations; uniform ones are 0."""
    centred = features - features.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return torch.where(norm > 1e-6 * math.sqrt(features.shape[-1]), centred / norm.clamp_min(1e-30), 0.0)
