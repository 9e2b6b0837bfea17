"""Of which shapes are the tensors of an ONNX graph, for one image and for two?

What onnx has in C++ runs over an untrusted file here: its checker, shape inference and version converter. So it runs in
a child process with limits (`find_shapes`), on the graph without its large weights.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any

import onnx

from oip_torch.base.bounded import BoundedError, run_bounded
from oip_torch.base.limits import Limits
from oip_torch.network.light import inputs_of, light_model

__all__ = ["Shape", "Shapes", "find_shapes", "try_conversion"]

Shape = tuple[int, ...]
Shapes = Mapping[str, tuple[Shape | None, Shape | None]]
"""Tensor → its shape for one image, and for two; -1 where a length is known only at run time, None where even the rank
is."""

_LIMITS = Limits(
    memory=1 << 30,
    processor_seconds=10,
    seconds=60.0,  # on a machine that is busy with other things
    file_bytes=64 << 20,
    open_files=64,
)
_MOST_VALUES = 1 << 10  # that are worked out of a tensor: shapes, axes and the like
_SHAPE_OPERATIONS = frozenset(
    "Add Cast Ceil Concat ConstantOfShape Div Equal Expand Floor Gather Greater Identity Less Max Min Mod Mul Neg "
    "Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Split Squeeze Sub Transpose Unsqueeze Where".split()
)
"""What exporters work out shapes with."""


def find_shapes(proto: onnx.ModelProto) -> Shapes:
    """The shapes of all tensors, weights included. The graph is valid then, as onnx's checker has it.

    Args:
        proto: a graph without control flow; the open length of its input is the number of images.

    Raises:
        ValueError: the graph is not valid, or its check came to no end; the text says why.
    """
    return _ask_child(proto, None)


def try_conversion(proto: onnx.ModelProto, opset: int) -> None:
    """Check a graph, infer its shapes and convert it to an opset, in the child process: what crashes there is refused.

    Raises:
        ValueError: as of `find_shapes`; a conversion that onnx knows no way for is none.
    """
    _ask_child(proto, opset)


def _ask_child(proto: onnx.ModelProto, convert_to: int | None) -> Shapes:
    return _find_shapes(light_model(proto).SerializeToString(deterministic=True), tuple(inputs_of(proto)), convert_to)


@functools.lru_cache(maxsize=8)  # a start of the child takes longer than to load a small network
def _find_shapes(model: bytes, images: tuple[str, ...], convert_to: int | None) -> Shapes:
    arguments = {"model": base64.b64encode(model).decode(), "images": list(images), "convert_to": convert_to}
    try:
        found, _ = run_bounded("oip_torch.network.shapes:in_child", arguments, _LIMITS)
        return {str(name): (_shape(one), _shape(two)) for name, (one, two) in found.items()}
    except BoundedError as error:
        raise ValueError(str(error)) from error


def _shape(value: Any) -> Shape | None:
    return None if value is None else tuple(int(length) for length in value)


def in_child(model: str, images: list[str], convert_to: int | None) -> tuple[Any, dict[str, Any]]:
    """What `find_shapes` asks of its child process: {tensor: [shape for one image, for two]}."""
    proto = onnx.ModelProto.FromString(base64.b64decode(model))
    onnx.checker.check_model(proto, full_check=True)
    if convert_to is not None:
        onnx.shape_inference.infer_shapes(proto, data_prop=True)
        with contextlib.suppress(
            Exception
        ):  # that it knows no way is no fault of the file; what counts is that it ends
            onnx.version_converter.convert_version(proto, convert_to)
        return {}, {}
    one, two = (_inferred(proto, images, count) for count in (1, 2))
    return {name: [one[name], two.get(name)] for name in one}, {}


def _inferred(proto: onnx.ModelProto, images: list[str], count: int) -> dict[str, list[int] | None]:
    """The shapes for so many images, node by node, with the values of what shapes depend on.

    onnx's own inference of whole graphs follows values through few operations, and believes what a file says of its
    tensors.
    """
    graph = proto.graph
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    types = {value.name: onnx.TypeProto.FromString(value.type.SerializeToString()) for value in graph.input}
    for name in images:
        lengths = types[name].tensor_type.shape.dim
        if lengths and not lengths[0].HasField("dim_value"):
            lengths[0].dim_value = count
    known = {tensor.name: tensor for tensor in graph.initializer}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    for node in graph.node:
        if any(name and name not in types for name in node.input):
            continue
        found = _infer_node(node, types, known, opset, proto.ir_version)
        types.update({name: kind for name, kind in found.items() if name})
        _work_out(node, types, known, opset)
    return {name: _lengths(kind) for name, kind in types.items()}


def _infer_node(
    node: onnx.NodeProto, types: dict[str, Any], known: dict[str, onnx.TensorProto], opset: int, ir_version: int
) -> dict[str, Any]:
    # The inference of these two is that of another operation's body, which is not looked into here.
    kind = {"LessOrEqual": "Less", "GreaterOrEqual": "Greater"}.get(node.op_type, node.op_type)
    if kind != node.op_type:
        node = onnx.NodeProto.FromString(node.SerializeToString())
        node.op_type = kind
    names = [name for name in node.input if name]
    found: dict[str, Any] = onnx.shape_inference.infer_node_outputs(
        onnx.defs.get_schema(kind, opset, ""),
        node,
        {name: types[name] for name in names},
        {name: known[name] for name in names if name in known},
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )
    return found


def _work_out(node: onnx.NodeProto, types: dict[str, Any], known: dict[str, onnx.TensorProto], opset: int) -> None:
    """Where a node's values follow from what is known, and are few, they are known too."""
    if node.op_type == "Constant":
        if node.attribute and node.attribute[0].HasField("t"):
            known[node.output[0]] = node.attribute[0].t
            return
    elif node.op_type in ("Shape", "Size"):
        lengths = _lengths(types[node.input[0]])
        if lengths is None or min(lengths, default=0) < 0:
            return
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        cut = slice(ends.get("start"), ends.get("end"))
        value = lengths[cut] if node.op_type == "Shape" else math.prod(lengths)
        known[node.output[0]] = onnx.helper.make_tensor(
            node.output[0], onnx.TensorProto.INT64, [len(value)] if isinstance(value, list) else [], _flat(value)
        )
        return
    elif node.op_type not in _SHAPE_OPERATIONS or not all(name in known for name in node.input if name):
        return
    sizes = [_lengths(types[name]) for name in node.output if name in types]
    if any(size is None or min(size, default=1) < 0 or math.prod(size) > _MOST_VALUES for size in sizes):
        return
    from onnx.reference import ReferenceEvaluator

    names = [name for name in dict.fromkeys(node.input) if name]
    graph = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name, type=types[name]) for name in names],
        [onnx.ValueInfoProto(name=name, type=types[name]) for name in node.output if name in types],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        values = ReferenceEvaluator(made).run(None, {name: onnx.numpy_helper.to_array(known[name]) for name in names})
    except Exception:  # of any operation: then it is known only at run time
        return
    for name, array in zip((name for name in node.output if name in types), values, strict=True):
        known[name] = onnx.numpy_helper.from_array(array, name)


def _flat(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def _lengths(kind: Any) -> list[int] | None:
    """-1: known only at run time."""
    if not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.tensor_type.shape.dim]
