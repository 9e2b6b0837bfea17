"""What holds for every network, image and setting: found by hypothesis among small random ones.

Always with the same examples (`derandomize`), so that a run says the same each time; a search for new ones is
`pytest tests/test_properties.py --hypothesis-profile search`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import oip_torch as oip
from oip_torch import AscentSettings, Domain, FeatureModel, InputError, OipError
from oip_torch.base.tensors import standardize

settings.register_profile("search", derandomize=False, deadline=None, max_examples=500)
FIXED = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
few, many = settings(max_examples=25, **FIXED), settings(max_examples=150, **FIXED)  # type: ignore[arg-type]
PLAIN = Domain()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What torch.export traces fills the log of a failure."""
    with caplog.at_level(logging.ERROR):
        yield


def test_an_image_of_one_value_is_refused() -> None:
    with pytest.raises(InputError, match="one has no contrast"):
        oip.wrap(nn.Conv2d(1, 1, 1), (1, 1, 1), domain=PLAIN)


SCALES = st.sampled_from([1e-3, 1.0, 1e3])


@st.composite
def networks(draw: st.DrawFn, scales: Any = SCALES) -> tuple[nn.Module, tuple[int, int, int]]:
    """A module of one or two convolutions, and the shape (channels, height, width) of its images."""
    channels, height, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    assume(channels * height * width > 1)  # one value has no contrast, which `wrap` says
    maps, kernel = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3]))
    scale, depth = draw(scales), draw(st.integers(1, 2))
    activation = draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.ELU, nn.Sigmoid, nn.Identity]))
    torch.manual_seed(draw(st.integers(0, 5)))
    parts: list[nn.Module] = []
    for number in range(depth):
        parts += [nn.Conv2d(maps if number else channels, maps, kernel, padding=kernel // 2), activation()]
    module = nn.Sequential(*parts)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(scale)
    return module, (channels, height, width)


def wrapped(network: tuple[nn.Module, tuple[int, int, int]]) -> FeatureModel:
    return oip.wrap(*network, domain=PLAIN)


QUICK = {"steps": 3, "candidates": 2, "candidate_steps": 2, "doublings": 1}


def check_oips(oips: oip.Oips) -> None:
    """Finite, of the shapes that are promised, and standardised."""
    count = len(oips)
    for values in (oips.images, oips.scores, oips.max_preactivation, oips.snapshots):
        assert np.isfinite(values).all()
    assert oips.traces.shape == (count, 3 + 2 * (len(oips.traces[0]) > 3))
    assert set(oips.status.tolist()) <= {"dead", "recovered", "fallback", "converged", "finished"}
    np.testing.assert_allclose(oips.images.mean((1, 2, 3)), 0, atol=1e-4)
    contrast = oips.images.std((1, 2, 3))
    assert (contrast <= 1.001).all()
    # Of a few values the gradient's direction may be minus the image: then a step ends where there is no contrast but
    # rounding, which does not become 1.
    if oips.images[0].size >= 16:
        np.testing.assert_allclose(contrast, 1, atol=1e-3)


@few
@given(network=networks(), starts=st.integers(1, 3), seed=st.integers(0, 2**31), before=st.booleans())
def test_ascents_are_finite_standardised_and_repeated(
    network: Any, starts: int, seed: int, before: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = wrapped(network)
    layer = model.layers.names[-1]
    options: dict[str, Any] = {"starts": starts, "seed": seed, "pre_activation": before}
    made = oip.ascend(model, layer, settings=AscentSettings(**QUICK), **options)
    assert len(made) == starts * model.layers[layer].maps
    check_oips(made)
    again = oip.ascend(model, layer, settings=AscentSettings(**QUICK), **options)
    assert same(made, again)
    path = tmp_path_factory.getbasetemp() / "property.nc"
    back = oip.Oips.load(made.save(path))
    assert same(made, back)
    assert back.settings == made.settings
    assert back.provenance == made.provenance


def same(one: oip.Oips, other: oip.Oips) -> bool:
    names = "maps starts images scores max_preactivation traces snapshots snapshot_steps status converged_at".split()
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in ((getattr(one, name), getattr(other, name)) for name in names)
    )


@few
@given(network=networks(st.just(1.0)), size=st.integers(1, 5), before=st.booleans())
def test_an_image_does_not_depend_on_its_batch(network: Any, size: int, before: bool) -> None:
    """In float64, since in float32 batch sizes choose kernels, which round differently."""
    model = wrapped((network[0].double(), network[1]))
    layer = model.layers.names[-1]
    options: dict[str, Any] = {"settings": AscentSettings(**QUICK), "pre_activation": before, "starts": 2}
    whole = oip.ascend(model, layer, **options)
    parts = oip.ascend(model, layer, batch_size=size, **options)
    np.testing.assert_allclose(whole.images, parts.images, atol=1e-9)
    np.testing.assert_allclose(whole.scores, parts.scores, atol=1e-9, rtol=1e-9)
    one = oip.ascend(model, layer, 0, **options)
    np.testing.assert_allclose(whole.select(maps=0).images, one.images, atol=1e-9)


@few
@example(network=(nn.Sequential(nn.Conv2d(2, 1, 1)), (2, 1, 1)), exponent=0)  # one pixel, one map
@given(network=networks(st.just(1.0)), exponent=st.sampled_from([-38, -30, -20, 20, 30, 38]))
def test_weights_of_any_size_give_finite_results_or_an_error(network: Any, exponent: int) -> None:
    """Never NaN in silence: what leaves the finite numbers is named."""
    module, shape = network
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(10.0**exponent)
    try:
        model = oip.wrap(module, shape, domain=PLAIN)
        made = oip.ascend(model, model.layers.names[-1], settings=AscentSettings(**QUICK))
    except OipError as error:
        told = str(error)
        assert exponent > 0
        assert "finite" in told
        return
    for values in (made.images, made.scores, made.max_preactivation):
        assert np.isfinite(values).all()


@few
@given(
    steps=st.integers(1, 4), epsilon=st.floats(1e-6, 1e3), momentum=st.floats(0, 0.99), leak=st.floats(0, 1),
    candidates=st.integers(1, 3), smoothness=st.floats(0, 2), optimizer=st.sampled_from(["rms", "l2", "sign"]),
    constraint=st.sampled_from([oip.Standardized(), oip.Range(limits=(-1.0, 1.0)), oip.Ball(radius=3.0)]),
    image=st.sampled_from([oip.Pixels(), oip.Fourier(), oip.Blurred()]),
)  # fmt: skip
def test_settings_in_range_give_finite_results(smooth: FeatureModel, **chosen: Any) -> None:
    try:
        own = AscentSettings(candidate_steps=1, doublings=1, **chosen)
    except InputError:  # these do not go together, which is said
        assume(False)
    assert AscentSettings.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    made = oip.ascend(smooth, smooth.layers.names[0], [0, 1], settings=own)
    assert np.isfinite(made.images).all()
    assert np.isfinite(made.scores).all()
    if own.constraint == oip.Standardized():
        np.testing.assert_allclose(made.images.std((1, 2, 3)), 1, atol=1e-3)


finite = st.floats(-1e6, 1e6, width=32)
above = st.floats(2**-20, 1e6, width=32)


@many
@given(mean=finite, std=above, data_mean=finite, data_std=above)
def test_domains_come_back_as_they_went(mean: float, std: float, data_mean: float, data_std: float) -> None:
    own = Domain(pixel_mean=(mean,), pixel_std=(std,), mean=(data_mean,), std=(data_std,))
    assert Domain.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert np.isfinite(own.of_pixels(np.array([0.0, 255.0]).reshape(1, 1, 2, 1))).all()


@few
@given(network=networks(st.just(1.0)), mean=st.floats(-300, 300), std=st.floats(0.01, 300))
def test_ascents_in_any_domain(network: Any, mean: float, std: float) -> None:
    module, shape = network
    model = oip.wrap(module, shape, domain=Domain(mean=(mean,), std=(std,)))
    check_oips(oip.ascend(model, model.layers.names[0], settings=AscentSettings(**QUICK)))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@many
@given(
    shape=shapes,
    value=st.floats(-(2.0**100), 2.0**100, width=32),
    exponent=st.integers(-30, 15),
    constant=st.booleans(),
)
def test_standardising_is_finite(shape: tuple[int, ...], value: float, exponent: int, constant: bool) -> None:
    """Also of constant images, which have no contrast that could be made 1."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 10.0**exponent
    x = torch.full(shape, value) if constant else noise
    standardized = standardize(x)
    assert standardized.isfinite().all()
    if not constant and exponent > -5:
        least = 1 / math.sqrt(math.prod(shape[1:]))  # what has less contrast is divided by this, and stays below 1
        expected = (x.std((1, 2, 3), correction=0) / least).clamp_max(1)
        assert standardized.mean((1, 2, 3)).abs().max() < 1e-3
        assert (standardized.std((1, 2, 3), correction=0) - expected).abs().max() < 1e-2


@few
@given(network=networks(st.just(1.0)), value=st.integers(2, 255), count=st.integers(1, 4), constant=st.booleans())
def test_calibrations_and_captures(network: Any, value: int, count: int, constant: bool) -> None:
    module, (channels, height, width) = network
    model = wrapped(network)
    shape = (count, height, width, channels)
    pixels = np.full(shape, value, np.uint8)
    if not constant:
        pixels = np.random.default_rng(value).integers(0, 256, shape, np.uint8)
        pixels.flat[0] = 255
    calibration = oip.calibrate(model, pixels, progress=False)
    for name in calibration.layers:
        assert np.isfinite(calibration[name].maximum).all()
        assert (calibration[name].mean <= calibration[name].maximum + 1e-5).all()
    images = model.standardize(pixels)
    names = model.layers.names
    with oip.capture(model, *names) as maps:
        output = model(images)
    every = model.every_layer(images)
    assert all(torch.equal(maps[name], every[name]) for name in names)
    assert torch.equal(output, module.eval()(images))


@many
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**40),
    count=st.integers(1, 5),
)
def test_start_images(shape: tuple[int, int, int], seed: int, count: int) -> None:
    assume(np.prod(shape) > 1)
    keys = [(number, start) for number in range(count) for start in range(2)]
    images = oip.start_images(shape, keys, layer="a", seed=seed)
    assert images.shape == (len(keys), *shape)
    assert images.isfinite().all()
    assert torch.equal(images[-1:], oip.start_images(shape, keys[-1:], layer="a", seed=seed))
