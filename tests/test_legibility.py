"""The figures of legibility rank what they must, mislead where the docs say so, and are undefined out loud."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.ndimage import gaussian_filter

from oip_torch import AscentSettings, Domain, FeatureModel, InputError, Oips, Readers, ascend, assess
from oip_torch.analysis.legibility import _share_above, legibility
from oip_torch.analysis.readers import Grain, similarities
from oip_torch.analysis.scores import map_means
from oip_torch.base.tensors import standardize

LAYER = "Conv2D_3"
MAPS = np.arange(128)

Pictures = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def halves(digits: tuple[npt.NDArray[np.uint8], Any]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    return digits[0][::2], digits[0][1::2]


@pytest.fixture(scope="module")
def readers(model: FeatureModel, halves: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> Readers:
    return Readers.of(model, LAYER, *halves, count=12_000, progress=False)  # a tenth, for speed


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, LAYER, [2, 9, 17, 56], settings=AscentSettings.within(40), progress=False)


@pytest.fixture(scope="module")
def training(halves: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]) -> Pictures:
    return standardized(halves[1][..., None].astype(np.float64))


@pytest.fixture(scope="module")
def strongest(model: FeatureModel, training: Pictures) -> Pictures:
    """For each map the training digit that excites it most."""
    with torch.no_grad():
        scores = map_means(model.up_to(LAYER)(torch.from_numpy(training.transpose(0, 3, 1, 2).copy())))
    return training[scores.argmax(0).numpy()]


def standardized(images: npt.NDArray[np.floating]) -> Pictures:
    centred = images - images.mean((1, 2, 3), keepdims=True)
    return np.asarray(centred / centred.std((1, 2, 3), keepdims=True), np.float32)


def white(count: int = 128) -> Pictures:
    return standardized(np.random.default_rng(0).normal(size=(count, 28, 28, 1)))


def middle(readers: Readers, pictures: Pictures) -> tuple[float, float, float]:
    """Medians of tells, looks and legibility over the maps where they are defined."""
    tells, looks = readers.tells(pictures, MAPS), readers.looks(pictures)
    both = legibility(tells, looks, np.zeros(len(MAPS), bool))
    return float(np.nanmedian(tells)), float(np.median(looks)), float(np.nanmedian(both))


def test_shares_are_those_of_brute_force() -> None:
    stream = np.random.default_rng(0)
    sims, weights = stream.integers(0, 6, 40) / 6, stream.integers(0, 4, 40).astype(float)
    own = np.array([3, 5, 39])
    pairs = [(w, (sims[d] > sims[o]) + 0.5 * (sims[d] == sims[o])) for d in own for o, w in enumerate(weights)]
    expected = sum(w * value for w, value in pairs) / sum(w for w, _ in pairs)
    assert _share_above(sims, own, weights) == pytest.approx(expected)
    assert _share_above(np.ones(40), own, weights) == 0.5


def test_tells_is_that_of_brute_force(
    model: FeatureModel, halves: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], readers: Readers
) -> None:
    """The images of each map: the highest 25 of 2,500 that fire it; the others': of each other map, one by one."""
    x = standardize(model.standardize(halves[0]))
    with torch.no_grad():
        scores = map_means(model.up_to(LAYER)(x)).numpy()
    top = [[i for i in np.argsort(-scores[:, k], kind="stable")[:25] if scores[i, k] > 0] for k in MAPS]
    picture = white(1)
    flat = readers.images.flatten(1).numpy()
    place = {i: int(np.abs(flat - x[i].flatten().numpy()).max(1).argmin()) for k in top for i in k}
    both = similarities(torch.from_numpy(picture.transpose(0, 3, 1, 2)), readers.images, Grain.of(28, 28))[:, 0].numpy()
    for number in (0, 17):
        found = []
        for sims in both:
            own = sims[[place[i] for i in top[number]]]
            others = sims[[place[i] for k in MAPS if k != number for i in top[k]]]
            greater = (own[:, None] > others).mean() + 0.5 * (own[:, None] == others).mean()
            found.append(2 * greater - 1)
        assert readers.tells(picture, [number])[0] == pytest.approx(np.mean(found), abs=1e-6)


def test_controls_rank_as_they_must(
    readers: Readers, training: Pictures, strongest: Pictures, model: FeatureModel
) -> None:
    tells, looks, both = middle(readers, strongest)
    assert tells > 0.5
    assert looks > 0.6
    assert both > 0.4
    for name, pictures in {
        "white noise": white(),
        "random digits": training[np.random.default_rng(1).choice(len(training), 128)],
        "the next map's": np.roll(strongest, -1, axis=0),
    }.items():
        tells, _, both = middle(readers, pictures)
        assert abs(tells) < 0.15, name
        assert both < 0.12, name
    assert middle(readers, white())[1] < 0.1


def test_looks_alone_is_high_for_what_says_nothing(readers: Readers, training: Pictures) -> None:
    """The trap: smooth pictures are made of pieces of digits, whatever the map."""
    blurred = standardized(gaussian_filter(white(), (0, 2, 2, 0)))
    mean = np.repeat(standardized(training.mean(0, keepdims=True)), 128, axis=0)
    for pictures, least in ((blurred, 0.35), (mean, 0.7)):
        tells, looks, both = middle(readers, pictures)
        assert looks > least > 10 * middle(readers, white())[1]
        assert abs(tells) < 0.15
        assert both < 0.1


def test_tells_alone_is_high_for_a_template_of_its_own_images(readers: Readers, strongest: Pictures) -> None:
    """The trap: what a regression would find has the highest T of all, and adds nothing to the data that made it."""
    images = readers.images.numpy().transpose(0, 2, 3, 1)
    known = np.flatnonzero(readers.defined)
    means = np.stack([images[rows[rows >= 0]].mean(0) for rows in readers.members[known]])
    templates = standardized(means - images.mean(0))
    tells = readers.tells(templates, known)
    assert np.median(tells) > np.median(readers.tells(strongest[known], known))
    rubbed = standardized(templates + 1.5 * white(len(known)))  # no longer a digit to look at
    assert np.median(readers.tells(rubbed, known)) > 0.4
    assert np.median(readers.looks(rubbed)) < 0.25


def test_a_dead_map_counts_0_and_a_map_of_no_image_is_undefined(
    model: FeatureModel, readers: Readers, oips: Oips
) -> None:
    silent = int(np.flatnonzero(~readers.defined)[0])
    status = np.array(["dead", "finished", "finished", "finished"])
    maps = np.array([17, 9, silent, 56])
    found = assess(model, dataclasses.replace(oips, status=status, maps=maps), readers=readers)
    assert found.legibility[0] == 0
    assert np.isfinite(found.tells[0])
    assert np.isnan(found.tells[2])
    assert np.isnan(found.legibility[2])
    assert np.isfinite(found.looks).all()
    assert "Undefined for 1 of 4, whose maps no real image fires." in found.legibility_summary
    assert f"{int((~readers.defined).sum())} of them undefined since no image fires them" in repr(readers)
    np.testing.assert_array_equal(
        legibility(np.array([np.nan, -0.5, 0.5]), np.ones(3), np.ones(3, bool)), [np.nan, 0, 0]
    )
    np.testing.assert_array_equal(legibility(np.array([-0.5, 0.5]), np.array([1, -0.1]), np.zeros(2, bool)), [0, 0])


def test_assess_gives_the_readers_figures(model: FeatureModel, readers: Readers, oips: Oips) -> None:
    found = assess(model, oips, readers=readers)
    np.testing.assert_array_equal(found.tells, readers.tells(oips.images, oips.maps))
    np.testing.assert_array_equal(found.looks, readers.looks(oips.images))
    known = np.isfinite(found.tells)
    expected = np.maximum(found.tells, 0) * np.maximum(found.looks, 0)
    np.testing.assert_array_equal(found.legibility[known], expected[known])
    assert f"Legibility {np.median(found.legibility[known]):.2f} in the median" in found.legibility_summary
    assert {"tells", "looks", "legibility"} <= set(found.to_xarray().data_vars)
    without = assess(model, oips)
    assert np.isnan([without.tells, without.looks, without.legibility]).all()
    assert "undefined" in without.legibility_summary


def test_a_picture_has_its_figures_whatever_the_others_are(readers: Readers, oips: Oips) -> None:
    tells, looks = readers.tells(oips.images, oips.maps), readers.looks(oips.images)
    for row in range(len(oips)):
        one = slice(row, row + 1)
        np.testing.assert_allclose(readers.tells(oips.images[one], oips.maps[one]), tells[one], atol=1e-4)
        np.testing.assert_allclose(readers.looks(oips.images[one]), looks[one], atol=1e-5)


def test_looks_has_no_gain_and_no_offset(readers: Readers, strongest: Pictures) -> None:
    some = strongest[:5]
    assert (readers.looks(some) > readers.looks(3 * some) + 0.1).all()
    assert (readers.looks(some) > readers.looks(-some) + 0.2).all()
    assert (readers.looks(np.zeros_like(some)) == 0).all()


def test_the_seed_alone_draws_the_windows(
    model: FeatureModel, halves: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], readers: Readers
) -> None:
    few = [
        Readers.of(model, LAYER, halves[0][:200], halves[1][:50], count=5_000, seed=seed, progress=False)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(few[0].bank, few[1].bank)
    assert not torch.equal(few[0].bank, few[2].bank)
    assert readers.bank.shape == (12_000, 81)


def test_colour_and_flat_layers(rgb: FeatureModel, model: FeatureModel, digits: Any) -> None:
    coloured = copy.deepcopy(rgb)
    domain = Domain(pixel_mean=(120.0,) * 3, pixel_std=(70.0,) * 3)
    coloured.network = dataclasses.replace(rgb.network, domain=domain)
    channels, height, width = rgb.input_shape
    pixels = np.random.default_rng(0).integers(0, 256, (60, height, width, channels), np.uint8)
    layer = next(entry.name for entry in rgb.layers if rgb.has_maps(entry.name))
    readers = Readers.of(coloured, layer, pixels[:40], pixels[40:], progress=False)
    pictures = standardized(pixels[:3].astype(np.float64))
    assert np.isfinite(readers.looks(pictures)).all()
    assert readers.tells(pictures, [0, 0, 0]).shape == (3,)
    classes = Readers.of(model, "Dense_2", digits[0][:500], digits[0][500:600], progress=False)
    assert classes.pre_activation
    oips = ascend(model, "Dense_2", [0, 1], settings=AscentSettings.within(12), progress=False)
    assert np.isfinite(assess(model, oips, readers=classes).legibility).all()


def test_what_does_not_belong_together(model: FeatureModel, rgb: FeatureModel, readers: Readers, oips: Oips) -> None:
    with pytest.raises(InputError, match="another network ranked"):
        assess(model, oips, readers=dataclasses.replace(readers, fingerprint="0" * 64))
    with pytest.raises(InputError, match=r"readers are of Conv2D_1, the OIPs of Conv2D_3"):
        assess(model, oips, readers=dataclasses.replace(readers, layer="Conv2D_1"))
    with pytest.raises(InputError, match="pre_activation=False"):
        assess(model, oips, readers=dataclasses.replace(readers, pre_activation=True))
    with pytest.raises(InputError, match=r"readers is 3: expected what oip_torch\.Readers\.of returns"):
        assess(model, oips, readers=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected standardised images, \(N, 28, 28, 1\)"):
        readers.looks(oips.images[:, :14])
    with pytest.raises(InputError, match="expected 4 whole numbers"):
        readers.tells(oips.images, [1, 2])
    with pytest.raises(InputError, match="expected numbers from 0 to 127"):
        readers.tells(oips.images, [1, 2, 3, 128])
    with pytest.raises(InputError, match="model is 3"):
        Readers.of(3, LAYER, [], [])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the training images: an array"):
        Readers.of(model, LAYER, np.full((2, 28, 28), 9), np.zeros((0, 28, 28)))
    with pytest.raises(InputError, match="rows of different lengths"):
        Readers.of(model, LAYER, [[1], [1, 2]], [[1]])
