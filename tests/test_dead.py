"""Maps that were called dead are recovered or certified, or left open; what is said of them holds."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, FeatureModel, InputError, ascend, certify_dead
from oip_torch.base.tensors import to_tensor


def test_a_map_that_the_default_search_calls_dead_is_recovered(model: FeatureModel) -> None:
    assert ascend(model, "Conv2D_2", 40, progress=False).status.tolist() == ["dead"]
    found = certify_dead(model, "Conv2D_2", 40, starts=64, steps=200, progress=False)
    assert found.recovered.tolist() == [True]
    assert not found.certified.any()
    assert "map 40: recovered: 0.0" in found.verdicts[0]
    assert found.images.shape == (1, 28, 28, 1)
    assert abs(float(found.images.mean())) < 1e-5
    assert float(found.images.std()) == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        maps = model.every_layer(to_tensor(found.images))["Conv2D_2"][0, 40]
    assert float(maps.max()) == pytest.approx(found.largest[0], abs=1e-6)
    assert float(maps[found.rows[0], found.columns[0]]) == float(maps.max()) > 0
    assert found.bounds[0] >= found.largest[0]


def test_a_map_that_nothing_excites_is_certified(model: FeatureModel) -> None:
    silent = deepcopy(model)
    convolution = silent.module_of("Conv2D_2", pre_activation=True)
    with torch.no_grad():
        convolution.weight[5] = -convolution.weight[5].abs()
        convolution.bias[5] = -0.125
    found = certify_dead(silent, "Conv2D_2", [5], starts=4, steps=3, progress=False)
    assert found.certified.tolist() == [True]
    assert not found.recovered.any()
    assert (
        "dead for sure: no image of mean 0 and standard deviation 1 brings it above -0.125 (bound)" in found.verdicts[0]
    )
    assert found.summary == "of 1 maps 0 recovered, 1 dead for sure, 0 open"
    assert found.largest[0] <= found.bounds[0] < 0
    assert {"map", "bounds", "images"} <= set(found.to_xarray().variables)


def test_where_no_bound_is_below_0_the_map_is_left_open(model: FeatureModel) -> None:
    found = certify_dead(model, "Conv2D_2", [37], starts=4, steps=3, progress=False)
    assert "not recovered: the largest value reached was -" in found.verdicts[0]
    assert "no bound below 0 is known: the bound is" in found.verdicts[0]
    again = certify_dead(model, "Conv2D_2", [20, 37], starts=4, steps=3, progress=False)
    np.testing.assert_allclose(again.images[1], found.images[0], atol=1e-5)  # whatever the other maps are


def test_within_the_data_s_range(model: FeatureModel) -> None:
    black, white = (float(end[0]) for end in model.domain.ends)
    found = certify_dead(model, "Conv2D_1", [0], limits="data", starts=4, steps=5, progress=False)
    free = certify_dead(model, "Conv2D_1", [0], starts=4, steps=5, progress=False)
    assert found.limits == pytest.approx((black, white))
    assert black - 0.01 < found.images.min() < found.images.max() < white + 0.01
    assert found.largest[0] <= found.bounds[0] < free.bounds[0]


def test_an_operation_that_is_not_covered_has_no_bound(rgb: FeatureModel) -> None:
    found = certify_dead(rgb, "pixelwise", [0], starts=4, steps=3, progress=False)
    assert np.isnan(found.bounds[0])
    assert not found.certified.any()
    assert found.no_bound.endswith("is not covered")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "Dense_2"}, "has the activation softmax: expected one with a ReLU"),
        ({"layer": "Max_Pool_1"}, "has none: expected one with a ReLU"),
        ({"starts": 0}, "starts is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"limits": "black"}, "limits"),
        ({"limits": (-0.1, 1.0)}, "no image between them"),
        ({"maps": 64}, "no map 64"),
    ],
)
def test_what_cannot_be_certified(model: FeatureModel, changes: dict[str, object], message: str) -> None:
    arguments = {"layer": "Conv2D_2", "maps": 0} | changes
    with pytest.raises(InputError, match=message):
        certify_dead(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected what oip_torch"):
        certify_dead(AscentSettings(), "Conv2D_2")  # type: ignore[arg-type]
