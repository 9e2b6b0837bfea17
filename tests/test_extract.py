"""A network up to some of its nodes and no further, plain and with leaky activations."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import leaky_relu

import oip_torch
from oip_torch import AscentSettings, FeatureModel, ascend
from oip_torch.network.extract import Tap, activations_of, extract, leaky, nearest_activations, truncate

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


# A module that runs twice


class Residual(nn.Module):
    """A block of a ResNet, with its one ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 2, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.second(self.relu(self.first(x))))


@dataclass
class Block:
    """A `GraphNetwork` of it."""

    graph_module: fx.GraphModule
    taps: Mapping[str, Tap]
    input_shape: tuple[int, int, int]
    device: torch.device


BEFORE = {"relu": "first", "relu_1": "add"}  # of each call, what goes into it


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    module = fx.symbolic_trace(Residual().double().eval().requires_grad_(False))
    calls = [node for node in module.graph.nodes if node.target == "relu"]
    assert [node.name for node in calls] == list(BEFORE)  # one path, two nodes
    taps = {
        "inner": Tap(node="relu", before="first", channels=3, size=(6, 5)),
        "outer": Tap(node="relu_1", before="add", channels=2, size=(6, 5)),
    }
    return Block(module, taps, (2, 6, 5), torch.device("cpu"))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_hand(block: Block, x: Tensor, leak: float = 0.0) -> tuple[Tensor, Tensor]:
    """What either call of the ReLU gives, if that call leaks."""
    first, second = block.graph_module.first, block.graph_module.second
    into_outer = x + second(first(x).relu())
    assert (into_outer < 0).any()
    return leaky_relu(first(x), leak), leaky_relu(into_outer, leak)


def test_each_call_of_a_shared_module_has_its_own_output(block: Block, x: Tensor) -> None:
    inner, outer = by_hand(block, x)
    assert inner.shape[1] != outer.shape[1]
    for nodes, expected in ((["relu"], [inner]), (["relu_1"], [outer]), (["relu_1", "relu"], [outer, inner])):
        found = truncate(block.graph_module, nodes)(x)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    only = truncate(block.graph_module, ["relu"])
    assert "second" not in dict(only.named_modules())
    assert only.first.weight is block.graph_module.first.weight


def test_each_call_of_a_shared_module_leaks_where_it_is_the_nearest(block: Block, x: Tensor) -> None:
    first, second = block.graph_module.first, block.graph_module.second
    found = leaky(block.graph_module, ["relu", "second", "relu_1"], BEFORE)(x, 0.25)
    inner, outer = by_hand(block, x)
    leaky_inner, leaky_outer = by_hand(block, x, 0.25)
    expected = (inner, second(inner), outer, leaky_inner, second(leaky_relu(first(x), 0.25)), leaky_outer)
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    names = [nearest_activations(block, block.taps[name]) for name in ("inner", "outer")]
    assert names == [["inner"], ["outer"]]
    assert nearest_activations(block, Tap(node="second", before=None, channels=2, size=(6, 5))) == ["inner"]


@pytest.mark.parametrize("leak", [False, True])
def test_two_taps_on_one_module_are_extracted_together(block: Block, x: Tensor, leak: bool) -> None:
    module = extract(block, [block.taps["inner"], block.taps["outer"]], leak=leak, one_channel=False)
    found = module(x, 0.25, torch.zeros(4, dtype=torch.long))
    expected = [*by_hand(block, x), *by_hand(block, x, 0.25 if leak else 0.0)]
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_of_one_tap_on_a_shared_module_each_image_s_own_channel(block: Block, x: Tensor) -> None:
    channels = torch.tensor([1, 0, 0, 1])
    plain, leaked = extract(block, [block.taps["outer"]], leak=True, one_channel=True)(x, 0.25, channels)
    for got, leak in ((plain, 0.0), (leaked, 0.25)):
        want = by_hand(block, x, leak)[1][torch.arange(4), channels][:, None]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_an_ascent_leaves_no_source_behind(model: FeatureModel) -> None:
    """torch.fx keeps each module's source for tracebacks: a process that makes an atlas would grow without end."""
    settings = AscentSettings(steps=2, candidates=1)

    def kept() -> int:
        return sum(name.startswith("<eval_with_key>") for name in linecache.cache)

    ascend(model, "Conv2D_1", 0, settings=settings)
    before = kept()
    for _ in range(3):
        ascend(model, "Conv2D_1", 0, settings=settings)
    assert kept() == before
