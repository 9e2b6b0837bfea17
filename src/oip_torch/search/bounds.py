"""How high can a unit get at most, whatever the image?

A linear relaxation, propagated backwards: what a unit says is bounded from above by a linear function of what goes into
the last ReLU before it, that by one of what goes into the ReLU before, and so on to the image (Zhang et al.,
"Efficient Neural Network Robustness Certification with General Activation Functions", 2018, known as CROWN). On the
images that count a linear function has a maximum that is known. The slopes from below, of which any between 0 and 1
holds, are then improved by gradient descent (Xu et al., "Fast and Complete", 2021).

Departures: all linear operations, padding included, are propagated by their own gradients, instead of a rule for each;
and the images are those of mean 0 and standard deviation 1, instead of a small neighbourhood of one image.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["ImageSet", "NotCoveredError", "UpperBounds"]

_ROUNDING = 1e-9
"""Allowance, as a share of the sum of all magnitudes: ten million times the unit of float64."""
_ROUGH = (
    1e-4  # by so much an image's mean and standard deviation may be off, in standard deviations: float32's rounding
)
_ROWS = 1 << 24  # numbers at once of the largest tensor
_BISECTIONS = 40

_AFFINE = frozenset(
    "Conv2d Linear BatchNorm2d AvgPool2d AdaptiveAvgPool2d Flatten Identity Dropout ZeroPad2d Reshape "
    "OnnxTranspose OnnxMatMul OnnxGemm OnnxBinaryMathOperation OnnxConcat OnnxGlobalAveragePool OnnxPadStatic "
    "OnnxFlatten "
    "OnnxIdentity OnnxDropoutDynamic OnnxSqueezeStaticAxes OnnxUnsqueezeStaticAxes".split()
)
"""Modules that may be linear in what comes from the image; that they are is checked where they are met."""


class NotCoveredError(Exception):
    """The network has an operation that these bounds know nothing of; the message names it."""


@dataclass(frozen=True)
class ImageSet:
    """Images of mean 0 and a standard deviation of 1 at most, over all pixels and channels together.

    The network may see a part of them alone: the rest of the image then makes up for its mean and its contrast.

    Attributes:
        pixels: numbers in an image, those outside of the part included.
        low, high: (pixels,) float64, the ends of each, those outside of the part last; None: any.
    """

    pixels: int
    low: Tensor | None = None
    high: Tensor | None = None

    def maximum(self, a: Tensor, *, exact: bool = False) -> Tensor:
        """No less than the largest a·x of all images x: (rows, numbers in the part) → (rows,), differentiable.

        Without ends it is √N · ‖a - mean(a)‖. With ends it is the least of that and of a dual function of the problem,
        of which each value holds; `exact` looks for its minimum, otherwise for that without the standard deviation.
        """
        a = F.pad(a, (0, self.pixels - a.shape[1]))
        mean = a.mean(1, keepdim=True)
        radius = math.sqrt(self.pixels) * (1 + _ROUGH)
        ball = radius * torch.linalg.vector_norm(a - mean, dim=1) + _ROUGH * self.pixels * mean.abs()[:, 0]
        if self.low is None or self.high is None:
            return torch.as_tensor(ball)
        with torch.no_grad():
            shift, curve = self._multipliers(a, mean) if exact else self._shift(a, torch.zeros_like(mean))
        best, curvature = self._best(a - shift, curve), curve[:, 0]
        dual = ((a - shift) * best - curve * best**2).sum(1)
        dual = dual + _ROUGH * self.pixels * shift.abs()[:, 0] + curvature * radius**2
        return torch.minimum(ball, dual)

    def _best(self, a: Tensor, curve: Tensor) -> Tensor:
        """(rows, pixels) the x within the ends that maximises a·x - curve·x²."""
        assert self.low is not None
        assert self.high is not None
        ends = torch.where(a > 0, self.high, self.low)
        free = a / (2 * curve.clamp_min(1e-300))
        return torch.where(curve > 0, free.maximum(self.low).minimum(self.high), ends).detach()

    def _shift(self, a: Tensor, curve: Tensor) -> tuple[Tensor, Tensor]:
        """The multiplier of the mean that makes the best x have mean 0, for one of the standard deviation."""
        assert self.low is not None
        assert self.high is not None
        reach = 2 * curve * torch.maximum(self.low.abs().max(), self.high.abs().max())
        below, above = a.amin(1, keepdim=True) - reach, a.amax(1, keepdim=True) + reach
        for _ in range(_BISECTIONS):
            middle = (below + above) / 2
            bright = self._best(a - middle, curve).sum(1, keepdim=True) > 0
            below, above = torch.where(bright, middle, below), torch.where(bright, above, middle)
        return above, curve

    def _multipliers(self, a: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        size = (a - mean).abs().amax(1, keepdim=True).clamp_min(1e-30)
        below, above = torch.full_like(size, -7.0), torch.full_like(size, 3.0)  # powers of ten
        for _ in range(_BISECTIONS):
            middle = (below + above) / 2
            shift, curve = self._shift(a, size * 10**middle)
            wide = (self._best(a - shift, curve) ** 2).sum(1, keepdim=True) > self.pixels
            below, above = torch.where(wide, middle, below), torch.where(wide, above, middle)
        return self._shift(a, size * 10**above)


class UpperBounds:
    """Of the units of one layer, over a set of images."""

    def __init__(self, network: fx.GraphModule, shape: tuple[int, int, int], images: ImageSet, affine: Any) -> None:
        """Bound what goes into each ReLU and pooling.

        Args:
            network: images (batch, C, H, W) as the network takes them → (batch, channels, …); in float64, on the CPU.
            shape: (C, H, W).
            images: which images count.
            affine: (scale, offset) that make the network's input of an image, numbers or (C, 1, 1).

        Raises:
            NotCoveredError: an operation that is neither linear nor a ReLU or max-pooling.
        """
        self.images, self.shape = images, shape
        self.scale, self.offset = (torch.as_tensor(part, dtype=torch.float64).expand(shape) for part in affine)
        self.nodes = [node for node in network.graph.nodes if node.op != "output"]
        (end,) = (node for node in network.graph.nodes if node.op == "output")
        self.end = end.args[0]
        self.modules = dict(network.named_modules())
        self.values: dict[fx.Node, Any] = {}  # of one image, or of a constant
        self.constant: set[fx.Node] = set()
        self.ranges: dict[fx.Node, tuple[Tensor, Tensor]] = {}  # of what goes into a ReLU or a pooling
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for node in self.nodes:
                if node.op == "placeholder":
                    self.values[node] = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
                elif node.op == "get_attr":
                    self.values[node] = operator.attrgetter(str(node.target))(network)
                    self.constant.add(node)
                else:
                    self.values[node] = self._run(node, {source: self.values[source] for source in self._sources(node)})
                    if all(source in self.constant for source in self._sources(node)):
                        self.constant.add(node)
        for node in self.nodes:
            if node.op == "placeholder" or node in self.constant:
                continue
            kind = self._kind(node)
            if kind == "affine":
                self._check_affine(node, generator)
            elif node.args[0] not in self.ranges:
                self.ranges[node.args[0]] = self._range(node.args[0])

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(channels, …) of what is bounded."""
        return tuple(self.values[self.end].shape[1:])

    def of(self, rows: Tensor, improvements: int = 30) -> Tensor:
        """No less than the largest value of each Σ rows · output, for rows (R, channels, …): (R,)."""
        best = torch.full((len(rows),), math.inf, dtype=torch.float64)
        each = self._rows_at_once()
        for first in range(0, len(rows), each):
            part = rows[first : first + each]
            slopes = {
                node: self._first_slope(node).expand(len(part), *self.values[node].shape[1:]).clone().requires_grad_()
                for node in self.nodes
                if node not in self.constant and node.op == "call_module" and self._kind(node) == "relu"
            }
            way = torch.optim.Adam(list(slopes.values()), lr=0.1) if slopes else None
            level = {node: torch.zeros_like(slope) for node, slope in slopes.items()}  # best for weights below 0
            found = self._upper(self.end, part, level, exact=True).nan_to_num(nan=math.inf)
            for step in range(improvements + 1 if slopes else 1):
                bound = self._upper(self.end, part, slopes, exact=step in (0, improvements))
                found = torch.minimum(found, bound.detach().nan_to_num(nan=math.inf))
                if way is None or step == improvements:
                    break
                way.zero_grad()
                bound.sum().backward()  # type: ignore[no-untyped-call]
                way.step()
                with torch.no_grad():
                    for slope in slopes.values():
                        slope.clamp_(0.0, 1.0)
            best[first : first + each] = found
        return best

    def _upper(self, node: fx.Node, rows: Tensor, slopes: dict[fx.Node, Tensor], exact: bool = False) -> Tensor:
        """The bound of Σ rows · node, with these slopes from below: (R,)."""
        pending = {node: rows}
        constant = rows.new_zeros(len(rows))
        size = rows.new_zeros(len(rows))  # the sum of all magnitudes, for the rounding

        def add(product: Tensor) -> None:
            nonlocal constant, size
            constant, size = constant + product.flatten(1).sum(1), size + product.detach().abs().flatten(1).sum(1)

        def hand_down(source: fx.Node, weights: Tensor) -> None:
            pending[source] = pending[source] + weights if source in pending else weights

        weights = rows
        for current in reversed(self.nodes[: self.nodes.index(node) + 1]):
            if current not in pending:
                continue
            weights = pending.pop(current)
            if current.op == "placeholder":
                add(weights * self.offset)
                linear = (weights * self.scale).flatten(1)
                size = size + math.sqrt(self.images.pixels) * torch.linalg.vector_norm(linear.detach(), dim=1)
                return torch.as_tensor(constant + self.images.maximum(linear, exact=exact) + _ROUNDING * size)
            kind = self._kind(current)
            if kind == "affine":
                sources = [source for source in self._sources(current) if source not in self.constant]
                zeros = {source: weights.new_zeros(len(weights), *self.values[source].shape[1:]) for source in sources}
                inputs = [zeros[source].requires_grad_() for source in sources]
                output = self._run(current, {**self._constants(current), **zeros})
                back = torch.autograd.grad(output, inputs, weights, create_graph=weights.requires_grad)
                add(weights * output.detach()[:1])
                for source, part in zip(sources, back, strict=True):
                    hand_down(source, part)
                continue
            (source,) = current.all_input_nodes
            low, high = self.ranges[source]
            above, below = weights.clamp_min(0), weights.clamp_max(0)
            if kind == "relu":
                slope, start = _line(low, high)
                lower = slopes[current] if current in slopes else self._first_slope(current)
                lower = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, lower))
                add(above * start)
                hand_down(source, above * slope + below * lower)
            else:
                pool = self.modules[str(current.target)]
                add(above * pool(high[None]))
                at = F.max_pool2d(
                    (low + high)[None], pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, True
                )[1]
                empty = weights.new_zeros(len(weights), low.shape[0], low[0].numel())
                places = at.flatten(2).expand(len(weights), -1, -1)
                hand_down(source, empty.scatter_add(2, places, below.flatten(2)).view(len(weights), *low.shape))
        # Nothing comes from the image.
        return constant + _ROUNDING * size

    def _range(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """What each element of a node's output can be at least and at most."""
        if node.op == "call_module" and self._kind(node) == "relu":
            low, high = self.ranges[node.all_input_nodes[0]]
            return low.clamp_min(0), high.clamp_min(0)
        shape = self.values[node].shape[1:]
        count, each = math.prod(shape), self._rows_at_once()
        low, high = torch.empty(count, dtype=torch.float64), torch.empty(count, dtype=torch.float64)
        for first in range(0, count, each):
            some = torch.arange(first, min(first + each, count))
            rows = F.one_hot(some, count).double().view(len(some), *shape)
            # What left the finite numbers bounds nothing.
            high[some] = self._upper(node, rows, {}).detach().nan_to_num(nan=math.inf)
            low[some] = -self._upper(node, -rows, {}).detach().nan_to_num(nan=math.inf)
        return low.view(shape), high.view(shape)

    def _first_slope(self, relu: fx.Node) -> Tensor:
        low, high = self.ranges[relu.args[0]]  # type: ignore[index]
        return (high > -low).double()

    def _rows_at_once(self) -> int:
        largest: int = max(self.values[node].numel() for node in self.nodes if node not in self.constant)
        return max(1, min(1024, _ROWS // largest))

    def _kind(self, node: fx.Node) -> str:
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU):
            return "relu"
        if isinstance(module, nn.MaxPool2d):
            return "pool"
        parts = list(module) if isinstance(module, nn.Sequential) else [module]
        padding = (nn.ConstantPad2d, nn.ZeroPad2d)
        if module is not None and all(
            type(part).__name__ in _AFFINE or (isinstance(part, padding) and math.isfinite(part.value))
            for part in parts
        ):
            return "affine"
        names = [type(part).__name__.removeprefix("Onnx") for part in parts if type(part).__name__ not in _AFFINE]
        raise NotCoveredError(names[0] if module is not None else str(node.target))

    def _check_affine(self, node: fx.Node, generator: torch.Generator) -> None:
        """Whether f(2a) - f(a) is f(a) - f(0), and f(a + b) - f(b) too, as of a linear function with an offset."""
        constants, sources = self._constants(node), [s for s in self._sources(node) if s not in self.constant]

        def value(*factors: float) -> Tensor:
            inputs = {
                source: sum(
                    (f * part for f, part in zip(factors, parts[source], strict=True)), torch.zeros(()).double()
                )
                for source in sources
            }
            return self._run(node, {**constants, **inputs})

        parts: dict[fx.Node, list[Tensor]] = {
            source: [torch.randn(self.values[source].shape, generator=generator, dtype=torch.float64) for _ in range(2)]
            for source in sources
        }
        with torch.no_grad():
            start, one, other, both = value(0, 0), value(1, 0), value(0, 1), value(2, -3)
        expected = start + 2 * (one - start) - 3 * (other - start)
        if not torch.allclose(both, expected, rtol=1e-9, atol=1e-9 * float(1 + expected.abs().max())):
            raise NotCoveredError(type(self.modules[str(node.target)]).__name__.removeprefix("Onnx"))

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return node.all_input_nodes

    def _constants(self, node: fx.Node) -> dict[fx.Node, Any]:
        return {source: self.values[source] for source in self._sources(node) if source in self.constant}

    def _run(self, node: fx.Node, inputs: dict[fx.Node, Any]) -> Tensor:
        if node.op != "call_module":
            raise NotCoveredError(str(node.target))
        args = fx.node.map_arg(node.args, lambda source: inputs[source])
        output: Tensor = self.modules[str(node.target)](*args, **node.kwargs)
        return output


def _line(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and start of the line that lies above a ReLU from `low` to `high`."""
    crosses = (low < 0) & (high > 0)
    slope = torch.where(crosses, high / torch.where(crosses, high - low, 1.0), (low >= 0).double())
    return slope, torch.where(crosses, -low * slope, 0.0)
