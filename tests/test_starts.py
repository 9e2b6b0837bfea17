"""Start images: their wavelengths and their random numbers. The bicubic itself: test_parity_tensorflow.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oip_torch import (
    AscentSettings,
    Blurred,
    Calibration,
    Decorrelated,
    FeatureModel,
    Fourier,
    InputError,
    Oips,
    StartSettings,
    Views,
    ascend,
    calibrate,
    start_images,
)
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


# Images of one's own

ONE_STEP: dict[str, Any] = {"steps": 1, "snapshots": (0,)}


def standardized(images: Any) -> Any:
    return (images - images.mean((1, 2, 3), keepdims=True)) / images.std((1, 2, 3), keepdims=True)


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, digits: Any) -> Calibration:
    return calibrate(model, digits[0][::25], "Conv2D_3")


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e-200, 1e200])
def test_an_ascent_begins_with_the_images_given(model: FeatureModel, digits: Any, scale: float) -> None:
    given = scale * digits[0][:6, :, :, None].astype(float)
    oips = ascend(model, "Conv2D_3", [3, 14, 17], starts=2, start=given, settings=AscentSettings(**ONE_STEP))
    assert oips.snapshots[:, 0] == pytest.approx(standardized(digits[0][:6, :, :, None]), abs=1e-5)
    assert oips.settings.screening.candidates == 1
    assert oips.screening_steps == 0
    assert "begun with given images" in oips.way


def test_one_image_for_all_or_one_for_each_map(model: FeatureModel, digits: Any) -> None:
    given, settings = torch.from_numpy(digits[0][:3, :, :, None]), AscentSettings(**ONE_STEP)
    images = standardized(digits[0][:3, :, :, None])
    for start, expected in ((given, images), (given[:1], np.repeat(images[:1], 3, 0))):
        oips = ascend(model, "Conv2D_3", [3, 14, 17], start=start, settings=settings)
        assert oips.snapshots[:, 0] == pytest.approx(expected, abs=1e-5)
        assert ascend(model, "Conv2D_3", 14, start=start[-1:], settings=settings).snapshots.shape == (1, 1, 28, 28, 1)
    batches = ascend(model, "Conv2D_3", [3, 14, 17], start=given, settings=settings, batch_size=1)
    assert batches.snapshots[:, 0] == pytest.approx(images, abs=1e-5)
    viewed = ascend(
        model, "Conv2D_3", 3, starts=2, start=given[:1], settings=AscentSettings(steps=4, views=Views(fade=None))
    )
    assert not np.allclose(viewed.images[0], viewed.images[1], atol=1e-2)


def test_waves_and_mixed_colours_stand_for_the_image_given(rgb: FeatureModel) -> None:
    given = standardized(np.random.default_rng(0).normal(size=(2, 20, 32, 3)).cumsum(1))
    for more in ({"image": Fourier()}, {"colors": Decorrelated.natural()}):
        settings = AscentSettings(**ONE_STEP, **more)
        oips = ascend(rgb, "wide", [0, 1], start=given, settings=settings)
        assert oips.snapshots[:, 0] == pytest.approx(given, abs=1e-3)
    blurred = ascend(rgb, "wide", [0, 1], start=given, settings=AscentSettings(**ONE_STEP, image=Blurred(sigma=2)))
    assert np.corrcoef(blurred.snapshots[0, 0].ravel(), given[0].ravel())[0, 1] > 0.5


def test_results_say_that_starts_were_given_and_which(model: FeatureModel, digits: Any, tmp_path: Any) -> None:
    settings, given = AscentSettings(**ONE_STEP), digits[0][:1, :, :, None]
    first, other = (ascend(model, "Conv2D_3", 3, start=start, settings=settings) for start in (given, given + 1))
    assert len(str(first.provenance.start_sha256)) == 64
    assert first.provenance.start_sha256 != other.provenance.start_sha256
    assert Oips.load(first.save(tmp_path / "oips.nc")).provenance == first.provenance
    noise = ascend(model, "Conv2D_3", 3, settings=AscentSettings(steps=1, candidates=1))
    assert noise.provenance.start_sha256 is None
    assert "given" not in noise.way


def test_the_mean_of_the_top_images_is_near_the_data(model: FeatureModel, calibration: Calibration) -> None:
    means = calibration.top_mean("Conv2D_3")
    assert means.shape == (128, 28, 28, 1)
    assert means.mean((1, 2, 3)) == pytest.approx(0, abs=1e-6)
    assert means.std((1, 2, 3)) == pytest.approx(1, abs=1e-5)
    top = calibration["Conv2D_3"].top_of(17)
    assert calibration.top_mean("Conv2D_3", 1)[17] == pytest.approx(top[0], abs=1e-5)
    assert means[17] == pytest.approx(standardized(top.mean(0)[None])[0], abs=1e-5)
    excited = np.flatnonzero(calibration["Conv2D_3"].excited)[:12]
    oips = ascend(
        model, "Conv2D_3", excited, start=means[excited], settings=AscentSettings.strokes(calibration.limits, steps=30)
    )
    assert (oips.scores > oips.traces[:, 0]).all()
    alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(oips.images, means[excited], strict=True)]
    assert np.median(alike) > 0.3  # of noise: 0
    for count, message in ((10, "count is 10: expected 1 to 9"), (0, "count is 0"), ("9", "count is '9'")):
        with pytest.raises(InputError, match=message):
            calibration.top_mean("Conv2D_3", count)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no calibrated layer 'Conv2D_1'"):
        calibration.top_mean("Conv2D_1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": np.ones((1, 28, 28, 1))}, "image 0 of start is of one value"),
        ({"start": np.full((1, 28, 28, 1), np.nan)}, "image 0 of start is of one value, or holds NaN"),
        (
            {"start": np.eye(28)[None]},
            r"start is an array of shape \(1, 28, 28\).*: expected images of numbers, \(N, 28",
        ),
        ({"start": np.eye(28)[None, None]}, r"shape \(1, 1, 28, 28\)"),
        ({"start": "digits"}, "start is an array of shape .* and type"),
        ({"start": [[1.0], [1.0, 2.0]]}, "start is "),
        ({"start": np.zeros((0, 28, 28, 1))}, "start holds 0 images: expected 1, or 2 for each map"),
        ({"start": np.eye(28)[None, :, :, None].repeat(3, 0)}, "start holds 3 images: expected 1, or 2 for each map"),
        (
            {"start": np.eye(28)[None, :, :, None].repeat(2, 0), "starts": 3},
            "starts is 3, and all of them would begin with the same image and end alike",
        ),
        (
            {"start": np.eye(28)[None, :, :, None], "settings": AscentSettings(stages=(2, 2, 2, 2))},
            "stages add noise to a start of long wavelengths",
        ),
    ],
)
def test_images_that_no_ascent_can_begin_with(model: FeatureModel, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ascend(model, "Conv2D_3", [3, 14], **changes)
