"""A network up to some of its nodes and no further, plain and with leaky activations."""

from __future__ import annotations

import copy

import pytest
import torch

import oip_torch
from oip_torch import FeatureModel
from oip_torch.network.extract import activations_of, leaky

LAYER = "Conv2D_3"


@pytest.mark.parametrize("before", [False, True])
def test_up_to_gives_what_capture_gives(model: FeatureModel, before: bool) -> None:
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with oip_torch.capture(model, *model.layers.names, pre_activation=before) as maps:
        model(images)
    for layer in model.layers.names:
        assert torch.equal(model.up_to(layer, pre_activation=before)(images), maps[layer]), layer


def test_up_to_runs_no_later_module(model: FeatureModel) -> None:
    images, ran = torch.zeros(1, 1, 28, 28), []
    own = copy.deepcopy(model)
    handles = [
        own.module_of(name, pre_activation=before).register_forward_hook(
            lambda *_, name=name, before=before: ran.append((name, before))
        )
        for name in model.layers.names
        for before in (False, True)
        if not before or own.layers[name].activation
    ]
    relu_layers = {name for name in model.layers.names if own.layers[name].activation}
    for index, name in enumerate(model.layers.names):
        ran.clear()
        own.up_to(name)(images)
        assert {layer for layer, _ in ran} == set(model.layers.names[: index + 1])
        if name in relu_layers:
            ran.clear()
            own.up_to(name, pre_activation=True)(images)
            assert (name, True) in ran
            assert (name, False) not in ran
    ran.clear()
    own(images)
    assert len(ran) == len(handles)  # the hooks do fire


def test_the_activation_applied_to_what_goes_in_gives_what_comes_out(model: FeatureModel) -> None:
    images = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    for name in ("Conv2D_1", "Conv2D_2", "Conv2D_3", "Dense_1"):
        assert model.layers[name].activation == "relu"
        before, after = model.up_to(name, pre_activation=True)(images), model.up_to(name)(images)
        assert (before < 0).any()
        assert torch.equal(torch.relu(before), after)
    softmax = torch.softmax(model.up_to("Dense_2", pre_activation=True)(images), 1)
    torch.testing.assert_close(softmax, model(images))


def test_a_leaky_network_is_the_network_where_nothing_leaks(model: FeatureModel) -> None:
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        plain, leaked = leaky(model.graph_module, [model.tap(LAYER).node], activations_of(model))(x, 0.25)
        z = model.up_to(LAYER, pre_activation=True)(x)
    assert torch.equal(plain, model.up_to(LAYER)(x))
    assert torch.allclose(leaked, torch.nn.functional.leaky_relu(z, 0.25), atol=1e-5)
