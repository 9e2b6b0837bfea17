"""How does a Keras network become an ONNX graph whose outputs are its layers?

The layers are found by watching the network run, not by their names: each leaf layer's `call` and `activation` are
wrapped, so that tracing the network hands over every layer's output, before and after its activation. That holds for
nested networks and shared layers as well, and the exported graph then has one output per layer, which also keeps
tf2onnx from folding any of them away.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from oip_torch.base.errors import ConversionError
from oip_torch.base.messages import one_line
from oip_torch.keras.aside import LargeWeights
from oip_torch.keras.network import Recorder, activation_name
from oip_torch.network.rewrites import rewrite_graph

__all__ = ["to_onnx"]

_ON_COPIES = "TF2ONNX_CATCH_ERRORS"  # tf2onnx's own variable
_OPSET = 15  # onnx2torch's registered operations are complete for 13 to 15


def to_onnx(
    recorder: Recorder, shape: tuple[int, int, int], folder: Path
) -> tuple[list[dict[str, Any]], int, dict[str, int]]:
    """Write `model.onnx` to the folder, and its large weights beside it.

    Gives a row per layer, the index of the output layer, and which rewrites were applied how often.
    """
    import onnx

    try:
        traced = _Traced(recorder, shape, LargeWeights(recorder.model))
        proto = traced.to_onnx()
    except ConversionError:
        raise
    except Exception:  # once more as tf2onnx does it by default: all weights inside, and without what failed in it
        traced = _Traced(recorder, shape, LargeWeights(recorder.model, any_size=False))
        proto = traced.to_onnx(careful=True)
    got = [entry.name for entry in proto.graph.input]
    if got[:1] != ["image"] or set(got[1:]) - {spec.name for spec in traced.weights.signature}:
        raise ConversionError(f"tf2onnx gave a graph with the inputs {got}: expected ['image'] and its weights alone")
    traced.weights.fold(proto)
    _store_shapes(proto)
    names = _name_layers(proto.graph, traced.rows)
    rewrites = rewrite_graph(proto)
    _drop_unused(proto.graph, names)
    own = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(own)  # tf2onnx lists ai.onnx.ml too, used or not
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ConversionError(f"tf2onnx gave a graph that ONNX rejects: {one_line(error)}") from None
    traced.weights.store(proto, folder)
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return traced.rows, traced.last, rewrites


class _Traced:
    """A network as a function of TensorFlow's that returns what all its layers return, and a row for each of these."""

    def __init__(self, recorder: Recorder, shape: tuple[int, int, int], weights: LargeWeights) -> None:
        import tensorflow as tf

        self.weights = weights
        self.rows: list[dict[str, Any]] = []
        self.last = 0
        self._taps_nchw: list[str] = []

        # Batch open, height and width fixed: open ones would give auto_pad, which onnx2torch refuses.
        signature = [tf.TensorSpec((None, *shape), tf.float32, name="image"), *weights.signature]

        @tf.function(input_signature=signature, autograph=False)  # type: ignore[untyped-decorator]
        def network(image: Any, *large: Any) -> dict[str, Any]:
            with weights.replaced_by(large):
                calls, self.last = recorder.run(image)
            return self._outputs(calls)

        self._network = network

    def _outputs(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        import tensorflow as tf

        outputs: dict[str, Any] = {}
        self.rows.clear()
        self._taps_nchw.clear()
        for index, call in enumerate(calls):
            after = call["after"]
            if not isinstance(after, tf.Tensor) or after.dtype != tf.float32:
                raise ConversionError(f"layer {call['id']!r} does not return one float32 tensor: cannot be converted")
            row = _row(call)
            for tap, tensor in ((f"tap_{index}", after), (f"tap_{index}_before", call["before"])):
                if tensor is None:
                    continue
                # Dropout and the like hand their input on: without an identity two outputs would be one.
                outputs[tap] = tf.identity(tensor)
                if len(tensor.shape) == 4:
                    self._taps_nchw.append(tap)
            row["tensor"] = f"tap_{index}"
            row["tensor_before"] = f"tap_{index}_before" if call["before"] is not None else None
            self.rows.append(row)
        return outputs

    def to_onnx(self, *, careful: bool = False) -> Any:
        """The graph; `careful`: on a copy for each of tf2onnx' optimisers, so that one that fails is left out."""
        import tf2onnx

        with _grouped_convolutions_without_xla():
            self._network.get_concrete_function()
        with _quick_optimisers(on_copies=careful):
            return tf2onnx.convert.from_function(
                self._network,
                input_signature=self._network.input_signature,
                opset=_OPSET,
                inputs_as_nchw=["image"],
                outputs_as_nchw=self._taps_nchw,
            )[0]


@contextlib.contextmanager
def _grouped_convolutions_without_xla() -> Iterator[None]:
    """Inside, Keras traces grouped convolutions as TensorFlow's operation and not as a function compiled by XLA.

    TensorFlow cannot run that operation on a CPU, but tf2onnx knows it, and knows no functions.
    """
    import tensorflow as tf
    from keras.src.backend.tensorflow import nn

    class Plain:
        function = staticmethod(lambda *args, **options: lambda inner: inner)

        def __getattr__(self, name: str) -> Any:
            return getattr(tf, name)

    before = nn.tf
    nn.tf = Plain()
    try:
        yield
    finally:
        nn.tf = before


@contextlib.contextmanager
def _quick_optimisers(*, on_copies: bool) -> Iterator[None]:
    """Inside, tf2onnx' optimisers work on the graph itself, and find what they need of it in one walk.

    By default it copies the graph before each of them, and walks back from each output anew to find what none of them
    needs: with an output for each layer that is most of the time.
    """
    from tf2onnx.graph import Graph

    def needed(graph: Any, outputs: Any, input_checker: Any = None, remove_unused_inputs: bool = True) -> list[Any]:
        if not remove_unused_inputs:
            outputs = [*outputs, *(entry.output[0] for entry in graph.inputs)]
        found: dict[str, Any] = {}
        open_names = list(outputs)
        while open_names:
            node = graph.get_node_by_output(open_names.pop(), search_in_parent_graphs=False)
            if node and node.name not in found and not (input_checker and input_checker(node) is False):
                found[node.name] = node
                open_names += [*node.input, *node.get_implicit_inputs()]
        return list(found.values())

    before = Graph.extract_sub_graph_nodes
    os.environ[_ON_COPIES] = str(on_copies).upper()
    Graph.extract_sub_graph_nodes = needed
    try:
        yield
    finally:
        Graph.extract_sub_graph_nodes = before
        del os.environ[_ON_COPIES]
        gc.collect()  # what was replaced hangs in cycles, which Python collects late


def _store_shapes(proto: Any) -> None:
    """Store the shapes that reshapes ask for as constants, (-1, …), where they only leave the batch open.

    Keras' Flatten asks for the batch size at run time: six nodes, among them a Slice that onnx2torch runs by an
    indexing which torch announces to change. In ONNX a shape is always a tensor; `network.onnx_graph` makes numbers of
    it, in torch.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *proto.graph.output]  # of the latter tf2onnx knows more
    }
    for node in proto.graph.node:
        shape = shapes.get(node.output[0], [])
        if node.op_type == "Reshape" and len(shape) > 1 and all(shape[1:]):
            constant = onnx.numpy_helper.from_array(np.array([-1, *shape[1:]], np.int64), f"{node.output[0]}/shape")
            proto.graph.initializer.append(constant)
            node.input[1] = constant.name


def _name_layers(graph: Any, rows: list[dict[str, Any]]) -> set[str]:
    """Call each layer's tensor by the layer's name, and make these the graph's outputs, in the order of the run.

    Gives these names, and those of the tensors before activations.

    tf2onnx puts some outputs behind an Identity, or behind a pair of Transposes that cancel: there the tensor that
    goes on through the network is named, so that what is captured is what the next layer sees.
    """
    producers = {output: node for node in graph.node for output in node.output}
    taps = [row["tensor"] for row in rows]
    names: dict[str, str] = {}  # tensor → its new name
    taken = {name for node in graph.node for name in node.output} | {"image"}
    for row in rows:
        wanted = {"tensor": row["name"], "tensor_before": f"{row['name']}/before_activation"}
        for key, name in wanted.items():
            if row[key] is None:
                continue
            tensor = _origin(row[key], producers)
            if tensor in names:  # Dropout hands its input on; an activation layer's input is the layer before it
                if key == "tensor_before":
                    row[key] = names[tensor]
                    continue
                node = graph.node.add(op_type="Identity", name=name, input=[tensor], output=[f"{tensor}/{name}"])
                tensor = node.output[0]
            if name in taken:
                raise ConversionError(f"the layer name {name!r} is also that of a tensor inside: rename the layer")
            names[tensor] = row[key] = name
            taken.add(name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    values = {value.name: value for value in graph.output}
    kept = []
    for tap, row in zip(taps, rows, strict=True):
        values[tap].name = row["tensor"]
        kept.append(values[tap])
    kept = [type(value).FromString(value.SerializeToString()) for value in kept]  # the list below owns them
    del graph.output[:], graph.value_info[:]
    graph.output.extend(kept)
    layers = {name for row in rows for name in (row["tensor"], row["tensor_before"]) if name is not None}
    _drop_unused(graph, layers)
    return layers


def _origin(tensor: str, producers: dict[str, Any]) -> str:
    """The earliest tensor that equals `tensor`, back through Identity and Transposes that cancel each other."""
    best, order = tensor, None
    while (node := producers.get(tensor)) is not None and node.op_type in ("Identity", "Transpose"):
        if node.op_type == "Transpose":
            perm = list(node.attribute[0].ints)
            order = perm if order is None else [perm[i] for i in order]
        tensor = node.input[0]
        if tensor in producers and (order is None or order == sorted(order)):
            best = tensor
    return best


def _drop_unused(graph: Any, layers: set[str]) -> None:
    """Remove the nodes and constants that no layer needs any more, before or after its activation."""
    needed = set(layers)
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    constants = [constant for constant in graph.initializer if constant.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(constants)


def _row(call: dict[str, Any]) -> dict[str, Any]:
    shape = [int(n) if n is not None else None for n in call["after"].shape]
    height, width = (shape[1], shape[2]) if len(shape) == 4 else (1, 1) if len(shape) == 2 else (shape[1], None)
    return {
        "name": call["id"],
        "kind": call["kind"],
        "maps": shape[-1],
        "height": height,
        "width": width,
        "activation": activation_name(call["layer"]),
    }
