"""Capturing: the hooks' life, and the errors."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

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
    with pytest.raises(InputError, match="pre_activation needs a FeatureModel"):
        with capture(net, "0", pre_activation=True):
            pass


class InPlace(nn.Module):
    """What networks do to the output of a layer: ReLU in place, `+=`, and in-place functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.other = nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.pair = nn.LSTM(2, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.conv(x))
        y = self.other(x)
        y += x
        z = self.last(y)
        z.clamp_(min=0)
        _, (hidden, _) = self.pair(z.flatten(2).transpose(1, 2))
        hidden.zero_()
        return hidden


def test_what_is_caught_stays_what_the_layer_said() -> None:
    torch.manual_seed(0)
    net = InPlace().eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad(), capture(net, "conv", "relu", "other", "last", "pair") as maps:
        net(x)
        conv = nn.functional.conv2d(x, net.conv.weight, net.conv.bias)
        assert torch.equal(maps["conv"], conv)
        assert maps["conv"].min() < 0
        assert torch.equal(maps["relu"], conv.relu())
        assert torch.equal(maps["other"], net.other(conv.relu()))
        assert maps["last"].min() < 0
        assert maps["pair"][1][0].abs().max() > 0
    y = x.clone().requires_grad_()
    with capture(net, "conv") as maps:
        net(y)
    maps["conv"].sum().backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0


def test_threads_do_not_mix_their_images(model: FeatureModel) -> None:
    def run(value: float) -> list[float]:
        images, found = torch.full((1, 1, 28, 28), value), []
        for _ in range(20):
            with capture(model, "Conv2D_2") as maps:
                model(images)
                barrier.wait(timeout=60)
                found.append(float(maps["Conv2D_2"].sum()))
        return found

    barrier = threading.Barrier(2)
    expected = [float(model.up_to("Conv2D_2")(torch.full((1, 1, 28, 28), value)).sum()) for value in (0.5, 2.0)]
    with ThreadPoolExecutor(2) as pool:
        for sums, value in zip(pool.map(run, (0.5, 2.0)), expected, strict=True):
            assert sums == pytest.approx([value] * 20, rel=1e-4)
    assert hooks_of(model) == 0


@pytest.mark.parametrize(
    "shape", [(2, 3, 28, 28), (1, 4, 14, 14), (1, 28, 28, 1), (28, 28), (1, 1, 28, 29), (0, 2, 28, 28)]
)
def test_images_of_another_shape_are_refused(model: FeatureModel, shape: tuple[int, ...]) -> None:
    expected = r"expected a tensor \(batch, 1, 28, 28\), that is \(batch, channels, height, width\)"
    images = torch.zeros(shape)
    for call in (model, model.every_layer):
        with pytest.raises(InputError, match=rf"the network got images of shape {re.escape(str(shape))}: {expected}"):
            call(images)
    with pytest.raises(InputError, match="the network got ndarray"):
        model(images.numpy())


def test_colour_images_have_their_shape_too(rgb: FeatureModel) -> None:
    assert rgb(torch.zeros(2, 3, 20, 32)).shape == (2, 4)
    for shape in ((2, 1, 20, 32), (2, 3, 32, 20), (2, 20, 32, 3)):
        with pytest.raises(InputError, match=r"expected a tensor \(batch, 3, 20, 32\)"):
            rgb(torch.zeros(shape))
