"""How does the configuration of a Keras file become one that Keras 3 takes and that can be converted?

A configuration is data, and only data is changed here: what Keras 2 wrote and Keras 3 refuses, mixed precision, an open
height and width. Weights are not touched: Keras loads them by position and compares every shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.keras.classes import AUGMENTATIONS, CONTAINERS, MODULES, is_operation, module_of_operation

__all__ = ["rewrite", "with_input_shape"]

Entry = dict[str, Any]
Say = Callable[[str], None]

_NO_NAME = re.compile(r"[^A-Za-z0-9_.>-]")  # neither Keras 3 ("/") nor TensorFlow's scopes take these
_KERNEL = dict.fromkeys(("kernel_initializer", "kernel_regularizer", "kernel_constraint"))
_SHAPES = dict.fromkeys(("query_shape", "key_shape", "value_shape"))
_REMOVED: dict[str, dict[str, tuple[Any, ...] | None]] = {
    # Class → argument that Keras 3 no longer knows → the values at which it changes nothing; None: any.
    "DepthwiseConv2D": _KERNEL | {"filters": None, "groups": (1, None)},
    "SeparableConv2D": _KERNEL | {"groups": (1, None)},
    "Conv2DTranspose": {"groups": (1, None)},
    "BatchNormalization": {
        "fused": None,
        "virtual_batch_size": (None,),
        "adjustment": (None,),
        "mode": (0,),
    },
    "SpatialDropout1D": {"noise_shape": None, "trainable": None},
    "SpatialDropout2D": {"noise_shape": None, "trainable": None},
    "MultiHeadAttention": _SHAPES,
    **{name: {"rng_type": None} for name in AUGMENTATIONS},
}
_BINARY = {  # function of TensorFlow → operation of Keras 3
    "Add": "__operators__.add math.add add",
    "Subtract": "math.subtract subtract",
    "Multiply": "math.multiply multiply",
    "TrueDivide": "math.truediv math.divide divide realdiv",
    "Maximum": "math.maximum maximum",
    "Minimum": "math.minimum minimum",
    "Power": "math.pow pow",
}
_UNARY = {
    "Relu": "nn.relu",
    "Relu6": "nn.relu6",
    "Elu": "nn.elu",
    "Selu": "nn.selu",
    "Sigmoid": "nn.sigmoid math.sigmoid sigmoid",
    "Tanh": "nn.tanh math.tanh tanh",
    "Silu": "nn.silu nn.swish",
    "Softplus": "nn.softplus math.softplus",
    "Absolute": "math.abs abs",
    "Exp": "math.exp exp",
    "Log": "math.log",
    "Negative": "math.negative negative",
    "Sqrt": "math.sqrt sqrt",
    "Square": "math.square square",
    "Rsqrt": "math.rsqrt",
}
_OPERATIONS = {name: kind for kind, names in (_BINARY | _UNARY).items() for name in names.split()}
_INITIALIZERS_OF_TENSORFLOW = "tensorflow.python.ops.init_ops"
_REGISTERED = "Custom>"  # before the name of a class that Keras 2 had registered, its own networks' as well
_HALF = frozenset("mixed_float16 mixed_bfloat16 float16 bfloat16 float64".split())


def rewrite(config: Entry) -> tuple[Entry, tuple[str, ...]]:
    """A copy of a network's configuration in the form that Keras 3 takes, and what was changed, in words.

    What a configuration may hold is not looked at here; anything that is not understood is left as it is.

    Raises:
        InputError: an argument or operation of Keras 2 that has nothing like it in Keras 3.
    """
    copy: Entry = json.loads(json.dumps(config))
    counts: dict[str, int] = {}

    def say(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    copy.pop("compile_config", None)
    _network(copy, say)
    return copy, tuple(f"{what} ({count}×)" if count > 1 else what for what, count in counts.items())


def with_input_shape(config: Entry, shape: tuple[int | None, ...]) -> None:
    """Write the shape of the images, (batch, height, width, channels), into a network that has one input."""
    inner = config["config"]
    if "build_input_shape" in inner:
        inner["build_input_shape"] = list(shape)
    first = inner["layers"][0]
    if config["class_name"] != "Sequential":
        first = _named(inner["layers"], _first_name(inner["input_layers"]))
    if first["class_name"] in CONTAINERS:
        with_input_shape(first, shape)
    else:
        first["config"]["batch_shape"] = list(shape)


def _network(entry: Entry, say: Say) -> None:
    """A network or a network inside, with its layers and their names."""
    if entry.get("module") not in (None, "keras") and entry.get("class_name") in CONTAINERS:
        module = entry["module"]
        if isinstance(module, str) and module.startswith(("keras.src.engine.", "keras.engine.", "tf_keras.")):
            sequential = entry["class_name"] == "Sequential"
            entry["class_name"] = entry["registered_name"] = "Sequential" if sequential else "Functional"
            entry["module"] = f"keras.src.models.{entry['class_name'].lower()}"
            say("the module of the network became Keras 3's")
    inner = entry.get("config")
    if isinstance(inner, list):  # a Sequential of before Keras 2.2.3
        inner = entry["config"] = {"name": entry.get("name") or "sequential", "layers": inner}
        say("the list of layers of an early Keras 2 got a name")
    if not isinstance(inner, dict) or not isinstance(inner.get("layers"), list):
        return
    if isinstance(name := inner.get("name"), str) and _NO_NAME.search(name):
        inner["name"] = _NO_NAME.sub("_", name)
    layers = [layer for layer in inner["layers"] if isinstance(layer, dict)]
    for layer in layers:
        _layer(layer, say)
        if layer.get("class_name") in CONTAINERS:
            _network(layer, say)
    if entry.get("class_name") == "Sequential" and layers and isinstance(layers[0].get("config"), dict):
        shape = layers[0]["config"].pop("batch_input_shape", None)
        if isinstance(shape, list):
            image = {"batch_shape": shape, "dtype": "float32", "name": f"{layers[0]['config'].get('name', '')}_input"}
            inner["layers"].insert(0, {"class_name": "InputLayer", "config": image})
            if "module" in layers[0]:
                inner["layers"][0] |= {"module": "keras.layers", "registered_name": None}
            say("batch_input_shape became an InputLayer")
    for layer in layers:
        if isinstance(layer.get("config"), dict) and layer["config"].pop("batch_input_shape", None) is not None:
            say("batch_input_shape was dropped where the InputLayer says it")
    _count_calls_from_0(inner, say)
    _rename(inner, say)


def _layer(layer: Entry, say: Say) -> None:
    """One layer's arguments, its type of numbers, its initialisers; an operation's class."""
    kind, options = layer.get("class_name"), layer.get("config")
    if not isinstance(options, dict) or not isinstance(kind, str):
        return
    if kind == "TFOpLambda":
        _operation(layer, say)
        return
    if (own := kind.removeprefix(_REGISTERED)) != kind and own in MODULES:
        kind = layer["class_name"] = own
        say(f"{_REGISTERED}{own} became Keras' own {own}")
    if is_operation(layer):
        layer["module"], layer["registered_name"] = module_of_operation(kind), kind
        say("operations got the module that HDF5 does not name")
    elif kind in MODULES and "module" not in layer:
        layer["module"], layer["registered_name"] = MODULES[kind], kind
    if kind == "InputLayer" and isinstance(shape := options.pop("batch_input_shape", None), list):
        options["batch_shape"] = shape
        say("batch_input_shape became batch_shape")
    removed = {name: harmless for name, harmless in _REMOVED.get(kind, {}).items() if name in options}
    for name, harmless in removed.items():
        if harmless is not None and options[name] not in harmless:
            raise InputError(
                f"layer {options.get('name')!r} ({kind}) has {name} = {options[name]!r}, which Keras 3 does not know: "
                f"expected {harmless[0]!r}; build the layer without it and save the model again"
            )
        del options[name]
    if removed:
        say(f"dropped of {kind}, since Keras 3 does not know it: {', '.join(removed)}")
    if kind == "Conv2DTranspose" and options.get("output_padding", 0) is None and "module" not in layer:
        del options["output_padding"]
    if kind == "BatchNormalization" and isinstance(axis := options.get("axis"), list) and len(axis) == 1:
        options["axis"] = axis[0]
        say("the axis of BatchNormalization became a number")
    if kind not in CONTAINERS:
        _numbers(layer, say)
        for initializer in _initializers(options):
            if str(initializer.get("module")).startswith(_INITIALIZERS_OF_TENSORFLOW):
                initializer.clear()
                initializer |= {"module": "keras.initializers", "class_name": "Zeros", "config": {}}
                initializer["registered_name"] = None
                say("initialisers of TensorFlow became Zeros, since the weights are loaded")
            if initializer["config"].pop("dtype", None) is not None:
                say("dtype of initialisers, which Keras 3 does not know, was dropped")


def _numbers(layer: Entry, say: Say) -> None:
    """Float32 throughout, whatever the network was trained in."""
    options = layer["config"]
    kind = options.get("dtype")
    name = kind["config"].get("name") if isinstance(kind, dict) and isinstance(kind.get("config"), dict) else kind
    if not isinstance(name, str):
        return
    if name in _HALF:
        options["dtype"] = "float32"
        say(f"{name} became float32")
    elif layer["class_name"] == "InputLayer" and name != "float32":
        options["dtype"] = "float32"
        say(f"images of {name} became float32")


def _initializers(value: Any) -> Iterator[Entry]:
    for key, item in value.items():
        if key.endswith("_initializer") and isinstance(item, dict) and isinstance(item.get("config"), dict):
            yield item


def _operation(layer: Entry, say: Say) -> None:
    """A TFOpLambda, by which Keras 2 stores x + y and the like, as the operation of Keras 3."""
    function, name = layer["config"].get("function"), layer["config"].get("name")
    kind = _OPERATIONS.get(function) if isinstance(function, str) else None
    nodes = [_operands(node) for node in layer.get("inbound_nodes") or []]
    if kind is None or not nodes or any(node is None or len(node) != 1 + (kind in _BINARY) for node in nodes):
        raise InputError(
            f"layer {name!r} is the TensorFlow operation {function!r}, which is not supported in this form: expected "
            f"arithmetic and activations ({', '.join(_BINARY | _UNARY)}); "
            "recipe: build the network in Keras 3 with keras.ops or layers, new.set_weights(old.get_weights()), "
            "new.save('model.keras')"
        )
    layer.clear()
    layer |= {"module": module_of_operation(kind), "class_name": kind, "config": {"name": name}}
    layer |= {"registered_name": kind, "name": name, "inbound_nodes": [{"args": node, "kwargs": {}} for node in nodes]}
    say(f"the TensorFlow operation {function} became keras.ops' {kind}")


def _operands(node: Any) -> list[Any] | None:
    """What a node of Keras 2 calls its operation with, as Keras 3 writes it; None: something else than operands."""
    if isinstance(node, list) and len(node) == 1:
        (node,) = node
    if not isinstance(node, list) or len(node) not in (3, 4):
        return None
    options = node[3] if len(node) == 4 else {}
    rest = {key: value for key, value in options.items() if key != "name" and value is not None}
    if set(rest) - {"y"} and rest != {"beta": 1.0}:
        return None
    first = node[2] if node[0] == "_CONSTANT_VALUE" else node[:3]
    return [_operand(value) for value in ([first, rest["y"]] if "y" in rest else [first])]


def _operand(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        history = {"shape": [None], "dtype": "float32", "keras_history": value}
        return {"class_name": "__keras_tensor__", "config": history}
    if isinstance(value, list):
        return {"class_name": "__numpy__", "config": {"value": value, "dtype": "float32"}}
    return value


def _count_calls_from_0(inner: Entry, say: Say) -> None:
    """Calls of a network inside of a network: Keras 2 counts them from 1, since 0 is how it was made, Keras 3 from 0.

    Of an output that is a Functional network Keras 3 takes the 1 off itself.
    """
    layers = [layer for layer in inner["layers"] if isinstance(layer, dict)]
    networks = {layer.get("name"): layer.get("class_name") for layer in layers if layer.get("class_name") in CONTAINERS}
    nodes = [node for layer in layers for node in layer.get("inbound_nodes") or []]
    nodes = nodes if any(isinstance(node, list) for node in nodes) else []  # operations' are Keras 3's by now
    calls = list(_references(nodes, networks))
    ends = [call for call in _references(inner.get("output_layers"), networks) if networks[call[0]] == "Sequential"]
    for name in networks:
        own = [call for call in (calls + ends if nodes else []) if call[0] == name]
        if own and (first := min(call[1] for call in own)) > 0:
            for call in own:
                call[1] -= first
            say("calls of networks inside are counted from 0")


def _references(value: Any, names: Container[Any]) -> Iterator[list[Any]]:
    """Every [NAME, CALL, OUTPUT, …] in nodes and outputs, of the layers of these names."""
    if isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and all(type(n) is int for n in value[1:3]):
            if value[0] in names:
                yield value
            value = value[3:]
        for item in value:
            yield from _references(item, names)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _references(item, names)


def _rename(inner: Entry, say: Say) -> None:
    """Names with characters that Keras 3 and TensorFlow do not take, in one network and in what refers to them."""
    layers = [layer for layer in inner["layers"] if isinstance(layer, dict)]
    taken = {layer.get("name") or (layer.get("config") or {}).get("name") for layer in layers}
    names: dict[str, str] = {}
    for layer in layers:
        options = layer.get("config")
        if not isinstance(options, dict) or not isinstance(name := options.get("name"), str):
            continue
        new = _NO_NAME.sub("_", name)
        new = f"layer{new}" if new[:1] in ("_", "-", ">") else new
        if new != name:
            while new in taken:
                new += "_"
            taken.add(new)
            names[name] = new
            options["name"] = new
            if layer.get("name") == name:
                layer["name"] = new
    if not names:
        return
    say(f"names of layers were changed, as {next(iter(names))!r} to {names[next(iter(names))]!r}")

    nodes = [layer.get("inbound_nodes") for layer in layers]
    for reference in _references([nodes, inner.get("input_layers"), inner.get("output_layers")], names):
        reference[0] = names[reference[0]]


def _first_name(inputs: Any) -> Any:
    """Of `input_layers`, [NAME, 0, 0] or [[NAME, 0, 0]]."""
    return inputs[0] if isinstance(inputs[0], str) else inputs[0][0]


def _named(layers: list[Entry], name: str) -> Entry:
    return next(layer for layer in layers if layer.get("name", layer["config"].get("name")) == name)
