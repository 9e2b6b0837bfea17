"""Start images: their wavelengths and their random numbers. The bicubic itself: test_parity_tensorflow.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oip_torch import InputError, StartSettings, start_images
from oip_torch.base.tensors import standardize
from oip_torch.optim.starts import components

SHAPE = (1, 28, 28)


def test_the_article_s_scales() -> None:
    assert StartSettings().grids(28, 28) == [(3, 3), (7, 7), (14, 14), (28, 28)]
    assert StartSettings(sides=(3, 5)).grids(20, 40) == [(3, 6), (5, 10)]


def test_an_image_depends_on_its_key_alone() -> None:
    many = start_images(SHAPE, [(k, s) for k in range(4) for s in range(3)], layer="a", seed=5)
    one = start_images(SHAPE, [(2, 1)], layer="a", seed=5)
    assert torch.equal(many[7], one[0])
    for other in (
        start_images(SHAPE, [(2, 1)], layer="b", seed=5),
        start_images(SHAPE, [(2, 1)], layer="a", seed=6),
        start_images(SHAPE, [(1, 2)], layer="a", seed=5),
        start_images(SHAPE, [(2, 1, 1)], layer="a", seed=5),
    ):
        assert not torch.allclose(one, other, atol=0.1)
    assert torch.equal(one, start_images(SHAPE, [(2, 1, 0)], layer="a", seed=5))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.lists(st.integers(1, 50), min_size=1, max_size=5),
    st.sampled_from(["scales", "fourier"]),
)
def test_any_size_channels_and_scales(height: int, width: int, channels: int, sides: list[int], kind: str) -> None:
    options = {"sides": tuple(sides)} if kind == "scales" else {"kind": "fourier", "bands": len(sides)}
    images = start_images((channels, height, width), [(0, 0), (1, 0)], settings=StartSettings(**options))
    assert images.shape == (2, channels, height, width)
    assert torch.isfinite(images).all()
    assert images.mean((1, 2, 3)).abs().max() < 1e-4
    assert (images.std((1, 2, 3), correction=0) < 1 + 1e-4).all()


def test_factors_weigh_the_components() -> None:
    parts = components(SHAPE, [(0, 0)], settings=StartSettings(sides=(4, 28), factors=(2.0, 0.0)))
    plain = components(SHAPE, [(0, 0)], settings=StartSettings(sides=(4, 28)))
    assert torch.allclose(parts[0], 4 * plain[0])
    assert not parts[1].any()


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_fourier_amplitudes_follow_the_power_law_within_the_band(exponent: float) -> None:
    choice = StartSettings(kind="fourier", exponent=exponent, lowest=2, highest=8)
    image = start_images((1, 32, 32), [(0, 0)], settings=choice)[0, 0].double().numpy()
    amplitude = np.abs(np.fft.fft2(image))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32) * 32, np.fft.fftfreq(32) * 32))
    inside = (frequency >= 2) & (frequency <= 8)
    assert amplitude[~inside].max() < 1e-3 * amplitude[inside].max()
    scaled = amplitude[inside] * frequency[inside] ** exponent
    assert scaled.max() / scaled.min() == pytest.approx(1.0, abs=1e-3)


def test_fourier_bands_go_from_long_to_short_wavelengths_and_add_up() -> None:
    choice = StartSettings(kind="fourier", bands=3)
    parts = components(SHAPE, [(0, 0)], settings=choice)[:, 0, 0].numpy()
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(28) * 28, np.fft.fftfreq(28) * 28))
    power = np.abs(np.fft.fft2(parts)) ** 2
    centres = [(part * frequency).sum() / part.sum() for part in power]
    assert centres == sorted(centres)
    assert torch.allclose(
        start_images(SHAPE, [(0, 0)], settings=choice)[0, 0], standardize(torch.tensor(parts.sum(0))[None, None])[0, 0]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ()}, "expected whole numbers, at least one"),
        ({"sides": (0,)}, "each 1 or more"),
        ({"factors": (1.0,)}, "1 factors for 4 components"),
        ({"sides": (3,), "factors": (float("nan"),)}, "expected finite numbers"),
        ({"kind": "noise"}, "expected 'scales' or 'fourier'"),
        ({"kind": "fourier", "lowest": 5, "highest": 3}, "expected 0 < lowest < highest"),
        ({"kind": "fourier", "bands": 0}, "bands is 0"),
    ],
)
def test_wrong_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StartSettings(**options)  # type: ignore[arg-type]


def test_a_negative_seed() -> None:
    with pytest.raises(InputError, match="seed is -1"):
        start_images(SHAPE, [(0, 0)], seed=-1)


@pytest.mark.parametrize("changes", [{"sides": (2.5,)}, {"sides": "4"}, {"factors": ("a",) * 4}, {"bands": 1.5}])
def test_starts_of_a_wrong_type(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="expected"):
        StartSettings(**changes)
