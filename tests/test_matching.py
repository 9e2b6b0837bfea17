"""Maps of two networks are paired by what they say of the same images; what is not alike is not found."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

import oip_torch as oip
from oip_torch.analysis.image_statistics import cross_correlation
from oip_torch.analysis.matching import LayerMatch, Match, match_layers

LAYER = "Conv2D_1"


def drawn(seed: int, images: int = 400, maps: int = 12) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((images, maps)).astype(np.float32)


def test_permuted_maps_are_found_and_paired() -> None:
    scores, order = drawn(0), np.random.default_rng(1).permutation(12)
    found = match_layers(("a", "b"), (scores, 3 * scores[:, order] - 7))
    assert np.array_equal(order[found.other_maps], found.maps)
    assert np.allclose(found.correlation, 1)
    assert found.found.all()
    assert found.other_found.all()
    assert np.array_equal(order[found.counterpart], np.arange(12))
    assert "12 of 12 maps are found in the other network" in found.summary


def test_unrelated_maps_are_not_found() -> None:
    found = match_layers(("a", "b"), (drawn(0), drawn(1)))
    assert found.found.mean() < 0.1
    assert 0.05 < found.chance < 0.3
    assert len(found.correlation) == 12


def test_maps_that_share_one_thing_alone_are_not_found() -> None:
    """All follow how much ink there is, in both networks: far beyond chance, and no counterparts."""
    ink = drawn(9, maps=1)
    found = match_layers(("a", "b"), (drawn(0) + 2 * ink, drawn(1) + 2 * ink))
    assert (found.best > found.chance).all()
    assert np.median(found.correlation) > 0.7
    assert found.found.mean() < 0.35


def test_pairs_are_one_to_one_with_the_largest_sum_and_the_best_is_one_sided() -> None:
    base = drawn(0, maps=2)
    other = np.stack([base[:, 0] + 0.1 * drawn(1, maps=1)[:, 0], base[:, 0] + 0.6 * base[:, 1]], axis=1)
    found = match_layers(("a", "b"), (base, other))
    assert found.counterpart[0] == 0
    assert found.other_counterpart.tolist() == [0, 0]  # both resemble it most
    assert sorted(zip(found.maps.tolist(), found.other_maps.tolist(), strict=True)) == [(0, 0), (1, 1)]
    assert found.correlation[0] >= found.correlation[1]


def test_maps_that_never_vary_are_left_out_and_counted() -> None:
    scores = drawn(0, maps=4)
    scores[:, 1] = 5
    other = drawn(0, maps=4)[:, :3]
    other[:, 2] = 0
    found = match_layers(("a", "b"), (scores, other))
    assert (found.maps[0], found.other_maps[0]) == (0, 0)
    assert len(found.maps) == 2  # as many as vary in the smaller layer
    assert not {1} & set(found.maps.tolist())
    assert np.isnan(found.best[1])
    assert found.counterpart[1] == -1
    assert not found.found[1]
    assert "(and 1 never vary)" in found.summary
    assert "none can be paired" in match_layers(("a", "b"), (scores * 0, other)).summary


def test_oips_of_pairs_are_compared_over_all_shifts() -> None:
    scores, images = drawn(0, maps=3), np.random.default_rng(5).standard_normal((3, 8, 8, 1))
    rolled = {number: np.roll(images[number], 3, axis=0) for number in (0, 1)}  # map 2 has none
    found = match_layers(("a", "b"), (scores, scores), (dict(enumerate(images)), rolled))
    known = np.isfinite(found.image_correlation)
    assert sorted(found.maps[known].tolist()) == [0, 1]
    assert np.allclose(found.image_correlation[known], 1)
    row = int(np.flatnonzero(np.isfinite(found.unrelated_correlation))[0])
    partner = int(found.other_maps[(row + 1) % 3])
    expected = cross_correlation(images[found.maps[row]], rolled[partner])
    assert found.unrelated_correlation[row] == pytest.approx(expected)
    other_size = {0: np.zeros((4, 4, 1))}
    assert match_layers(("a", "b"), (scores, scores), (dict(enumerate(images)), other_size)).pictures is None


def test_too_few_images_or_different_ones_are_refused() -> None:
    with pytest.raises(oip.InputError, match="expected the same, and 50 or more"):
        match_layers(("a", "b"), (drawn(0, 49), drawn(0, 49)))
    with pytest.raises(oip.InputError, match="was scored on 60 images, 'b' on 70"):
        match_layers(("a", "b"), (drawn(0, 60), drawn(0, 70)))


def changed(model: oip.FeatureModel, change: Any) -> oip.FeatureModel:
    """A copy whose layer's weights are changed in place."""
    other = copy.deepcopy(model)
    weights = [tensor for tensor in other.parameters() if tensor.shape == (32, 1, 3, 3)]
    biases = [tensor for tensor in other.parameters() if tensor.shape == (32,)]
    assert len(weights) == len(biases) == 1
    with torch.no_grad():
        for tensor in (*weights, *biases):
            tensor.copy_(change(tensor))
    return other


@pytest.fixture(scope="module")
def order() -> npt.NDArray[np.int64]:
    return np.random.default_rng(4).permutation(32)


@pytest.fixture(scope="module")
def permuted(model: oip.FeatureModel, order: npt.NDArray[np.int64]) -> oip.FeatureModel:
    return changed(model, lambda tensor: tensor[torch.from_numpy(order)].clone())


def test_a_network_with_its_maps_permuted_is_found_whole(
    model: oip.FeatureModel, permuted: oip.FeatureModel, order: npt.NDArray[np.int64], digits: Any
) -> None:
    found = oip.match(model, permuted, LAYER, data=digits[0][::25])
    own = found[LAYER]
    assert np.array_equal(order[own.other_maps], own.maps)
    assert np.allclose(own.correlation, 1, atol=1e-4)
    assert found.found == found.other_found == 1
    assert "100% of the maps" in repr(found)


def test_of_a_network_with_random_weights_little_is_found(model: oip.FeatureModel, digits: Any) -> None:
    torch.manual_seed(0)
    random = changed(model, torch.randn_like)
    found = oip.match(model, random, LAYER, data=digits[0][::25])
    assert found.found < 0.35
    assert found.other_found < 0.35


def test_an_atlas_and_a_network_are_matched_by_the_same_images(
    small_atlas: oip.Atlas, permuted: oip.FeatureModel, order: npt.NDArray[np.int64], digits: Any
) -> None:
    found = oip.match(small_atlas, permuted, data=digits[0][::50])
    assert np.array_equal(order[found[LAYER].other_maps], found[LAYER].maps)
    with pytest.raises(oip.InputError, match=r"were scored on different images \(digests"):
        oip.match(small_atlas, permuted, data=digits[0][1::50])
    with pytest.raises(oip.InputError, match="have no OIPs of one size to show"):
        oip.plots.match(found, LAYER)


def test_an_atlas_beside_itself_shows_its_own_images(small_atlas: oip.Atlas) -> None:
    found = oip.match(small_atlas, small_atlas)
    own = found[LAYER]
    alive = np.isfinite(own.image_correlation)
    assert alive.any()
    assert np.allclose(own.image_correlation[alive], 1)
    assert own.pictures is not None
    best = small_atlas[LAYER].oips.best()
    shown = own.pictures[alive][0]
    assert np.array_equal(shown, best[int(own.maps[alive][0])].images[0])
    figure = oip.plots.match(found, LAYER, 4)
    assert f"4 of {len(own.maps)} pairs" in figure.get_suptitle()
    labels = [text.get_text() for text in figure.axes[0].texts]
    assert len(labels) == 4
    assert labels[0].endswith(": 1.00 *")
    tree = found.to_xarray()
    dataset = tree["layer_000"].to_dataset()
    assert isinstance(dataset, xr.Dataset)
    assert dataset.attrs["layer"] == LAYER
    assert np.array_equal(dataset["found"], own.found)
    assert dataset.sizes["pair"] == len(own.maps)


def test_matches_that_cannot_be(small_atlas: oip.Atlas, model: oip.FeatureModel, digits: Any) -> None:
    pixels = digits[0][::50]
    for given, message in (
        ({"a": small_atlas, "b": 3}, "b is 3: expected an atlas"),
        ({"a": small_atlas, "b": model}, "expected data="),
        ({"a": small_atlas, "b": small_atlas, "data": pixels}, "expected no data="),
        ({"a": small_atlas, "b": small_atlas, "layers": "Conv2D_2"}, "Conv2D_2"),
        ({"a": small_atlas, "b": model, "layers": {LAYER: "nonsense"}, "data": pixels}, "nonsense"),
        ({"a": small_atlas, "b": small_atlas, "layers": []}, "layers is empty"),
        ({"a": small_atlas, "b": small_atlas, "layers": 3}, "layers is 3"),
        ({"a": model, "b": model, "layers": LAYER, "data": pixels[:20]}, "50 or more"),
    ):
        with pytest.raises(oip.InputError, match=message) as told:
            oip.match(**given)
        assert "\n" not in str(told.value)
    with pytest.raises(oip.InputError, match=r"found is 3: expected what oip_torch\.match returns"):
        oip.plots.match(3, LAYER)  # type: ignore[arg-type]
    with pytest.raises(oip.InputError, match="nonsense"):
        oip.match(model, model, LAYER, data=pixels)["nonsense"]


def test_shares_are_over_all_layers() -> None:
    one = match_layers(("a", "a"), (drawn(0), drawn(0)))
    none = match_layers(("b", "b"), (drawn(0), drawn(1)))
    both = Match(name="x", other_name="y", layers={"a": one, "b": dataclasses.replace(none)})
    assert both.found == pytest.approx((12 + none.found.sum()) / 24)
    assert list(both) == ["a", "b"]
    assert isinstance(both["a"], LayerMatch)
    assert both.summary.count("\n") == 3


def test_images_are_spread_over_all_of_the_data() -> None:
    from oip_torch.atlas import tables

    assert tables.scored_rows(7).tolist() == list(range(7))
    rows = tables.scored_rows(5001)
    assert len(rows) == len(set(rows.tolist())) == 2000
    assert rows[0] == 0
    assert rows[-1] > 4990
    assert set(np.diff(rows).tolist()) == {2, 3}


def test_the_scores_of_an_atlas_are_those_of_the_images(
    model: oip.FeatureModel, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oip_torch.atlas import tables
    from oip_torch.atlas.recipe import Data

    monkeypatch.setattr(tables, "SCORED", 60)
    pixels = digits[0][::12]  # in more than one batch
    table = tables.data_tables(model, Data.of(pixels, None, None), [LAYER], None, False)[LAYER]
    every = tables.data_of(table, LAYER)[0]
    maxima = oip.calibrate(model, pixels[tables.scored_rows(len(pixels))], LAYER)[LAYER].maximum
    assert every.scores is not None
    assert every.scores.shape == (60, 32)
    assert np.allclose(every.scores.max(0), maxima, rtol=1e-5)
