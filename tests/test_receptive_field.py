"""Which part of the image a unit sees: what the field holds, and that nothing outside of it reaches the unit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_needs import ends, reached

from oip_torch import FeatureModel, InputError, load, receptive_field


def moved_by(model: FeatureModel, layer: str, row: int, column: int) -> np.ndarray:
    """(height, width) of the image: whether a change there changes the unit, in any of its maps."""
    network = copy.deepcopy(model).double().up_to(layer)
    x = torch.randn(1, *model.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = model.to_input(x).requires_grad_()
    seen = torch.zeros(x.shape[2:], dtype=torch.bool)
    for value in network(x)[0, :, row, column]:
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        seen |= (gradient != 0).any(1)[0]
    return seen.numpy()


@pytest.mark.parametrize("layer", ["wide", "mean_pool", "narrow", "pixelwise"])
def test_gradients_fill_the_field_and_nothing_beside_it(rgb: FeatureModel, layer: str) -> None:
    """Rectangular images and kernels, strides, asymmetric padding, an average pooling, a dense layer on maps."""
    rows, columns = rgb.tap(layer).size
    for row, column in {(0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)}:
        field = receptive_field(rgb, layer, row, column)
        seen = moved_by(rgb, layer, row, column)
        inside = seen[field.top : field.bottom, field.left : field.right]
        assert inside.sum() == seen.sum() > 0
        for end in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert end.any()


def test_the_shipped_network_s_fields(model: FeatureModel) -> None:
    sizes = {name: receptive_field(model, name).size for name in model.layers.names}
    assert sizes == {
        "Conv2D_1": (3, 3),
        "Max_Pool_1": (4, 4),
        "Conv2D_2": (8, 8),
        "Max_Pool_2": (10, 10),
        "Conv2D_3": (18, 18),
        "Flatten": (26, 26),  # the poolings leave out the last row and column: nothing reads the image's last two
        "Dense_1": (26, 26),
        "Dense_2": (26, 26),
    }
    field = receptive_field(model, "Conv2D_3", 0, 2)
    assert (field.top, field.bottom, field.left, field.right) == (0, 18, 8, 26) == field.unclipped
    assert field.center == (9.0, 17.0)
    assert not field.is_whole
    assert field.summary == "The unit of Conv2D_3 at (0, 2) sees 18×18 of 28×28 pixels: rows 0–17, columns 8–25."
    x = torch.zeros(2, 1, 28, 28)
    x[1, 0, 26:], x[1, 0, :, 26:] = 9.0, 9.0
    silent, changed = model(x)
    torch.testing.assert_close(silent, changed, rtol=1e-6, atol=0)  # a softmax may round otherwise from row to row


def test_what_a_field_says(rgb: FeatureModel, smooth: FeatureModel, model: FeatureModel) -> None:
    edge = receptive_field(rgb, "narrow", 1, 4)
    assert edge.unclipped_size == (13, 13)
    assert edge.unclipped[1] > 20
    assert "The rest of its 13×13 is padding." in edge.summary
    flat = receptive_field(smooth, "Sigmoid_3")
    assert (flat.row, flat.column, flat.is_whole) == (None, None, True)
    assert flat.summary == "The units of Sigmoid_3 see the whole image."
    assert receptive_field(model, "Dense_1").summary == (
        "The units of Dense_1 see 26×26 of 28×28 pixels together: rows 0–25, columns 0–25."
    )
    assert receptive_field(model, model.layers[0]).column == 13
    assert receptive_field(model, "Conv2D_1", np.int64(0), pre_activation=True).size == (3, 3)


def test_bad_units(model: FeatureModel) -> None:
    with pytest.raises(InputError, match=r"row is 3: the maps of Conv2D_3 are 3×3, expected 0 to 2"):
        receptive_field(model, "Conv2D_3", 3, 0)
    with pytest.raises(InputError, match=r"column is 0\.5: expected a whole number"):
        receptive_field(model, "Conv2D_3", 0, 0.5)
    with pytest.raises(InputError, match=r"row is -1: expected a whole number, 0 or more"):
        receptive_field(model, "Conv2D_3", -1)
    with pytest.raises(InputError, match="Dense_1 has no maps, so that its units have no place"):
        receptive_field(model, "Dense_1", 0)
    with pytest.raises(InputError, match="no layer 'Conv3'"):
        receptive_field(model, "Conv3")
    with pytest.raises(InputError, match="model is None"):
        receptive_field(None, "Conv2D_3")


def test_the_model_is_as_before(model: FeatureModel) -> None:
    before = model.fingerprint
    with torch.inference_mode():
        receptive_field(model, "Conv2D_3")
    assert model.fingerprint == before
    assert not any("tensor_meta" in node.meta for node in model.graph_module.graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["branches.keras", "default_names.keras"])
def test_other_networks_as_they_are_converted(name: str, converted: Callable[[str], Path]) -> None:
    """Branches of different windows, a nested network that runs twice, a shared convolution."""
    model = load(converted(name), device="cpu").double()
    for layer in model.layers.names:
        if size := model.tap(layer).size:
            by_row, by_column = reached(model.up_to(layer), model.input_shape)
            for row, column in {(0, 0), (size[0] // 2, size[1] // 2), (size[0] - 1, 0)}:
                field = receptive_field(model, layer, row, column)
                assert (field.top, field.bottom) == ends(by_row[:, row, column]), (layer, row, column)
                assert (field.left, field.right) == ends(by_column[:, row, column]), (layer, row, column)
