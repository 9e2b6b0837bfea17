"""What does an ONNX graph that another program wrote take, and which of its tensors are layers?

Nothing is taken for granted: where the channels lie follows from the operations (convolutions and poolings of ONNX have
them first, transpositions move them), and what the graph does not show is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from oip_torch.base.errors import ConversionError, InputError

__all__ = ["OPSET", "TO_LAST", "ForeignLayer", "find_layers", "fix_reshapes", "prepare"]

TO_LAST = "image_to_last"
"""The name of the transposition of images to channels last, where the graph wants them so."""
OPSET = 15  # where onnx2torch knows most
_OLDEST = 7
_IR, _IR_WITHOUT_INPUTS = 8, 4  # versions of the file format; from 4 on weights need not be inputs
_SPATIAL = frozenset(
    "AveragePool BatchNormalization Conv ConvTranspose DepthToSpace GlobalAveragePool GlobalMaxPool "
    "InstanceNormalization LRN MaxPool SpaceToDepth".split()
)
_ACTIVATIONS = {
    name: name.lower() for name in "Celu Elu Gelu Mish PRelu Relu Selu Sigmoid Softmax Softplus Softsign Tanh".split()
} | {"HardSigmoid": "hard_sigmoid", "HardSwish": "hard_silu", "LeakyRelu": "leaky_relu", "LogSoftmax": "log_softmax"}
_VALUE_BY_VALUE = frozenset(
    [*_ACTIVATIONS, *"Add Cast Clip Concat Div Dropout Identity Max Min Mul Neg Pad Pow Resize Sqrt Sub Sum".split()]
)
_LAYERS = _SPATIAL | _ACTIVATIONS.keys() | {"Add", "Concat", "Gemm", "MatMul", "Sum"}
_TO_FIRST, _TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]
_ONE_OUTPUT = frozenset({"BatchNormalization", "Dropout", "MaxPool"})
_HEADS = re.compile(r"(StatefulPartitionedCall|PartitionedCall|model|functional|sequential)(_\d+)?")
"""Of TensorFlow's paths, what every layer has."""
_READABLE = re.compile(r"[\w.\-]{1,120}")


@dataclass(kw_only=True)
class ForeignLayer:
    """A layer of such a graph; `size` is (channels, height, width) or (units,)."""

    name: str
    kind: str
    tensor: str
    tensor_before: str
    activation: str | None
    size: tuple[int, ...]


def prepare(
    proto: onnx.ModelProto, size: tuple[int, int] | None = None
) -> tuple[onnx.ModelProto, tuple[int, int, int]]:
    """A copy with one input "image", (batch, channels, height, width) of any batch; and (height, width, channels).

    `size`: (height, width), for a graph that leaves them open.

    Raises:
        InputError, ConversionError: the graph is not one of a CNN, or does not show how it takes images.
    """
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < _OLDEST:
        raise ConversionError(f"the file is of opset {opset}: expected {_OLDEST} or later; export it anew")
    proto = type(proto).FromString(proto.SerializeToString())
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]  # old files list their weights there
    if len(inputs) != 1:
        raise InputError(f"the file takes {len(inputs)} inputs: expected one, of images")
    if proto.ir_version >= _IR_WITHOUT_INPUTS:
        _hold_constants(proto.graph)  # the way down from later opsets knows no constants
    if opset != OPSET:
        proto = _converted(proto, opset)
    proto.ir_version = max(proto.ir_version, _IR)
    for value in [value for value in proto.graph.input if value.name != inputs[0].name]:
        proto.graph.input.remove(value)
    _hold_constants(proto.graph)
    _drop_side_outputs(proto.graph)
    (image,) = proto.graph.input
    sizes = _sizes(image)
    is_image = image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and len(sizes) == 4
    if is_image:
        last = _input_layout(proto.graph, image.name) == "last"
        height, width, channels = sizes[1:] if last else (*sizes[2:], sizes[1])
        if size is not None:
            if (height, width) == size or (height not in (0, size[0])) or width not in (0, size[1]):
                raise InputError(
                    f"the file takes images of {height}×{width} (0: open), and size is {size}: expected a size "
                    "for what it leaves open alone"
                )
            height, width = size
            del proto.graph.value_info[:]  # which may name the open sizes
    if not is_image or min(height, width, channels) < 1:
        raise InputError(
            f"the input {image.name!r} is of shape {sizes} (0: open): expected float32 images, (batch, channels, "
            "height, width), with a fixed height and width; say which (--size HEIGHT WIDTH) where these are open, or "
            "export it anew with such an input"
        )
    if sizes[0] != 0:
        _open_batch(proto, sizes[0])
    _take_image(proto.graph, image.name, (channels, height, width), last)
    return proto, (height, width, channels)


def fix_reshapes(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give reshapes that work out their target from the image's shape a constant one; what is then unused goes.

    `shapes`: tensor → its shape for one image, of the tensors that have a row for each image.
    """
    graph = proto.graph
    weights = _constants(graph)
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] not in weights and node.output[0] in shapes:
            name = f"{node.output[0]}_target"
            target = np.asarray([-1, *shapes[node.output[0]]], np.int64)
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name
    needed = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):
        if needed & set(node.output):
            needed.update(node.input)
        else:
            graph.node.remove(node)


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """In the opset that onnx2torch knows most of.

    Where onnx knows no way down from a later one, the same operations are taken for those of the earlier opset, if they
    are valid there: most differ in the types that they admit. What comes of it is compared with the file itself.
    """
    try:
        return onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:  # of C++: anything
        if opset > OPSET:
            return _relabelled(proto)
        reason = " ".join(str(error).split())[:160]
        raise ConversionError(f"onnx cannot convert opset {opset} to {OPSET}: {reason}") from error


def _relabelled(proto: onnx.ModelProto) -> onnx.ModelProto:
    earlier = type(proto).FromString(proto.SerializeToString())
    del earlier.opset_import[:]
    earlier.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    try:
        onnx.checker.check_model(earlier, full_check=True)
    except Exception:
        return proto
    return earlier


def find_layers(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[ForeignLayer], str]:
    """The layers in the order of the graph, and the name of the first output's; `shapes` as in `fix_reshapes`.

    Every output of units or maps is a layer.
    """
    graph = proto.graph
    weights = _constants(graph)
    layouts: dict[str, str | None] = {"image": "first"}
    makers = {output: node for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    found: dict[str, ForeignLayer] = {}
    names: dict[str, str] = {}
    for node in graph.node:
        tensor = node.output[0]
        layouts.update(dict.fromkeys(node.output, _layout(node, layouts)))
        shape = shapes.get(tensor, ())
        fits = len(shape) == 1 or (len(shape) == 3 and layouts[tensor] == "first")
        own = [name for name in node.input if name not in weights]
        is_dense = node.op_type in ("Gemm", "MatMul") and len(own) == 1
        is_bias = node.op_type == "Add" and len(own) == 1
        if not fits or (node.op_type not in _LAYERS and not _is_relu6(node, weights)):
            continue
        if node.op_type in ("Gemm", "MatMul") and not is_dense:
            continue
        source = own[0] if own else ""
        if is_bias:  # part of the layer before it
            if source in found and found[source].kind in ("MatMul", "Conv", "Gemm") and readers[source] == 1:
                layer = found.pop(source)
                layer.tensor = layer.tensor_before = tensor
                found[tensor], names[tensor] = layer, names[source]
            continue
        activation = "relu6" if node.op_type == "Clip" else _ACTIVATIONS.get(node.op_type)
        name = _name(node, weights)
        before = source if activation is not None and source in makers and shapes.get(source) == shape else tensor
        merged = found.get(source)
        alike = merged is not None and merged.activation is None and name != "" and names[source] == name
        if activation and merged and alike and readers[source] == 1:  # one layer with its activation, as in Keras
            found[tensor], names[tensor] = found.pop(source), name
            merged.tensor, merged.activation = tensor, activation
            continue
        names[tensor] = name or node.op_type.lower()
        found[tensor] = ForeignLayer(
            name=names[tensor],
            kind=node.op_type,
            tensor=tensor,
            tensor_before=before,
            activation=activation if before != tensor else None,
            size=shape,
        )
    output, several = graph.output[0].name, len(graph.output) > 1
    for value in graph.output:
        tensor, shape = value.name, shapes.get(value.name, ())
        if tensor in found or tensor not in makers:
            continue
        if not (len(shape) == 1 or (len(shape) == 3 and layouts.get(tensor) == "first")):
            if tensor == output:
                raise ConversionError(f"the output {tensor!r} is of shape {shape} per image: expected units or maps")
            continue
        if len(makers[tensor].output) > 1:
            if tensor == output:
                raise ConversionError(
                    f"the output {tensor!r} is one of several of a {makers[tensor].op_type}: expected the only one"
                )
            continue
        found[tensor] = ForeignLayer(
            name=tensor if several and _READABLE.fullmatch(tensor) else "output",
            kind=makers[tensor].op_type,
            tensor=tensor,
            tensor_before=tensor,
            activation=None,
            size=shape,
        )
    layers = list(found.values())
    counts, numbers = Counter(layer.name for layer in layers), Counter[str]()
    for layer in layers:
        numbers[layer.name] += 1
        if counts[layer.name] > 1:
            layer.name = f"{layer.name}@{numbers[layer.name]}"
    return layers, found[output].name


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """A tensor's shape; 0 where it is open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _hold_constants(graph: onnx.GraphProto) -> None:
    """Constants, and weights under a second name, as weights."""
    constants, there = _constants(graph), {tensor.name for tensor in graph.initializer}
    for node in list(graph.node):
        if node.output[0] in constants and node.output[0] not in there:
            tensor = graph.initializer.add()
            tensor.CopyFrom(constants[node.output[0]])
            tensor.name = node.output[0]
            graph.node.remove(node)


def _drop_side_outputs(graph: onnx.GraphProto) -> None:
    """Outputs besides the first that nothing reads: of a dropout its mask, of a pooling its indices."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type in _ONE_OUTPUT and not read & set(node.output[1:]):
            del node.output[1:]


def _permutation(node: onnx.NodeProto) -> list[int]:
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])


def _input_layout(graph: onnx.GraphProto, name: str) -> str:
    """Where the input's channels lie, by what is first done with it."""
    reached = {name}
    for node in graph.node:
        if not reached & set(node.input):
            continue
        if node.op_type in _SPATIAL:
            return "first"
        if node.op_type == "Transpose" and _permutation(node) == _TO_FIRST:
            return "last"
        if node.op_type in _VALUE_BY_VALUE:
            reached.update(node.output)
    raise ConversionError(
        f"the graph does not show where the channels of {name!r} lie: expected a convolution or pooling of it, or a "
        "transposition that leads to one"
    )


def _layout(node: onnx.NodeProto, layouts: dict[str, str | None]) -> str | None:
    if node.op_type in _SPATIAL:
        return "first"
    if node.op_type == "Transpose":
        moves = {("first", 2): "last", ("last", 3): "first"}
        permutation, was = _permutation(node), layouts.get(node.input[0])
        return moves.get((str(was), permutation[1])) if permutation in (_TO_FIRST, _TO_LAST) else None
    if node.op_type in _VALUE_BY_VALUE:
        known = {layouts[name] for name in node.input if layouts.get(name) is not None}
        return known.pop() if len(known) == 1 else None
    return None


def _is_relu6(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type != "Clip" or len(node.input) != 3 or not {*node.input[1:]} <= weights.keys():
        return False
    low, high = (float(numpy_helper.to_array(weights[name])) for name in node.input[1:])
    return (low, high) == (0.0, 6.0)


def _name(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> str:
    """What a person calls the layer: by its weights' name, or by the path in the node's; "" where neither tells."""
    for name in node.input:
        if name in weights and name.endswith((".weight", "_weight")) and "::" not in name:
            return str(name[: -len(".weight")])
    kind = node.op_type.lower()
    parts = [part for part in node.name.split("/") if part]
    if len(parts) == 1 and re.fullmatch(rf"({kind}(_\d+)?|node_.*)", parts[0].lower()):
        return ""
    while len(parts) > 1 and _HEADS.fullmatch(parts[0]):
        del parts[0]
    if len(parts) > 1:
        del parts[-1]  # the operation
    if len(parts) > 1 and parts[-1] == "batchnorm":
        del parts[-1]
    found: list[str] = []
    for part in parts:
        if found and part.startswith(f"{found[-1]}."):  # PyTorch's names repeat the path
            found[-1] = part
        else:
            found.append(part)
    if kind in ("add", "concat", "sum") and found and "/" in node.name and not found[-1].lower().startswith(kind):
        found.append(kind)  # PyTorch's functions go by the module that calls them
    name = ".".join(found)
    return name if _READABLE.fullmatch(name) else ""


def _open_batch(proto: onnx.ModelProto, batch: int) -> None:
    """Let the graph take any number of images; whether it does then, the verification tells."""
    if batch != 1:
        raise ConversionError(f"the graph takes {batch} images at once: expected 1, or an open batch; export it anew")
    graph = proto.graph
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {value.name: _sizes(value) for value in [*inferred.value_info, *inferred.output, *inferred.input]}
    weights = _constants(graph)
    for number, node in enumerate([node for node in graph.node if node.op_type == "Reshape"]):
        if node.input[1] not in weights or shapes.get(node.input[0], [0])[:1] != [1]:
            continue
        target = numpy_helper.to_array(weights[node.input[1]]).astype(np.int64).copy()
        if target.size and target[0] == 1:
            target[0] = 0 if -1 in target else -1
            name = f"open_batch_{number}"
            graph.initializer.append(numpy_helper.from_array(target, name))
            node.input[1] = name
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_value")
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]


def _take_image(graph: onnx.GraphProto, name: str, shape: Sequence[int], last: bool) -> None:
    """One input "image", channels first; where the graph wants them last, a transposition goes before it."""
    used = {entry for node in graph.node for entry in [*node.input, *node.output]} | {t.name for t in graph.initializer}
    if "image" in used and name != "image":
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = ["image_of_graph" if entry == "image" else entry for entry in names]
    old = f"{name}_as_given" if last else "image"
    for node in graph.node:
        node.input[:] = [old if entry == name else entry for entry in node.input]
    if last:
        graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], [old], TO_LAST, perm=_TO_LAST))
    del graph.input[:]
    value: Any = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", *shape])
    graph.input.append(value)
