"""What a place of an output needs is what a NaN in the image reaches, on every kind of node and graph."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from onnx2torch.node_converters.binary_math_operations import OnnxBinaryMathOperation
from onnx2torch.node_converters.concat import OnnxConcat
from onnx2torch.node_converters.global_average_pool import OnnxGlobalAveragePool
from onnx2torch.node_converters.matmul import OnnxMatMul
from onnx2torch.node_converters.pad import OnnxPadStatic
from onnx2torch.node_converters.transpose import OnnxTranspose
from torch import Tensor, fx, nn

from oip_torch.network.needs import Needs


class _WholeModules(fx.Tracer):
    """Every module is one node, as in what onnx2torch makes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (Chain, Joined))


def traced(network: nn.Module) -> fx.GraphModule:
    network = network.double().eval().requires_grad_(False)
    return fx.GraphModule(network, _WholeModules().trace(network))


def reached(network: nn.Module, image: tuple[int, int, int]) -> list[Tensor]:
    """Of which rows, and of which columns, a NaN reaches which unit: (rows or columns, height, width) each."""
    found = []
    for axis in (1, 2):
        images = torch.ones(image[axis], *image, dtype=torch.float64)
        for index in range(image[axis]):
            images[index].select(axis, index).fill_(math.nan)
        found.append(network(images).isnan().any(1))
    return found


def ends(hit: Tensor) -> tuple[int, int]:
    """Of the places where a vector is true: the first, and the one behind the last."""
    places = hit.nonzero().flatten().tolist()
    return (places[0], places[-1] + 1) if places else (0, 0)


def check(network: nn.Module, image: tuple[int, int, int] = (2, 17, 23)) -> Needs:
    """The parts of all units are those that a NaN reaches, and lie in the unclipped ones."""
    graph = traced(network)
    needs = Needs(graph, image)
    by_row, by_column = reached(graph, image)
    _, rows, columns = by_row.shape
    for row, column in itertools.product({0, 1, 2, rows // 2, rows - 2, rows - 1}, {0, 1, columns // 3, columns - 1}):
        if not (0 <= row < rows and column < columns):
            continue
        found = needs.of(row, column)
        assert found == (*ends(by_row[:, row, column]), *ends(by_column[:, row, column])), (row, column)
        top, bottom, left, right = needs.of(row, column, clip=False)
        if found != (0, 0, 0, 0):
            assert top <= found[0] < found[1] <= bottom
            assert left <= found[2] < found[3] <= right
    return needs


class Joined(nn.Module):
    """Two branches, added, multiplied or concatenated."""

    def __init__(self, one: nn.Module, other: nn.Module, how: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.how = one, other, how

    def forward(self, images: Tensor) -> Tensor:
        joined: Tensor = self.how(self.one(images), self.other(images))
        return joined


def conv(size: int, **more: object) -> nn.Conv2d:
    return nn.Conv2d(2, 2, size, **more)  # type: ignore[arg-type]


class Chain(nn.Module):
    """Modules one after the other, each a node of its own."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        for part in self.parts:
            images = part(images)
        return images


CHAINS: dict[str, nn.Module] = {
    "one": Chain(conv(3)),
    "stride": Chain(conv(3, stride=2), nn.ReLU(), conv(3, stride=(1, 3))),
    "padding": Chain(conv(5, padding=2), nn.Sigmoid(), conv((3, 1), padding=(1, 0))),
    "much padding": Chain(conv(1, padding=3), conv(3, padding=2)),
    "dilation": Chain(conv(3, dilation=(2, 3)), nn.BatchNorm2d(2), conv(3, dilation=2, padding=2)),
    "same": Chain(conv((5, 3), padding="same"), conv(3)),
    "pooling": Chain(conv(3), nn.MaxPool2d(2), conv(3), nn.AvgPool2d(3, 2), conv(1)),
    "pooling, overlapping": Chain(nn.MaxPool2d(3, 2, padding=1), conv(3, padding=1), nn.MaxPool2d(3, 1, dilation=2)),
    "pooling, to the end": Chain(nn.MaxPool2d(2, 2, ceil_mode=True), conv(3)),
    "asymmetric": Chain(nn.Sequential(OnnxPadStatic([0, 1, 2, 0]), conv(3, stride=2)), conv(3)),
    "cropped": Chain(OnnxPadStatic([-3, -1, -2, 0]), conv(3)),
    "transposed": Chain(conv(3, stride=2), nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1), conv(3)),
    "depthwise": Chain(nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 2, 1)),
    "turned": Chain(conv(3), OnnxTranspose([0, 2, 3, 1]), nn.Linear(2, 5), OnnxTranspose([0, 3, 1, 2])),
    "softmax of channels": Chain(conv(3), nn.Softmax(dim=1)),
    "softmax of rows": Chain(conv(3), nn.Softmax(dim=2)),
    "added": Chain(Joined(conv(3, padding=1), conv(1), OnnxBinaryMathOperation("Add")), conv(2)),
    "of two strides": Chain(
        Joined(nn.MaxPool2d(2), Chain(conv(5, padding=2), nn.AvgPool2d(2)), OnnxBinaryMathOperation("Mul")), conv(3)
    ),
    "concatenated": Chain(Joined(conv(3, padding=1), conv(7, padding=3), OnnxConcat(1)), nn.Conv2d(4, 2, 2)),
    "side by side": Chain(Joined(conv(3), conv((5, 3)), OnnxConcat(2)), conv(3)),
    "gate": Chain(
        Joined(conv(3), Chain(OnnxGlobalAveragePool(), conv(1), nn.Sigmoid()), OnnxBinaryMathOperation("Mul"))
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_needed_is_what_a_nan_reaches(name: str) -> None:
    check(CHAINS[name])


def test_much_padding_leaves_units_that_see_nothing() -> None:
    assert check(Chain(conv(3, padding=4))).of(0, 0) == (0, 0, 0, 0)


def test_how_much_is_needed_without_ends() -> None:
    needs = check(CHAINS["pooling"])
    assert needs.of(1, 1) == (4, 16, 4, 16)  # 3, 4 by a pooling, 8 in steps of 2, 12 in steps of 4
    assert needs.of(0, 0, clip=False) == (0, 12, 0, 12)
    assert check(CHAINS["padding"]).of(0, 0, clip=False) == (-3, 4, -2, 3)


class Doubled(nn.Module):
    """A kind that is not known, though it works place by place."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


class Cut(nn.Module):
    """A kind that is not known and gives two tensors."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images[:, :, :8], images[:, :, 8:]


class First(nn.Module):
    def forward(self, several: tuple[Tensor, Tensor]) -> Tensor:
        return several[0]


@pytest.mark.parametrize(
    "unknown",
    [
        Chain(Doubled()),
        Chain(Cut(), First()),
        Chain(OnnxPadStatic([1, 1, 1, 1], mode="reflect")),
        Chain(conv(3, padding=1, padding_mode="circular")),
    ],
    ids=["kind", "several tensors", "reflected padding", "circular padding"],
)
def test_what_is_not_known_needs_everything(unknown: nn.Module) -> None:
    graph = traced(Chain(conv(3), unknown, conv(3)))
    image = (2, 17, 23)
    needs = Needs(graph, image)
    assert needs.of(0, 0) == needs.of(3, 5) == (0, 17, 0, 23)
    by_row, _ = reached(graph, image)
    assert ends(by_row[:, 3, 5]) != (0, 17)  # it needs less in truth, so that the test can fail
    # A function in place of a module is not known either.
    graph = traced(Chain(conv(3), nn.ReLU()))
    (activation,) = (node for node in graph.graph.nodes if "1" in str(node.target))
    with graph.graph.inserting_after(activation):
        function = graph.graph.call_function(torch.relu, activation.args)
    activation.replace_all_uses_with(function)
    graph.graph.erase_node(activation)
    graph.recompile()
    assert Needs(graph, image).of(0, 0) == (0, 17, 0, 23)


def test_a_product_with_what_is_no_constant_needs_everything() -> None:
    graph = traced(Chain(conv(3), Joined(nn.ReLU(), OnnxTranspose([0, 1, 3, 2]), OnnxMatMul())))
    assert Needs(graph, (2, 17, 23)).of(0, 0) == (0, 17, 0, 23)
