"""What the network says to pictures: that it is what it says, of which unit's field is told, and what is refused."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from conftest import nchw
from torch import Tensor

import oip_torch
from oip_torch import AscentSettings, Calibration, Domain, FeatureModel, InputError, Oips, Responses, respond
from oip_torch.analysis.image_statistics import cross_correlation

Digits = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return oip_torch.ascend(model, "Conv2D_3", [3, 17, 56], starts=2, settings=AscentSettings.within(60))


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, digits: Digits) -> Calibration:
    return oip_torch.calibrate(model, digits[0][::10], ["Conv2D_2", "Conv2D_3"])


def test_it_is_what_the_network_says(model: FeatureModel, oips: Oips) -> None:
    found = respond(model, oips)
    every = model.every_layer(model.to_input(nchw(oips.images)))
    assert found.outputs == pytest.approx(every["Dense_2"].numpy(), abs=1e-6)
    own = every["Conv2D_3"][torch.arange(6), torch.from_numpy(oips.maps)].numpy()
    assert found.activations == pytest.approx(own, abs=1e-5)
    assert found.scores == pytest.approx(oips.scores, abs=1e-4)
    assert (found.layer, found.output, found.output_activation) == ("Conv2D_3", "Dense_2", "softmax")
    assert found.predicted.tolist() == every["Dense_2"].argmax(1).tolist()
    assert found.are_probabilities
    assert found.shares == pytest.approx(found.outputs.max(1))
    assert found.maps.tolist() == oips.maps.tolist()
    assert found.starts.tolist() == oips.starts.tolist()
    by_hand = respond(model, oips.images, "Conv2D_3", oips.maps)
    assert np.array_equal(by_hand.activations, found.activations)
    assert by_hand.starts is None


def test_it_does_not_depend_on_the_batch(model: FeatureModel, oips: Oips) -> None:
    together, one_by_one = respond(model, oips), respond(model, oips, batch_size=1)
    assert one_by_one.outputs == pytest.approx(together.outputs, abs=1e-6)
    assert one_by_one.activations == pytest.approx(together.activations, abs=1e-5)


def test_only_what_the_largest_unit_sees_moves_it(model: FeatureModel, oips: Oips) -> None:
    found = respond(model, oips)
    largest = found.activations.max((1, 2))
    for row, (top, bottom, left, right) in enumerate(found.fields):
        y, x = found.places[row]
        assert found.activations[row, y, x] == largest[row]
        outside = np.ones((28, 28, 1), bool)
        outside[top:bottom, left:right] = False
        noisy = oips.images[row].copy()
        noisy[outside] += 3.0
        after = model.every_layer(nchw(noisy[None]))["Conv2D_3"][0, oips.maps[row], y, x]
        assert float(after) == pytest.approx(largest[row], abs=1e-4)


def test_an_image_made_for_one_unit_is_shown_at_its_place(model: FeatureModel) -> None:
    def corner(activations: Tensor, maps: Tensor) -> Tensor:
        return activations[torch.arange(len(maps)), maps, 0, 2]

    made = oip_torch.ascend(model, "Conv2D_2", [7], settings=AscentSettings.within(30), objective=corner)
    found = respond(model, made, place=(0, 2))
    assert found.places.tolist() == [[0, 2]]
    assert found.fields.tolist() == [[0, 8, 4, 12]]
    assert not found.at_peak
    assert found.activations[0, 0, 2] == pytest.approx(made.scores[0], abs=1e-4)
    assert "The unit at (0, 2) sees 8×8 of 28×28 pixels." in found.summary


def test_pixels_are_standardised_as_a_calibration_does(
    model: FeatureModel, calibration: Calibration, digits: Digits
) -> None:
    data = calibration["Conv2D_3"]
    numbers = data.top_indices[17, :3]
    found = respond(model, digits[0][::10][numbers], "Conv2D_3", 17, calibration=calibration)
    assert found.scores == pytest.approx(data.top_scores[17, :3], abs=1e-5)
    assert found.images == pytest.approx(data.top_of(17)[:3], abs=1e-6)
    assert found.likeness == pytest.approx([1, 1, 1])  # they are among the map's own top images
    assert found.nearest.tolist() == numbers.tolist()
    assert respond(model, digits[0][:3, ..., None]).outputs.shape == (3, 10)


def test_likeness_is_the_best_correlation_and_stands_beside_that_of_other_maps(
    model: FeatureModel, calibration: Calibration, oips: Oips
) -> None:
    found = respond(model, oips, calibration=calibration)
    data = calibration["Conv2D_3"]
    for row, number in enumerate(oips.maps):
        alike = [cross_correlation(oips.images[row], image) for image in data.top_of(number)]
        assert found.likeness[row] == pytest.approx(max(alike))
        assert found.nearest[row] == data.top_indices[number, int(np.argmax(alike))]
    assert (found.likeness_to_others < 1).all()
    # Rolled, a picture is like the same images.
    rolled = respond(model, np.roll(oips.images, 5, axis=2), "Conv2D_3", oips.maps, calibration=calibration)
    assert rolled.likeness == pytest.approx(found.likeness)
    silent = int(np.flatnonzero(~calibration["Conv2D_2"].excited)[0])
    undefined = respond(model, oips.images[:1], "Conv2D_2", silent, calibration=calibration)
    assert np.isnan(undefined.likeness).all()
    assert undefined.nearest.tolist() == [-1]
    assert "Likeness is undefined: the data excites none of these maps." in undefined.summary


def test_the_mean_of_a_map_s_own_images_is_liker_to_them_than_to_others(
    model: FeatureModel, calibration: Calibration
) -> None:
    data = calibration["Conv2D_3"]
    maps = np.flatnonzero(data.excited)[::12]
    means = np.stack([data.top_of(number).mean(0) for number in maps])
    means -= means.mean((1, 2, 3), keepdims=True)
    means /= means.std((1, 2, 3), keepdims=True)
    found = respond(model, means, "Conv2D_3", maps, calibration=calibration)
    assert len(maps) >= 8
    assert (found.likeness > found.likeness_to_others).all()


def test_where_a_map_is_the_same_all_over_no_unit_is_ahead(
    model: FeatureModel, calibration: Calibration, digits: Digits
) -> None:
    silent = int(np.flatnonzero(calibration["Conv2D_2"].maximum == 0)[0])
    found = respond(model, digits[0][:2], "Conv2D_2", [silent, 7])
    assert found.places[0].tolist() == [-1, -1]
    assert found.fields[0].tolist() == [-1] * 4
    assert (found.fields[1] >= 0).all()
    assert "On 1 of 2 the map of Conv2D_2 is nowhere above 0." in found.summary
    alone = found.take([0])
    assert "Each map is the same all over, so that no unit of it is ahead of the others." in alone.summary


def test_units_and_classes(model: FeatureModel, digits: Digits) -> None:
    units = respond(model, digits[0][:2], "Dense_1", [1, 2])
    assert units.activations.shape == (2, 1, 1)
    assert (units.places == -1).all()
    assert units.fields.tolist() == [[0, 26, 0, 26]] * 2
    assert units.noun == "unit"
    classes = respond(model, digits[0][:2], "Dense_2", 3)
    assert classes.pre_activation  # a softmax saturates
    assert not respond(model, digits[0][:2], "Dense_2", 3, pre_activation=False).pre_activation
    assert respond(model, digits[0][:2]).activations is None


def test_only_a_softmax_gives_probabilities(smooth: FeatureModel, rgb: FeatureModel) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 32, 3)).astype(np.uint8)
    linear = respond(rgb, images, "narrow", 0)
    assert not linear.are_probabilities
    assert linear.shares is None
    assert "probability" not in linear.summary
    assert not respond(smooth, images[:, :12, :12, 0], "Tanh_1", 0).are_probabilities
    without = dataclasses.replace(linear, outputs=None)
    assert without.predicted is None
    assert "has no two" in without.summary


def test_a_map_lies_where_its_fields_have_their_middles(model: FeatureModel, rgb: FeatureModel, digits: Digits) -> None:
    """Conv2D_3: middles at 9, 13 and 17 of 28 pixels."""
    assert respond(model, digits[0][:1], "Conv2D_3", 0).extent == (7.0, 19.0, 7.0, 19.0)
    assert respond(model, digits[0][:1], "Conv2D_1", 0).extent == (1.0, 27.0, 1.0, 27.0)
    assert respond(model, digits[0][:1], "Dense_1", 0).extent is None
    images = np.random.default_rng(0).integers(0, 255, (1, 20, 32, 3)).astype(np.uint8)
    top, bottom, left, right = respond(rgb, images, "wide", 0).extent
    field = oip_torch.receptive_field(rgb, "wide", 8, 27)
    assert field.center == (bottom - (bottom - top) / 18, right - (right - left) / 56)


def test_it_is_told_in_words_and_as_a_dataset(
    model: FeatureModel, oips: Oips, calibration: Calibration, digits: Digits
) -> None:
    found = respond(model, oips, calibration=calibration)
    assert "The unit with the largest activation sees 18×18 of 28×28 pixels." in found.summary
    assert "Likeness to the map's own top real images (largest correlation over all shifts): " in found.summary
    zeros = respond(model, digits[0][:2])
    assert zeros.summary == (
        "The largest output of Dense_2 on 2 pictures is that of class 0; its probability is 1.00 in the median."
    )
    four = respond(model, np.concatenate([digits[0][:3], digits[0][-1:]]))
    assert "2 of its 10 classes, most often of class 0 (3 of 4)" in four.summary
    assert "most often" not in respond(model, digits[0][[0, -1]]).summary
    dataset = found.to_xarray()
    assert dataset.activations.dims == ("image", "row", "column")
    assert dataset["map"].values.tolist() == oips.maps.tolist()
    assert dataset.fields.sel(end="left").values.tolist() == found.fields[:, 2].tolist()
    assert "likeness" not in zeros.to_xarray()
    part = found.take([4, 0])
    assert isinstance(part, Responses)
    assert part.maps.tolist() == oips.maps[[4, 0]].tolist()
    assert np.array_equal(part.outputs, found.outputs[[4, 0]])
    assert set(found.take(found.predicted == found.predicted[0]).predicted) == {found.predicted[0]}


def test_precision_and_modes(model: FeatureModel, oips: Oips) -> None:
    double = copy.deepcopy(model).double()
    found = respond(double, oips)
    assert found.activations.dtype == np.float64
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        again = respond(model, oips)
    assert again.outputs == pytest.approx(found.outputs, abs=1e-5)
    half = respond(model, oips.images.astype(np.float64), "Conv2D_3", oips.maps)
    assert half.images.dtype == np.float32
    assert respond(model, torch.from_numpy(oips.images), "Conv2D_3", oips.maps).activations.dtype == np.float32


def test_bad_pictures(model: FeatureModel, smooth: FeatureModel, oips: Oips, digits: Digits) -> None:
    real = digits[0][:2]
    for wrong in (np.zeros((2, 28, 27)), "text", None, [[1], [1, 2]], np.zeros((28, 28, 1)), real.astype(complex)):
        with pytest.raises(
            InputError, match=r"the pictures are an array of .*: expected Oips, or images \(N, 28, 28, 1"
        ):
            respond(model, wrong)
    with pytest.raises(InputError, match=r"picture 0 has mean .* and standard deviation .*: expected 0 and 1"):
        respond(model, real.astype(np.float32))
    with pytest.raises(InputError, match="NaN or infinite"):
        respond(model, np.full((1, 28, 28, 1), np.nan))
    with pytest.raises(InputError, match="NaN or infinite"):
        respond(model, dataclasses.replace(oips, images=oips.images * np.nan))
    with pytest.raises(InputError, match="expected pixel values, 0–255"):
        respond(model, real.astype(np.int64) * 2)
    with pytest.raises(InputError, match="expected at least one"):
        respond(model, real[:0])
    with pytest.raises(InputError, match="there are no OIPs to respond to"):
        respond(model, oips.take([]))
    with pytest.raises(InputError, match="made with another network"):
        respond(smooth, oips)
    other = copy.copy(model)
    other.network = dataclasses.replace(model.network, domain=Domain(mean=(1.0,), std=(2.0,)))
    with pytest.raises(InputError, match="made through another input domain"):
        respond(other, oips)
    with pytest.raises(InputError, match="model is None"):
        respond(None, oips)


def test_bad_places_and_maps(
    model: FeatureModel, smooth: FeatureModel, oips: Oips, calibration: Calibration, digits: Digits
) -> None:
    real = digits[0][:2]
    with pytest.raises(InputError, match="maps is given without layer"):
        respond(model, real, maps=3)
    with pytest.raises(InputError, match="layer is given without maps"):
        respond(model, real, "Conv2D_3")
    with pytest.raises(InputError, match="there are 3 map numbers for 2 pictures"):
        respond(model, real, "Conv2D_3", [1, 2, 3])
    with pytest.raises(InputError, match="no map 128 in Conv2D_3: expected 0 to 127"):
        respond(model, real, "Conv2D_3", 128)
    with pytest.raises(InputError, match="map numbers are given as"):
        respond(model, real, "Conv2D_3", 1.5)
    with pytest.raises(InputError, match="given with OIPs, which know theirs"):
        respond(model, oips, "Conv2D_3")
    with pytest.raises(InputError, match="place and calibration need a layer"):
        respond(model, real, place=(1, 1))
    for place in ("1", 3, (1, 2, 3), (0.5, 1), (3, 0)):
        with pytest.raises(InputError, match=r"(place|row) is"):
            respond(model, oips, place=place)
    with pytest.raises(InputError, match="batch_size is 0"):
        respond(model, oips, batch_size=0)
    with pytest.raises(InputError, match="calibration is 'data'"):
        respond(model, oips, calibration="data")
    with pytest.raises(InputError, match="no calibrated layer 'Conv2D_1'"):
        respond(model, real, "Conv2D_1", 0, calibration=calibration)
    with pytest.raises(InputError, match="calibrate again with pre_activation=True"):
        respond(model, real, "Conv2D_3", 0, calibration=calibration, pre_activation=True)
    with pytest.raises(InputError, match="of another network"):
        respond(smooth, np.ones((1, 12, 12), np.uint8) * 9, "Elu_2", 0, calibration=calibration)
    with pytest.raises(InputError, match="no picture at position 9"):
        respond(model, oips).take(9)
