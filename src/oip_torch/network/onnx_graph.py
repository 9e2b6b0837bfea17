"""How does an ONNX graph become a graph of torch modules, and which of its nodes makes which tensor?"""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING, Any

from torch import fx

from oip_torch.base.errors import ConversionError

if TYPE_CHECKING:
    import onnx

__all__ = ["nodes_by_tensor", "output_nodes", "to_torch"]


def to_torch(proto: onnx.ModelProto) -> fx.GraphModule:
    """The same function as an fx graph, each ONNX operation a module of its own; a `ConversionError` says which not."""
    import onnx2torch  # takes seconds, since it imports torchvision: only when needed

    safe = type(proto).FromString(proto.SerializeToString())
    for index, node in enumerate(safe.graph.node):
        # fx writes module names into Python source and runs it: a name in an untrusted file could be any code.
        node.name = f"op{index}_" + re.sub(r"[^A-Za-z0-9_]", "_", node.output[0])[:60]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx2torch's own deprecated calls; its results are verified here
            module: fx.GraphModule = onnx2torch.convert(safe, attach_onnx_mapping=True)
    except Exception as error:  # on a valid graph NotImplementedError; on a crafted one anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConversionError(f"onnx2torch cannot convert this network: {reason}") from None
    return module


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
