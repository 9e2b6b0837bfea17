"""Noise is told as noise, OIPs of strong maps are not, and scrambled copies keep what they should."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.text import Text

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend, noise_control, plots, start_images
from oip_torch.analysis.image_statistics import cross_correlation
from oip_torch.analysis.noise_control import phase_scrambled

STRONG = [17, 56, 67, 9]


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", STRONG, starts=3, settings=AscentSettings.within(200), progress=False)


def standardized(images: np.ndarray) -> np.ndarray:
    centred = images - images.mean((1, 2, 3), keepdims=True)
    return centred / centred.std((1, 2, 3), keepdims=True)


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (2, 9, 14, 3), (2, 5, 5, 1)])
def test_scrambled_copies_keep_the_amplitudes_and_nothing_else(shape: tuple[int, ...]) -> None:
    images = standardized(np.random.default_rng(0).normal(size=shape))
    copies = phase_scrambled(images, np.random.default_rng(1))
    np.testing.assert_allclose(copies.mean((1, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(copies.std((1, 2, 3)), 1, atol=1e-12)
    # Of one channel the mean is 0; of several each keeps its own.
    before, after = (np.abs(np.fft.fft2(values, axes=(1, 2))) for values in (images, copies))
    np.testing.assert_allclose(after, before, atol=1e-9)
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5 for a, b in zip(images, copies, strict=True))
    again = phase_scrambled(images, np.random.default_rng(1))
    np.testing.assert_array_equal(again, copies)


def test_colours_keep_their_correlation() -> None:
    grey = standardized(np.random.default_rng(0).normal(size=(1, 12, 12, 1)))
    copy = phase_scrambled(np.repeat(grey, 3, axis=3), np.random.default_rng(1))
    np.testing.assert_allclose(copy[..., 0], copy[..., 2], atol=1e-5)


@pytest.mark.parametrize("kind", ["white", "as starts are"])
def test_noise_is_told_as_noise(model: FeatureModel, oips: Oips, kind: str) -> None:
    images = standardized(np.random.default_rng(0).normal(size=oips.images.shape))
    if kind != "white":
        keys = [(int(m), int(s)) for m, s in zip(oips.maps, oips.starts, strict=True)]
        images = start_images((1, 28, 28), keys, layer="noise").permute(0, 2, 3, 1).numpy()
    control = noise_control(model, dataclasses.replace(oips, images=images.astype(np.float32)))
    assert control.noise.all()
    assert control.summary == (
        "4 of 4 maps are not distinguishable from noise: 17, 56, 67, 9; beside scrambled copies alone, with fewer "
        "than 20 maps"
    )
    np.testing.assert_allclose(control.agreement, control.scrambled_agreement, atol=0.06)


def test_the_oips_of_strong_maps_are_not(model: FeatureModel, oips: Oips) -> None:
    control = noise_control(model, oips)
    assert control.maps.tolist() == STRONG
    assert not control.noise.any()
    assert control.noise.dtype == bool
    assert (control.agreement > control.most_scrambled_agreement).all()
    assert (control.most_scrambled_agreement >= control.scrambled_agreement).all()
    assert (control.score > 2 * control.scrambled_score).all()
    assert "0 of 4 maps are not distinguishable from noise" in repr(control)
    first = [cross_correlation(oips.images[a], oips.images[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert control.agreement[0] == pytest.approx(np.mean(first))
    for row, number in enumerate(STRONG):
        assert control.score[row] == pytest.approx(oips.scores[oips.maps == number].max(), rel=1e-4)
    assert {"map", "noise", "agreement"} <= set(control.to_xarray().variables)


def test_with_one_start_the_score_alone_is_asked(model: FeatureModel, oips: Oips) -> None:
    control = noise_control(model, oips.select(starts=0))
    assert np.isnan(control.agreement).all()
    assert not control.noise.any()
    assert not control.asked.any()
    assert control.summary == (
        "0 of 4 maps score no higher than noise does; of the other 4 it is not known, with one start each"
    )
    assert control.note(oips.select(starts=0)) == ""  # nothing is said where nothing is known


def test_a_dead_map_is_noise(model: FeatureModel, oips: Oips) -> None:
    uniform = np.zeros_like(oips.images)
    uniform[:, 0, 0] = 1.0
    control = noise_control(model, dataclasses.replace(oips, images=standardized(uniform).astype(np.float32)))
    assert control.noise.all()
    assert control.summary.startswith("0 of 4 maps are") == bool((control.score == 0).all())


def test_a_map_has_its_figures_whatever_the_others_are(model: FeatureModel, oips: Oips) -> None:
    whole, part = noise_control(model, oips, draws=3), noise_control(model, oips.select(56), draws=3)
    np.testing.assert_allclose(part.scrambled_agreement, whole.scrambled_agreement[1:2])
    np.testing.assert_allclose(part.scrambled_score, whole.scrambled_score[1:2], rtol=1e-5)


def test_what_cannot_be_controlled(model: FeatureModel, oips: Oips) -> None:
    with pytest.raises(InputError, match="expected at least one"):
        noise_control(model, oips.take([]))
    with pytest.raises(InputError, match="draws is 0"):
        noise_control(model, oips, draws=0)
    with pytest.raises(InputError, match="expected what oip_torch"):
        noise_control(model, oips.images)  # type: ignore[arg-type]
    foreign = dataclasses.replace(oips, provenance=dataclasses.replace(oips.provenance, fingerprint="0" * 64))
    with pytest.raises(InputError, match="another network"):
        noise_control(model, foreign)


@pytest.fixture(scope="module")
def layer(model: FeatureModel) -> Oips:
    """Three starts of the first 32 maps, in little time."""
    settings = AscentSettings.within(60, snapshots=())
    return ascend(model, "Conv2D_3", range(32), starts=3, settings=settings, progress=False)


def test_oips_of_other_maps_are_told_at_the_stated_rate(model: FeatureModel, layer: Oips) -> None:
    """Each map is given images of three other maps; but for one in 20 they agree as unrelated ones do."""
    places, turns = np.arange(len(layer)).reshape(32, 3), (1, 8, 21)
    mixed = np.stack([np.roll(places[:, start], turns[start]) for start in range(3)], axis=1).ravel()
    control = noise_control(model, dataclasses.replace(layer, images=layer.images[mixed]), draws=3)
    by_agreement = control.agreement <= control.most_unrelated_agreement
    assert by_agreement.mean() > 0.8  # of 32 maps alone; docs/notes has the rate of 2,000
    assert control.noise.mean() >= 0.95  # with the scores, which other maps' images are as good for
    assert (control.unrelated_agreement < control.most_unrelated_agreement).all()


def test_one_other_map_s_oips_agree_and_are_told_by_their_scores(model: FeatureModel, layer: Oips) -> None:
    other = np.roll(np.arange(len(layer)).reshape(32, 3), 1, axis=0).ravel()
    control = noise_control(model, dataclasses.replace(layer, images=layer.images[other]), draws=3)
    assert (control.agreement > control.most_unrelated_agreement).mean() > 0.8
    assert (control.score <= control.unrelated_score).all()
    assert control.noise.all()


def test_strong_maps_among_a_layer_are_not(model: FeatureModel, layer: Oips) -> None:
    control = noise_control(model, layer, draws=3)
    strong = control.score > np.median(control.score)
    assert control.noise[strong].mean() <= 0.1
    assert (control.score[strong] > control.noise_score[strong]).all()
    assert control.noise_images == 3 * layer.settings.image_steps
    assert control.summary.startswith(f"{control.noise.sum()} of 32 maps are not distinguishable from noise")


def test_a_sheet_marks_and_counts_what_is_noise(model: FeatureModel, oips: Oips) -> None:
    control = noise_control(model, oips)
    told = dataclasses.replace(control, noise=np.array([True, False, True, False]))
    sheet = plots.sheet(oips.best(), control=told)
    shown = [text.get_text() for text in sheet.findobj(Text)]
    assert sum(text.endswith(" ~") for text in shown) == 2
    assert "Conv2D_3: 4 of 4 OIPs alive, 2 not distinguishable from noise" in shown
    assert any(
        "~ not distinguishable from noise: the starts agree no better than" in " ".join(text.split()) for text in shown
    )
    plain = [text.get_text() for text in plots.sheet(oips.best(), control=control).findobj(Text)]
    assert not any("~" in text for text in plain)
    assert not any("from noise" in text for text in plain)  # of four maps the question that matters was not asked
    with pytest.raises(InputError, match="map 9 of 'Conv2D_3' is not in the noise control"):
        plots.sheet(oips, control=noise_control(model, oips.select(56)))
    with pytest.raises(InputError, match="or of another network"):
        plots.sheet(dataclasses.replace(oips, layer="Conv2D_2"), control=control)
    with pytest.raises(InputError, match="expected what oip_torch"):
        plots.sheet(oips, control="noise")  # type: ignore[arg-type]


def test_scores_of_another_objective_are_not_compared(model: FeatureModel, oips: Oips) -> None:
    other = dataclasses.replace(oips, provenance=dataclasses.replace(oips.provenance, scored_by="map_peak"))
    control = noise_control(model, other)
    assert np.isnan(control.score).all()
    assert not control.noise.any()
    one = noise_control(model, other.select(starts=0))
    assert one.summary == "0 of 4 maps are not distinguishable from noise; of 4 it is not known, with one start each"
