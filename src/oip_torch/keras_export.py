"""How does a Keras file become an ONNX file whose outputs are the Keras layers?

Runs as `python -m oip_torch.keras_export FOLDER`, in a process of its own: the TensorFlow wheel and torch crash when
both are loaded (tensorflow#124205), and a file that nobody vouches for is better opened where it can do no harm. This
is the one module that imports TensorFlow.

The layers are found by watching the network run, not by their names: each leaf layer's `call` and `activation` are
wrapped, so that tracing the network hands over every layer's output, before and after its activation. That holds for
nested networks and shared layers as well, and the exported graph then has one output per layer, which also keeps
tf2onnx from folding any of them away.

The folder holds `job.json` ({"model": PATH, "noise": N, "digits": N, "mean": M|null, "std": S|null}) and receives
`model.onnx`, `layers.json` and `reference.npz`. Progress goes to stdout, a line each. A network that cannot be
exported leaves `error.json` and exit code 2.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from oip_torch.errors import ConversionError, InputError
from oip_torch.probes import digits, noise

_OPSET = 15  # onnx2torch's registered operations are complete for 13 to 15
_BEFORE = "before:"
_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./>-]*")  # TensorFlow's own rule
_ACTIVATION_LAYERS = {
    "Activation": None,
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "ELU": "elu",
    "Softmax": "softmax",
}


class _Recorder:
    """Runs a Keras network and keeps what each leaf layer returns, and what goes into its activation."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[dict[str, Any]] = []  # one entry per call of a leaf layer, in the order of the run
        self._path: list[str] = []
        self._open: list[dict[str, Any]] = []
        for layer in model._flatten_layers(include_self=False, recursive=True):
            self._watch(layer)

    def _watch(self, layer: Any) -> None:
        kind = type(layer).__name__
        inner = layer.call
        if hasattr(layer, "layers"):  # a network inside the network

            def call(*args: Any, **kwargs: Any) -> Any:
                self._path.append(layer.name)
                try:
                    return inner(*args, **kwargs)
                finally:
                    self._path.pop()

        elif kind == "InputLayer":
            return
        else:

            def call(*args: Any, **kwargs: Any) -> Any:
                entry = {"layer": layer, "name": "/".join([*self._path, layer.name]), "kind": kind, "before": None}
                if kind in _ACTIVATION_LAYERS:
                    entry["before"] = args[0]
                self._open.append(entry)
                try:
                    entry["after"] = inner(*args, **kwargs)
                finally:
                    self._open.pop()
                self.calls.append(entry)
                return entry["after"]

            activation = getattr(layer, "activation", None)
            if activation is not None and kind not in _ACTIVATION_LAYERS and _activation_name(layer) != "linear":

                def watched(x: Any) -> Any:
                    self._open[-1]["before"] = x
                    return activation(x)

                layer.activation = watched
                layer._oip_activation = _name_of(activation)
        layer.call = call

    def run(self, images: Any) -> tuple[list[dict[str, Any]], int]:
        """Every call's entry, named uniquely, and the index of the one that makes the network's (first) output."""
        self.calls = []
        output = self.model(images, training=False)
        first = output
        while isinstance(first, (list, tuple, dict)):
            first = next(iter(first.values())) if isinstance(first, dict) else first[0]
        last = next((i for i in reversed(range(len(self.calls))) if self.calls[i]["after"] is first), -1)
        counts = Counter(call["name"] for call in self.calls)
        seen: Counter[str] = Counter()
        for call in self.calls:
            name = call["name"]
            seen[name] += 1
            # A layer called twice has two outputs: neither may pass for "the" layer.
            call["id"] = f"{name}@{seen[name]}" if counts[name] > 1 else name
        return self.calls, last % len(self.calls)


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _activation_name(layer: Any) -> str | None:
    """ "relu", "linear" …; None for a layer that has no activation."""
    if type(layer).__name__ in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[type(layer).__name__] or _name_of(layer.activation)
    if hasattr(layer, "_oip_activation"):
        return str(layer._oip_activation)
    return _name_of(layer.activation) if getattr(layer, "activation", None) is not None else None


def _load(path: Path) -> Any:
    import keras

    try:
        model = keras.models.load_model(path, compile=False)  # safe_mode stays on, as is the default
    except Exception as error:
        raise InputError(f"Keras cannot load {path.name}: {_one_line(error)}; save it again with Keras 3") from None
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise InputError(f"{path.name} was never built: expected a network with a known input; add keras.Input first")
    if len(inputs) != 1:
        names = ", ".join(tensor.name for tensor in inputs)
        raise InputError(f"{path.name} has {len(inputs)} inputs ({names}): expected one image input")
    shape = tuple(inputs[0].shape)
    if len(shape) != 4 or shape[3] not in (1, 3, 4):
        raise InputError(
            f"{path.name} takes inputs of shape {shape}: expected images (batch, height, width, 1, 3 or 4 channels)"
        )
    if shape[1] is None or shape[2] is None:
        raise InputError(
            f"{path.name} leaves height or width open (input {shape}): expected a fixed size; "
            "rebuild it with keras.Input((height, width, channels)) and copy the weights"
        )
    if shape[1] * shape[2] == 1:
        raise InputError(f"{path.name} takes images of one pixel (input {shape}): expected larger ones")
    if inputs[0].dtype != "float32":
        raise InputError(f"{path.name} takes {inputs[0].dtype} images: expected float32")
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if not _SCOPE_NAME.fullmatch(layer.name):
            raise InputError(
                f"{path.name}: TensorFlow cannot trace a layer or model named {layer.name!r}: expected letters, "
                "digits, _ . and - alone, the first a letter or digit; rename it and save the model again"
            )
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise InputError(f"layer {layer.name!r} is channels_first: expected channels_last throughout")
        if layer.compute_dtype != "float32":
            raise InputError(f"layer {layer.name!r} computes in {layer.compute_dtype}: expected float32 throughout")
    for weight in model.weights:
        if not np.isfinite(np.asarray(weight.value)).all():
            raise InputError(f"{path.name}: the weights {weight.path} hold NaN or infinity: expected finite numbers")
    return model


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _to_onnx(recorder: _Recorder, shape: tuple[int, int, int]) -> tuple[bytes, list[dict[str, Any]], int]:
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
    _fix_reshapes(proto)
    _name_layers(proto.graph, rows)
    own = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    del proto.opset_import[:]
    proto.opset_import.extend(own)  # tf2onnx lists ai.onnx.ml too, used or not
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ConversionError(f"tf2onnx gave a graph that ONNX rejects: {_one_line(error)}") from None
    return proto.SerializeToString(), rows, last


def _fix_reshapes(proto: Any) -> None:
    """Write shapes that only leave the batch open as constants, (-1, …).

    Keras' Flatten asks for the batch size at run time: six nodes, among them a Slice that onnx2torch runs by an
    indexing which torch announces to change.
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
        "activation": _activation_name(call["layer"]),
    }


def _reference(recorder: _Recorder, images: np.ndarray, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """What TensorFlow computes: every layer before and after its activation (NHWC), and a gradient.

    The gradient is that of one map's mean with respect to each image, for the deepest convolution and the map that
    responds most; before the activation where no map of the layer responds at all.
    """
    import tensorflow as tf

    from oip_torch.keras_file import CONVOLUTIONS

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
            arrays[f"{_BEFORE}{index}"] = call["before"].numpy()
    return arrays


def _limit_resources() -> None:
    """Bound what an unknown file can take: no core dumps, no endless files, three quarters of the memory."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 30, 16 << 30))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_DATA, (memory * 3 // 4, memory * 3 // 4))


def _say(stage: str) -> None:
    print(stage, flush=True)


def main(folder: Path) -> None:
    """Export the network that `job.json` names; see the module's head for what is written."""
    _limit_resources()
    job = json.loads((folder / "job.json").read_text())
    _say("starting TensorFlow")
    import keras
    import onnx
    import tensorflow as tf
    import tf2onnx

    _say("reading the Keras network")
    model = _load(Path(job["model"]))
    height, width, channels = (int(n) for n in model.inputs[0].shape[1:])
    shape = height, width, channels
    recorder = _Recorder(model)
    _say("writing it as ONNX")
    onnx_bytes, rows, last = _to_onnx(recorder, shape)
    _say("running it in TensorFlow for reference")
    scale = {} if job["mean"] is None else {"mean": np.array(job["mean"]), "std": np.array(job["std"])}
    images = np.concatenate([noise(job["noise"], shape), digits(job["digits"], shape, **scale)])
    np.savez(folder / "reference.npz", allow_pickle=False, **_reference(recorder, images, rows))
    (folder / "model.onnx").write_bytes(onnx_bytes)
    versions = {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "tf2onnx": tf2onnx.__version__,
        "onnx": onnx.__version__,
    }
    description = {"input_shape": shape, "layers": rows, "output": last, "versions": versions}
    (folder / "layers.json").write_text(json.dumps(description))


if __name__ == "__main__":
    work = Path(sys.argv[1])
    try:
        main(work)
    except InputError as error:
        kind = type(error).__name__
        (work / "error.json").write_text(json.dumps({"kind": kind, "message": str(error)}))
        sys.exit(2)
