"""How does an ONNX graph become small: without its large weights, and without what is said beside it?"""

from __future__ import annotations

import math

import onnx

__all__ = ["inputs_of", "light_model"]

_LARGE = 1 << 10
"""Numbers; of a larger constant no shape depends on the values."""


def inputs_of(proto: onnx.ModelProto) -> list[str]:
    """Names of the graph's inputs; early files list their weights there too, which are none."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return [value.name for value in proto.graph.input if value.name not in weights]


def light_model(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, in which each large weight is an input of its shape; no copy of these is made on the way."""
    graph = proto.graph
    light = onnx.ModelProto(ir_version=max(4, proto.ir_version), opset_import=proto.opset_import)
    light.graph.name = graph.name
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _LARGE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(_as_input(tensor, tensor.name))
    for node in graph.node:
        large = node.op_type == "Constant" and node.attribute and math.prod(node.attribute[0].t.dims) > _LARGE
        if large and len(node.output) == 1:
            light.graph.input.append(_as_input(node.attribute[0].t, node.output[0]))
        else:
            added = light.graph.node.add(op_type=node.op_type, domain=node.domain, name=node.name)
            added.input.extend(node.input)
            added.output.extend(node.output)
            added.attribute.extend(node.attribute)
    return light


def _as_input(tensor: onnx.TensorProto, name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)
