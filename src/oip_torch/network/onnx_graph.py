"""How does an ONNX graph become a graph of torch modules, and which of its nodes makes which tensor?"""

from __future__ import annotations

import math
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch import fx

from oip_torch.base.errors import ConversionError

if TYPE_CHECKING:
    import onnx

__all__ = ["nodes_by_tensor", "output_nodes", "to_torch"]


_LARGE = 1 << 10  # elements; of a larger constant no shape depends on the values
_alone = threading.Lock()  # for what is changed for the time of a conversion


def to_torch(proto: onnx.ModelProto) -> fx.GraphModule:
    """The same function as an fx graph, each ONNX operation a module of its own; a `ConversionError` says which not.

    No copy of the weights is made but torch's. So the graph itself gets other names for the time that this takes, and
    its shapes; and is as it was in the end.
    """
    import onnx2torch  # takes seconds, since it imports torchvision: only when needed

    graph = proto.graph
    with _alone:
        names = [node.name if node.HasField("name") else None for node in graph.node]
        known = [type(value).FromString(value.SerializeToString()) for value in graph.value_info]
        try:
            for index, node in enumerate(graph.node):
                # fx writes module names into Python source and runs it: a name in an untrusted file could be any code.
                node.name = f"op{index}_" + re.sub(r"[^A-Za-z0-9_]", "_", node.output[0])[:60]
            shapes = _shapes(proto)
            del graph.value_info[:]
            graph.value_info.extend(shapes)
            with (
                warnings.catch_warnings(),
                mock.patch.object(onnx2torch.converter, "safe_shape_inference", lambda model: model),
            ):
                warnings.simplefilter("ignore")  # onnx2torch's own deprecated calls; its results are verified here
                module: fx.GraphModule = onnx2torch.convert(proto, attach_onnx_mapping=True)
        except Exception as error:  # on a valid graph NotImplementedError; on a crafted one anything
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConversionError(f"onnx2torch cannot convert this network: {reason}") from None
        finally:
            for node, name in zip(graph.node, names, strict=True):
                node.ClearField("name") if name is None else setattr(node, "name", name)
            del graph.value_info[:]
            graph.value_info.extend(known)
    return module


def _shapes(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Of all tensors, as ONNX infers them; large weights count as inputs there, since it copies a graph four times."""
    import onnx

    graph = proto.graph
    light = onnx.ModelProto(ir_version=max(4, proto.ir_version), opset_import=proto.opset_import)
    light.graph.name = graph.name
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    inputs = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _LARGE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return list(onnx.shape_inference.infer_shapes(light).graph.value_info)


def nodes_by_tensor(module: fx.GraphModule) -> dict[str, str]:
    """ONNX tensor → name of the fx node that makes it (tensor names are unique, layer and node names are not)."""
    nodes: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            mapping: Any = module.get_submodule(str(node.target)).onnx_mapping
            nodes.update(dict.fromkeys(mapping.outputs, node.name))
    return nodes


def output_nodes(module: fx.GraphModule) -> list[str]:
    """Names of the nodes that the graph returns, in order."""
    outputs: Any = next(node for node in module.graph.nodes if node.op == "output").args[0]
    return [node.name for node in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]
