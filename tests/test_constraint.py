"""What bounds the problem: standardisation, a range, a ball."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from oip_torch import (
    AscentSettings,
    Ball,
    Domain,
    FeatureModel,
    InputError,
    Range,
    Standardized,
    ascend,
    assess,
    calibrate,
    noise_control,
    plots,
)
from oip_torch.base.tensors import rms

SKY = np.array([0.2, 0.6, 1.0])  # how strongly the map of `sky` responds to red, green and blue


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def sky(rgb: FeatureModel) -> FeatureModel:
    """The colour network, with a first map that fires most on a bright and uniform blue."""
    model = copy.deepcopy(rgb)
    convolution = model.module_of("wide", pre_activation=True)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (model.domain.mean, model.domain.std))
    weight = torch.tensor(SKY, dtype=torch.float32) / std / convolution.weight[0, 0].numel()
    with torch.no_grad():
        convolution.weight[0] = weight[:, None, None].expand_as(convolution.weight[0])
        convolution.bias[0] = -(weight * mean).sum() * convolution.weight[0, 0].numel()
    return model


def test_pixels_stay_within_their_limits() -> None:
    """The two conditions meet by turns: what is left outside after twelve of them is little."""
    x = Range(limits=(-0.55, 4.2)).bound(noise(8, 1, 28, 28))
    assert x.min() > -0.6
    assert x.max() < 4.25
    assert x.mean((1, 2, 3)).abs().max() < 1e-9
    assert Standardized().bound(noise(8, 1, 28, 28)).min() < -2


def test_without_turns_the_limits_hold_exactly_and_mean_and_contrast_are_free() -> None:
    x = 3 * noise(4, 3, 8, 9) + 1
    bounded = Range(limits=(-0.5, 2.0), turns=0).bound(x)
    assert torch.equal(bounded, x.clamp(-0.5, 2.0))
    low, high = (-0.5, -1.0, -2.0), (1.0, 2.0, 3.0)
    bounded = Range(limits=(low, high), turns=0).bound(x)
    assert bounded.amin((0, 2, 3)).tolist() == list(low)
    assert bounded.amax((0, 2, 3)).tolist() == list(high)
    mixed = Range(limits=(-0.5, high)).bound(x)
    assert (mixed.amin((0, 2, 3)) > -0.8).all()
    assert mixed.amax((0, 2, 3))[0] < mixed.amax((0, 2, 3))[2]


def test_a_pixel_outside_the_range_comes_back() -> None:
    x = torch.tensor([-3.0, -3.0, 0.5, 9.0, 9.0]).view(1, 1, 1, 5).requires_grad_()
    bounded = Range(limits=(-1.0, 2.0), turns=0).bound(x)
    (gradient,) = torch.autograd.grad(bounded, x, torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]).view(1, 1, 1, 5))
    assert gradient.flatten().tolist() == [1, 0, 1, 0, -1]


def test_a_ball_s_surface_is_of_one_rms_and_any_mean() -> None:
    x = noise(4, 3, 8, 9) + torch.tensor([0.0, 5.0, -2.0])[:, None, None]
    bounded = Ball(radius=1.5).bound(x)
    assert rms(bounded).flatten().tolist() == pytest.approx([1.5] * 4)
    assert bounded.mean((1, 2, 3)).abs().min() > 0.1
    assert torch.isfinite(Ball().bound(torch.zeros(2, 3, 4, 4))).all()


def test_a_uniform_blue_is_allowed_where_the_mean_is_free(sky: FeatureModel) -> None:
    """Standardised over all channels together, an image can be blue, but not as bright."""

    def made(constraint: Any) -> Any:
        settings = AscentSettings(steps=40, candidates=1, constraint=constraint)
        return ascend(sky, "wide", 0, settings=settings, pre_activation=True)

    plain, ball, free = made(Standardized()), made(Ball()), made(Range(turns=0))
    low, high = sky.domain.ends
    assert free.scores[0] == pytest.approx(SKY @ high, rel=0.05)
    assert free.scores[0] > ball.scores[0] > 1.5 * plain.scores[0]
    assert free.images.max((0, 1, 2)) == pytest.approx(high, abs=1e-5)  # of each channel its own white
    assert free.images.min() >= low.min() - 1e-5
    middle = ball.images[0, 5:15, 5:25]  # by the stride every other row is seen twice, and is twice as bright
    assert middle == pytest.approx(middle[..., 2:] * SKY, abs=1e-3)
    assert middle.min() > 0
    assert plain.images.mean() == pytest.approx(0, abs=1e-5)
    assert (plain.standardized, ball.standardized, free.standardized) == (True, False, False)


def test_the_range_of_the_data_is_that_of_each_channel(rgb: FeatureModel) -> None:
    settings = AscentSettings(steps=10, candidates=1, constraint=Range())
    x = ascend(rgb, "wide", [0, 3], settings=settings).images
    low, high = rgb.domain.ends
    assert (x.min((0, 1, 2)) > low - 0.1).all()
    assert (x.max((0, 1, 2)) < high + 0.1).all()
    assert ascend(rgb, "wide", 0, settings=settings).settings.constraint == Range()
    with pytest.raises(InputError, match="a limit has 2 numbers: expected one, or one for each of 3 channels"):
        ascend(rgb, "wide", 0, settings=AscentSettings(constraint=Range(limits=((-1, -2), 2))))


def test_images_of_another_contrast_are_not_laid_beside_the_data(sky: FeatureModel) -> None:
    """Figures compare an image with itself at its own contrast; ratios to the data are not shown."""
    data = np.random.default_rng(0).integers(0, 255, (30, 20, 32, 3))
    calibration = calibrate(sky, data, "wide")
    settings = AscentSettings(steps=30, candidates=1, constraint=Range(turns=0))
    free = ascend(sky, "wide", 0, starts=2, settings=settings)
    quality = assess(sky, free, calibration)
    assert quality.scores == pytest.approx(free.scores, rel=1e-4)
    assert quality.shift_robustness == pytest.approx(1.0, abs=0.02)  # of one colour, wherever it is
    assert (quality.noise_robustness > 0.95).all()  # standardised again, it would lose its brightness
    assert np.isnan(quality.over_data).all()
    assert np.isfinite(quality.spectrum_distance).all()
    control = noise_control(sky, free, draws=3)
    assert control.scrambled_score[0] > 0.9 * control.score[0]  # its mean is what the map sees, and stays
    figure = plots.beside_data(free, calibration, 0)
    text = " ".join(each.get_text() for each in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "× data" not in text
    assert "no ratio is shown" in text
    assert "with any mean and contrast" in free.way
    plain = ascend(sky, "wide", 0, settings=AscentSettings(steps=3, candidates=1))
    assert not np.isnan(assess(sky, plain, calibration).over_data).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Range(limits=(1.0, 2.0)), "limits are 1 and 2: expected a number below 0 and one above"),
        (lambda: Range(limits=(2.0, 1.0), turns=0), "limits are 2 and 1: expected the smaller one first"),
        (lambda: Range(limits=((-1, 3), (2, 2)), turns=0), r"limits are -1 \| 3 and 2 \| 2: expected the smaller"),
        (lambda: Range(limits=((-1, -1), (2, 2, 2))), "expected as many of each"),
        (lambda: Range(limits=3), "limits are 3: expected"),  # type: ignore[arg-type]
        (lambda: Range(limits=None), "limits are None: expected"),  # type: ignore[arg-type]
        (lambda: Range(limits="all"), "limits are 'all': expected"),  # type: ignore[arg-type]
        (lambda: Range(limits=(-1, float("nan"))), "a limit is nan"),
        (lambda: Range(limits=((), 2)), r"a limit is \(\)"),
        (lambda: Range(turns=-1), "turns is -1: expected a whole number, 0 or more"),
        (lambda: Ball(radius=0), "radius is 0: expected a number above 0"),
        (lambda: Ball(radius="1"), "radius is '1'"),  # type: ignore[arg-type]
        (
            lambda: AscentSettings(constraint=None),  # type: ignore[arg-type]
            r"constraint is None: expected Standardized\(…\), Range\(…\) or Ball\(…\)",
        ),
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_numbers_of_numpy_are_plain_ones() -> None:
    low, high = Domain(mean=(1.0, 2.0), std=(2.0, 3.0), white=(9.0, 9.0)).ends
    assert Range(limits=(low, high), turns=0) == Range(  # type: ignore[arg-type]
        limits=((-0.5, -2 / 3), (4.0, 7 / 3)), turns=0
    )
    assert Range(limits=(np.float32(-0.5), np.int64(4))) == Range(limits=(-0.5, 4.0))  # type: ignore[arg-type]
    assert Ball(radius=np.float64(2)).summary == "images of RMS 2 with any mean"
    assert Range(limits=((-1.0, -0.5), 3.0)).summary == "pixels within -1 | -0.5 to 3"
