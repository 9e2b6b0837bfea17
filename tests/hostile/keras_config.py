"""Configurations of Keras networks: code, paths and absurd numbers in JSON.

The advisories that can be told in a configuration are named beside their cases. What each does to Keras is known from
the advisory; here it is refused, whatever Keras does.
"""

from __future__ import annotations

import base64
import json
import marshal
import pickle
from collections.abc import Callable
from typing import Any

from hostile import Cases, Place
from hostile.sound import CONV, IMAGE, config_of, keras_file, layer, model_h5

CASES = Cases("config")
Config = dict[str, Any]


def _both(name: str, config: Callable[[Place], Any], *, match: str = "", only: str = "", code: int = 2) -> None:
    """The configuration in a .keras and in an .h5 file."""
    for ending, write in ((".keras", keras_file), (".h5", model_h5)):
        if only in ("", ending):

            def make(place: Place, ending: str = ending, write: Any = write) -> list[str]:
                write(place.folder / f"x{ending}", config(place))
                return ["convert", f"x{ending}"]

            CASES.add(f"{name}{ending}", make, match=match, code=code)


def _sound(place: Place) -> Config:
    return config_of(CONV)


_both("sound", _sound, code=0)


# Code


def bytecode(place: Place) -> str:
    """A function's code as Lambda layers store it."""
    return base64.b64encode(marshal.dumps(compile(f"(lambda x: {place.code})(0)", "x", "eval"))).decode()


def _lambda3(place: Place) -> Config:
    """As Keras 3 stores a function."""
    return {"class_name": "__lambda__", "config": {"code": bytecode(place), "defaults": None, "closure": None}}


def _lambda2(place: Place) -> Config:
    """As Keras 2 stores a function."""
    return {"function": [bytecode(place), None, None], "function_type": "lambda", "output_shape_type": "raw"}


class _Opens:
    """Pickled, it makes the canary."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def pickled(place: Place) -> bytes:
    """A pickle that makes the canary when it is read."""
    return pickle.dumps(_Opens(str(place.canary)))


_both("lambda", lambda p: config_of(CONV, layer("Lambda", "l", {"function": _lambda3(p)})), match="Lambda")  # 2024-3660
_both("lambda_of_keras_2", lambda p: config_of(CONV, layer("Lambda", "l", _lambda2(p))), match="Lambda")  # 2025-9905
SPELLINGS = {
    "capitals": "LAMBDA", "small": "lambda", "dotted": "layers.Lambda", "path": "keras.layers.Lambda",
    "zero": "Lambda\0", "blank": " Lambda", "wide": "\uff2cambda", "numbered": "Lambda_1",
    "registered": "keras>Lambda", "folder": "../Lambda", "mark": "__lambda__",
}  # fmt: skip
for name, spelling in SPELLINGS.items():
    _both(
        f"lambda_spelt_{name}",
        lambda p, spelling=spelling: config_of(CONV, layer(spelling, "l", {"function": _lambda3(p)})),
        match="layer 'l' uses",
        only=".keras",
    )
for module in (
    "keras.src.layers.core.lambda_layer", "keras.layers.core", "tensorflow.keras.layers", "tf_keras.layers",
    "tf_keras.src.layers.core.lambda_layer", "builtins", "os", "", None,
):  # fmt: skip
    _both(
        f"lambda_of_{module}",
        lambda p, module=module: config_of(CONV, layer("Lambda", "l", {"function": _lambda3(p)}, module=module)),
        match="layer 'l' uses",
        only=".keras",
    )
_both(
    "lambda_registered",
    lambda p: config_of(CONV, layer("Conv2D", "l", {"function": _lambda3(p)}, registered_name="Lambda")),
    match="layer 'l' uses",
    only=".keras",
)

FUNCTIONS = {  # 2025-1550 and its like: functions of any module that Keras would look up, and call with what is given
    "os_system": ("os", "system"),
    "eval": ("builtins", "eval"),
    "exec": ("builtins", "exec"),
    "popen": ("subprocess", "Popen"),
    "import_module": ("importlib", "import_module"),
    "own_module": ("canary_module", "run"),
    "get_file": ("keras.utils", "get_file"),  # 2025-8747, 2025-12060, 2024-55459
    "get_file_inside": ("keras.src.utils.file_utils", "get_file"),
    "unsafe": ("keras.config", "enable_unsafe_deserialization"),  # 2025-9906
    "unsafe_inside": ("keras.src.saving.serialization_lib", "enable_unsafe_deserialization"),
    "load_model": ("keras.saving", "load_model"),
    "torch_load": ("torch", "load"),
    "tf_copy": ("tensorflow.io.gfile", "copy"),
    "numpy_load": ("numpy", "load"),
    "vectorized_map": ("keras.ops", "vectorized_map"),
    "map_inside": ("keras.src.ops.core", "Map"),
}


def function(module: str, name: str) -> Config:
    """A reference to a function, as Keras 3 stores one."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": "function"}


def called(module: str, name: str, *arguments: Any) -> Config:
    """A function in the place of a layer, with what it is to be called with."""
    nodes = [{"args": list(arguments), "kwargs": {}}]
    return {**function(module, name), "name": "called", "inbound_nodes": nodes}


def functional(*layers: Any) -> Config:
    """A Functional network of an image, a convolution and more layers."""
    history = {"shape": [None, 8, 8, 1], "dtype": "float32", "keras_history": ["image", 0, 0]}
    tensor = {"class_name": "__keras_tensor__", "config": history}
    image = {**IMAGE, "name": "image", "inbound_nodes": []}
    conv = {**CONV, "name": "conv", "inbound_nodes": [{"args": [tensor], "kwargs": {}}]}
    inner = {"name": "f", "trainable": True, "layers": [image, conv, *layers]}
    inner |= {"input_layers": [["image", 0, 0]], "output_layers": [["conv", 0, 0]]}
    return {"module": "keras.src.models.functional", "class_name": "Functional", "config": inner}


_both("sound_functional", lambda p: functional(), code=0, only=".keras")
for name, (module, own) in FUNCTIONS.items():
    _both(
        f"function_{name}",
        lambda p, module=module, own=own: functional(called(module, own, p.code, str(p.canary))),
        match=f"'{own}'",
        only=".keras",
    )
    _both(
        f"class_{name}",
        lambda p, module=module, own=own: config_of(
            CONV, {"module": module, "class_name": own, "config": {"name": "c", "origin": str(p.secret)}}
        ),
        match="uses",
        only=".keras" if name not in ("get_file", "own_module") else "",
    )

PLACES = (
    "activation kernel_initializer bias_initializer kernel_regularizer bias_regularizer activity_regularizer "
    "kernel_constraint bias_constraint dtype quantization_config surplus"
).split()
for place_of in PLACES:
    _both(
        f"function_as_{place_of}",
        lambda p, key=place_of: config_of(layer("Conv2D", "c", CONV["config"] | {"name": "c", key: EVAL})),
        match="layer 'c' uses",
        only=".keras" if place_of not in ("activation", "kernel_initializer") else "",
    )
EVAL = function("builtins", "eval")
_both("lambda_as_initializer", lambda p: config_of(layer("Conv2D", "c", {"kernel_initializer": _lambda3(p)})))
_both("lambda_in_build_config", lambda p: config_of(CONV | {"build_config": _lambda3(p)}), only=".keras")
_both("lambda_in_shared_objects", lambda p: config_of(CONV, shared_objects=[layer("Lambda", "s", _lambda2(p))]))
_both("lambda_in_a_list", lambda p: config_of(CONV, layer("Dense", "d", {"x": [[[_lambda3(p)]]]})), only=".keras")
_both("lambda_beside_the_network", lambda p: {**config_of(CONV), "more": layer("Lambda", "l", _lambda2(p))})
_both(
    "lambda_as_the_image",
    lambda p: config_of(CONV, image=layer("Lambda", "image", {"batch_shape": [None, 8, 8, 1], **_lambda2(p)})),
    only=".keras",
)
for wrapper in ("TimeDistributed", "Bidirectional", "SpectralNormalization", "Sequential", "Functional", "RNN"):
    _both(
        f"lambda_inside_{wrapper}",
        lambda p, wrapper=wrapper: config_of(
            CONV, layer(wrapper, "w", {"layer": layer("Lambda", "l", _lambda2(p)), "layers": [layer("Lambda", "l")]})
        ),
        match="uses",
        only=".keras",
    )
_both(
    "lambda_nine_networks_deep",
    lambda p: config_of(CONV, _nested(layer("Lambda", "deep", _lambda2(p)), 9)),
    match="layer 'deep' uses the Lambda",
)


def _nested(inner: Config, depth: int) -> Config:
    for level in range(depth):
        inner = layer("Sequential", f"level{level}", {"layers": [inner]}, module="keras")
    return inner


# Keras' own classes that read files, run other programs' graphs, or hold pickles
READING: dict[str, tuple[str, Callable[[Place], Config]]] = {
    "torch_module": (  # 2025-49655
        "TorchModuleWrapper",
        lambda p: {"module": {"class_name": "__bytes__", "config": base64.b64encode(pickled(p)).decode()}},
    ),
    "torch_module_as_text": ("TorchModuleWrapper", lambda p: {"module": base64.b64encode(pickled(p)).decode()}),
    "saved_model": ("TFSMLayer", lambda p: {"filepath": str(p.secret.parent), "call_endpoint": "serve"}),  # 2026-1462
    "jax": ("JaxLayer", lambda p: {"call_fn": _lambda3(p)}),
    "flax": ("FlaxLayer", lambda p: {"module": _lambda3(p)}),
    "string_lookup": ("StringLookup", lambda p: {"vocabulary": str(p.secret)}),  # 2025-12058
    "integer_lookup": ("IntegerLookup", lambda p: {"vocabulary": str(p.secret)}),
    "text": ("TextVectorization", lambda p: {"vocabulary": str(p.secret)}),
    "text_with_code": ("TextVectorization", lambda p: {"standardize": _lambda3(p), "split": _lambda3(p)}),
    "category": ("CategoryEncoding", lambda p: {"num_tokens": 9}),
    "static_table": ("StaticHashTable", lambda p: {"initializer": {"filename": str(p.secret)}}),
    "feature_space": ("FeatureSpace", lambda p: {"features": {"x": {"preprocessor": layer("Lambda", "l")}}}),
    "tensorflow_op": ("TensorFlowOpLayer", lambda p: {"node_def": "op: 'ReadFile' input: 'f'", "constants": {}}),
    "tensorflow_function": ("TFOpLambda", lambda p: {"function": "io.read_file"}),
    "pipeline": ("Pipeline", lambda p: {"layers": [layer("Lambda", "l", _lambda2(p))]}),
    "mel": ("MelSpectrogram", lambda p: {}),
    "rnn_cell": ("RNN", lambda p: {"cell": layer("Lambda", "cell", _lambda2(p))}),
    "embedding": ("Embedding", lambda p: {"input_dim": 10**9, "output_dim": 10**9}),
}
for name, (kind, options) in READING.items():
    _both(
        f"reads_{name}",
        lambda p, kind=kind, options=options: config_of(CONV, layer(kind, "reader", options(p))),
        match="reader",
        only="" if name in ("torch_module", "string_lookup", "text") else ".keras",
    )
for kind, at in (("StaticHashTable", "tensorflow.lookup"), ("TextFileInitializer", "tensorflow.lookup")):
    _both(
        f"of_tensorflow_{kind}",
        lambda p, kind=kind, at=at: config_of(CONV, layer(kind, "t", {"filename": str(p.secret)}, module=at)),
        match="layer 't' uses",
        only=".keras",
    )
for kind in ("Net", "evil>Net", "Sequential\n", "function", "", "Model\0"):
    _both(
        f"network_of_class_{len(kind)}{kind[:3].strip()}",
        lambda p, kind=kind: config_of(CONV) | {"class_name": kind, "module": "canary_module"},
        only=".keras",
    )
_both("network_of_another_module", lambda p: config_of(CONV) | {"module": "canary_module"})
_both("network_registered_elsewhere", lambda p: config_of(CONV) | {"registered_name": "evil>Net"}, only=".keras")
for mark, inside in {
    "__numpy__": {"value": [1], "dtype": "object"},
    "__tensor__": {"value": [1], "dtype": ["x"]},
    "__bytes__": {"value": "eA=="},
    "__typespec__": {"spec_name": "x", "module": "canary_module"},
    "__lambda__": {"code": "", "defaults": None, "closure": None},
}.items():
    _both(
        f"mark_{mark.strip('_')}",
        lambda p, mark=mark, inside=inside: config_of(
            CONV, layer("Dense", "d", {"units": {"class_name": mark, "config": inside}})
        ),
        match="layer 'd' uses",
        only=".keras",
    )

# Names that are looked up
for string in ("deserialize", "Input", "get", "Lambda", "os.system", "lambda x: x", "", "relu\n", "__import__"):
    _both(
        f"activation_{string.strip().replace(' ', '') or 'empty'}",
        lambda p, string=string: config_of(layer("Conv2D", "c", CONV["config"] | {"name": "c", "activation": string})),
        match="layer 'c' uses the activation",
        only="" if string in ("deserialize", "Input") else ".keras",
    )
for key in ("kernel_initializer", "kernel_regularizer", "kernel_constraint"):
    _both(
        f"string_as_{key}",
        lambda p, key=key: config_of(layer("Conv2D", "c", CONV["config"] | {"name": "c", key: "get_file"})),
        match="layer 'c' uses",
        only=".keras",
    )
for dtype in ("int8_from_float32", "canary_module.Policy", "object"):
    _both(
        f"dtype_{dtype.split('.')[0]}",
        lambda p, dtype=dtype: config_of(layer("Conv2D", "c", CONV["config"] | {"name": "c", "dtype": dtype})),
        only=".keras",
    )

# Numbers: each is refused by arithmetic, before TensorFlow makes anything of that size
NUMBERS: dict[str, tuple[str, Config]] = {
    "filters_huge": ("Conv2D", {"filters": 10**9}),
    "filters_negative": ("Conv2D", {"filters": -1}),
    "filters_zero": ("Conv2D", {"filters": 0}),
    "filters_text": ("Conv2D", {"filters": "2"}),
    "filters_list": ("Conv2D", {"filters": [2]}),
    "filters_null": ("Conv2D", {"filters": None}),
    "filters_fraction": ("Conv2D", {"filters": 2.5}),
    "kernel_huge": ("Conv2D", {"kernel_size": [10**9, 10**9]}),
    "kernel_zero": ("Conv2D", {"kernel_size": [0, 0]}),
    "kernel_text": ("Conv2D", {"kernel_size": "big"}),
    "kernel_long": ("Conv2D", {"kernel_size": [3] * 100_000}),
    "strides_zero": ("Conv2D", {"strides": [0, 0]}),
    "strides_negative": ("Conv2D", {"strides": [-1, -1]}),
    "dilation_huge": ("Conv2D", {"dilation_rate": [10**6, 10**6]}),
    "groups_huge": ("Conv2D", {"groups": 10**9}),
    "padding_huge": ("ZeroPadding2D", {"padding": [[10**6, 10**6], [10**6, 10**6]]}),
    "upsampling_huge": ("UpSampling2D", {"size": [10**6, 10**6]}),
    "resizing_huge": ("Resizing", {"height": 10**6, "width": 10**6}),
    "dense_huge": ("Dense", {"units": 10**12}),
    "repeat_huge": ("RepeatVector", {"n": 10**12}),
    "reshape_other": ("Reshape", {"target_shape": [7, 7, 7]}),
    "transposed_huge": ("Conv2DTranspose", {"filters": 2, "kernel_size": [3, 3], "strides": [10**6, 10**6]}),
}
for name, (kind, options) in NUMBERS.items():
    base = CONV["config"] if kind == "Conv2D" else {}
    _both(
        f"number_{name}",
        lambda p, kind=kind, options=options, base=base: config_of(
            CONV, layer(kind, "n", {**base, "name": "n", **options})
        ),
        only=".keras",
    )
for name, shape in {
    "huge": [None, 10**9, 10**9, 1], "negative": [None, -8, 8, 1], "zero": [None, 0, 8, 1], "text": [None, "8", 8, 1],
    "nested": [None, [8], 8, 1], "short": [None, 8], "boolean": [None, True, True, 1], "null": None, "object": {},
    "infinite": [None, float("inf"), 8, 1],
}.items():  # fmt: skip
    _both(
        f"image_{name}",
        lambda p, shape=shape: config_of(CONV, image=layer("InputLayer", "image", {"batch_shape": shape})),
        only=".keras",
    )

# JSON itself
TEXTS: dict[str, Callable[[], str]] = {
    "list": lambda: "[1, 2]",
    "null": lambda: "null",
    "number": lambda: "1e999",
    "text": lambda: '"Sequential"',
    "cut": lambda: json.dumps(config_of(CONV))[:-40],
    "brackets": lambda: "[" * 30_000,
    "closed_brackets": lambda: "[" * 30_000 + "]" * 30_000,
    "objects": lambda: '{"a":' * 30_000 + "1" + "}" * 30_000,
    "deep_inside": lambda: json.dumps(config_of(CONV))[:-1] + ', "x": ' + "[" * 900 + "]" * 900 + "}",
    "digits": lambda: json.dumps(config_of(CONV)).replace('"filters": 2', f'"filters": {"9" * 20_000}'),
    "infinite_filters": lambda: json.dumps(config_of(CONV)).replace('"filters": 2', '"filters": 1e999'),
    "nan_filters": lambda: json.dumps(config_of(CONV)).replace('"filters": 2', '"filters": NaN'),
    "no_layers": lambda: json.dumps(config_of(CONV) | {"config": {}}),
    "layers_text": lambda: json.dumps(config_of(CONV) | {"config": {"layers": "Conv2D"}}),
    "layers_numbers": lambda: json.dumps(config_of(CONV) | {"config": {"layers": [1, 2, 3]}}),
    "config_list_of_lists": lambda: json.dumps(config_of(CONV) | {"config": [[[]]]}),
    "class_list": lambda: json.dumps(config_of(CONV) | {"class_name": ["Sequential"]}),
    "no_convolution": lambda: json.dumps(config_of(layer("Flatten", "f"))),
    "surrogate": lambda: json.dumps(
        config_of(layer("Conv2D", "\ud800", CONV["config"] | {"name": "\ud800", "filters": -1}))
    ),
    "escape": lambda: json.dumps(config_of(CONV, layer("Lambda", "\x1b[31mred\x1b]0;x\x07\n\n", {}))),
    "long_name": lambda: json.dumps(config_of(CONV, layer("Lambda", "n" * 3_000_000, {}))),
    "long_class": lambda: json.dumps(config_of(CONV, layer("C" * 3_000_000, "n", {}))),
    "many_layers": lambda: json.dumps(
        config_of(*[CONV | {"config": CONV["config"] | {"name": f"c{n}"}} for n in range(50_000)])
    ),
    "same_names": lambda: json.dumps(config_of(CONV, CONV)),
    "unnamed": lambda: json.dumps(config_of({"class_name": "Conv2D", "module": "keras.layers", "config": {}})),
}
for name, text in TEXTS.items():
    _both(f"json_{name}", lambda p, text=text: text(), only="" if len(name) == 8 else ".keras")
for name, history in {
    "loop": ["conv", 0, 0],
    "nowhere": ["gone", 0, 0],
    "call_huge": ["image", 10**9, 0],
    "output_negative": ["image", 0, -9],
    "text": "image",
}.items():

    def _wired(place: Place, history: Any = history) -> Config:
        config = functional()
        config["config"]["layers"][1]["inbound_nodes"][0]["args"][0]["config"]["keras_history"] = history
        return config

    _both(f"wired_{name}", _wired, only=".keras")


# Weights alone, with the network in a JSON file


def _architecture(text: Callable[[Place], str], weights: bool = True) -> Callable[[Place], list[str]]:
    def make(place: Place) -> list[str]:
        from hostile.sound import weights_h5

        place.write("x.weights.h5", weights_h5())
        place.write("net.json", text(place).encode("utf-8", "surrogatepass"))
        return ["convert", "x.weights.h5", "--architecture", "net.json"]

    return make


CASES.add(
    "architecture_lambda",
    _architecture(lambda p: json.dumps(config_of(CONV, layer("Lambda", "l", _lambda2(p))))),
    match="Lambda",
)
CASES.add("architecture_deep", _architecture(lambda p: "[" * 30_000))
CASES.add(
    "architecture_other_shapes",
    _architecture(lambda p: json.dumps(config_of(CONV)).replace('filters": 2', 'filters": 3')),
)
CASES.add(
    "architecture_other_layers", _architecture(lambda p: json.dumps(config_of(CONV, layer("Dense", "d", {"units": 3}))))
)
CASES.add("architecture_surrogate", _architecture(lambda p: '{"class_name": "\ud800", "config": {}}'))


# What Keras would run when it compiles a network; we load without that, and say nothing of it


def _compiled(place: Place) -> list[str]:
    compiled = {"loss": _lambda3(place), "optimizer": function("canary_module", "run"), "metrics": [EVAL]}
    keras_file(place.folder / "x.keras", config_of(CONV, compile_config=compiled))
    return ["convert", "x.keras"]


def _compiled_h5(place: Place) -> list[str]:
    import h5py

    model_h5(place.folder / "x.h5")
    with h5py.File(place.folder / "x.h5", "a") as file:
        file.attrs["training_config"] = json.dumps({"loss": _lambda3(place), "optimizer_config": EVAL})
        file.create_group("optimizer_weights").attrs["weight_names"] = [b"x"]
    return ["convert", "x.h5"]


CASES.add("compile_is_not_run.keras", _compiled, code=0)
CASES.add("compile_is_not_run.h5", _compiled_h5, code=0)
