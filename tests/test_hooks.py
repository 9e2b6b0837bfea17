"""Capturing: the hooks' life, and the errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from oip_torch import CaptureError, FeatureModel, InputError, capture


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 2, 3), nn.ReLU()))


def test_what_is_caught_is_what_the_layers_say(model: FeatureModel) -> None:
    images = torch.randn(3, 1, 28, 28)
    with capture(model, "Conv2D_3", "Dense_2") as maps:
        output = model(images)
    assert maps["Conv2D_3"].shape == (3, 128, 3, 3)
    assert torch.equal(maps["Dense_2"], output)
    assert hooks_of(model) == 0


def test_any_module_by_path_and_with_gradients(net: nn.Module) -> None:
    images = torch.randn(2, 1, 8, 8, requires_grad=True)
    with capture(net, "2.0") as maps:
        net(images)
    maps["2.0"].sum().backward()
    assert images.grad is not None
    assert torch.equal(maps["2.0"], net[2][0](net[1](net[0](images))))


def test_no_hook_outlives_the_block(net: nn.Module) -> None:
    def forward_that_raises() -> None:
        with capture(net, "0", "2.1"):
            assert hooks_of(net) == 2
            net(torch.randn(2, 7, 8, 8))  # seven channels

    with pytest.raises(RuntimeError, match="channels"):
        forward_that_raises()
    assert hooks_of(net) == 0
    with pytest.raises(KeyError), capture(net, "0"):
        raise KeyError
    assert hooks_of(net) == 0


def test_no_hook_remains_when_registering_fails(net: nn.Module) -> None:
    with pytest.raises(InputError), capture(net, "0", "nowhere"):
        pass
    assert hooks_of(net) == 0


def test_a_layer_that_never_runs_is_an_error(net: nn.Module) -> None:
    with pytest.raises(CaptureError, match=r"layer '2\.0' never ran"), capture(net, "0", "2.0"):
        net[0](torch.randn(1, 1, 8, 8))
    with pytest.raises(CaptureError, match="has not run yet"), capture(net, "0") as maps:
        maps["0"]


def test_wrong_names_offer_the_nearest(model: FeatureModel, net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"no layer 'conv2d_2': did you mean 'Conv2D_2'"), capture(model, "conv2d_2"):
        pass
    with pytest.raises(InputError, match=r"no module '2\.7': did you mean '2"), capture(net, "2.7"):
        pass
    with pytest.raises(InputError, match="got no layer"), capture(net):
        pass
    with pytest.raises(InputError, match="before_activation needs a FeatureModel"):
        with capture(net, "0", before_activation=True):
            pass
