"""What is maximised: sums of scores, what they read, and what cannot be maximised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import nchw
from torch import Tensor

import oip_torch
from oip_torch import AscentSettings, FeatureModel, InputError, ascend
from oip_torch.optim.objectives import Objective, Place, map_mean, map_peak

LAYER = "Conv2D_3"


def activations_on(model: FeatureModel, layer: str, oips: oip_torch.Oips) -> Tensor:
    with torch.no_grad():
        return model.up_to(layer)(nchw(oips.images))


# Sums


def test_a_sum_is_the_weighted_sum_of_the_scores_and_of_their_gradients() -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    channels = torch.tensor([0, 3, 1])
    mean, peak = map_mean(x, channels), map_peak(x, channels)
    (of_mean,), (of_peak,) = (torch.autograd.grad(score.sum(), x) for score in (mean, peak))
    for objective, weight in (
        (map_mean + 0.1 * map_peak, 0.1),
        (map_mean + map_peak * 0.1, 0.1),
        (map_mean - 2 * map_peak, -2),
        (-(-map_mean - map_peak), 1),
        (2 * (0.5 * map_mean + 0.05 * map_peak), 0.1),
    ):
        scores = objective(x, channels)
        torch.testing.assert_close(scores, mean + weight * peak, rtol=0, atol=1e-14)
        torch.testing.assert_close(
            torch.autograd.grad(scores.sum(), x)[0], of_mean + weight * of_peak, rtol=0, atol=1e-14
        )


def test_the_images_of_a_sum_are_scored_by_the_sum(model: FeatureModel) -> None:
    oips = ascend(model, LAYER, range(6), settings=AscentSettings.within(60), objective=map_mean + 0.1 * map_peak)
    found, channels = activations_on(model, LAYER, oips), torch.from_numpy(oips.maps)
    expected = map_mean(found, channels) + 0.1 * map_peak(found, channels)
    assert oips.scores == pytest.approx(expected.numpy(), rel=1e-4)
    assert (oips.scores > map_mean(found, channels).numpy()).all()
    assert oips.provenance.objective == "map_mean + 0.1 map_peak"


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        (map_mean, "map_mean"),
        (map_mean + 0.1 * map_peak, "map_mean + 0.1 map_peak"),
        (map_mean - 2 * map_peak, "map_mean - 2 map_peak"),
        (-map_mean + map_peak, "-map_mean + map_peak"),
        (-0.5 * map_mean, "-0.5 map_mean"),
        (map_mean + Objective.of(lambda a, channels: a.mean((1, 2, 3)), name="layer"), "map_mean + layer"),
    ],
)
def test_a_sum_bears_the_names_of_its_terms(objective: Objective, name: str) -> None:
    assert objective.name == name


@pytest.mark.parametrize("weight", [0, 0.0, float("nan"), float("inf"), "2"])
def test_weights_that_weigh_nothing_are_refused(weight: Any) -> None:
    with pytest.raises(InputError, match="the weight of an objective is"):
        weight * map_mean
    with pytest.raises(InputError, match="the weight of an objective is"):
        map_mean * weight


@pytest.mark.parametrize("settings", [AscentSettings.article(steps=5), AscentSettings.within(60)])
def test_what_falls_where_the_map_responds_makes_nothing_dead(model: FeatureModel, settings: AscentSettings) -> None:
    """Some maps are silent on their starts, which is all that the objective asks for."""
    oips = ascend(model, LAYER, range(16), settings=settings, objective=-map_mean)
    assert (oips.scores == 0).any()
    assert (oips.scores <= 0).all()
    assert not set(oips.status) & {"dead", "recovered"}


# What a term reads


def smoothness(images: Tensor, channels: Tensor) -> Tensor:
    """Minus the mean square of the differences of neighbouring pixels."""
    return -sum(images.diff(dim=axis).square().mean((1, 2, 3)) for axis in (2, 3))


def test_a_term_that_reads_the_image_shapes_it_and_is_not_part_of_its_score(model: FeatureModel) -> None:
    regulariser = Objective.of(smoothness, reads=Place.INPUT)
    settings = AscentSettings.article(steps=60, epsilon=0.1)
    plain = ascend(model, LAYER, [0, 3, 14], settings=settings)
    smooth = ascend(model, LAYER, [0, 3, 14], settings=settings, objective=map_mean + 20 * regulariser)
    roughness = [-smoothness(nchw(oips.images), torch.arange(3)).numpy() for oips in (plain, smooth)]
    assert (roughness[1] < 0.5 * roughness[0]).all()
    for oips in (plain, smooth):
        said = map_mean(activations_on(model, LAYER, oips), torch.from_numpy(oips.maps))
        assert oips.scores == pytest.approx(said.numpy(), rel=1e-4)
    assert smooth.traces[:, 0] == pytest.approx(plain.traces[:, 0], rel=1e-6)  # the same starts
    assert (smooth.scores < plain.scores).all()  # the price
    assert smooth.provenance.objective == "map_mean + 20 smoothness"


def quiet(activations: Tensor, channels: Tensor) -> Tensor:
    return -activations.mean((1, 2, 3))


@pytest.mark.parametrize("settings", [AscentSettings.article(steps=30), AscentSettings.within(60)])
def test_a_term_may_read_another_layer(model: FeatureModel, settings: AscentSettings) -> None:
    objective = map_mean + 4 * Objective.of(quiet, reads="Conv2D_2")
    assert objective.places == (Place.LAYER, "Conv2D_2")
    assert not objective.reads_one_channel
    oips = ascend(model, LAYER, [0, 3, 14], settings=settings, objective=objective)
    channels = torch.from_numpy(oips.maps)
    own, other = activations_on(model, LAYER, oips), activations_on(model, "Conv2D_2", oips)
    assert oips.scores == pytest.approx((map_mean(own, channels) + 4 * quiet(other, channels)).numpy(), rel=1e-3)
    plain = ascend(model, LAYER, [0, 3, 14], settings=settings)
    assert (quiet(other, channels) > quiet(activations_on(model, "Conv2D_2", plain), channels)).all()


def test_terms_that_read_nothing_of_the_network_or_a_layer_that_is_not_there(model: FeatureModel) -> None:
    regulariser = Objective.of(smoothness, reads=Place.INPUT)
    with pytest.raises(InputError, match="the objective smoothness shapes the images alone: expected a term that says"):
        ascend(model, LAYER, [0], objective=regulariser)
    with pytest.raises(InputError, match="no layer 'Conv2D_4': did you mean"):
        ascend(model, LAYER, [0], objective=map_mean + Objective.of(quiet, reads="Conv2D_4"))


# Functions of one's own


def test_an_objective_of_one_s_own(model: FeatureModel) -> None:
    def peak(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return activations[torch.arange(len(maps)), maps].flatten(1).amax(1)

    oips = ascend(model, LAYER, [0, 3], settings=AscentSettings.within(20), objective=peak)
    images = torch.from_numpy(oips.images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        activations = model.up_to(LAYER)(images)
    assert oips.scores == pytest.approx(peak(activations, torch.tensor([0, 3])).numpy(), rel=1e-4)
    assert (oips.scores > map_mean(activations, torch.tensor([0, 3])).numpy()).all()
    assert oips.provenance.objective == "peak"


def test_an_objective_of_ones_own_sees_all_maps(model: oip_torch.FeatureModel) -> None:
    seen = set()

    def contrast(activations: Tensor, maps: Tensor) -> Tensor:
        """How far the map is above the layer's mean."""
        seen.add(activations.shape[1])
        return map_mean(activations, maps) - activations.mean((1, 2, 3))

    settings = oip_torch.AscentSettings.article(steps=3)
    oips = oip_torch.ascend(model, "Conv2D_3", [14, 29], settings=settings, objective=contrast)
    assert seen == {128}
    assert (np.diff(oips.traces, axis=1) > 0).all()


def falling(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return -map_mean(activations, maps)


def difference(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return map_mean(activations, maps) - map_mean(activations, (maps + 1) % activations.shape[1])


def log_probability(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    means = activations.flatten(2).mean(2) if activations.ndim > 2 else activations
    return torch.log_softmax(means, 1)[torch.arange(len(maps)), maps]


@pytest.mark.parametrize("objective", [falling, difference, log_probability])
@pytest.mark.parametrize("layer", ["Conv2D_2", "Conv2D_3", "Dense_1"])
def test_objectives_at_0_and_below_are_not_taken_for_inactive_maps(
    model: FeatureModel, objective: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], layer: str
) -> None:
    settings = AscentSettings.within(100)
    oips = ascend(model, layer, range(12), settings=settings, objective=objective)
    without = dataclasses.replace(settings, fallback=None)
    straight = ascend(model, layer, range(12), settings=without, objective=objective)
    with torch.no_grad():
        activations = model.up_to(layer)(nchw(oips.images))[torch.arange(12), torch.arange(12)].reshape(12, -1)
    dead = torch.from_numpy(oips.status == "dead")
    assert (activations[dead] == 0).all()
    assert not dead[torch.from_numpy(oips.scores > 0)].any()
    assert objective is not falling or not set(oips.status) & {"dead", "recovered"}
    assert objective is not log_probability or (oips.scores <= 0).all()
    assert (oips.scores >= straight.scores - 1e-4).all()
    with torch.no_grad():
        said = objective(model.up_to(layer)(nchw(oips.images)), torch.arange(12))
    assert oips.scores == pytest.approx(said.numpy(), rel=1e-3, abs=1e-4)


def alike(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Diversity, as one would write it: each image's score falls with its likeness to the others of the batch."""
    rows = activations[torch.arange(len(maps)), maps].flatten(1)
    return rows.mean(1) - 0.1 * (rows @ rows.T).mean(1)


def ranked(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Coupled without a gradient."""
    means = map_mean(activations, maps)
    return means / means.detach().abs().mean()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (alike, "alike lets images enter each other's scores, .* from its own activations alone"),
        (ranked, "ranked lets images enter each other's scores"),
        (
            lambda a, maps: a.mean(),
            r"gave shape \(\) for 4 images: expected a tensor of one score for each, of shape \(4,\)",
        ),
        (lambda a, maps: [0.0] * len(maps), "for 4 images: expected a tensor of one score for each"),
        (lambda a, maps: map_mean(a, maps).detach(), "has no gradient"),
        (lambda a, maps: (a.flatten(1).argmax(1)).float(), "has no gradient"),
        (
            lambda a, maps: a["Conv2D_3"],
            r"failed on activations of shape \(4, 128, 3, 3\) and channels of shape \(4,\): .*",
        ),
    ],
)
def test_objectives_that_cannot_be_maximised(model: FeatureModel, objective: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        ascend(model, LAYER, [0, 3], objective=objective)
    assert "\n" not in str(told.value)


# Images that enter each other's scores


def test_coupled_images_are_optimised_in_one_batch(model: FeatureModel) -> None:
    """Whatever batch_size says, since each image's result depends on all the others."""
    coupled = Objective.of(alike, couples_images=True)
    settings = AscentSettings.article(steps=20, epsilon=0.1)
    maps = [0, 1, 3, 4, 6, 8, 9, 11]
    one, eight = (ascend(model, LAYER, maps, settings=settings, objective=coupled, batch_size=size) for size in (1, 8))
    assert np.array_equal(one.images, eight.images)
    assert np.array_equal(one.traces, eight.traces)
    said = alike(activations_on(model, LAYER, one), torch.tensor(maps))
    assert one.scores == pytest.approx(said.numpy(), rel=1e-3, abs=1e-4)
    alone = ascend(model, LAYER, maps[:1], settings=settings, objective=coupled)
    assert np.abs(alone.images[0] - one.images[0]).max() > 1e-3


def test_coupled_images_that_do_not_fit_in_one_batch_are_refused(model: FeatureModel) -> None:
    settings, memory = AscentSettings.article(steps=3), 36 << 20
    assert len(ascend(model, LAYER, range(32), settings=settings, memory=memory)) == 32
    coupled = Objective.of(alike, couples_images=True)
    message = r"OIPs of 'Conv2D_3', 32 in number, need .* of memory, .* and 36 MiB may be used: ask for fewer maps"
    with pytest.raises(InputError, match=message):
        ascend(model, LAYER, range(32), settings=settings, memory=memory, objective=coupled)
