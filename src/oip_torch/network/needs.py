"""Which part of its input does a place of a network's output need?

What is needed is followed back through the graph, node by node, as a set of indices of each axis. It follows from the
structure alone: a weight of 0 counts as one that is used. An operation that is not known here counts as one that needs
all of its inputs, so that a part may come out too large, and never too small.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from oip_torch.base.platform import matmul_precision
from oip_torch.network.node_shapes import measure_shapes, shape_of

__all__ = ["Needs"]

Indices = frozenset[int]
Parts = tuple[Indices, ...]
"""For each axis of a tensor which of its indices are needed. Sets, since dilated windows leave some out."""

_ELEMENTWISE = frozenset(
    "BatchNorm2d CELU Dropout ELU GELU Hardsigmoid Hardswish Hardtanh Identity LeakyReLU Mish ReLU ReLU6 SELU SiLU "
    "Sigmoid Softplus Softsign Tanh OnnxBinaryMathOperation OnnxCast OnnxClip OnnxCompare OnnxCopyIdentity "
    "OnnxDropoutDynamic OnnxErf OnnxFunction OnnxHardSigmoid OnnxMean OnnxMinMax OnnxNeg OnnxPReLU OnnxPow "
    "OnnxReciprocal OnnxRound OnnxSqrt OnnxSum OnnxWhere".split()
)
"""Kinds of modules whose output at a place needs their inputs at this place alone, of the size of the output or 1."""
_SAME_ELEMENTS = frozenset(
    "Flatten Reshape OnnxReshape OnnxSqueezeStaticAxes OnnxUnsqueezeStaticAxes OnnxFlatten".split()
)


class Needs:
    """What of the image each unit of a network's one output needs."""

    def __init__(self, network: fx.GraphModule, image: Sequence[int]) -> None:
        """`network`: images (batch, C, H, W) → one output, whose submodules are those of `onnx2torch` or of torch."""
        self._network = network
        with matmul_precision():
            measure_shapes(network, image)
        self._nodes = list(network.graph.nodes)
        (end,) = (node for node in self._nodes if node.op == "output")
        (self._end,) = end.all_input_nodes

    def of(self, *place: int, clip: bool = True) -> tuple[int, int, int, int]:
        """Top, bottom, left and right of the part of the image that the units at a place need, of all channels.

        Args:
            place: (row, column) in a map; nothing: all that there is.
            clip: leave out what lies beyond the ends of the image or, on the way, of a map: it is padding.
        """
        whole_end = _everything(self._end)
        first = (*whole_end[: len(whole_end) - len(place)], *(frozenset([index]) for index in place))
        needed: dict[fx.Node, Parts] = {self._end: first}
        for node in reversed(self._nodes):
            parts = needed.get(node)
            if parts is None or node.op in ("placeholder", "get_attr", "output"):
                continue
            for source, wanted in self._needed_by(node, parts):
                if clip:
                    wanted = _clipped(wanted, _shape(source))
                if all(wanted):  # nothing is needed of a tensor of which one axis is left out
                    needed[source] = _both(needed.get(source), wanted)
        (image,) = (node for node in self._nodes if node.op == "placeholder")
        if image not in needed:
            return 0, 0, 0, 0
        rows, columns = needed[image][2:]
        return min(rows), max(rows) + 1, min(columns), max(columns) + 1

    def _needed_by(self, node: fx.Node, parts: Parts) -> list[tuple[fx.Node, Parts]]:
        """(input of the node, which part of it the given part of the output needs), for each input."""
        sources = node.all_input_nodes
        if not parts:  # a number, or several tensors: of which parts it is made is not known here
            return [(source, _everything(source)) for source in sources]
        module = self._network.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = type(module).__name__
        if kind == "OnnxShape":
            return []  # the size is the same, whatever is in the image
        if kind in _ELEMENTWISE and getattr(module, "axis", None) is None:
            return [(source, _broadcast(parts, _shape(source))) for source in sources]
        if kind == "OnnxConcat":
            return self._joined(node, int(module.axis) % len(parts), parts)  # type: ignore[union-attr,arg-type]
        if kind in _SAME_ELEMENTS:
            source, wanted = self._reshaped(node, parts)
            return [(source, wanted)]
        if kind in ("OnnxPadDynamic", "OnnxMatMul") and sources[1:] and sources[1].op != "get_attr":
            return [(source, _everything(source)) for source in sources]
        back = _back_through(module, _shape(sources[0]), _shape(node), self._constant(sources[1:])) if sources else None
        if back is None or len(_shape(sources[0])) < 2:
            return [(source, _everything(source)) for source in sources]
        return [(sources[0], back(parts))]

    def _constant(self, nodes: Sequence[fx.Node]) -> torch.Tensor | None:
        if not nodes or nodes[0].op != "get_attr":
            return None
        value: torch.Tensor = operator.attrgetter(str(nodes[0].target))(self._network)
        return value

    def _joined(self, node: fx.Node, axis: int, parts: Parts) -> list[tuple[fx.Node, Parts]]:
        found, offset = [], 0
        for source in node.args:
            assert isinstance(source, fx.Node)
            count = _shape(source)[axis]
            own = frozenset(index - offset for index in parts[axis] if 0 <= index - offset < count)
            found.append((source, (*parts[:axis], own, *parts[axis + 1 :])))
            offset += count
        return found

    def _reshaped(self, node: fx.Node, parts: Parts) -> tuple[fx.Node, Parts]:
        """Where axes of 1 alone come or go, the others stay; likewise around a dense layer along the last axis."""
        source, shape = node.args[0], _shape(node)
        assert isinstance(source, fx.Node)
        before = _shape(source)
        kept = [index for index, count in enumerate(shape) if count != 1]
        if [count for count in before if count != 1] == [shape[index] for index in kept]:
            rest = iter(kept)
            return source, tuple(_all(1) if count == 1 else parts[next(rest)] for count in before)
        # As Keras' Dense computes on maps: (batch, rows, columns, channels) → (places, channels), a product with the
        # weights, and back.
        first = source.args[0] if _kind(self._network, source) == "OnnxMatMul" else None
        if isinstance(first, fx.Node) and _kind(self._network, first) in ("Reshape", "OnnxReshape"):
            start, weights = first.args[0], source.args[1]
            assert isinstance(start, fx.Node)
            assert isinstance(weights, fx.Node)
            rows = _shape(start)
            same_rows = _shape(first)[-1] == rows[-1] and before[-1] == shape[-1]
            if rows[:-1] == shape[:-1] and same_rows and len(before) == 2 and weights.op == "get_attr":
                return start, (*parts[:-1], _all(rows[-1]))
        return source, _everything(source)


def _back_through(
    module: nn.Module | None, before: tuple[int, ...], after: tuple[int, ...], constant: torch.Tensor | None
) -> Callable[[Parts], Parts] | None:
    """From what is needed of a module's output to what is needed of its input; None: not known.

    `before` and `after` are the shapes of input and output, `constant` a second input that is one.
    """
    kind = type(module).__name__
    if isinstance(module, nn.Sequential):  # an asymmetric padding with what it is for
        ways = [_back_through(part, before, after, None) for part in module]

        def through_all(parts: Parts) -> Parts:
            for way in reversed(ways):
                assert way is not None
                parts = way(parts)
            return parts

        simple = all(type(part).__name__ in ("OnnxPadStatic", "Conv2d", "MaxPool2d", "AvgPool2d") for part in module)
        return through_all if simple and None not in ways else None
    if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and len(before) == 4:
        if getattr(module, "padding_mode", "zeros") != "zeros":
            return None
        sizes, strides, dilations = (_pair(getattr(module, name, 1)) for name in ("kernel_size", "stride", "dilation"))
        if isinstance(module, nn.Conv2d):  # "same" may pad one side more
            pads = tuple(module._reversed_padding_repeated_twice[2::-2])
        else:
            pads = _pair(module.padding)

        def windows(parts: Parts) -> Parts:
            geometry = zip(parts[2:], sizes, strides, dilations, pads, strict=True)
            return (
                parts[0],
                _all(before[1]),
                *(
                    frozenset(index * stride - pad + k * dilation for index in own for k in range(size))
                    for own, size, stride, dilation, pad in geometry
                ),
            )

        return windows
    if isinstance(module, nn.ConvTranspose2d) and len(before) == 4:
        sizes, strides, dilations, pads = (
            _pair(value) for value in (module.kernel_size, module.stride, module.dilation, module.padding)
        )

        def spread(parts: Parts) -> Parts:
            geometry = zip(parts[2:], sizes, strides, dilations, pads, strict=True)
            return (
                parts[0],
                _all(before[1]),
                *(
                    frozenset(
                        (index + pad - k * dilation) // stride
                        for index in own
                        for k in range(size)
                        if (index + pad - k * dilation) % stride == 0
                    )
                    for own, size, stride, dilation, pad in geometry
                ),
            )

        return spread
    if kind in ("OnnxPadStatic", "OnnxPadDynamic"):
        return _back_through_padding(module, constant)
    if kind == "OnnxTranspose":
        order = list(module.perm or reversed(range(len(before))))  # type: ignore[union-attr,arg-type]
        return lambda parts: tuple(parts[order.index(axis)] for axis in range(len(before)))
    if kind in ("Linear", "OnnxMatMul") and (kind == "Linear" or (constant is not None and constant.ndim == 2)):
        return lambda parts: (*parts[:-1], _all(before[-1]))
    if isinstance(module, (nn.Softmax, nn.LogSoftmax)) and module.dim is not None:
        axis = module.dim % len(before)
        return lambda parts: (*parts[:axis], _all(before[axis]), *parts[axis + 1 :])
    reduces = kind.startswith(("OnnxReduce", "OnnxGlobalAveragePool")) and len(before) == len(after)
    if reduces and all(new in (old, 1) for old, new in zip(before, after, strict=True)):
        # An axis that stays as it is has not been reduced; one of 1 that is needed is needed whole.
        return lambda parts: tuple(
            own if old == new else _all(old) for own, old, new in zip(parts, before, after, strict=True)
        )
    return None


def _back_through_padding(module: Any, constant: torch.Tensor | None) -> Callable[[Parts], Parts] | None:
    if module.mode != "constant":  # what is repeated or reflected comes from elsewhere
        return None
    if type(module).__name__ == "OnnxPadStatic":
        begins = list(module.pads[0::2])  # of the last axis first
    elif constant is None:
        return None
    else:  # those of all axes, and then the ends
        begins = constant.tolist()[: constant.numel() // 2][::-1]

    def moved(parts: Parts) -> Parts:
        offsets = [0] * (len(parts) - len(begins)) + begins[::-1]
        return tuple(frozenset(index - offset for index in own) for own, offset in zip(parts, offsets, strict=True))

    return moved


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Of the node's output for a batch of two; () where it is not one tensor, or a number."""
    return shape_of(node) or ()


def _kind(network: fx.GraphModule, node: fx.Node) -> str:
    return type(network.get_submodule(str(node.target))).__name__ if node.op == "call_module" else ""


def _all(count: int) -> Indices:
    return frozenset(range(count))


def _everything(node: fx.Node) -> Parts:
    return tuple(map(_all, _shape(node)))


def _broadcast(parts: Parts, shape: tuple[int, ...]) -> Parts:
    """Of an input that is laid along the last axes of the output, its axes of 1 repeated."""
    own = parts[len(parts) - len(shape) :]
    return tuple(_all(1) if count == 1 else part for part, count in zip(own, shape, strict=True))


def _clipped(parts: Parts, shape: tuple[int, ...]) -> Parts:
    return tuple(part & _all(count) for part, count in zip(parts, shape, strict=True))


def _both(one: Parts | None, other: Parts) -> Parts:
    return other if one is None else tuple(a | b for a, b in zip(one, other, strict=True))


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, (tuple, list)) else (value, value)
    return int(first), int(second)
