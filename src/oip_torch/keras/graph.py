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
from typing import Any

import numpy as np

from oip_torch.base.errors import ConversionError
from oip_torch.base.messages import one_line
from oip_torch.keras.network import Recorder, activation_name
from oip_torch.network.rewrites import rewrite_graph

__all__ = ["to_onnx"]

_ON_COPIES = "TF2ONNX_CATCH_ERRORS"  # tf2onnx's own variable
_OPSET = 15  # onnx2torch's registered operations are complete for 13 to 15


def to_onnx(recorder: Recorder, shape: tuple[int, int, int]) -> tuple[bytes, list[dict[str, Any]], int, dict[str, int]]:
    """The ONNX bytes, a row per layer, the index of the output layer, and which rewrites were applied how often."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    rows: list[dict[str, Any]] = []
    taps_nchw: list[str] = []
    last = 0

    # Batch open, height and width fixed: open ones would give auto_pad, which onnx2torch refuses.
    @tf.function(input_signature=[tf.TensorSpec((None, *shape), tf.float32, name="image")])  # type: ignore[untyped-decorator]
    def network(image: Any) -> dict[str, Any]:
        nonlocal last
        calls, last = recorder.run(image)
        outputs: dict[str, Any] = {}
        rows.clear()
        taps_nchw.clear()
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
                    taps_nchw.append(tap)
            row["tensor"] = f"tap_{index}"
            row["tensor_before"] = f"tap_{index}_before" if call["before"] is not None else None
            rows.append(row)
        return outputs

    with _grouped_convolutions_without_xla():
        network.get_concrete_function()

    def convert() -> Any:
        return tf2onnx.convert.from_function(
            network,
            input_signature=network.input_signature,
            opset=_OPSET,
            inputs_as_nchw=["image"],
            outputs_as_nchw=taps_nchw,
        )[0]

    with _little_memory():
        try:
            proto = convert()
        except Exception:  # once more as tf2onnx does it by default: on copies, and without the optimiser that failed
            os.environ[_ON_COPIES] = "TRUE"
            proto = convert()
    got = [entry.name for entry in proto.graph.input]
    if got != ["image"]:
        raise ConversionError(f"tf2onnx gave a graph with the inputs {got}: expected ['image'] alone")
    _store_shapes(proto)
    names = _name_layers(proto.graph, rows)
    rewrites = rewrite_graph(proto)
    _drop_unused(proto.graph, names)
    own = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(own)  # tf2onnx lists ai.onnx.ml too, used or not
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ConversionError(f"tf2onnx gave a graph that ONNX rejects: {one_line(error)}") from None
    return proto.SerializeToString(), rows, last, rewrites


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
def _little_memory() -> Iterator[None]:
    """Inside, tf2onnx keeps no copies of the graph that are no longer needed.

    By default it copies the graph, weights included, before each of its optimisers; without that each of them writes
    all weights anew into the same messages, and protobuf frees nothing of a message while it lives. And what was
    replaced hangs in cycles that Python collects late; what is there already is left out of these collections, which
    would take seconds otherwise.
    """
    from tf2onnx import graph, optimizer

    update_proto = graph.Node.update_proto

    def update_new_proto(node: Any, *args: Any, **options: Any) -> None:
        old = node._op
        node._op = type(old)(op_type=old.op_type, name=old.name, domain=old.domain)
        update_proto(node, *args, **options)

    def collecting(factory: Any) -> Any:
        def make() -> Any:
            gc.collect()
            return factory()

        return make

    gc.freeze()
    os.environ[_ON_COPIES] = "FALSE"
    before = optimizer._optimizers
    optimizer._optimizers = {name: collecting(factory) for name, factory in before.items()}
    graph.Node.update_proto = update_new_proto
    try:
        yield
    finally:
        optimizer._optimizers = before
        graph.Node.update_proto = update_proto
        del os.environ[_ON_COPIES]
        gc.unfreeze()
        gc.collect()


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
