"""What does one image cost in an ONNX graph: how many numbers are made, and how many products are summed?

Worked out from the shapes of all tensors, before memory is taken or anything is computed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from oip_torch.base.errors import InputError

if TYPE_CHECKING:
    import onnx

__all__ = ["LARGEST", "NUMBERS", "PRODUCTS", "check_costs", "limit"]

NUMBERS, PRODUCTS = "OIP_MAX_ACTIVATIONS", "OIP_MAX_MULTIPLY_ADDS"
"""The environment variables that set the limits."""
_DEFAULTS = {NUMBERS: 1 << 30, PRODUCTS: 10**11}
LARGEST = 4
"""No single tensor may have more than this part of all numbers."""

Shape = tuple[int, ...]
_PLAIN = frozenset(
    "Abs Acos Add And ArgMax ArgMin Asin Atan BatchNormalization Cast CastLike Ceil Celu Clip Concat Constant "
    "ConstantOfShape Cos Cosh CumSum DepthToSpace Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather "
    "GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization "
    "HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual "
    "Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or PRelu Pad Pow Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape "
    "Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign "
    "SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample "
    "Where Xor".split()
)
"""Operations that take so long as what goes in and comes out has numbers."""


def limit(name: str) -> int:
    """A limit in force.

    Raises:
        InputError: the environment variable holds no whole number above 0.
    """
    text = os.environ.get(name, "")
    if not text:
        return _DEFAULTS[name]
    try:
        value = int(float(text))
    except (ValueError, OverflowError):
        value = 0
    if value < 1:
        raise InputError(f"the environment variable {name} is {text[:40]!r}: expected a whole number above 0")
    return value


def check_costs(graph: onnx.GraphProto, shapes: Mapping[str, Shape | None]) -> None:
    """Raise a `ValueError`, "WHAT; expected …", where one image would take too much memory or time.

    Args:
        graph: with operations of ONNX alone.
        shapes: of its tensors for one image; -1 and None as in `shapes.Shapes`.
    """
    most, most_products = limit(NUMBERS), limit(PRODUCTS)
    numbers, products = 0, 0
    for node in graph.node:
        inputs, outputs = (
            [_known(shapes, node, name) for name in names if name] for names in (node.input, node.output)
        )
        attributes = {attribute.name: attribute for attribute in node.attribute}
        made = [math.prod(shape) for shape in outputs]
        made += [_padded(inputs[0], attributes)] if inputs and "pads" in attributes and len(inputs[0]) > 2 else []
        if max(made, default=0) > most // LARGEST:
            raise ValueError(
                f"a tensor of {max(made)} elements per image ({node.output[0]!r}); expected at most {most // LARGEST}, "
                f"a quarter of what the environment variable {NUMBERS} says"
            )
        numbers += sum(made)
        if numbers > most:
            raise ValueError(
                f"tensors of more than {numbers} elements per image in all, up to {node.output[0]!r}; expected at most "
                f"{most}, or as many as the environment variable {NUMBERS} says"
            )
        products += _products(node, inputs, outputs, attributes)
        if products > most_products:
            raise ValueError(
                f"more than {products} multiply-adds per image, up to {node.output[0]!r}; expected at most "
                f"{most_products}, or as many as the environment variable {PRODUCTS} says"
            )


def _known(shapes: Mapping[str, Shape | None], node: onnx.NodeProto, name: str) -> Shape:
    shape = shapes.get(name)
    if shape is None or min(shape, default=0) < 0:
        raise ValueError(
            f"a tensor whose size is known only at run time ({name!r}, at the operation {node.op_type}); expected "
            "sizes that follow from the image's"
        )
    return shape


def _padded(shape: Shape, attributes: Mapping[str, Any]) -> int:
    """Numbers of what goes into a convolution or pooling once it is padded, which may be a tensor of its own."""
    pads = [max(0, width) for width in attributes["pads"].ints]
    around = [sum(pads[axis :: len(shape) - 2]) for axis in range(len(shape) - 2)]
    padded = [length + more for length, more in zip(shape[2:], around, strict=True)]
    return math.prod((*shape[:2], *padded))


def _products(node: onnx.NodeProto, inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    linear = sum(map(math.prod, inputs)) + sum(map(math.prod, outputs))
    if node.op_type in _PLAIN:
        return linear
    if node.op_type not in _PRODUCTS:
        raise ValueError(f"operations of the kind {node.op_type}; expected those of convolutional networks")
    return linear + _PRODUCTS[node.op_type](inputs, outputs, attributes)


def _conv(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])


def _conv_transpose(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matmul(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    return math.prod(outputs[0]) * inputs[0][-1]


def _gemm(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    transposed = "transA" in attributes and attributes["transA"].i != 0
    return math.prod(outputs[0]) * inputs[0][0 if transposed else 1]


def _pool(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    return math.prod((*outputs[0], *attributes["kernel_shape"].ints))


def _lrn(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    return math.prod((*outputs[0], attributes["size"].i))


def _einsum(inputs: list[Shape], outputs: list[Shape], attributes: Mapping[str, Any]) -> int:
    terms = attributes["equation"].s.decode("ascii", "replace").replace(" ", "").partition("->")[0].split(",")
    if any(len(term) != len(shape) for term, shape in zip(terms, inputs, strict=True)):  # "...": of any number
        raise ValueError("an Einsum whose letters are not its axes; expected one letter for each axis")
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        lengths.update(zip(term, shape, strict=True))
    return math.prod(lengths.values())


_PRODUCTS: dict[str, Callable[[list[Shape], list[Shape], Mapping[str, Any]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LRN": _lrn,
    "Einsum": _einsum,
}
