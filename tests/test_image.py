"""What is optimised, and which image it stands for: pixels, blurred pixels, a pen; and what the network sees of it."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from oip_torch import AscentSettings, Blurred, FeatureModel, InputError, Oips, Pen, Pixels, Views, ascend, calibrate
from oip_torch.base.tensors import standardize
from oip_torch.cli import main
from oip_torch.optim.image import Image, total_variation_gradient

LAYER, MAPS = "Conv2D_3", [3, 14, 17, 56]
STEPS = {"steps": 60, "candidates": 1}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("image", [Pixels(), Pixels(limits=(-0.55, 4.2)), Blurred(), Pen()])
@pytest.mark.parametrize("shape", [(3, 1, 28, 28), (2, 3, 20, 31)])
def test_images_are_standardised_and_each_is_its_own(image: Image, shape: tuple[int, ...]) -> None:
    parameters = image.constrain(5 * noise(*shape) + 2)
    x = image.decode(parameters)
    assert x.shape == shape
    assert x.mean((1, 2, 3)).abs().max() < 1e-6
    assert (x.std((1, 2, 3), correction=0) - 1).abs().max() < 1e-6
    assert torch.allclose(image.decode(parameters[1:2]), x[1:2])
    assert image.summary or image == Pixels()


def test_pixels_stay_within_their_limits() -> None:
    """The two conditions meet by turns: what is left outside after twelve of them is little."""
    x = Pixels(limits=(-0.55, 4.2)).constrain(noise(8, 1, 28, 28))
    assert x.min() > -0.6
    assert x.max() < 4.25
    assert Pixels().constrain(noise(8, 1, 28, 28)).min() < -2


def test_a_blur_leaves_nothing_finer_than_itself() -> None:
    power = [np.abs(np.fft.fft2(x.decode(noise(4, 1, 32, 32)).numpy())) ** 2 for x in (Pixels(), Blurred(sigma=1.5))]
    high = [part[..., 10:22, 10:22].sum() / part.sum() for part in power]
    assert high[1] < 0.01 * high[0]


def test_a_pen_puts_ink_on_paper() -> None:
    """Most of the picture is paper, of one tone; the higher the threshold, the less ink there is."""
    x = Pen().decode(noise(4, 1, 28, 28))
    assert (x < 0).double().mean() > 0.6
    ink = [(Pen(threshold=t).decode(noise(4, 1, 28, 28)) > 0).double().mean() for t in (0.0, 1.0, 2.0)]
    assert ink[0] > ink[1] > ink[2]


def test_the_gradient_of_the_total_variation() -> None:
    x = noise(2, 3, 6, 5).requires_grad_()
    variation = x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum()
    (expected,) = torch.autograd.grad(variation, x)
    assert torch.allclose(total_variation_gradient(x.detach()), expected)


def test_views_turn_scale_and_shift() -> None:
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    x[..., 10, 15] = 1
    still = torch.zeros(1, 4, dtype=torch.float64)
    views = Views(rotation=90, scale=0.5, shift=2)
    assert torch.allclose(views.see(x, still, 1.0), x, atol=1e-12)
    assert views.see(x, still + 1, 0.0) is x
    turned = views.see(x, torch.tensor([[1.0, 0, 0, 0]]), 1.0)[0, 0]
    assert divmod(int(turned.argmax()), 21) in ((5, 10), (15, 10))
    shifted = views.see(x, torch.tensor([[0.0, 0, 0, 1]]), 1.0)[0, 0]
    assert divmod(int(shifted.argmax()), 21) == (10, 13)
    below = views.see(x, torch.tensor([[0.0, 0, -1, 0]]), 1.0)[0, 0]
    assert divmod(int(below.argmax()), 21) == (12, 15)
    smaller = views.see(x, torch.tensor([[0.0, 1, 0, 0]]), 1.0)[0, 0]
    assert divmod(int(smaller.argmax()), 21) == (10, 13)
    assert [Views(fade=0.5).size(done) for done in (0, 0.25, 0.5, 1)] == [1, 0.5, 0, 0]
    assert Views(fade=None).size(1.0) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pixels(limits=(1.0, 2.0)), "limits are 1 and 2: expected a number below 0 and one above"),
        (lambda: Pixels(limits=3), "limits are 3: expected"),  # type: ignore[arg-type]
        (lambda: Pixels(turns=0), "turns is 0"),
        (lambda: Blurred(sigma=0), "sigma is 0: expected a number above 0"),
        (lambda: Pen(sharpness=-1), "sharpness is -1"),
        (lambda: Pen(threshold=float("nan")), "threshold is nan"),
        (lambda: Views(scale=1.0), "scale is 1.0: expected a number below 1"),
        (lambda: Views(rotation=-1), "rotation is -1"),
        (lambda: Views(fade=0.0), "fade is 0.0"),
        (lambda: AscentSettings(image="pen"), r"image is 'pen': expected Pixels\(…\), Blurred\(…\) or Pen"),  # type: ignore[arg-type]
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
    "limits": AscentSettings(**STEPS, image=Pixels(limits=(-0.55, 4.2))),
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
    exact = way != "strokes"  # flat areas tie in the max-pooling, and rounding decides, see `Pixels.limits`
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

    for way in ("blurred", "pen", "smooth", "legible", "strokes"):
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
    assert AscentSettings.strokes(calibration.limits).image == Pixels(limits=calibration.limits)


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
    assert made["strokes"].image.limits == pytest.approx((-0.55, 4.0), abs=0.2)
    assert main(["ascend", str(mnist_onnx), LAYER, "--settings", "pretty"]) == 2
    assert "--settings pretty: expected article, default, legible or strokes" in capsys.readouterr().err
