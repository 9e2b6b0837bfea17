"""How does a Keras file become an ONNX file whose outputs are the Keras layers?

Runs as `python -m oip_torch.keras.export FOLDER`, in a process of its own: the TensorFlow wheel and torch crash when
both are loaded (tensorflow#124205), and an untrusted file is better opened where it can do no harm.
The layers are found by watching the network run, not by their names: each leaf layer's `call` and `activation` are
wrapped, so that tracing the network hands over every layer's output, before and after its activation. That holds for
nested networks and shared layers as well, and the exported graph then has one output per layer, which also keeps
tf2onnx from folding any of them away.

The folder holds `job.json` (see `Job`) and receives `model.onnx` and `layers.json`, and then, file by file, what
TensorFlow computes on the probes: each layer for two images at a time, and a gradient in the end. Stdout tells of it, a
line each: "STAGE" is what is being done, ANSWER + NAME is a file that is ready; the next one is made once a line comes
on stdin, so that of a large network no more than two images' worth lies anywhere at one time.
A network that cannot be exported leaves `error.json` ({"kind": "InputError"|"ConversionError"|"Exception", "message":
TEXT}) and exit code 2.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.messages import one_line
from oip_torch.keras.classes import CONVOLUTIONS
from oip_torch.keras.network import Recorder, activation_name, in_dtype, limit_resources, load_network
from oip_torch.network.domain import Domain, find_domain
from oip_torch.network.probes import BEFORE, digits, noise
from oip_torch.network.rewrites import rewrite_graph

ANSWER = "\x1f"
"""What a line of stdout begins with that names a file."""
AT_A_TIME = 2
"""Images; more than one, so that a graph that mixes its images shows."""
_OPSET = 15  # onnx2torch's registered operations are complete for 13 to 15


class Job(TypedDict):
    """What is asked of the process.

    `size`: (height, width) of a network that leaves them open, or None. `noise`, `digits`: how many probes of each.
    `probes`: a file with images of pixel values in the place of digits, or None. `domain`: what is known of the domain.
    `dtype`: "float32"; or "float64" to have the answers alone, computed in that.
    """

    model: str
    size: list[int] | None
    noise: int
    digits: int
    probes: str | None
    domain: dict[str, Any]
    dtype: str


def _to_onnx(
    recorder: Recorder, shape: tuple[int, int, int]
) -> tuple[bytes, list[dict[str, Any]], int, dict[str, int]]:
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

    It copies the graph, weights included, before each of its optimisers, and the copies hang in cycles that Python
    collects late. What is there already is left out of the collections, which would take seconds otherwise.
    """
    import tf2onnx.optimizer

    class Collecting:
        @staticmethod
        def deepcopy(graph: Any) -> Any:
            gc.collect()
            return copy.deepcopy(graph)

    gc.freeze()
    before = tf2onnx.optimizer.copy
    tf2onnx.optimizer.copy = Collecting
    try:
        yield
    finally:
        tf2onnx.optimizer.copy = before
        gc.unfreeze()
        gc.collect()


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


def _probes(job: Job, shape: tuple[int, int, int], domain: Domain) -> np.ndarray:
    """Images in the network's own domain, noise first: far from there a layer may be silent, or show biases alone."""
    if job["probes"] is not None:
        pixels = np.load(job["probes"], allow_pickle=False)
        others = np.asarray(domain.of_pixels(pixels), np.float32)
    else:
        others = digits(job["digits"], shape, domain)
    return np.concatenate([domain.to_input(noise(job["noise"], shape)), others])


def _answers(recorder: Recorder, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What the network computes: every layer before and after its activation (NHWC), images by two, and a gradient.

    The gradient is that of one map's mean with respect to each image, for the deepest convolution and the map that
    responds most; before the activation where no map of the layer responds at all.
    """
    import tensorflow as tf

    parts = [images[start : start + AT_A_TIME] for start in range(0, len(images), AT_A_TIME)]
    deepest, silent = 0, True
    sums: dict[str, Any] = {}
    for part in parts:
        calls, _ = recorder.run(tf.constant(part))
        deepest = max(i for i, call in enumerate(calls) if call["kind"] in CONVOLUTIONS)
        arrays = {"images": part}
        for index, call in enumerate(calls):
            arrays[f"{index}"] = call["after"].numpy()
            if call["before"] is not None:
                arrays[f"{BEFORE}{index}"] = call["before"].numpy()
        silent = silent and not arrays[f"{deepest}"].any()
        for key, array in (("after", arrays[f"{deepest}"]), ("before", arrays.get(f"{BEFORE}{deepest}"))):
            if array is not None:
                sums[key] = sums.get(key, 0) + np.asarray(array, np.float64).mean((1, 2)).sum(0)
        del calls
        yield arrays
        del arrays
    which = "before" if silent and "before" in sums else "after"
    strongest = int(np.argmax(sums[which]))

    # In a function, so that what the image's gradient does not need is cut away: the gradients of the weights, where
    # TensorFlow's kernel for 1x1 convolutions with strides corrupts memory, and all layers behind.
    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), images.dtype)])  # type: ignore[untyped-decorator]
    def gradient(x: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            calls, _ = recorder.run(x)
            score = tf.reduce_sum(tf.reduce_mean(calls[deepest][which], (1, 2))[:, strongest])
        return tape.gradient(score, x)

    _say("differentiating it in TensorFlow")
    gradients = [gradient(tf.constant(part)).numpy() for part in parts]
    target = np.array([deepest, strongest, int(which == "before")])
    yield {"images": images, "gradient": np.concatenate(gradients), "gradient_target": target}


def _hand_over(folder: Path, name: str, arrays: dict[str, np.ndarray] | None = None) -> None:
    """Tell that a file is ready, written here first if it is one of arrays, and wait until it was read."""
    if arrays is not None:
        np.savez(folder / name, allow_pickle=False, **arrays)
    _say(ANSWER + name)
    sys.stdin.readline()


def _say(stage: str) -> None:
    print(stage, flush=True)


def main(folder: Path) -> None:
    """Export the network that `job.json` names; see the module's head for what is written."""
    limit_resources()
    job: Job = json.loads((folder / "job.json").read_text())
    _say("starting TensorFlow")
    import keras
    import onnx
    import tensorflow as tf
    import tf2onnx

    _say("reading the Keras network")
    height, width = job["size"] or (None, None)
    model = load_network(Path(job["model"]), (height, width) if height and width else None)
    rows, columns, channels = (int(n) for n in model.inputs[0].shape[1:])
    shape = rows, columns, channels
    # The recorder changes a network, which can no longer be copied then.
    recorder = Recorder(model if job["dtype"] == "float32" else in_dtype(model, job["dtype"]))
    if job["dtype"] == "float32":
        _say("writing it as ONNX")
        onnx_bytes, layers, last, rewrites = _to_onnx(recorder, shape)
        (folder / "model.onnx").write_bytes(onnx_bytes)
        del onnx_bytes
        domain = find_domain(shape, first_layers=recorder.first_layers(), **job["domain"])
        versions = {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tf2onnx": tf2onnx.__version__,
            "onnx": onnx.__version__,
        }
        description = {
            "input_shape": shape,
            "layers": layers,
            "output": last,
            "versions": versions,
            "domain": domain.to_dict(),
            "rewrites": rewrites,
        }
        (folder / "layers.json").write_text(json.dumps(description))
        _hand_over(folder, "layers.json")
    else:
        domain = Domain.from_dict(job["domain"])
    _say("running it in TensorFlow for reference")
    images = np.asarray(_probes(job, shape, domain), job["dtype"])
    for number, arrays in enumerate(_answers(recorder, images)):
        _hand_over(folder, f"answer_{number}.npz", arrays)


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
