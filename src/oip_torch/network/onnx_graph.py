"""How does an ONNX graph become a graph of torch modules, and which of its nodes makes which tensor?"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from oip_torch.base.errors import ConversionError

if TYPE_CHECKING:
    import onnx

__all__ = ["Reshape", "nodes_by_tensor", "output_nodes", "to_torch"]


class Reshape(nn.Module):
    """A reshape to a target that is known: -1 is worked out from the number of values, 0 is what was there."""

    def __init__(self, target: Sequence[int]) -> None:
        super().__init__()
        self.target = tuple(target)

    def extra_repr(self) -> str:
        """For the module's `repr`."""
        return str(self.target)

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor of as many values as the target → the same values, in the target's shape."""
        return x.reshape([x.shape[axis] if count == 0 else count for axis, count in enumerate(self.target)])


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
    fix_constants(module)
    return module


def fix_constants(module: fx.GraphModule) -> None:
    """Give reshapes and paddings whose target or widths are constants these as plain numbers, in place.

    onnx2torch reads them from tensors at every call: on a GPU each time host and device synchronise, and torch.compile
    and torch.export, where tensors have no values, fail.
    """
    from onnx2torch.node_converters.pad import OnnxPadDynamic, OnnxPadStatic
    from onnx2torch.node_converters.reshape import OnnxReshape

    for node in list(module.graph.nodes):
        part: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(part, (OnnxReshape, OnnxPadDynamic)) or node.kwargs:
            continue
        image, *constants = node.args
        if any(constant.op != "get_attr" for constant in constants):
            continue
        target, *value = (operator.attrgetter(str(constant.target))(module).tolist() for constant in constants)
        if isinstance(part, OnnxReshape):
            new: nn.Module = Reshape(target)
        else:
            mode = "edge" if part.mode == "replicate" else part.mode
            fill = float(value[0] if isinstance(value[0], (int, float)) else value[0][0]) if value else 0.0
            new = OnnxPadStatic.create_from_onnx_params(target, mode, fill)
        new.onnx_mapping = part.onnx_mapping
        module.set_submodule(str(node.target), new)
        node.args = (image,)
        for constant in constants:
            if not constant.users:
                module.graph.erase_node(constant)
                holder, _, name = str(constant.target).rpartition(".")
                delattr(module.get_submodule(holder), name)
    module.recompile()


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
