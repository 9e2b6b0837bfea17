"""How does a Keras file become an ONNX file whose outputs are the Keras layers?

Runs as `python -m oip_torch.keras.export FOLDER`, in a process of its own: the TensorFlow wheel and torch crash when
both are loaded (tensorflow#124205), and an untrusted file is better opened where it can do no harm.
The layers are found by watching the network run, not by their names: each leaf layer's `call` and `activation` are
wrapped, so that tracing the network hands over every layer's output, before and after its activation. That holds for
nested networks and shared layers as well, and the exported graph then has one output per layer, which also keeps
tf2onnx from folding any of them away.

The folder holds `job.json` ({"model": PATH, "noise": N, "digits": N, "domain": WHAT IS GIVEN OF IT}) and receives
`model.onnx`, `layers.json` and `reference.npz`. Progress goes to stdout, a line each. A network that cannot be
exported leaves `error.json` ({"kind": "InputError"|"ConversionError"|"Exception", "message": TEXT}) and exit code 2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.messages import one_line
from oip_torch.keras.network import Recorder, activation_name, limit_resources, load_network
from oip_torch.network.domain import find_domain
from oip_torch.network.probes import BEFORE, digits, noise

_OPSET = 15  # onnx2torch's registered operations are complete for 13 to 15


def _to_onnx(recorder: Recorder, shape: tuple[int, int, int]) -> tuple[bytes, list[dict[str, Any]], int]:
    """The ONNX bytes, a row per layer, and the index of the output layer."""
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

    network.get_concrete_function()
    proto, _ = tf2onnx.convert.from_function(
        network,
        input_signature=network.input_signature,
        opset=_OPSET,
        inputs_as_nchw=["image"],
        outputs_as_nchw=taps_nchw,
    )
    got = [entry.name for entry in proto.graph.input]
    if got != ["image"]:
        raise ConversionError(f"tf2onnx gave a graph with the inputs {got}: expected ['image'] alone")
    _store_shapes(proto)
    _name_layers(proto.graph, rows)
    own = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(own)  # tf2onnx lists ai.onnx.ml too, used or not
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ConversionError(f"tf2onnx gave a graph that ONNX rejects: {one_line(error)}") from None
    return proto.SerializeToString(), rows, last


def _store_shapes(proto: Any) -> None:
    """Store the shapes that reshapes ask for as constants, (-1, …), where they only leave the batch open.

    Keras' Flatten asks for the batch size at run time: six nodes, among them a Slice that onnx2torch runs by an
    indexing which torch announces to change. In ONNX a shape is always a tensor, which
    onnx2torch's Reshape reads from the device at every call; so `network.passes` has to fix reshapes as well, in torch.
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


def _name_layers(graph: Any, rows: list[dict[str, Any]]) -> None:
    """Call each layer's tensor by the layer's name, and make these the graph's outputs, in the order of the run.

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
    _drop_unused(graph, {name for row in rows for name in (row["tensor"], row["tensor_before"]) if name is not None})


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


def _reference(recorder: Recorder, images: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What TensorFlow computes: every layer before and after its activation (NHWC), and a gradient.

    The gradient is that of one map's mean with respect to each image, for the deepest convolution and the map that
    responds most; before the activation where no map of the layer responds at all.
    """
    import tensorflow as tf

    from oip_torch.keras.file import CONVOLUTIONS

    arrays: dict[str, np.ndarray] = {"images": images}
    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        calls, _ = recorder.run(x)
        deepest = max(i for i, row in enumerate(rows) if row["kind"] in CONVOLUTIONS)
        call = calls[deepest]
        target = call["after"]
        silent = not bool(tf.reduce_any(target != 0))
        if silent and call["before"] is not None:
            target = call["before"]
        maps = tf.reduce_mean(target, (1, 2))
        strongest = int(tf.argmax(tf.reduce_mean(maps, 0)))
        score = tf.reduce_sum(maps[:, strongest])
    arrays["gradient"] = tape.gradient(score, x).numpy()
    arrays["gradient_target"] = np.array([deepest, strongest, int(silent)])
    for index, call in enumerate(calls):
        arrays[f"{index}"] = call["after"].numpy()
        if call["before"] is not None:
            arrays[f"{BEFORE}{index}"] = call["before"].numpy()
    return arrays


def _say(stage: str) -> None:
    print(stage, flush=True)


def main(folder: Path) -> None:
    """Export the network that `job.json` names; see the module's head for what is written."""
    limit_resources()
    job = json.loads((folder / "job.json").read_text())
    _say("starting TensorFlow")
    import keras
    import onnx
    import tensorflow as tf
    import tf2onnx

    _say("reading the Keras network")
    model = load_network(Path(job["model"]))
    height, width, channels = (int(n) for n in model.inputs[0].shape[1:])
    shape = height, width, channels
    recorder = Recorder(model)
    _say("writing it as ONNX")
    onnx_bytes, rows, last = _to_onnx(recorder, shape)
    _say("running it in TensorFlow for reference")
    domain = find_domain(shape, first_layers=recorder.first_layers(), **job["domain"])
    # Probes lie where the network's data do: far from there a layer may be silent, or show its biases alone.
    images = np.concatenate([domain.to_input(noise(job["noise"], shape)), digits(job["digits"], shape, domain)])
    np.savez(folder / "reference.npz", allow_pickle=False, **_reference(recorder, images, rows))
    (folder / "model.onnx").write_bytes(onnx_bytes)
    versions = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tf2onnx": tf2onnx.__version__,
        "onnx": onnx.__version__,
    }
    description = {
        "input_shape": shape,
        "layers": rows,
        "output": last,
        "versions": versions,
        "domain": domain.to_dict(),
    }
    (folder / "layers.json").write_text(json.dumps(description))


if __name__ == "__main__":
    work = Path(sys.argv[1])
    try:
        main(work)
    except InputError as error:
        kind, message = type(error).__name__, str(error)
    except Exception as error:  # of TensorFlow or tf2onnx: its reason, which need not be stderr's last line
        kind, message = "Exception", f"{type(error).__name__}: {one_line(error)}"
    else:
        sys.exit()
    (work / "error.json").write_text(json.dumps({"kind": kind, "message": message}))
    sys.exit(2)
