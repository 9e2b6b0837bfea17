"""An optimised graph stays the same function: values and gradients, on every layer of every network at hand."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import score_of
from onnx2torch.node_converters.binary_math_operations import OnnxBinaryMathOperation
from onnx2torch.node_converters.pad import OnnxPadStatic
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

import oip_torch
from oip_torch.base.platform import matmul_precision
from oip_torch.network.extract import activations_of, extract, leaky, truncate
from oip_torch.network.kernels import Packed, _BackByProduct, _WindowSums
from oip_torch.network.onnx_graph import Reshape
from oip_torch.network.passes import _channels_last, _with_constant, optimize_graph, weight_bytes
from oip_torch.optim.ascent import gradient_ascent
from oip_torch.search import target


def differences(plain: nn.Module, fast: nn.Module, image: tuple[int, ...], *leak: float) -> float:
    """Largest |Δ| over the largest |plain|, of the outputs and of a gradient with respect to three images."""
    x = torch.randn(3, *image, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    want = plain(x, *leak)
    want = want if isinstance(want, tuple) else (want,)
    want = want if leak else want * 2
    maps = torch.tensor([0, want[0].shape[1] - 1, want[0].shape[1] // 2])
    got = fast(x, *(leak or (0.0,)), maps)
    if got[0].shape[1] == 1:  # of each image one map
        want = tuple(output[torch.arange(3), maps][:, None] for output in want)
    rows, gradients = [], []
    for outputs in (want, got):
        weights = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            total = total + (output * torch.randn(output.shape, dtype=torch.float64, generator=weights)).sum()
        gradients.append(torch.autograd.grad(total, x)[0])
        rows.append(torch.cat([output.detach().flatten() for output in outputs]))
    assert [output.shape for output in got] == [output.shape for output in want]
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in (rows[::-1], gradients[::-1]))


def parts(model: oip_torch.FeatureModel, layer: str, with_leak: bool) -> fx.GraphModule:
    nodes = [model.tap(layer).node]
    graph = model.graph_module
    return leaky(graph, nodes, activations_of(model)) if with_leak else truncate(graph, nodes)


def traced(*layers: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(nn.Sequential(*layers).double().eval().requires_grad_(False))


def test_every_layer_of_the_shipped_network(model: oip_torch.FeatureModel) -> None:
    """Measured: 4e-15 at most."""
    model = copy.deepcopy(model).double()
    for layer in model.layers.names:
        for with_leak in (False, True):
            plain = parts(model, layer, with_leak)
            for one_channel, channels_last in itertools.product((False, True), repeat=2):
                fast = optimize_graph(plain, model.input_shape, one_channel=one_channel, channels_last=channels_last)
                error = differences(plain, fast, model.input_shape, *([0.3] if with_leak else []))
                assert error < 1e-12, (layer, with_leak, one_channel, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["branches.keras", "rgb.keras", "default_names.keras", "silent.h5"])
def test_every_layer_of_other_networks(name: str, converted: Callable[[str], Path]) -> None:
    model = oip_torch.load(converted(name), device="cpu").double()
    for layer in model.layers.names:
        for with_leak, one_channel in itertools.product((False, True), repeat=2):
            fast = extract(model, [model.tap(layer)], leak=with_leak, one_channel=one_channel)
            plain = parts(model, layer, with_leak)
            error = differences(plain, fast, model.input_shape, *([0.3] if with_leak else []))
            assert error < 1e-12, (layer, with_leak, one_channel)


def test_float32_ascents_begin_alike_with_and_without_it(
    model: oip_torch.FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding differs, so that they diverge in the end; the first twenty steps agree to 2e-7, measured."""
    settings = oip_torch.AscentSettings.article(steps=20)
    fast = oip_torch.ascend(model, "Conv2D_3", range(16), settings=settings)

    class Plain(nn.Module):
        def forward(self, images: Tensor, leak: float, channels: Tensor) -> tuple[Tensor, Tensor]:
            rows = network(images)[torch.arange(len(channels)), channels][:, None]
            return rows, rows

    network = model.up_to("Conv2D_3")
    monkeypatch.setattr(target, "extract", lambda *_, **__: Plain())
    plain = oip_torch.ascend(model, "Conv2D_3", range(16), settings=settings)
    assert (plain.traces != fast.traces).any()
    torch.testing.assert_close(torch.tensor(fast.traces), torch.tensor(plain.traces), rtol=1e-4, atol=1e-5)


def test_what_nothing_reads_is_not_computed(model: oip_torch.FeatureModel) -> None:
    """3x3 of Conv2D_3 come from 5x5, these from 10x10 of the 11x11 before, these from 12x12, 24x24 and 26x26."""
    fast = optimize_graph(parts(model, "Conv2D_3", True), model.input_shape, one_channel=True, channels_last=True)
    shapes: set[tuple[int, ...]] = set()
    with contextlib.ExitStack() as hooks:  # on what it shares with the model they must not stay
        for module in fast.modules():
            if type(module).__name__ in ("MaxPool2d", "FewChannels", "OwnChannel", "Packed", "Conv2d"):
                seen = module.register_forward_hook(lambda module, args, output: shapes.add(tuple(args[0].shape[2:])))
                hooks.callback(seen.remove)
        fast(torch.zeros(1, *model.input_shape), 0.0, torch.tensor([5]))
    assert sorted(shapes, reverse=True) == [(26, 26), (24, 24), (12, 12), (10, 10), (5, 5)]


def test_a_relu_goes_behind_the_pooling_only_where_nothing_else_reads_it() -> None:
    def order(network: nn.Module) -> list[str]:
        graph = optimize_graph(fx.symbolic_trace(network), (2, 8, 8), one_channel=False, channels_last=False).graph
        return [str(node.target) for node in graph.nodes if node.op == "call_module"]

    class Chain(nn.Module):
        def __init__(self, both: bool) -> None:
            super().__init__()
            self.relu, self.pool, self.both = nn.ReLU(), nn.MaxPool2d(2), both

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            rectified = self.relu(x)
            return (self.pool(rectified), rectified) if self.both else self.pool(rectified)

    assert order(Chain(both=False)) == ["pool", "relu"]
    assert order(Chain(both=True)) == ["relu", "pool"]


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(2, 4, 3, stride=2), nn.MaxPool2d(3, stride=2), nn.ReLU(), nn.Conv2d(4, 3, 2)),
        (nn.Conv2d(2, 4, (2, 4), dilation=(2, 1)), nn.ReLU(), nn.MaxPool2d((3, 2), stride=(2, 3), ceil_mode=True)),
        (nn.MaxPool2d(2, padding=1), nn.Conv2d(2, 4, 1, bias=False), nn.MaxPool2d(2, stride=3)),
        (nn.Conv2d(2, 4, 3, groups=2), nn.AvgPool2d(2), nn.ReLU(), nn.MaxPool2d(2)),
        (nn.Conv2d(2, 6, 3, padding=2, padding_mode="circular"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        (nn.Conv2d(2, 5, (3, 2), stride=(2, 3), padding=(1, 2), dilation=(2, 1)), nn.Sigmoid()),
        (nn.Conv2d(2, 5, 3, padding="same", dilation=2), nn.ELU(), nn.Softplus()),
        (nn.Conv2d(2, 5, 3), nn.Softmax(1)),
        (nn.Conv2d(2, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 3, 3, stride=3)),
    ],
)
def test_other_shapes_stay_what_they_are(layers: tuple[nn.Module, ...]) -> None:
    plain = traced(*layers)
    for one_channel, channels_last in itertools.product((False, True), repeat=2):
        fast = optimize_graph(plain, (2, 19, 23), one_channel=one_channel, channels_last=channels_last)
        assert differences(plain, fast, (2, 19, 23)) < 1e-12


def after_a_convolution(
    steps: Sequence[tuple[str, Tensor]],
    convolution: nn.Module,
    *,
    read_twice: bool = False,
    constant_first: bool = False,
) -> fx.GraphModule:
    """x → convolution → with each constant, as onnx2torch writes it."""
    graph = fx.Graph()
    made = first = graph.call_module("convolution", (graph.placeholder("x"),))
    root: dict[str, Any] = {"convolution": convolution.double().requires_grad_(False)}
    for index, (operation, constant) in enumerate(steps):
        root |= {f"operation_{index}": OnnxBinaryMathOperation(operation), f"constant_{index}": constant.double()}
        other = graph.get_attr(f"constant_{index}")
        made = graph.call_module(f"operation_{index}", (other, made) if constant_first else (made, other))
    graph.output((made, first) if read_twice else made)
    return fx.GraphModule(root, graph)


def operations(network: fx.GraphModule) -> int:
    return sum(isinstance(module, OnnxBinaryMathOperation) for module in called(network))


def called(network: fx.GraphModule) -> list[nn.Module]:
    return [network.get_submodule(str(node.target)) for node in network.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("constant_first", [True, False])
@pytest.mark.parametrize(
    ("convolution", "steps"),
    [
        (nn.Conv2d(2, 5, 3), [("Mul", torch.randn(1, 5, 1, 1)), ("Add", torch.randn(1, 5, 1, 1))]),
        (nn.Conv2d(2, 5, 1, bias=False), [("Add", torch.randn(5, 1, 1)), ("Mul", torch.randn(1, 1, 1, 1))]),
        (nn.Conv2d(2, 6, 3, groups=2, padding=1), [("Mul", torch.randn(6, 1, 1)), ("Add", torch.tensor(0.3))]),
        (nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.0), nn.Conv2d(2, 5, 3)), [("Mul", torch.randn(1, 5, 1, 1))]),
    ],
)
def test_what_multiplies_a_channel_or_is_added_to_it_goes_into_the_weights(
    convolution: nn.Module, steps: list[tuple[str, Tensor]], constant_first: bool
) -> None:
    plain = after_a_convolution(steps, convolution, constant_first=constant_first)
    before = [parameter.clone() for parameter in convolution.parameters()]
    for channels_last in (False, True):
        fast = optimize_graph(plain, (2, 9, 9), one_channel=False, channels_last=channels_last)
        assert operations(fast) == 0
        assert differences(plain, fast, (2, 9, 9)) < 1e-12
    assert all(torch.equal(now, then) for now, then in zip(convolution.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("operation", "constant", "read_twice"),
    [
        ("Mul", torch.randn(1, 5, 1, 1), True),
        ("Mul", torch.randn(1, 1, 7, 7), False),
        ("Add", torch.randn(1, 5, 7, 7), False),
        ("Add", torch.randn(7), False),
        ("Add", torch.randn(1, 5, 1, 7), False),
        ("Sub", torch.randn(1, 5, 1, 1), False),
    ],
)
def test_other_constants_stay_where_they_are(operation: str, constant: Tensor, read_twice: bool) -> None:
    plain = after_a_convolution([(operation, constant)], nn.Conv2d(2, 5, 3), read_twice=read_twice)
    fast = optimize_graph(plain, (2, 9, 9), one_channel=False, channels_last=True)
    assert operations(fast) == 1
    assert differences(plain, fast, (2, 9, 9)) < 1e-12


def test_a_number_for_each_image_is_none_for_each_channel() -> None:
    convolution = nn.Conv2d(2, 5, 3)
    assert _with_constant(convolution, torch.randn(1, 5, 1, 1), scaled=True) is not None
    assert _with_constant(convolution, torch.randn(5, 1, 1, 1), scaled=True) is None


def test_a_padded_convolution_of_the_original_is_left_as_it_was() -> None:
    padded = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), 0.0), nn.Conv2d(2, 4, 3))
    graph = fx.Graph()
    graph.output(graph.call_module("padded", (graph.placeholder("x"),)))
    plain = fx.GraphModule({"padded": padded.double().requires_grad_(False)}, graph)
    fast = optimize_graph(plain, (2, 9, 9), one_channel=False, channels_last=True)
    assert differences(plain, fast, (2, 9, 9)) < 1e-12
    assert type(padded[1]) is nn.Conv2d
    assert type(fast.get_submodule("padded.1")).__name__ == "FewChannels"


def test_the_original_is_left_as_it_was(model: oip_torch.FeatureModel) -> None:
    plain = parts(model, "Conv2D_3", True)
    before = str(plain.graph), {name: tensor.stride() for name, tensor in plain.named_parameters()}
    optimize_graph(plain, model.input_shape, one_channel=True, channels_last=True)
    assert before == (str(plain.graph), {name: tensor.stride() for name, tensor in plain.named_parameters()})


@pytest.mark.parametrize(("stride", "padding", "dilation"), [((1, 1), (0, 0), (1, 1)), ((2, 3), (1, 2), (2, 1))])
def test_the_gradient_by_product_is_that_of_the_convolution(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    weight, bias = torch.randn(5, 3, 3, 2, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _BackByProduct.apply(x, weight, bias, stride, padding, dilation), (x,))


needs_onednn = pytest.mark.skipif(
    not Packed.fits(nn.Conv2d(1, 1, 1)), reason="no x86, or a torch without oneDNN's operations"
)


@needs_onednn
@pytest.mark.parametrize(
    "plain",
    [
        nn.Conv2d(40, 24, 1, bias=False),
        nn.Conv2d(4, 24, 1),  # however few its inputs are
        nn.Conv2d(16, 8, 3, padding=1),
        nn.Conv2d(16, 8, (3, 5), padding=(0, 2), dilation=(2, 1)),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 8, 3, padding=1, groups=4, bias=False),
        nn.Conv2d(16, 8, 3, stride=2, padding=1),  # torch's own way back
        nn.Conv2d(16, 8, 1, stride=(2, 1)),
        nn.Conv2d(3, 8, 7, stride=2, padding=3),  # back by a shuffle of pixels
        nn.Conv2d(3, 8, (5, 4), stride=3, padding=(2, 0)),
        nn.Conv2d(1, 8, 4, stride=4),
        nn.Conv2d(3, 8, 5, stride=2, padding=1, dilation=2),
    ],
    ids=repr,
)
@pytest.mark.parametrize(  # oneDNN has no sum with a limit, and `_fuse` makes none
    ("most", "added"), [(None, False), (math.inf, False), (0.5, False), (None, True), (math.inf, True)]
)
def test_packed_convolutions_are_the_plain_ones(plain: nn.Conv2d, most: float | None, added: bool) -> None:
    plain.requires_grad_(False)
    assert Packed.fits(plain)
    for layout, size in itertools.product((torch.contiguous_format, torch.channels_last), ((13, 11), (14, 15))):
        x = torch.randn(3, plain.in_channels, *size).to(memory_format=layout).requires_grad_()
        other = torch.randn_like(plain(x)).requires_grad_() if added else None
        expected = plain(x) if other is None else plain(x) + other
        expected = expected if most is None else expected.clamp(0, most)
        module = Packed(plain, most)
        got = module(x, other)
        weights, inputs = torch.randn_like(expected), [x] if other is None else [x, other]
        for found, wanted in zip(
            [got, *torch.autograd.grad((got * weights).sum(), inputs)],
            [expected, *torch.autograd.grad((expected * weights).sum(), inputs)],
            strict=True,
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        with torch.no_grad():  # as final scores are computed: NaN is not lost there
            torch.testing.assert_close(module(x, other), expected, rtol=1e-5, atol=1e-5)
            x[0, 0, 3:6, 3:6] = math.nan
            assert module(x, other).isnan().sum() == plain(x).isnan().sum() > 0


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(40, 8, 1, padding=1),  # its outermost outputs read no pixel
        nn.Conv2d(40, 8, 3, padding="same"),
        nn.Conv2d(40, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(40, 8, 1, dtype=torch.float64),
    ],
    ids=repr,
)
def test_other_convolutions_are_torch_s(other: nn.Conv2d) -> None:
    assert type(_channels_last(other)) is nn.Conv2d


class Block(nn.Module):
    """A residual block, as ResNets have them."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(40, 40, 3, padding=1), nn.Conv2d(40, 40, 1)
        self.inner, self.outer = activation(), activation()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.outer(self.second(self.inner(self.first(x))) + x)
        return output


def kinds(graph: fx.GraphModule) -> list[str]:
    """Of the operations, in their order."""
    names = []
    for node in graph.graph.nodes:
        if node.op == "call_module":
            names.append(type(graph.get_submodule(str(node.target))).__name__)
        elif node.op == "call_function":
            names.append(node.target.__name__)
    return names


def optimized(network: nn.Module, *, one_channel: bool, channels: int = 40) -> tuple[fx.GraphModule, fx.GraphModule]:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, OnnxPadStatic) or super().is_leaf_module(m, module_qualified_name)

    plain = fx.GraphModule(network.eval().requires_grad_(False), Tracer().trace(network))
    return plain, optimize_graph(plain, (channels, 9, 8), one_channel=one_channel, channels_last=True)


@needs_onednn
@pytest.mark.parametrize(
    ("activation", "operations"),
    [
        (nn.ReLU, ["Packed"] * 4),
        (nn.ReLU6, ["Packed", "Packed", "ReLU6"] * 2),
        (nn.ELU, ["Packed", "ELU", "Packed", "ELU"] * 2),
    ],
)
def test_an_addition_and_a_relu_go_into_the_convolution(activation: type[nn.Module], operations: list[str]) -> None:
    plain, fast = optimized(nn.Sequential(Block(activation), Block(activation)), one_channel=False)
    assert kinds(fast) == operations
    x = torch.randn(3, 40, 9, 8, requires_grad=True)
    (got, _), expected = fast(x, 0.0, torch.zeros(3, dtype=torch.long)), plain(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(*(torch.autograd.grad(output.sin().sum(), x) for output in (got, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class Sum(nn.Module):
    """Of a convolution's output and something else, in another way than by a plus of two images alike."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.convolution, self.way = nn.Conv2d(40, 40, 1), way

    def forward(self, x: Tensor) -> Tensor:
        z = self.convolution(x)
        if self.way == "alpha":
            return torch.add(z, x, alpha=0.5)
        if self.way == "booleans":
            return z + (x > 0)
        return z + x.mean(1, keepdim=True).expand(-1, 40, -1, -1)


@pytest.mark.parametrize("one_channel", [False, True])
@pytest.mark.parametrize("way", ["alpha", "booleans", "expanded"])
def test_other_sums_stay_what_they_are(way: str, one_channel: bool) -> None:
    plain, fast = optimized(Sum(way), one_channel=one_channel)
    x, maps = torch.randn(3, 40, 9, 8, requires_grad=True), torch.tensor([0, 39, 7])
    got, expected = fast(x, 0.0, maps)[0], plain(x)
    expected = expected[torch.arange(3), maps][:, None] if one_channel else expected
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(*(torch.autograd.grad(output.sin().sum(), x) for output in (got, expected)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_something_else_reads_stays_by_itself() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.relu = nn.Conv2d(40, 40, 1), nn.ReLU()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            z = self.convolution(x)
            total = z + z
            return self.relu(z), total, self.relu(total)

    plain, fast = optimized(Both(), one_channel=False)
    assert sorted(kinds(fast)[1:]) == ["ReLU", "ReLU", "add"]
    x = torch.randn(3, 40, 9, 8)
    for got, expected in zip(fast(x, 0.0, torch.zeros(3, dtype=torch.long))[:3], plain(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_weights_in_another_form_are_counted() -> None:
    _, fast = optimized(nn.Sequential(Block(), nn.Linear(8, 3)), one_channel=False)
    assert weight_bytes(fast) == 2 * 4 * (40 * 40 * 9 + 40 * 40)
    plain = fx.symbolic_trace(Block().eval().requires_grad_(False))
    shared = optimize_graph(plain, (40, 9, 8), one_channel=False, channels_last=False)
    assert weight_bytes(shared) == 0


def test_the_last_block_makes_the_wanted_channels_alone() -> None:
    """Both ways to its sum: from the convolution, and from the block before it, all of which the convolutions read."""
    plain, fast = optimized(nn.Sequential(Block(), Block()).double(), one_channel=True)
    assert kinds(fast).count("OwnChannel") == 1
    assert kinds(fast).count("_picked") == 1
    assert differences(plain, fast, (40, 9, 8)) < 1e-12


def test_a_convolution_that_is_called_twice_makes_one_channel_where_it_is_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(40, 40, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = self.convolution(self.convolution(x).relu())
            return output

    plain, fast = optimized(Twice().double(), one_channel=True)
    assert kinds(fast) == ["Conv2d", "OwnChannel"]
    assert differences(plain, fast, (40, 9, 8)) < 1e-12


@pytest.mark.parametrize(
    ("activation", "pads", "value", "within"),
    [
        (nn.ReLU(), (1, 1, 1, 1, 0, 0, 0, 0), 0.0, True),
        (nn.ReLU6(), (0, 0, 1, 1), 0.0, True),
        (nn.ELU(), (1, 1, 1, 1), 0.0, False),  # a window of negative numbers at the border has 0 for its maximum
        (nn.ReLU(), (1, 1, 1, 1), 0.5, False),
        (nn.ReLU(), (0, 1, 0, 1), 0.0, False),
        (nn.ReLU(), (2, 2, 2, 2), 0.0, False),
        (nn.ReLU(), (1, 1, 1, 1, 1, 1, 0, 0), 0.0, False),
    ],
)
def test_zeros_around_a_relu_are_the_pooling_s(
    activation: nn.Module, pads: tuple[int, ...], value: float, within: bool
) -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), activation, OnnxPadStatic(list(pads), constant_value=value), nn.MaxPool2d(3, 2)
    )
    plain, fast = optimized(network.double(), one_channel=False, channels=2)
    assert ("OnnxPadStatic" not in kinds(fast)) == within
    assert differences(plain, fast, (2, 9, 8)) < 1e-12


def test_nothing_is_cut_where_no_less_is_computed() -> None:
    """The second convolution's steps leave the last row and column out, and the first one is not kept from them."""
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1, stride=2), nn.ReLU())
    plain, fast = optimized(network.double(), one_channel=False, channels=2)
    assert "_cut" not in kinds(fast)
    assert differences(plain, fast, (2, 9, 8)) < 1e-12


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_window_sums(layout: torch.memory_format) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    kernels = torch.randn(2, 3, 6, dtype=torch.float64)
    for sizes in (((3, 2), (1, 1), (1, 1)), ((2, 3), (2, 1), (2, 3))):
        assert torch.autograd.gradcheck(lambda x, sizes=sizes: _WindowSums.apply(x, kernels, *sizes), (x,))
        assert torch.autograd.grad(_WindowSums.apply(x, kernels, *sizes).sum(), x)[0].stride() == x.stride()


def test_no_step_of_the_loop_synchronises_with_the_device(model: oip_torch.FeatureModel) -> None:
    """On CUDA each number that Python reads is a host–device synchronisation: none in a step, on any layer."""

    class Synchronisations(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0

        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            self.count += any(
                name in str(func) for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select")
            )
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    def synchronisations(layer: str, settings: oip_torch.AscentSettings) -> int:
        maps = torch.arange(8)
        x = torch.randn(8, *model.input_shape, generator=torch.Generator().manual_seed(0))
        with Synchronisations() as mode:
            gradient_ascent(score_of(model, layer, settings), x, maps, settings.schedule, kept=(0, 1))
        return mode.count

    for layer in model.layers.names:
        for make in (oip_torch.AscentSettings.article, oip_torch.AscentSettings):
            synchronisations(layer, make(steps=1))  # the network is rewritten on the first run
            assert synchronisations(layer, make(steps=9)) == synchronisations(layer, make(steps=3)), layer


def test_a_reshape_that_changes_nothing_is_left_out() -> None:
    class Chain(nn.Module):
        def __init__(self, *target: int) -> None:
            super().__init__()
            self.reshape = Reshape(target)

        def forward(self, x: Tensor) -> Tensor:
            return self.reshape(x)

    class Leaves(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, Reshape)

    for target_, left in (((-1, 12), True), ((0, 12), True), ((-1, 3, 2, 2), False)):
        chain = Chain(*target_)
        plain = fx.GraphModule(chain, Leaves().trace(chain))
        fast = optimize_graph(plain, (3, 2, 2), one_channel=False, channels_last=False)
        assert any(node.op == "call_module" for node in fast.graph.nodes) == left
        for count in (1, 2, 5):
            x = torch.randn(count, 3, 2, 2)
            assert torch.equal(fast(x, 0.0, torch.zeros(count))[0], plain(x))


def test_matmul_precision_is_as_asked_and_as_before_afterwards() -> None:
    def flags() -> tuple[str, str]:
        return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision

    before = flags()
    for tf32, expected in ((False, "ieee"), (True, "tf32")):
        with contextlib.suppress(ZeroDivisionError), matmul_precision(tf32=tf32):
            assert flags() == (expected, expected)
            1 / 0  # noqa: B018
        assert flags() == before
