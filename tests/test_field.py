"""The part that a unit sees is found where units are alike, and not said where they are not."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import fx, nn

from oip_torch import FeatureModel
from oip_torch.search.field import Field, field_of, without_idle_reshapes


@pytest.mark.parametrize(
    ("layer", "field"),
    [("Conv2D_1", Field(13, 13, 3, 3)), ("Conv2D_2", Field(10, 10, 8, 8)), ("Dense_1", None)],
)
def test_of_the_shipped_network(model: FeatureModel, layer: str, field: Field | None) -> None:
    network = without_idle_reshapes(model.up_to(layer, pre_activation=True), model)
    assert field_of(deepcopy(network).double(), model.input_shape) == field
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(network(x), model.up_to(layer, pre_activation=True)(x))


def test_units_at_padded_borders_differ() -> None:
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2)).double())
    assert field_of(network, (2, 9, 9)) is None
