"""What is optimised, and which image it stands for: pixels, blurred pixels, a pen, waves, phases."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oip_torch import (
    AscentSettings,
    Blurred,
    FeatureModel,
    Fourier,
    InputError,
    Oips,
    Pen,
    Phases,
    Pixels,
    Range,
    Views,
    ascend,
    calibrate,
)
from oip_torch.analysis.image_statistics import radial_power_spectrum
from oip_torch.base.tensors import standardize
from oip_torch.cli import main
from oip_torch.optim.decoder import Decoder
from oip_torch.optim.image import Image, total_variation_gradient

LAYER, MAPS = "Conv2D_3", [3, 14, 17, 56]
STEPS = {"steps": 60, "candidates": 1}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("image", [Pixels(), Blurred(), Pen(), Fourier(), Phases()])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 20, 31)])
def test_images_are_standardised_and_each_is_its_own(image: Image, shape: tuple[int, ...]) -> None:
    decoder = Decoder(image=image)
    parameters = decoder.settle(decoder.of_noise(5 * noise(*shape) + 2))
    x = decoder.decode(parameters)
    assert x.shape == shape
    assert x.mean((1, 2, 3)).abs().max() < 1e-6
    assert (x.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-6
    assert torch.allclose(decoder.decode(parameters[1:2]), x[1:2])
    assert image.summary or image == Pixels()


def test_a_blur_leaves_nothing_finer_than_itself() -> None:
    power = [np.abs(np.fft.fft2(x.decode(noise(4, 1, 32, 32)).numpy())) ** 2 for x in (Pixels(), Blurred(sigma=1.5))]
    high = [part[..., 10:22, 10:22].sum() / part.sum() for part in power]
    assert high[1] < 0.01 * high[0]


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 31), (9, 6)])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
def test_waves_are_amplified_by_their_lengths_and_stand_for_any_image(height: int, width: int, exponent: float) -> None:
    image, x = Fourier(exponent=exponent), noise(2, 3, height, width)
    assert torch.allclose(image.decode(image.encode(x)), x, atol=1e-10)
    if exponent == 0:
        assert torch.allclose(image.decode(x).norm(), x.norm())  # orthonormal
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    power = np.abs(np.fft.fft2(image.decode(noise(4000, 1, height, width))[:, 0].numpy())) ** 2
    expected = np.maximum(frequency, 1 / max(height, width)) ** (-2 * exponent)
    np.testing.assert_allclose(power.mean(0) / power.mean(), expected / expected.mean(), rtol=0.15)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 31), (9, 6)])
def test_phases_alone_move_and_the_spectrum_is_the_profile(height: int, width: int) -> None:
    real = standardize(noise(5, 3, height, width).cumsum(2))
    profile = radial_power_spectrum(real.numpy().transpose(0, 2, 3, 1)).mean(0)
    for image in (Phases(profile=profile), Phases(exponent=1.5)):  # type: ignore[arg-type]
        image.check(height, width)
        x = image.decode(noise(4, 3, height, width))
        assert torch.allclose(image.decode(image.even(noise(4, 3, height, width))), x)
        assert torch.allclose(x.square().mean((1, 2, 3)), torch.ones(4, dtype=x.dtype))
        found = np.abs(np.fft.fft2(x.numpy()))
        assert found == pytest.approx(np.broadcast_to(found[:1, :1], found.shape), rel=1e-6, abs=1e-6)
        if image.profile is not None:
            spectra = radial_power_spectrum(x.numpy().transpose(0, 2, 3, 1))
            np.testing.assert_allclose(spectra, np.broadcast_to(profile / profile.sum(), spectra.shape), rtol=1e-9)
        else:
            assert found[0, 0, 0, 1] / found[0, 0, 0, 2] == pytest.approx(2**1.5)
    kept = noise(1, 1, 16, 16)  # an image of the profile itself is what its own numbers stand for
    flat = Phases(exponent=0.0).decode(kept)
    assert torch.allclose(Phases(exponent=0.0).decode(flat), flat)
    with pytest.raises(InputError, match=r"the profile has 3 rings: expected 20, which images of 28x28 pixels have"):
        Phases(profile=(0.5, 0.3, 0.2)).check(28, 28)


def test_a_pen_puts_ink_on_paper() -> None:
    """Most of the picture is paper, of one tone; the higher the threshold, the less ink there is."""
    x = Decoder(image=Pen()).decode(noise(4, 1, 28, 28))
    assert (x < 0).double().mean() > 0.6
    drawings = [Decoder(image=Pen(threshold=t)).decode(noise(4, 1, 28, 28)) for t in (0.0, 1.0, 2.0)]
    ink = [(drawing > 0).double().mean() for drawing in drawings]
    assert ink[0] > ink[1] > ink[2]


def test_the_gradient_of_the_total_variation() -> None:
    x = noise(2, 3, 6, 5).requires_grad_()
    variation = x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()
    (expected,) = torch.autograd.grad(variation, x)
    assert torch.allclose(total_variation_gradient(x.detach()), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fourier(exponent=-1), "exponent is -1: expected a number of 0 or more"),
        (lambda: Phases(exponent="1"), "exponent is '1'"),  # type: ignore[arg-type]
        (lambda: Phases(profile=(0.0, 0.0)), "profile is .*: expected one number of 0 or more for each ring, not all"),
        (lambda: Phases(profile=(-1.0, 2.0)), "profile is"),
        (lambda: Phases(profile=(float("nan"), 2.0)), "a ring of the profile is nan"),
        (lambda: Phases(profile=3.0), "profile is 3.0"),  # type: ignore[arg-type]
        (lambda: Phases(profile=((1.0,),)), "profile is"),  # type: ignore[arg-type]
        (lambda: Blurred(sigma=0), "sigma is 0: expected a number above 0"),
        (lambda: Pen(sharpness=-1), "sharpness is -1"),
        (lambda: Pen(threshold=float("nan")), "threshold is nan"),
        (
            lambda: AscentSettings(image="pen"),  # type: ignore[arg-type]
            r"image is 'pen': expected Pixels\(…\), Blurred\(…\), Pen\(…\), Fourier\(…\) or Phases\(…\)",
        ),
        (lambda: AscentSettings(views=True), r"views is True: expected Views"),  # type: ignore[arg-type]
        (lambda: AscentSettings(smoothness=-0.1), "smoothness is -0.1"),
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


WAYS = {
    "blurred": AscentSettings(**STEPS, image=Blurred()),
    "pen": AscentSettings(**STEPS, image=Pen()),
    "views": AscentSettings(**STEPS, views=Views()),
    "waves": AscentSettings(**STEPS, image=Fourier()),
    "phases": AscentSettings(**STEPS, image=Phases()),
    "limits": AscentSettings(**STEPS, constraint=Range(limits=(-0.55, 4.2))),
    "smooth": AscentSettings(**STEPS, smoothness=0.4),
    "legible": AscentSettings.legible(steps=40, candidates=3, candidate_steps=8),
    "strokes": AscentSettings.strokes(steps=40, candidates=3, candidate_steps=8),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_rises_whatever_the_batch_and_survives_json(way: str, model: FeatureModel) -> None:
    settings, model = WAYS[way], copy.deepcopy(model).double()  # in float32 some ascents are chaotic
    oips = ascend(model, LAYER, MAPS, settings=settings)
    start = ascend(model, LAYER, MAPS, settings=AscentSettings.article(steps=1, epsilon=1e-6))
    assert (oips.scores > start.scores + 0.5).all()
    assert np.abs(oips.images.mean((1, 2, 3))).max() < 1e-4
    single = ascend(model, LAYER, MAPS[2], settings=settings, batch_size=1)
    exact = way != "strokes"  # flat areas tie in the max-pooling, and rounding decides, see `Range`
    assert single.images[0] == pytest.approx(oips.images[2], abs=1e-5) or not exact
    assert single.scores[0] == pytest.approx(oips.scores[2], rel=1e-6 if exact else 0.2)
    assert AscentSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    assert oips.settings == settings
    assert ", by " in settings.summary


def finest(images: npt.NDArray[np.floating]) -> float:
    """The share of the power above seven cycles per image."""
    frequency = np.hypot(np.fft.fftfreq(28)[:, None] * 28, np.fft.fftfreq(28)[None] * 28)
    power = np.abs(np.fft.fft2(images[..., 0])) ** 2
    return float(power[:, frequency > 7].sum() / power.sum())


def test_each_way_does_what_it_is_there_for(model: FeatureModel) -> None:
    plain = ascend(model, LAYER, range(24), settings=AscentSettings(**STEPS))

    def made(way: str) -> Oips:
        return ascend(model, LAYER, range(24), settings=WAYS[way])

    for way in ("blurred", "pen", "waves", "phases", "smooth", "legible", "strokes"):
        assert finest(made(way).images) < (0.95 if way == "smooth" else 0.8) * finest(plain.images), way
    assert made("limits").images.min() > -0.7 > plain.images.min()
    low, high = model.domain.ends
    strokes = made("strokes")
    within = strokes.images[strokes.status == "finished"]  # others are drawn by the fallback's pen
    assert len(within) > 12
    assert within.min() > low - 0.1
    assert within.max() < high + 0.1

    def robust(oips: Oips) -> float:
        """Mean score of the images shifted by two pixels, over their own."""
        moved = np.roll(oips.images, 2, axis=2)
        with torch.no_grad():
            x = standardize(torch.from_numpy(moved.transpose(0, 3, 1, 2).copy()))
            scores = model.up_to(LAYER)(x)[torch.arange(24), torch.from_numpy(oips.maps)].mean((1, 2))
        return float(np.median(scores.numpy() / np.maximum(oips.scores, 1e-6)))

    steady = ascend(model, LAYER, range(24), settings=dataclasses.replace(WAYS["views"], views=Views(fade=None)))
    assert robust(steady) > robust(plain)


def test_the_scores_are_of_the_images(model: FeatureModel) -> None:
    """Not of what the network saw last, and not of what the images are made of."""
    for way in ("pen", "legible", "strokes"):
        oips = ascend(model, LAYER, MAPS, settings=WAYS[way])
        with torch.no_grad():
            x = torch.from_numpy(oips.images.transpose(0, 3, 1, 2).copy())
            scores = model.up_to(LAYER)(x)[torch.arange(4), torch.tensor(MAPS)].mean((1, 2))
        assert oips.scores == pytest.approx(scores.numpy(), rel=1e-4), way
        assert oips.snapshots.std((2, 3, 4)) == pytest.approx(np.ones(oips.snapshots.shape[:2]), abs=1e-3)


def test_limits_are_those_of_real_images(
    model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], Any], tmp_path: Any
) -> None:
    real = digits[0][::25]
    calibration = calibrate(model, real, LAYER)
    pixels = real.astype(np.float64).reshape(len(real), -1)
    x = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    expected = np.quantile(x.min(1), 0.05), np.quantile(x.max(1), 0.95)
    assert calibration.limits == pytest.approx(expected, rel=1e-5)
    assert type(calibration).load(calibration.save(tmp_path / "c.nc")).limits == pytest.approx(expected, rel=1e-5)
    assert AscentSettings.strokes(calibration.limits).constraint == Range(limits=calibration.limits)


def test_the_command_line_offers_the_four_ways(
    mnist_onnx: Any, digits: tuple[npt.NDArray[np.uint8], Any], tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", x_test=digits[0][::50])
    made = {}
    for name in ("article", "default", "legible", "strokes"):
        words = ["ascend", mnist_onnx, LAYER, 3, 17, "--settings", name, "--steps", 30, "--data", tmp_path / "data.npz"]
        assert main([*map(str, words), "-q", "--json", "-o", str(tmp_path / name)]) == 0
        assert json.loads(capsys.readouterr().out)["maps"] == 2
        made[name] = Oips.load(tmp_path / name / "oips.nc").settings
    assert made["article"] == AscentSettings.article(steps=30)
    assert made["default"] == AscentSettings.within(30)
    assert (made["legible"].image, made["legible"].views) == (Pen(), Views())
    assert made["strokes"].smoothness == 0.6
    assert made["strokes"].constraint.limits == pytest.approx((-0.55, 4.0), abs=0.2)
    assert main(["ascend", str(mnist_onnx), LAYER, "--settings", "pretty"]) == 2
    assert "--settings pretty: expected article, default, legible or strokes" in capsys.readouterr().err
