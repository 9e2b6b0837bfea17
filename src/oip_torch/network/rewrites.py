"""How is an ONNX graph rewritten so that onnx2torch takes it, without a change of what it computes?

Each rewrite is a function that looks at one node and gives the nodes that stand in for it, or None where it has nothing
to do. It needs the onnx package alone, so that the process of the export can run it, and what imports other people's
files as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

__all__ = ["rewrite_graph"]

_ENDLESS = 10**9  # what an end stands for that is none
_SPATIAL = 2  # axes before them: batch and channels

Nodes = list[onnx.NodeProto]


class _Graph:
    """What a rewrite may ask of the graph, and where it leaves new constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.constants: list[onnx.TensorProto] = []
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=15)
        self.weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
        for value in model.graph.input:  # large weights may stand aside
            self.weights[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]

    @cached_property
    def shapes(self) -> dict[str, list[int]]:
        """By tensor, 0 where a size is open; worked out when first asked, since that copies the weights."""
        graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        return {
            value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in [*graph.value_info, *graph.output, *graph.input]
        }

    @cached_property
    def makers(self) -> dict[str, onnx.NodeProto]:
        """By tensor, the node that makes it."""
        return {name: node for node in self.model.graph.node for name in node.output}

    def sizes(self, tensor: str) -> list[int] | None:
        """The tensor's spatial sizes, where all of them are known."""
        sizes = self.shapes.get(tensor, [])[_SPATIAL:]
        return sizes if sizes and all(sizes) else None

    def values(self, name: str) -> npt.NDArray[Any] | None:
        """Of a constant; None of what is computed."""
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                return np.asarray(numpy_helper.to_array(tensor))
        made = self.makers.get(name)
        if made is None or made.op_type != "Constant":
            return None
        value: onnx.TensorProto | None = _attributes(made).get("value")
        return None if value is None else np.asarray(numpy_helper.to_array(value))

    def constant(self, name: str, values: Any, dtype: type = np.int64) -> str:
        """A new constant; gives its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def rewrite_graph(model: onnx.ModelProto) -> dict[str, int]:
    """Rewrite the graph in place; gives how often each rewrite was applied, by its name."""
    counts: dict[str, int] = {}
    for name, (kinds, rewrite) in _REWRITES.items():
        graph = _Graph(model)
        new = {
            index: made
            for index, node in enumerate(model.graph.node)
            if node.op_type in kinds and (made := rewrite(node, graph)) is not None
        }
        if not new:
            continue
        counts[name] = len(new)
        nodes: Nodes = []
        for index, node in enumerate(model.graph.node):
            nodes.extend(new.get(index, [node]))
        nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]  # the list below owns them
        before = _unread(model)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(graph.constants)
        while dead := _unread(model) - before:  # what a rewrite has left without a reader
            kept = [node for node in model.graph.node if dead.isdisjoint(node.output)]
            kept = [type(node).FromString(node.SerializeToString()) for node in kept]
            del model.graph.node[:]
            model.graph.node.extend(kept)
    return counts


def _unread(model: onnx.ModelProto) -> set[str]:
    """The outputs of nodes none of whose outputs is read, or is the graph's."""
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    return {name for node in model.graph.node if read.isdisjoint(node.output) for name in node.output}


def _erfc(node: onnx.NodeProto, graph: _Graph) -> Nodes:
    """erfc(x) = 1 - erf(x); tf2onnx leaves TensorFlow's operation, which ONNX does not have."""
    erf, (out,) = f"{node.output[0]}/erf", node.output
    one = graph.constant(f"{out}/one", 1, np.float32)
    return [helper.make_node("Erf", list(node.input), [erf]), helper.make_node("Sub", [one, erf], [out])]


def _expm1(node: onnx.NodeProto, graph: _Graph) -> Nodes:
    """expm1(x) = exp(x) - 1; as `_erfc`."""
    exp, (out,) = f"{node.output[0]}/exp", node.output
    one = graph.constant(f"{out}/one", 1, np.float32)
    return [helper.make_node("Exp", list(node.input), [exp]), helper.make_node("Sub", [exp, one], [out])]


def _log1p(node: onnx.NodeProto, graph: _Graph) -> Nodes:
    """log1p(x) = log(1 + x); as `_erfc`."""
    plus, (out,) = f"{node.output[0]}/plus_one", node.output
    one = graph.constant(f"{out}/one", 1, np.float32)
    return [helper.make_node("Add", [node.input[0], one], [plus]), helper.make_node("Log", [plus], [out])]


def _global_max_pool(node: onnx.NodeProto, graph: _Graph) -> Nodes:
    """The largest value over height and width."""
    if graph.opset >= 18:
        axes = graph.constant(f"{node.output[0]}/axes", [2, 3])
        return [helper.make_node("ReduceMax", [node.input[0], axes], list(node.output), keepdims=1)]
    return [helper.make_node("ReduceMax", list(node.input), list(node.output), axes=[2, 3], keepdims=1)]


def _auto_pad(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """The padding in numbers, where only the rule was given (SAME_UPPER, SAME_LOWER, VALID) and sizes are known."""
    given = _attributes(node)
    rule = given.pop("auto_pad", b"NOTSET")
    rule = rule.decode() if isinstance(rule, bytes) else rule
    wanted = given.pop("output_shape", None) if node.op_type == "ConvTranspose" else None
    if rule in ("NOTSET", "") and wanted is None:
        return None
    sizes, kernel = graph.sizes(node.input[0]), _kernel(node, graph)
    if kernel is None or (sizes is None and rule != "VALID"):
        return None
    totals = [0] * len(kernel)
    if rule != "VALID":
        steps, spans = _steps(given, len(kernel)), _spans(given, kernel)
        assert sizes is not None
        if node.op_type == "ConvTranspose":
            more = given.get("output_padding") or [0] * len(kernel)
            wanted = wanted or [size * step for size, step in zip(sizes, steps, strict=True)]
            full = [(n - 1) * s + k + m for n, s, k, m in zip(sizes, steps, spans, more, strict=True)]
            totals = [all_ - want for all_, want in zip(full, wanted[-len(kernel) :], strict=True)]
            if min(totals) < 0:
                return None
        else:
            outs = [-(-size // step) for size, step in zip(sizes, steps, strict=True)]
            full = [(out - 1) * s + k for out, s, k in zip(outs, steps, spans, strict=True)]
            totals = [max(0, need - size) for need, size in zip(full, sizes, strict=True)]
    upper = rule == "SAME_UPPER"
    starts = [total // 2 if upper else total - total // 2 for total in totals]
    given["pads"] = starts + [total - start for total, start in zip(totals, starts, strict=True)]
    return [helper.make_node(node.op_type, list(node.input), list(node.output), **given)]


def _uneven_average_pool(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """Zeros around the image, the mean over whole windows, and that times window / pixels of the image in it.

    Both factors are whole numbers, so that nothing is rounded in the constants.
    """
    given = _attributes(node)
    pads, kernel = given.pop("pads", None), given["kernel_shape"]
    if not _is_uneven(pads) or given.get("ceil_mode") or (sizes := graph.sizes(node.input[0])) is None:
        return None
    (out,), half = node.output, len(kernel)
    steps, spans = _steps(given, half), _spans(given, kernel)
    widths = graph.constant(f"{out}/pads", [0, 0, *pads[:half], 0, 0, *pads[half:]])
    nodes = [helper.make_node("Pad", [node.input[0], widths], [f"{out}/padded"])]
    with_zeros = bool(given.pop("count_include_pad", 0))
    mean = out if with_zeros else f"{out}/mean"
    nodes.append(helper.make_node("AveragePool", [f"{out}/padded"], [mean], **given))
    if with_zeros:
        return nodes
    counts = np.ones((1, 1), np.float32)
    for size, before, after, step, span in zip(sizes, pads[:half], pads[half:], steps, spans, strict=True):
        inside = np.pad(np.ones(size, np.float32), (before, after))
        along = np.array([inside[i : i + span].sum() for i in range(0, len(inside) - span + 1, step)])
        counts = counts[..., None] * along
    whole = graph.constant(f"{out}/window", math.prod(kernel), np.float32)
    inside_ = graph.constant(f"{out}/pixels", counts, np.float32)
    nodes.append(helper.make_node("Mul", [mean, whole], [f"{out}/sum"]))
    return [*nodes, helper.make_node("Div", [f"{out}/sum", inside_], [out])]


def _uneven_conv_transpose(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """Without padding, which in a transposed convolution cuts its output; then that cut, as a negative padding.

    A negative padding at the end, as tf2onnx writes it, is an `output_padding`: rows and columns of the bias alone.
    """
    given = _attributes(node)
    pads = given.pop("pads", None)
    if not _is_uneven(pads):
        return None
    (out,), half = node.output, len(pads) // 2
    starts, ends = pads[:half], [max(0, n) for n in pads[half:]]
    if any(more := [max(0, -n) for n in pads[half:]]):
        there = given.get("output_padding") or [0] * half
        given["output_padding"] = [a + b for a, b in zip(there, more, strict=True)]
    if starts == ends:
        return [helper.make_node("ConvTranspose", list(node.input), [out], pads=[*starts, *ends], **given)]
    cut = graph.constant(f"{out}/cut", [0, 0, *(-n for n in starts), 0, 0, *(-n for n in ends)])
    whole = helper.make_node("ConvTranspose", list(node.input), [f"{out}/whole"], **given)
    return [whole, helper.make_node("Pad", [f"{out}/whole", cut], [out])]


def _slice(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """A cut of constant size as a selection, axis by axis: torch has no negative steps, as x[..., ::-1] has.

    And onnx2torch's slices index by a list, which torch announces to take for something else.
    """
    parts = [graph.values(name) for name in node.input[1:]]
    sizes = graph.shapes.get(node.input[0], [])
    if len(parts) < 2 or any(part is None for part in parts) or not sizes:
        return None
    starts, ends, *rest = (np.asarray(part).ravel().tolist() for part in parts)
    axes, steps = rest[0] if rest else list(range(len(starts))), rest[1] if len(rest) > 1 else [1] * len(starts)
    tensor, nodes = node.input[0], []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not sizes[axis]:
            if (start, step) != (0, 1) or end < _ENDLESS:
                return None
            continue
        end = None if step < 0 and end < -sizes[axis] else end  # before the first one
        chosen = range(sizes[axis])[start:end:step]
        if len(chosen) == 0:
            return None
        if chosen != range(sizes[axis]):
            order = graph.constant(f"{node.output[0]}/order_{axis}", list(chosen))
            nodes.append(helper.make_node("Gather", [tensor, order], [f"{node.output[0]}/cut_{axis}"], axis=axis))
            tensor = nodes[-1].output[0]
    if not nodes:
        return [helper.make_node("Identity", [tensor], list(node.output))]
    nodes[-1].output[:] = node.output
    return nodes


def _resize(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """The next larger scale, where rounding has made one so small that a row or column would be lost."""
    scales, sizes = graph.values(node.input[2]) if len(node.input) == 3 else None, graph.shapes.get(node.input[0], [])
    if scales is None or len(scales) != len(sizes):
        return None
    wanted = [round(size * float(scale)) for size, scale in zip(sizes, scales, strict=True)]
    larger = np.asarray(scales, np.float32).copy()
    for axis, (size, want) in enumerate(zip(sizes, wanted, strict=True)):
        while size and abs(size * float(scales[axis]) - want) < 1e-3 and int(size * float(larger[axis])) < want:
            larger[axis] = np.nextafter(larger[axis], np.float32(np.inf))
    if (larger == scales).all():
        return None
    name = graph.constant(f"{node.output[0]}/scales", larger, np.float32)
    return [helper.make_node("Resize", [*node.input[:2], name], list(node.output), **_attributes(node))]


def _product_of_rows(node: onnx.NodeProto, graph: _Graph) -> Nodes | None:
    """A dense layer along the last axis as one product.

    TensorFlow makes rows of all other axes for it, and undoes that, by sizes that are worked out as the network runs.
    """
    product = graph.makers.get(node.input[0])
    if product is None or product.op_type != "MatMul" or product.input[1] in graph.makers:
        return None
    rows = graph.makers.get(product.input[0])
    if rows is None or rows.op_type != "Reshape":
        return None
    weight, flat = graph.weights.get(product.input[1], []), graph.shapes.get(product.input[0], [])
    source, result = graph.shapes.get(rows.input[0], []), graph.shapes.get(node.output[0], [])
    known = len(weight) == 2 and len(source) > 2 and all([*weight, *source[1:]])
    if not known or [*source[1:-1], *weight] != [*result[1:-1], source[-1], *result[-1:]]:
        return None
    if len(flat) != 2 or flat[1] not in (0, weight[0]):  # of as many numbers as its weights take, 0 is open
        return None
    return [helper.make_node("MatMul", [rows.input[0], product.input[1]], list(node.output))]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _kernel(node: onnx.NodeProto, graph: _Graph) -> list[int] | None:
    given = _attributes(node).get("kernel_shape")
    if given is None and node.op_type in ("Conv", "ConvTranspose"):
        given = graph.weights.get(node.input[1], [])[_SPATIAL:]
    return list(given) if given else None


def _steps(attributes: dict[str, Any], count: int) -> list[int]:
    return list(attributes.get("strides") or [1] * count)


def _spans(attributes: dict[str, Any], kernel: list[int]) -> list[int]:
    """What a kernel covers of each axis, its gaps included."""
    gaps = attributes.get("dilations") or [1] * len(kernel)
    return [(size - 1) * gap + 1 for size, gap in zip(kernel, gaps, strict=True)]


def _is_uneven(pads: Any) -> bool:
    return pads is not None and list(pads[: len(pads) // 2]) != list(pads[len(pads) // 2 :])


_REWRITES: dict[str, tuple[frozenset[str], Callable[[onnx.NodeProto, _Graph], Nodes | None]]] = {
    "Erfc": (frozenset({"Erfc"}), _erfc),
    "Expm1": (frozenset({"Expm1"}), _expm1),
    "Log1p": (frozenset({"Log1p"}), _log1p),
    "GlobalMaxPool": (frozenset({"GlobalMaxPool"}), _global_max_pool),
    "auto_pad": (frozenset({"Conv", "MaxPool", "AveragePool", "ConvTranspose"}), _auto_pad),
    "AveragePool, uneven padding": (frozenset({"AveragePool"}), _uneven_average_pool),
    "ConvTranspose, uneven padding": (frozenset({"ConvTranspose"}), _uneven_conv_transpose),
    "Slice": (frozenset({"Slice"}), _slice),
    "Resize, rounded scale": (frozenset({"Resize"}), _resize),
    "MatMul of rows": (frozenset({"Reshape"}), _product_of_rows),
}
"""Name → the operations that it looks at, and the rewrite; applied in this order."""
