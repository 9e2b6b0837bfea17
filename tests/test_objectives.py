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
from oip_torch.optim.objectives import map_mean

LAYER = "Conv2D_3"


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
def test_objectives_at_0_and_below_are_not_taken_for_sleep(
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
