"""How does an ONNX graph of any opset become one of the opset that onnx2torch knows most of?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import helper, numpy_helper

from oip_torch.base.errors import ConversionError

__all__ = ["constants_of", "drop_allowzero", "hold_constants", "in_known_opset"]

_OPSET = 17  # what onnx2torch registers covers 13 to 17; reductions and poolings of later ones it does not know
_OLDEST = 7
_COMPOUND = frozenset(
    "AffineGrid CastLike Gelu GroupNormalization MeanVarianceNormalization Mish RMSNormalization Shrink Swish "
    "ThresholdedRelu".split()
)
"""Operations that onnx2torch does not know, and that ONNX itself defines by others."""
_REDUCTIONS = frozenset(f"Reduce{kind}" for kind in "L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare".split())
_NUMBERS = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
_SCOPES = "pkg.torch.onnx.name_scopes"


def in_known_opset(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in that opset, or the graph itself where there is no way; what it computes is to be verified.

    Args:
        proto: constants are to be initialisers. It is changed.

    Raises:
        ConversionError: too old, or of an earlier opset without a way up.
    """
    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < _OLDEST:
        raise ConversionError(f"the file is of opset {opset}: expected {_OLDEST} or later; export it anew")
    _name_by_scopes(proto.graph)
    drop_allowzero(proto.graph)
    if any(node.op_type in _COMPOUND for node in proto.graph.node):
        proto = _inlined(proto)
    if opset > _OPSET:
        return _lowered(proto, opset)
    if opset == _OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _OPSET)
    except Exception as error:  # of C++: anything
        reason = " ".join(str(error).split())[:160]
        raise ConversionError(f"onnx cannot convert opset {opset} to {_OPSET}: {reason}") from error


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Tensor → its values, of weights, of constants, and of both under a second name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute:
            value = helper.get_attribute_value(node.attribute[0])
            if isinstance(value, onnx.TensorProto):
                constants[node.output[0]] = value
            elif node.attribute[0].name in _NUMBERS:
                array = np.asarray(value, _NUMBERS[node.attribute[0].name])
                constants[node.output[0]] = numpy_helper.from_array(array)
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def hold_constants(graph: onnx.GraphProto) -> None:
    """Constants, and weights under a second name, as weights."""
    constants, there = constants_of(graph), {tensor.name for tensor in graph.initializer}
    for node in list(graph.node):
        if node.output[0] in constants and node.output[0] not in there:
            tensor = graph.initializer.add()
            tensor.CopyFrom(constants[node.output[0]])
            tensor.name = node.output[0]
            graph.node.remove(node)


def drop_allowzero(graph: onnx.GraphProto) -> None:
    """Of reshapes to a constant target without a 0, where it says nothing; onnx2torch refuses it."""
    targets = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in targets:
            for attribute in [entry for entry in node.attribute if entry.name == "allowzero"]:
                if 0 not in numpy_helper.to_array(targets[node.input[1]]):
                    node.attribute.remove(attribute)


def _name_by_scopes(graph: onnx.GraphProto) -> None:
    """PyTorch's exporter names nodes by number, and says in their metadata which modules called each."""
    for number, node in enumerate(graph.node):
        for entry in node.metadata_props:
            if entry.key == _SCOPES:
                scopes = [scope for scope in re.findall(r"'([^']*)'", entry.value)[:-1] if scope]
                node.name = "/".join(["", *scopes, f"{node.op_type}_{number}"])


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Compound operations become those that define them, in the opset of the file."""
    typed = type(proto).FromString(proto.SerializeToString())
    inputs = [value.name for value in typed.graph.input]
    for tensor in typed.graph.initializer:  # a definition depends on types, and weights have one as inputs alone
        if tensor.name not in inputs:
            typed.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    names = [("", kind) for kind in sorted(_COMPOUND)]
    try:
        made = onnx.inliner.inline_selected_functions(typed, names, inline_schema_functions=True)
    except Exception as error:  # of C++: anything
        raise ConversionError(f"onnx cannot take this graph apart: {' '.join(str(error).split())[:160]}") from error
    kept = [value for value in made.graph.input if value.name in inputs]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    hold_constants(made.graph)
    return made


def _lowered(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Each operation in the form that it had: onnx's own way down knows some alone, and leaves what is invalid there.

    Most operations of later opsets differ in the types that they admit, and stay as they are.
    """
    lower = type(proto).FromString(proto.SerializeToString())
    constants = {tensor.name: tensor for tensor in lower.graph.initializer}
    for node in lower.graph.node:
        if node.op_type in _REDUCTIONS and len(node.input) == 2 and node.input[1] in constants:
            axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
            if axes:
                node.attribute.append(helper.make_attribute("axes", axes))
                del node.input[1]
        _drop_defaults(node, opset)
    del lower.opset_import[:]
    lower.opset_import.append(helper.make_opsetid("", _OPSET))
    try:
        onnx.checker.check_model(lower, full_check=True)
    except Exception:  # of C++: an operation that has no such form
        return proto
    return lower


def _drop_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Attributes that the earlier operation has not, where they say what it does anyway."""
    try:
        earlier = onnx.defs.get_schema(node.op_type, _OPSET, node.domain).attributes
        own = onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
    except onnx.defs.SchemaError:
        return
    for attribute in [attribute for attribute in node.attribute if attribute.name not in earlier]:
        default = own[attribute.name].default_value if attribute.name in own else None
        # The number of parts of a Split is that of its outputs; unequal parts it cannot say otherwise, and then
        # the rewritten graph is not valid.
        is_default = _value(attribute) == _value(default) or (
            attribute.name == "dilations" and set(attribute.ints) == {1}  # whose default the schema says in words
        )
        if is_default or (node.op_type, attribute.name) == ("Split", "num_outputs"):
            node.attribute.remove(attribute)


def _value(attribute: onnx.AttributeProto | None) -> Any:
    return None if attribute is None or not attribute.type else helper.get_attribute_value(attribute)
