"""What the readers see: exact cases, brute force, and what must not matter to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from oip_torch.analysis.readers import Grain, drawn_windows, nearest, similarities, windows
from oip_torch.base.tensors import standardize, to_tensor

GRAIN = Grain.of(28, 28)


@pytest.fixture(scope="module")
def some(digits: tuple[npt.NDArray[np.uint8], Any]) -> Tensor:
    return standardize(to_tensor(digits[0][::250, :, :, None].astype(np.float32)))


def noise(*shape: int) -> Tensor:
    return standardize(torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32)))


def test_lengths_go_with_the_size() -> None:
    assert Grain(factor=1, unit=1.0, window=9, stride=2, cell=8, cell_stride=4) == GRAIN
    assert Grain.of(56, 80) == Grain(factor=2, unit=1.0, window=9, stride=2, cell=8, cell_stride=4)
    assert Grain.of(224, 224).factor == 8
    assert Grain.of(48, 42) == Grain(factor=1, unit=1.5, window=14, stride=3, cell=12, cell_stride=6)
    small = Grain.of(5, 9)
    assert (small.window, small.stride, small.cell_stride) == (2, 1, 1)
    for height, width in ((3, 3), (1, 7), (5, 9), (32, 32), (55, 31), (224, 100)):
        grain = Grain.of(height, width)
        images = grain.reduce(noise(2, 3, height, width))
        assert windows(images, grain).shape[2] == 3 * grain.window**2
        assert similarities(images, images, grain).isfinite().all()


def test_an_image_is_most_alike_itself(some: Tensor) -> None:
    for table in similarities(some, some, GRAIN):
        torch.testing.assert_close(table.diagonal(), torch.ones(len(some)), atol=1e-5, rtol=0)
        assert (table <= 1 + 1e-5).all()
        off = table - 2 * torch.eye(len(some))
        assert (off.argmax(1) != torch.arange(len(some))).all()


def test_brightness_and_contrast_do_not_matter(some: Tensor) -> None:
    once, twice = similarities(some[:5], some, GRAIN), similarities(3 * some[:5] + 7, some, GRAIN)
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=0)


def test_polarity_counts_for_ink_alone(some: Tensor) -> None:
    strokes, ink = similarities(-some, some, GRAIN).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(strokes, torch.ones(len(some)), atol=1e-5, rtol=0)
    assert (ink < 0.5).all()


def test_ink_moves_by_two_pixels(some: Tensor) -> None:
    moved = torch.roll(some, (2, -2), (2, 3))  # the digits have an empty rim
    assert (similarities(moved, some, GRAIN)[1].diagonal() > 0.98).all()
    far = torch.roll(some, (5, 5), (2, 3))
    assert (similarities(far, some, GRAIN)[1].diagonal() < 0.9).all()


def test_strokes_have_orientations_and_places() -> None:
    upright, level = torch.full((2, 1, 1, 28, 28), -0.3)
    upright[:, :, 4:24, 13:15] = 3.0
    level[:, :, 13:15, 4:24] = 3.0
    assert similarities(upright, level, GRAIN)[0].item() < 0.4
    aside = torch.roll(upright, 10, 3)
    assert similarities(upright, aside, GRAIN)[0].item() < 0.3


def test_uniform_pictures_are_like_nothing(some: Tensor) -> None:
    assert (similarities(torch.full((1, 1, 28, 28), 5.0), some, GRAIN) == 0).all()


def test_strokes_are_those_of_all_channels_and_ink_of_each() -> None:
    colour = noise(2, 3, 28, 28)
    mixed = colour[:, [1, 2, 0]]
    strokes, ink = similarities(colour, mixed, GRAIN).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(strokes, torch.ones(2), atol=1e-4, rtol=0)
    assert (ink < 0.5).all()


def test_a_batch_of_pictures_equals_its_singles(some: Tensor) -> None:
    together = similarities(some, some[:7], GRAIN)
    for row in (0, 11):
        torch.testing.assert_close(similarities(some[row : row + 1], some[:7], GRAIN)[:, 0], together[:, row])


def test_nearest_is_that_of_brute_force() -> None:
    stream = torch.Generator().manual_seed(0)
    pieces, bank = torch.randn(2500, 5, generator=stream), torch.randn(9000, 5, generator=stream)
    expected = torch.cdist(pieces.double(), bank.double()).amin(1).square()
    torch.testing.assert_close(nearest(pieces, bank).double(), expected, atol=1e-5, rtol=0)
    assert (nearest(bank[:9], bank) < 1e-5).all()


def test_windows_are_pieces_of_the_image(some: Tensor) -> None:
    pieces = windows(some, GRAIN)
    assert pieces.shape == (len(some), 10 * 10, 81)
    torch.testing.assert_close(pieces[3, 12], some[3, 0, 2:11, 4:13].flatten())


def test_drawn_windows_come_from_their_images_and_few_are_flat(some: Tensor) -> None:
    drawn = drawn_windows(some, GRAIN, 400, torch.Generator().manual_seed(0))
    every = some.unfold(2, 9, 1).unfold(3, 9, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    flat = every.std(1, correction=0) < 0.1
    assert nearest(drawn, every).max() < 1e-3  # float32: 1e-6 of squared norms up to 500
    kept = (drawn.std(1, correction=0) < 0.1).sum()
    assert 0.05 * flat.sum() < kept < 0.2 * flat.sum()
    assert len(drawn) - kept == (~flat).sum()  # 400 are all places there are
    few = drawn_windows(some, GRAIN, 3, torch.Generator().manual_seed(0))
    assert 0 < len(few) <= 3 * len(some)
    colour = noise(2, 3, 28, 28)
    one = drawn_windows(colour, GRAIN, 400, torch.Generator().manual_seed(0))
    assert nearest(windows(colour, GRAIN).flatten(0, 1), one).max() < 1e-3


def test_what_reducing_takes_away() -> None:
    grain = Grain.of(112, 112)
    coarse = torch.nn.functional.interpolate(noise(3, 1, 28, 28), scale_factor=4)
    torch.testing.assert_close(grain.reduced_share(coarse), torch.ones(3))
    torch.testing.assert_close(grain.reduced_share(noise(3, 1, 112, 112)), torch.full((3,), 1 / 16), atol=0.02, rtol=0)
    assert (GRAIN.reduced_share(noise(3, 1, 28, 28)) == 1).all()
