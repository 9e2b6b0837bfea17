"""How does an ONNX graph become a graph of torch modules, and which of its nodes makes which tensor?"""

from __future__ import annotations

import operator
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

from torch import Tensor, fx, nn

from oip_torch.base.errors import ConversionError
from oip_torch.network.converter import onnx2torch_module
from oip_torch.network.light import light_model

if TYPE_CHECKING:
    import onnx

__all__ = ["Reshape", "Resize", "nodes_by_tensor", "output_nodes", "to_torch"]


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


class Resize(nn.Module):
    """Maps of another size, given as such or by factors; `mode` is nearest, linear or cubic."""

    def __init__(
        self, mode: str, size: Sequence[int] | None, factors: Sequence[float] | None, align_corners: bool | None
    ) -> None:
        super().__init__()
        self.mode = {"nearest": "nearest", "linear": "bilinear", "cubic": "bicubic"}[mode]
        self.size, self.factors, self.align_corners = size, factors, align_corners

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same of another height and width."""
        return nn.functional.interpolate(x, self.size, self.factors, self.mode, self.align_corners)


_alone = threading.Lock()  # for what is changed for the time of a conversion


def to_torch(proto: onnx.ModelProto) -> fx.GraphModule:
    """The same function as an fx graph, each ONNX operation a module of its own; a `ConversionError` says which not.

    No copy of the weights is made but torch's. So the graph itself gets other names for the time that this takes, and
    its shapes; and is as it was in the end.
    """
    onnx2torch = onnx2torch_module()
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
            raise ConversionError(f"onnx2torch cannot convert this network: {reason}") from error
        finally:
            for node, name in zip(graph.node, names, strict=True):
                node.ClearField("name") if name is None else setattr(node, "name", name)
            del graph.value_info[:]
            graph.value_info.extend(known)
    fix_constants(module)
    return module


def _shapes(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Of all tensors, as ONNX infers them; large weights count as inputs there, since it copies a graph four times."""
    import onnx

    return list(onnx.shape_inference.infer_shapes(light_model(proto)).graph.value_info)


def fix_constants(module: fx.GraphModule) -> None:
    """Give operations the sizes, axes and factors that are constants as plain numbers, in place.

    onnx2torch reads them from tensors at every call: on a GPU each time host and device synchronise, and torch.compile
    and torch.export, where tensors have no values, fail.
    """
    for node in list(module.graph.nodes):
        part: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        names, make = _NUMBERED.get(type(part).__name__, ((), None))
        given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
        if make is None or any(value.op != "get_attr" for value in given.values()):
            continue
        constants = {name: operator.attrgetter(str(value.target))(module) for name, value in given.items()}
        new = make(part, {name: value.tolist() for name, value in constants.items() if value.numel()})
        new.onnx_mapping = part.onnx_mapping
        module.set_submodule(str(node.target), new.eval())
        node.args, node.kwargs = node.args[:1], {}
        for value in given.values():
            if not value.users:
                module.graph.erase_node(value)
                holder, _, name = str(value.target).rpartition(".")
                delattr(module.get_submodule(holder), name)
    module.recompile()


Numbers = dict[str, Any]


def _reshape(part: Any, given: Numbers) -> nn.Module:
    return Reshape(given["shape"])


def _pad(part: Any, given: Numbers) -> nn.Module:
    from onnx2torch.node_converters.pad import OnnxPadStatic

    fill = given.get("constant_value", 0.0)
    mode = "edge" if part.mode == "replicate" else part.mode
    fill = fill[0] if isinstance(fill, list) else fill
    made: nn.Module = OnnxPadStatic.create_from_onnx_params(given["pads"], mode, fill)
    return made


def _squeeze(part: Any, given: Numbers) -> nn.Module:
    from onnx2torch.node_converters.squeeze import OnnxSqueezeStaticAxes

    made: nn.Module = OnnxSqueezeStaticAxes(given.get("axes"))
    return made


def _unsqueeze(part: Any, given: Numbers) -> nn.Module:
    from onnx2torch.node_converters.unsqueeze import OnnxUnsqueezeStaticAxes

    made: nn.Module = OnnxUnsqueezeStaticAxes(given["axes"])
    return made


def _resize(part: Any, given: Numbers) -> nn.Module:
    size, factors = given.get("sizes"), given.get("scales")
    if (size or factors or [])[4:] or (factors or [1, 1])[:2] != [1, 1]:
        raise ConversionError("onnx2torch cannot convert this network: a Resize of other axes than height and width")
    return Resize(part.onnx_mode, size and size[2:], factors and factors[2:], part.align_corners)


def _dropout(part: Any, given: Numbers) -> nn.Module:
    return nn.Dropout(given.get("ratio", 0.5))


_NUMBERED: dict[str, tuple[tuple[str, ...], Callable[[Any, Numbers], nn.Module] | None]] = {
    "OnnxReshape": (("shape",), _reshape),
    "OnnxPadDynamic": (("pads", "constant_value"), _pad),
    "OnnxSqueezeDynamicAxes": (("axes",), _squeeze),
    "OnnxUnsqueezeDynamicAxes": (("axes",), _unsqueeze),
    "OnnxResize": (("roi", "scales", "sizes"), _resize),
    "OnnxDropoutDynamic": (("ratio", "training_mode"), _dropout),
}
"""Module of onnx2torch → its inputs after the first one, and what stands in for it where these are constants."""


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
