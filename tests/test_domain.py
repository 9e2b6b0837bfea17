"""The input domain: what is known, what is assumed, and that twins give the same OIPs through theirs."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import oip_torch
from oip_torch import AscentSettings, FeatureModel, InputError, ascend, assess, calibrate, compare
from oip_torch.base.tensors import standardize, to_array, to_tensor
from oip_torch.cli import main
from oip_torch.network.domain import MNIST_MEAN, MNIST_STD, Domain, find_domain

DIGIT, COLOUR = (28, 28, 1), (32, 32, 3)
INSIDE = [{"kind": "Rescaling", "scale": 1 / 255, "offset": 0.0}]


def test_the_article_s_network_takes_images_as_they_are() -> None:
    domain = find_domain(DIGIT)
    assert (domain.pixel_mean, domain.pixel_std) == ((MNIST_MEAN,), (MNIST_STD,))
    assert (domain.mean, domain.std) == ((0.0,), (1.0,))
    assert domain.is_standard
    assert (domain.black[0], domain.white[0]) == pytest.approx((-0.424, 2.822), abs=1e-3)
    assert "MNIST's standardisation is assumed" in domain.source
    given = find_domain(DIGIT, scale=([MNIST_MEAN], [MNIST_STD]))
    assert given.is_like(domain)
    assert "as given" in given.source


def test_a_network_that_rescales_inside_takes_pixels() -> None:
    domain = find_domain(DIGIT, first_layers=INSIDE)
    assert (domain.pixel_mean, domain.pixel_std) == ((0.0,), (1.0,))
    assert (domain.mean, domain.std) == ((MNIST_MEAN,), (MNIST_STD,))
    assert (domain.black, domain.white) == ((0.0,), (255.0,))
    assert "begins with Rescaling" in domain.source
    zero_to_one = find_domain(COLOUR, first_layers=[{"kind": "Rescaling", "scale": 2.0, "offset": -1.0}])
    assert (zero_to_one.pixel_std, zero_to_one.white) == ((255.0,), (1.0,))


def test_natural_images_are_assumed_for_colour_and_it_is_said() -> None:
    domain = find_domain(COLOUR)
    assert domain.mean == pytest.approx((123.675, 116.28, 103.53))
    assert domain.std == pytest.approx((58.395, 57.12, 57.375))
    assert "nothing was said of what is done to the pixels" in domain.source
    assert "natural images' being assumed" in domain.source
    assert len(find_domain((32, 32, 4)).mean) == len(find_domain((40, 40, 1)).mean) == 1
    of_scale = find_domain(COLOUR, scale=([0.0], [255.0]))
    assert of_scale.mean == pytest.approx(np.array(domain.mean) / 255)
    assert (of_scale.black, of_scale.white) == ((0.0,), (1.0,))


def test_a_network_s_own_normalization_tells_of_its_data() -> None:
    layer = {"kind": "Normalization", "mean": [120.0, 110.0, 100.0], "std": [60.0, 61.0, 62.0]}
    domain = find_domain(COLOUR, first_layers=[layer])
    assert (domain.mean, domain.std) == ((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))
    assert (domain.pixel_std, domain.white) == ((1.0,), (255.0,))
    small = find_domain(COLOUR, first_layers=[{"kind": "Normalization", "mean": [0.5], "std": [0.2]}])
    assert (small.pixel_std, small.white) == ((255.0,), (1.0,))


def test_what_is_given_goes_before_what_is_assumed() -> None:
    own = find_domain((32, 32, 1), scale=([72.9], [90.0]))
    assert own.is_standard
    assert "taken to be the data's own" in own.source
    measured = find_domain(DIGIT, scale=([0.0], [255.0]), data=([51.0], [102.0]))
    assert (measured.mean, measured.std) == ((0.2,), (0.4,))
    assert "as measured on the data" in measured.source
    ranged = find_domain(COLOUR, limits=(-1.0, 1.0))
    assert (ranged.black, ranged.white) == ((-1.0,), (1.0,))
    assert ranged.of_pixels(np.array([[0.0, 127.5, 255.0]]))[0] == pytest.approx([-1, 0, 1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": ([1.0, 2.0], [1.0])}, "mean and std: got 2 and 1 numbers, expected 1, or one for each of the 3"),
        ({"data": ([1.0] * 4, [1.0] * 4)}, "the data's mean and std: got 4 and 4 numbers"),
        ({"limits": (1.0, 1.0)}, "the range is 1 to 1: expected the first below the second"),
        ({"limits": (2.0, -1.0)}, "the range is 2 to -1"),
    ],
)
def test_what_cannot_be(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_domain(COLOUR, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"std": (0.0,)}, {"mean": (float("nan"),)}, {"white": (-1.0,)}, {"mean": ()}])
def test_domains_that_cannot_be(changes: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="expected"):
        Domain(**changes)  # type: ignore[arg-type]


def test_a_domain_survives_json() -> None:
    domain = find_domain(COLOUR, scale=([0.0, 1.0, 2.0], [255.0] * 3))
    assert Domain.from_dict(json.loads(json.dumps(domain.to_dict()))) == domain


def in_domain(model: FeatureModel, domain: Domain) -> FeatureModel:
    other = copy.deepcopy(model)
    other.network = dataclasses.replace(model.network, domain=domain)
    return other


@pytest.fixture(scope="module")
def moved(model: FeatureModel) -> FeatureModel:
    """The shipped network as one that takes pixels: its first convolution does what was done outside of it."""
    other = copy.deepcopy(model)
    convolution = other.module_of("Conv2D_1", pre_activation=True)
    with torch.no_grad():
        convolution.weight.div_(MNIST_STD)
        convolution.bias.sub_(MNIST_MEAN * convolution.weight.sum((1, 2, 3)))
    return in_domain(other, find_domain(DIGIT, first_layers=INSIDE))


def test_a_network_that_takes_pixels_gives_the_same_oips(
    model: FeatureModel, moved: FeatureModel, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    """Everything goes through the domain: ascent, evidence of dead maps, calibration and figures of quality."""
    settings = AscentSettings.article(steps=40)
    ours, theirs = (ascend(network, "Conv2D_2", range(24), settings=settings) for network in (model, moved))
    assert theirs.scores == pytest.approx(ours.scores, rel=1e-4, abs=1e-5)
    assert theirs.status.tolist() == ours.status.tolist()
    assert theirs.max_preactivation == pytest.approx(ours.max_preactivation, rel=1e-3, abs=1e-4)
    assert theirs.images == pytest.approx(ours.images, abs=1e-2)
    assert theirs.provenance.domain == moved.domain
    real = digits[0][::50]
    calibrations = [calibrate(network, real, "Conv2D_2") for network in (model, moved)]
    first, second = (calibration["Conv2D_2"] for calibration in calibrations)
    assert second.maximum == pytest.approx(first.maximum, rel=1e-4, abs=1e-5)
    assert second.pictures == pytest.approx(first.pictures, abs=1e-5)
    qualities = [assess(*pair) for pair in zip((model, moved), (ours, theirs), calibrations, strict=True)]
    for name in ("over_data", "shift_robustness", "noise_robustness"):
        found = [getattr(quality, name) for quality in qualities]
        assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-3, nan_ok=True), name
    with pytest.raises(InputError, match="of another network"):
        calibrations[0].check(moved)


def test_another_domain_gives_other_oips_and_its_calibration_does_not_fit(
    model: FeatureModel, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    other = in_domain(model, find_domain(DIGIT, scale=([0.0], [255.0])))
    settings = AscentSettings.article(steps=5)
    assert (
        ascend(other, "Conv2D_3", [3], settings=settings).scores
        != ascend(model, "Conv2D_3", [3], settings=settings).scores
    ).all()
    calibration = calibrate(model, digits[0][:50], "Conv2D_3")
    with pytest.raises(InputError, match="of another input domain"):
        calibration.check(other)


def test_pixels_and_standardised_images_meet_in_the_network_s_units(
    moved: FeatureModel, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    pixels = digits[0][:4]
    inputs = moved.standardize(pixels)
    assert inputs.flatten().tolist() == pixels.flatten().tolist()
    x = standardize(inputs)
    shown = moved.to_input(x)
    assert shown.mean().item() == pytest.approx(MNIST_MEAN, rel=1e-4)
    assert shown.std((1, 2, 3), correction=0).tolist() == pytest.approx([MNIST_STD] * 4, rel=1e-4)
    assert torch.allclose(to_tensor(moved.domain.to_input(to_array(x))), shown)


# The six-class experiment on a small scale: with TensorFlow


@pytest.mark.slow
def test_twins_give_the_same_oips(zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In torch, by the command line and in every runtime: a network, and the same one with its Rescaling inside."""
    with caplog.at_level(logging.WARNING, logger="oip_torch"):
        inside = oip_torch.convert(zoo / "twin_inside.keras", tmp_path / "inside.onnx", device="cpu")
    assert "begins with Rescaling, so pixels are taken to go in as 0–255" in caplog.text
    outside = oip_torch.convert(zoo / "twin_outside.keras", tmp_path / "outside.onnx", mean=0, std=255, device="cpu")
    assert inside.domain.mean == pytest.approx(np.array(outside.domain.mean) * 255)
    settings = AscentSettings.article(steps=60)
    for layer in ("first", "second", "classes"):
        # In float64: in float32 rounding alone takes one of ten maps 0.2 % apart in 60 steps.
        double = [copy.deepcopy(network).double() for network in (inside, outside)]
        ours, theirs = (ascend(network, layer, settings=settings) for network in double)
        assert ours.scores == pytest.approx(theirs.scores, rel=1e-6, abs=1e-9)
        assert ours.status.tolist() == theirs.status.tolist()
    scores = {}
    for name in ("inside", "outside"):
        words = ["ascend", tmp_path / f"{name}.onnx", "second", "--settings", "article", "--steps", "5", "-q"]
        assert main([*map(str, words), "-o", str(tmp_path / name), "--json"]) == 0
        scores[name] = oip_torch.Oips.load(tmp_path / name / "oips.nc").scores
    assert scores["inside"] == pytest.approx(scores["outside"], rel=1e-4, abs=1e-5)
    found = compare(
        *(zoo / "twin_inside.keras", tmp_path / "inside.onnx"), layer="second", maps=[0, 3, 7], steps=60, progress=False
    )
    assert found.agree, found.verdict
    ends = found.ascents["tensorflow"]["float64"].traces[:, -1]
    last = ascend(inside, "second", [0, 3, 7], settings=AscentSettings.article(steps=61)).traces[:, 59]
    assert last == pytest.approx(ends, rel=1e-2)


@pytest.mark.slow
def test_data_and_range_are_measured_and_named(zoo: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 100, (30, 20, 20, 3), np.uint8)
    np.savez(tmp_path / "data.npz", x_test=images)
    words = ["convert", zoo / "twin_inside.keras", "-o", tmp_path / "x.onnx", "--data", tmp_path / "data.npz", "-q"]
    assert main([*map(str, words), "--json"]) == 0
    domain = oip_torch.load(tmp_path / "x.onnx", device="cpu").domain
    assert domain.mean == pytest.approx(images.mean((0, 1, 2)))
    assert domain.std == pytest.approx(images.std((0, 1, 2)))
    words = ["convert", zoo / "twin_outside.keras", "-o", tmp_path / "y.onnx", "--range", "0,1", "-q"]
    assert main([*map(str, words), "--json"]) == 0
    domain = oip_torch.load(tmp_path / "y.onnx", device="cpu").domain
    assert (domain.black, domain.white, domain.pixel_std) == ((0.0,), (1.0,), (255.0,))


def test_a_domain_of_one_s_own(mnist_onnx: Path) -> None:
    own = Domain(mean=(0.1,), std=(0.3,), black=(0.0,), white=(1.0,), pixel_std=(255.0,))
    assert oip_torch.load(mnist_onnx, device="cpu", domain=own).domain == own
    with pytest.raises(InputError, match=r"domain is 3: expected oip_torch\.Domain"):
        oip_torch.load(mnist_onnx, device="cpu", domain=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mean of the domain: got 2 numbers, expected 1"):
        oip_torch.load(mnist_onnx, device="cpu", domain=Domain(mean=(0.0, 0.0)))
