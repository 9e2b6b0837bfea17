"""How is a Keras network loaded, and how does one see inside it while it runs?

Whatever Keras' backend is; shared by the export and by the runtimes that Keras has. Imported only in processes of
their own: Keras' TensorFlow and torch crash in one.
"""

from __future__ import annotations

import contextlib
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line
from oip_torch.keras.classes import AUGMENTATIONS
from oip_torch.keras.file import read_keras_file

__all__ = ["Recorder", "activation_name", "in_dtype", "load_network", "part_with", "up_to"]

_LARGE = 1 << 20  # bytes of a weight that TensorFlow gets without a copy
_ALIGNED = 64  # bytes: what begins elsewhere TensorFlow copies
_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_./>-]*")  # TensorFlow's own rule
_ACTIVATION_LAYERS = {
    "Activation": None,
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "ELU": "elu",
    "Softmax": "softmax",
    # operations, as keras.ops.relu(x) leaves them
    "Relu": "relu",
    "Relu6": "relu6",
    "LeakyRelu": "leaky_relu",
    "Elu": "elu",
    "Selu": "selu",
    "Celu": "celu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "LogSoftmax": "log_softmax",
}


class Recorder:
    """Runs a Keras network and keeps what each leaf layer returns, and what goes into its activation."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[dict[str, Any]] = []  # one entry per call of a leaf layer, in the order of the run
        self._path: list[str] = []
        self._open: list[dict[str, Any]] = []
        for layer in _leaves(model):
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
            if activation is not None and kind not in _ACTIVATION_LAYERS and activation_name(layer) != "linear":

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

    def first_layers(self) -> list[dict[str, Any]]:
        """What the network does to its input before anything else, as `find_domain` takes it; after a run."""
        found: list[dict[str, Any]] = []
        for call in self.calls:
            layer, kind = call["layer"], call["kind"]
            if kind == "Rescaling":
                scale, offset = (float(np.max(np.asarray(value))) for value in (layer.scale, layer.offset))
                found.append({"kind": kind, "scale": scale, "offset": offset})
            elif kind == "Normalization":
                mean, variance = (np.asarray(value, np.float64).ravel() for value in (layer.mean, layer.variance))
                found.append({"kind": kind, "mean": mean.tolist(), "std": np.sqrt(variance).tolist()})
            elif kind not in AUGMENTATIONS:
                break
        return found


def _leaves(model: Any) -> list[Any]:
    """Every layer, network and operation inside of a network, each once; not what a layer is made of itself."""
    found: dict[int, Any] = {}
    for part in [*model.layers, *getattr(model, "operations", ())]:
        found[id(part)] = part
        if hasattr(part, "layers"):
            found |= {id(inner): inner for inner in _leaves(part)}
    return list(found.values())


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def activation_name(layer: Any) -> str | None:
    """ "relu", "linear" …; None for a layer that has no activation."""
    if type(layer).__name__ in _ACTIVATION_LAYERS:
        return _ACTIVATION_LAYERS[type(layer).__name__] or _name_of(layer.activation)
    if hasattr(layer, "_oip_activation"):
        return str(layer._oip_activation)
    return _name_of(layer.activation) if getattr(layer, "activation", None) is not None else None


def load_network(path: Path, size: tuple[int, int] | None = None, architecture: Path | None = None) -> Any:
    """The network in a Keras file, frozen; an `InputError` says what we cannot take.

    Args:
        path: of the file, which is read as data and admitted here, whoever did that before.
        size: (height, width) of the images; None: the network's own.
        architecture: the file of the configuration, where the first one holds weights alone.
    """
    import keras

    file = read_keras_file(path, size, architecture, contained=True)
    with tempfile.TemporaryDirectory(prefix="oip-load-") as folder:
        try:
            with _weights_once():
                model = keras.models.load_model(file.for_keras(Path(folder)), compile=False)  # safe_mode stays on
        except Exception as error:
            raise InputError(
                f"Keras cannot load {path.name}: {one_line(error)}; save it again with Keras 3, or give the network "
                "that was saved and not its weights alone"
            ) from None
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise InputError(
            f"{path.name} was never built: expected a network with a known input; recipe: model = "
            f"keras.models.load_model({path.name!r}); model.build((None, height, width, channels)); "
            "model.save('built.keras')"
        )
    shape = tuple(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or None in shape[1:]:  # where the configuration did not tell
        names = ", ".join(f"{tensor.name} {tuple(tensor.shape)}" for tensor in inputs)
        raise InputError(
            f"{path.name} takes the inputs {names}: expected images (batch, height, width, channels) of one fixed size"
        )
    for layer in model._flatten_layers(include_self=True, recursive=True):
        if not _SCOPE_NAME.fullmatch(layer.name):
            raise InputError(
                f"{path.name}: TensorFlow cannot trace a layer or model named {layer.name!r}: expected letters, "
                "digits, _ . and - alone, the first a letter or digit; rename it and save the model again"
            )
        if layer.compute_dtype != "float32":
            raise InputError(f"layer {layer.name!r} computes in {layer.compute_dtype}: expected float32 throughout")
    for weight in model.weights:
        if "float" in str(weight.dtype) and not bool(keras.ops.all(keras.ops.isfinite(weight.value))):
            raise InputError(f"{path.name}: the weights {weight.path} hold NaN or infinity: expected finite numbers")
    _hold_seeds(model)
    _hold_statistics(model)
    return model


@contextlib.contextmanager
def _weights_once() -> Iterator[None]:
    """Inside, Keras reads weights from the disk one by one, and not from a copy of the file in memory.

    They are read into memory that TensorFlow takes as it is; large ones from elsewhere are copied there once. (A
    variable of which parts were assigned TensorFlow copies whenever that is read.) All begin with zeros in the place of
    random numbers, which take three times the memory of a weight, and time.
    """
    import h5py
    import keras
    from keras.src.saving import saving_lib

    in_tensorflow = keras.config.backend() == "tensorflow"

    def zeros(initializer: Any, shape: Any, dtype: Any = None, **options: Any) -> Any:
        kind = np.dtype(keras.backend.standardize_dtype(dtype))
        if in_tensorflow and math.prod(shape) * kind.itemsize >= _LARGE:
            return _shared_with_tensorflow(_aligned(shape, kind))
        return keras.ops.zeros(shape, dtype=dtype)

    read: set[int] = set()  # where what was read begins, until it is a variable's

    def as_array(dataset: Any, dtype: Any = None, copy: bool | None = True) -> npt.NDArray[Any]:
        kind = np.dtype(dataset.dtype if dtype is None else dtype)
        array = np.zeros(dataset.shape, kind) if kind.hasobject else _aligned(dataset.shape, kind)  # text is none
        if array.size:
            dataset.read_direct(array)
        read.add(array.ctypes.data)
        return array

    whole = keras.Variable.assign

    def assign(variable: Any, value: Any) -> Any:
        size = value.nbytes if isinstance(value, np.ndarray) else 0
        if not in_tensorflow or size < _LARGE or value.dtype != variable.dtype:
            return whole(variable, value)
        if value.ctypes.data not in read or not value.flags.c_contiguous:
            given, value = value, _aligned(value.shape, value.dtype)
            value[...] = given
        read.discard(value.ctypes.data)
        return whole(variable, _shared_with_tensorflow(value))

    with contextlib.ExitStack() as stack:
        for name in ("VarianceScaling", "RandomNormal", "RandomUniform", "TruncatedNormal"):
            stack.enter_context(mock.patch.object(getattr(keras.initializers, name), "__call__", zeros))
        stack.enter_context(mock.patch.object(keras.Variable, "assign", assign))
        stack.enter_context(mock.patch.object(h5py.Dataset, "__array__", as_array))
        if hasattr(saving_lib, "is_memory_sufficient"):
            stack.enter_context(mock.patch.object(saving_lib, "is_memory_sufficient", return_value=False))
        yield


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros, which take no memory until they are others, where TensorFlow does not copy them."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + size].view(dtype).reshape(shape)


def _shared_with_tensorflow(array: npt.NDArray[Any]) -> Any:
    """A tensor that is the array, which nothing else may change from now on."""
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(array.__dlpack__())


def _hold_seeds(model: Any) -> None:
    """Let the augmentation layers draw the same seed each time, so that running the network changes nothing in it.

    Some of them draw one at inference too and make no use of it; but they store the next one, which a function that
    JAX traces must not, and which tf2onnx has to cut away.
    """

    def hold(generator: Any) -> None:
        generator.next = lambda ordered=True: generator.state.value

    for layer in model._flatten_layers(include_self=False, recursive=True):
        if hasattr(layer, "generator"):
            hold(layer.generator)


def _hold_statistics(model: Any) -> None:
    """Keep mean and variance of Normalization layers as NumPy's: tensors would become inputs of a traced function.

    In float64 the variance is that which gives the graph's factor, 1 / root, that TensorFlow worked out in float32:
    another rounding is no error, and in float64 hundreds of times what is allowed.
    """
    import keras

    for layer in model._flatten_layers(include_self=False, recursive=True):
        if type(layer).__name__ == "Normalization" and layer.built:
            layer.finalize_state()  # from its weights, which may just have been set
            layer.mean, layer.variance = (np.asarray(value) for value in (layer.mean, layer.variance))
            if layer.variance.dtype == np.float64:
                root = np.maximum(np.sqrt(layer.variance.astype(np.float32)), np.float32(keras.backend.epsilon()))
                factor = root.astype(float) if layer.invert else 1 / (1 / root).astype(float)
                layer.variance = factor**2


def in_dtype(model: Any, dtype: str) -> Any:
    """A copy of a float32 network that computes in `dtype` ("float32" or "float64") throughout, its input included.

    Its constants are those of the float32 network, as its weights are: 1 / 255 in float64 is another number, which
    JAX and torch would take, TensorFlow and the ONNX file not.
    """

    def changed(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            if value.get("class_name") == "DTypePolicy":
                return {**value, "config": {**value["config"], "name": dtype}}
            return {name: changed(item, name) for name, item in value.items()}
        if isinstance(value, tuple):
            return tuple(changed(item, key) for item in value)
        if isinstance(value, list):  # Keras' own kind of list among them, which knows the layer that it came from
            return [changed(item, key) for item in value]
        if isinstance(value, float):
            return float(np.float32(value))
        return dtype if key == "dtype" and value == "float32" else value

    import keras

    with _weights_once():
        copy = type(model).from_config(changed(model.get_config()))
        for mine, weight in zip(copy.weights, model.weights, strict=True):
            mine.assign(np.asarray(keras.ops.convert_to_numpy(weight), dtype))
    copy.trainable = False
    _hold_seeds(copy)
    _hold_statistics(copy)
    return copy


def part_with(model: Any, layers: Sequence[str]) -> Any:
    """The network up to these layers and no further, sharing its weights; by `Recorder.run`'s names.

    All of it, where one of them is inside of another network, or is one of several calls of a layer.
    """
    import keras

    own = {part.name: part for part in [*model.layers, *getattr(model, "operations", ())]}
    if not all(layer in own for layer in layers):
        return model
    if isinstance(model, keras.Sequential):  # has called its layers anew for each one that was added
        layers = [max(layers, key=list(own).index)]
    return keras.Model(model.inputs, [own[layer].output for layer in layers])


def up_to(model: Any, layer: str, *, pre_activation: bool = False) -> Callable[[Any], Any]:
    """The function from images to a layer's output, or what goes into its activation; by `Recorder.run`'s names.

    The output of a layer of the network itself is reached without running what comes after it; anything else by
    watching the whole network run.
    """
    import keras

    if not pre_activation and "@" not in layer and any(entry.name == layer for entry in model.layers):
        part = keras.Model(model.inputs, model.get_layer(layer).output)
        return lambda images: part(images, training=False)
    recorder = Recorder(in_dtype(model, model.inputs[0].dtype))

    def watched(images: Any) -> Any:
        calls, _ = recorder.run(images)
        return next(call["before" if pre_activation else "after"] for call in calls if call["id"] == layer)

    return watched
