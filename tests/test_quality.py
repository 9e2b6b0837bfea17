"""Figures of an OIP's quality: exact cases, brute force, and images that have no ratio."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.figure import Figure

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend, plots
from oip_torch.analysis.calibration import Calibration, LayerCalibration, calibrate
from oip_torch.analysis.image_statistics import (
    cross_correlation,
    cross_correlations,
    radial_power_spectrum,
    spectrum_distance,
)
from oip_torch.analysis.quality import Quality, assess

LAYERS = ("Conv2D_1", "Conv2D_3")
RATIOS = ("over_data", "selectivity_rank", "shift_robustness", "noise_robustness", "consistency", "score_spread")


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], Any]) -> Calibration:
    return calibrate(model, digits[0][::25], LAYERS)


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", [17, 56], starts=3, settings=AscentSettings.within(12))


@pytest.fixture(scope="module")
def quality(model: FeatureModel, oips: Oips, calibration: Calibration) -> Quality:
    return assess(model, oips, calibration)


def all_scores(model: FeatureModel, images: npt.NDArray[np.floating], layer: str) -> npt.NDArray[np.floating]:
    with torch.no_grad():
        return model.up_to(layer)(torch.from_numpy(images).permute(0, 3, 1, 2)).mean((2, 3)).numpy()


def standardized(image: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return (image - image.mean()) / image.std()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_correlates_perfectly_with_its_rolled_copies(channels: int) -> None:
    image = np.random.default_rng(0).normal(size=(9, 12, channels))
    for shift in [(0, 0), (1, 0), (4, 7), (-2, 11)]:
        rolled = np.roll(image, shift, axis=(0, 1))
        assert cross_correlation(image, rolled) == pytest.approx(1.0, abs=1e-12)
        assert cross_correlation(image, 3 * rolled + 5) == pytest.approx(1.0, abs=1e-12)


def test_cross_correlation_is_that_of_brute_force() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 5, 6, 2))
    values = [np.corrcoef(a.ravel(), np.roll(b, (y, x), axis=(0, 1)).ravel())[0, 1] for y in range(5) for x in range(6)]
    assert cross_correlation(a, b) == pytest.approx(max(values), abs=1e-12)
    matrix = cross_correlations(np.stack([a, b, a]))
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(np.diag(matrix), 1.0, atol=1e-12)
    assert matrix[0, 2] == pytest.approx(1.0, abs=1e-12)


def test_cross_correlation_of_what_has_none() -> None:
    image = np.random.default_rng(0).normal(size=(4, 4, 1))
    assert cross_correlation(image, np.full((4, 4, 1), 7.0)) == 0.0
    with pytest.raises(InputError, match="expected the same"):
        cross_correlation(image, image[:3])


def test_scores_ranks_and_multiples(
    model: FeatureModel, oips: Oips, calibration: Calibration, quality: Quality
) -> None:
    assert len(quality) == 6
    np.testing.assert_allclose(quality.scores, oips.scores, rtol=1e-4)
    maximum = calibration["Conv2D_3"].maximum
    np.testing.assert_allclose(quality.over_data, quality.scores / maximum[oips.maps])
    layer = all_scores(model, oips.images, "Conv2D_3")
    known = np.flatnonzero(calibration["Conv2D_3"].excited)
    for row, map in enumerate(oips.maps):
        stronger = [k for k in known if layer[row, k] / maximum[k] > layer[row, map] / maximum[map] * (1 + 1e-6)]
        assert quality.selectivity_rank[row] == 1 + len(stronger)


def test_shift_robustness_is_that_of_brute_force(model: FeatureModel, oips: Oips, quality: Quality) -> None:
    for row in range(2):
        image, map = oips.images[row, ..., 0], oips.maps[row]
        padded = np.pad(image, 1, mode="edge")
        moved = [padded[y : y + 28, x : x + 28] for y in range(3) for x in range(3) if (y, x) != (1, 1)]
        scores = all_scores(model, np.stack([standardized(m) for m in moved])[..., None], "Conv2D_3")[:, map]
        assert quality.shift_robustness[row] == pytest.approx(scores.mean() / oips.scores[row], rel=1e-4)


def test_noise_is_the_images_own(model: FeatureModel, oips: Oips, quality: Quality) -> None:
    assert ((quality.noise_robustness > 0.5) & (quality.noise_robustness < 1.1)).all()
    backwards = assess(model, oips.take(range(5, 2, -1)))
    np.testing.assert_allclose(backwards.noise_robustness, quality.noise_robustness[:2:-1], rtol=1e-5)
    other = assess(model, oips, seed=1)
    assert (other.noise_robustness != quality.noise_robustness).all()


def test_consistency_and_spread(oips: Oips, quality: Quality) -> None:
    for map in (17, 56):
        rows = np.flatnonzero(oips.maps == map)
        for row in rows:
            others = [cross_correlation(oips.images[row], oips.images[k]) for k in rows if k != row]
            assert quality.consistency[row] == pytest.approx(np.mean(others))
        spread = quality.scores[rows].std() / quality.scores[rows].mean()
        np.testing.assert_allclose(quality.score_spread[rows], spread)


def test_equal_images_of_a_map_agree(model: FeatureModel, oips: Oips) -> None:
    images = np.stack([np.roll(oips.images[0], shift, axis=0) for shift in range(6)])
    rolled = assess(model, dataclasses.replace(oips, images=images))
    np.testing.assert_allclose(rolled.consistency, 1.0, atol=1e-6)


def test_spectrum_distance(oips: Oips, quality: Quality, calibration: Calibration) -> None:
    np.testing.assert_allclose(quality.spectrum_distance, spectrum_distance(oips.images, calibration.spectrum))
    own = radial_power_spectrum(oips.images[:1])[0]
    assert spectrum_distance(oips.images[:1], own)[0] == pytest.approx(0.0, abs=1e-9)
    assert spectrum_distance(oips.images[:1], own * 10)[0] == pytest.approx(1.0)
    assert np.isfinite(spectrum_distance(np.zeros((1, 28, 28, 1)), calibration.spectrum)).all()


def test_what_cannot_be_had_is_nan(model: FeatureModel, oips: Oips) -> None:
    single = assess(model, oips.select(starts=0))
    for name in ("over_data", "selectivity_rank", "spectrum_distance", "consistency", "score_spread"):
        assert np.isnan(getattr(single, name)).all(), name
    for name in ("scores", "shift_robustness", "noise_robustness"):
        assert np.isfinite(getattr(single, name)).all(), name


def test_dead_images_have_no_ratios(model: FeatureModel, oips: Oips, calibration: Calibration) -> None:
    layer = all_scores(model, oips.images, "Conv2D_3")
    maps = np.array([int(np.flatnonzero(scores == 0)[0]) for scores in layer])  # they do not fire on these images
    silenced = dataclasses.replace(oips, maps=maps)
    found = assess(model, silenced, calibration)
    for name in RATIOS:
        assert np.isnan(getattr(found, name)).all(), name
    assert np.isfinite(found.spectrum_distance).all()


def test_a_map_that_the_data_never_excites(model: FeatureModel, oips: Oips, calibration: Calibration) -> None:
    layer = calibration["Conv2D_3"]
    silent = np.where(np.arange(128) == 17, 0.0, layer.maximum)
    changed: LayerCalibration = dataclasses.replace(layer, maximum=silent)
    found = assess(model, oips, dataclasses.replace(calibration, layers={"Conv2D_3": changed}))
    of_17 = oips.maps == 17
    assert np.isposinf(found.over_data[of_17]).all()
    assert np.isnan(found.selectivity_rank[of_17]).all()
    assert np.isfinite(found.over_data[~of_17]).all()
    assert np.isfinite(found.selectivity_rank[~of_17]).all()


def test_flat_layers_can_be_assessed(model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], Any]) -> None:
    dense = next(layer.name for layer in model.layers if layer.kind == "Dense")
    oips = ascend(model, dense, [0, 1], settings=AscentSettings.within(12))
    found = assess(model, oips, calibrate(model, digits[0][:50], dense))
    np.testing.assert_allclose(found.scores, oips.scores, rtol=1e-4, atol=1e-5)


def test_table(quality: Quality) -> None:
    table = quality.to_xarray().to_dataframe()
    assert len(table) == 6
    assert {"map", "start", "scores", "over_data", "spectrum_distance"} <= set(table.columns)


def test_what_does_not_belong_together(model: FeatureModel, oips: Oips, calibration: Calibration) -> None:
    foreign = dataclasses.replace(oips, provenance=dataclasses.replace(oips.provenance, fingerprint="0" * 64))
    with pytest.raises(InputError, match="made with another network"):
        assess(model, foreign)
    with pytest.raises(InputError, match="calibration is of another network"):
        assess(model, oips, dataclasses.replace(calibration, graph_sha256="0" * 64))
    with pytest.raises(InputError, match="no calibrated layer 'Conv2D_3'"):
        assess(model, oips, dataclasses.replace(calibration, layers={"Conv2D_1": calibration["Conv2D_1"]}))
    with pytest.raises(InputError, match="seed is -1"):
        assess(model, oips, seed=-1)
    with pytest.raises(InputError, match="no OIPs to assess"):
        assess(model, oips.take([]))


def test_consistency_plot_has_a_row_per_start(oips: Oips) -> None:
    figure = plots.consistency(oips, 17)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert len(axes.images) == 3 + 1  # the starts, and the table of correlations
    labels = [text.get_text() for text in axes.texts]
    assert [label for label in labels if label.startswith("start ")] == ["start 0", "start 1", "start 2"]
    between = cross_correlation(oips.images[0], oips.images[1])
    assert labels.count(f"{between:.2f}") >= 2
    figure.savefig("/dev/null", format="png")
    with pytest.raises(InputError, match="one start only"):
        plots.consistency(oips.select(starts=0), 17)
    with pytest.raises(InputError, match="no map 3"):
        plots.consistency(oips, 3)
