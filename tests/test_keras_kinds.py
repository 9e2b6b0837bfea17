"""Kinds of layer and configuration, and files of Keras 2: converted, they compute what Keras computes.

A sample of keras_kinds.py; docs/networks.md has all of them. Keras 2 itself is the witness of its files: what tf-keras
computed lies beside them (keras2_zoo.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, _run, nchw

import oip_torch
from oip_torch import InputError
from oip_torch.keras.file import read_keras_file
from oip_torch.keras.rewrite import rewrite
from oip_torch.network.domain import Domain

KERAS_2 = ROOT / "tests" / "data" / "keras2"
SAMPLE: dict[str, dict[str, Any]] = {  # kind → what was rewritten
    "Conv2D, grouped": {},
    "AveragePooling2D, same, odd size": {"graph": {"AveragePool, uneven padding": 1}},
    "Conv2DTranspose, same, strides 2, kernel 3": {"graph": {"ConvTranspose, uneven padding": 1}},
    "GlobalMaxPooling2D": {"graph": {"GlobalMaxPool": 1}},
    "Normalization, adapted": {},
    "activation gelu": {"graph": {"Erfc": 1}},
    "keras.ops.relu, relu6(x + 3) / 6": {},
    "preprocess_input: RGB to BGR": {"graph": {"Slice": 1}},
    "height and width open": {"configuration": ["images of 14×13, where height and width were open"]},
}


def file_name(kind: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in kind)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    _run(ROOT / "tests" / "keras_kinds.py", folder, *SAMPLE)
    return folder


def assert_computes(model: oip_torch.FeatureModel, expected: Path, tolerance: float = 1e-5) -> None:
    with np.load(expected) as arrays:
        images, output = arrays["images"], arrays["output"]
    with torch.no_grad():
        got = model(nchw(images)).numpy()
    got = got.transpose(0, 2, 3, 1) if got.ndim == 4 else got
    np.testing.assert_allclose(got, output, rtol=0, atol=tolerance * np.abs(output).max())


@pytest.mark.slow
@pytest.mark.parametrize("kind", SAMPLE)
def test_a_kind_computes_what_keras_computes(kinds: Path, kind: str) -> None:
    source = kinds / f"{file_name(kind)}.keras"
    size = (14, 13) if "open" in kind else None
    model = oip_torch.convert(source, source.with_suffix(".onnx"), size=size, device="cpu")
    assert model.network.rewritten == SAMPLE[kind]
    assert all(layer.max_error <= 1e-5 for layer in model.layers)
    assert_computes(model, source.with_suffix(".npz"))
    assert max(oip_torch.export_torch(model, source.with_suffix("")).values()) <= 1e-5
    loaded = oip_torch.load(source.with_suffix(".onnx"), device="cpu")
    assert loaded.network == model.network
    if "ops" in kind:  # operations are layers, with what goes into them
        rows = {layer.name: (layer.kind, layer.activation) for layer in model.layers}
        assert rows["relu"] == ("Relu", "relu")
        assert rows["multiply"] == ("Multiply", None)
        assert model.tap("relu6").before is not None


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("removed", 1e-5), ("nested", 1e-5), ("plain", 5e-3)])
@pytest.mark.parametrize("ending", ["h5", "keras"])
def test_a_file_of_keras_2_computes_what_keras_2_computed(
    tmp_path: Path, name: str, tolerance: float, ending: str
) -> None:
    """`plain` was computed in float16, where three digits are left."""
    scale = {} if name == "plain" else {"mean": 0, "std": 1}
    model = oip_torch.convert(KERAS_2 / f"{name}.{ending}", tmp_path / "x.onnx", device="cpu", **scale)
    assert_computes(model, KERAS_2 / f"{name}.npz", tolerance)
    told = " ".join(model.network.rewritten["configuration"])
    expected = {
        "removed": "names of layers were changed, as 'conv1/conv' to 'conv1_conv'",
        "nested": "calls of networks inside are counted from 0",
        "plain": "mixed_float16 became float32",
    }
    assert expected[name] in told
    if name == "removed":
        assert {"conv1_conv", "tf.nn.relu6", "inner/inner_conv"} <= set(model.layers.names)


@pytest.mark.parametrize("path", sorted([*KERAS_2.glob("*.h5"), *KERAS_2.glob("*.keras")]), ids=lambda path: path.name)
def test_a_configuration_of_keras_2_is_rewritten_once(path: Path) -> None:
    """And holds nothing any more that only Keras 2 knows."""
    file = read_keras_file(path)
    assert file.rewritten
    text = json.dumps(file.config)
    assert not re.search(r'"batch_input_shape"|TFOpLambda|tf_keras|mixed_float16|"name": "[^"]*/', text)
    assert rewrite(file.config) == (file.config, ())


CONSTANT = ["_CONSTANT_VALUE", -1, 2.0, {"y": ["a", 0, 0], "name": None}]


@pytest.mark.parametrize(
    ("function", "node", "operands"),
    [
        ("__operators__.add", ["a", 0, 0, {"y": ["b", 0, 0], "name": None}], [["a", 0, 0], ["b", 0, 0]]),
        ("math.subtract", CONSTANT, [2.0, ["a", 0, 0]]),
        ("math.multiply", ["a", 0, 0, {"y": 0.5}], [["a", 0, 0], 0.5]),
        ("nn.silu", [["a", 0, 0, {"beta": 1.0}]], [["a", 0, 0]]),
    ],
)
def test_an_operation_of_tensorflow_becomes_one_of_keras_3(function: str, node: Any, operands: list[Any]) -> None:
    config, _ = rewrite(of_operation(function, node))
    layer = config["config"]["layers"][0]
    assert layer["module"].startswith("keras.src.ops.")
    args = layer["inbound_nodes"][0]["args"]
    assert [arg["config"]["keras_history"] if isinstance(arg, dict) else arg for arg in args] == operands


@pytest.mark.parametrize(
    ("function", "node"),
    [
        ("io.read_file", ["a", 0, 0, {}]),
        ("math.add", ["a", 0, 0, {}]),
        ("nn.relu", ["a", 0, 0, {"y": 1.0}]),
        ("nn.silu", ["a", 0, 0, {"beta": 2.0}]),
        ("math.add", ["a", 0, 0, {"y": 1.0, "other": 3}]),
        (["nn.relu"], ["a", 0, 0, {}]),
    ],
)
def test_another_operation_of_tensorflow_is_refused_with_a_recipe(function: Any, node: Any) -> None:
    with pytest.raises(InputError, match=r"layer 'op' is the TensorFlow operation .* recipe: build the network"):
        rewrite(of_operation(function, node))


def of_operation(function: Any, node: Any) -> dict[str, Any]:
    layer = {"class_name": "TFOpLambda", "name": "op", "config": {"name": "op", "function": function}}
    return {"class_name": "Functional", "config": {"name": "n", "layers": [layer | {"inbound_nodes": [node]}]}}


def test_operations_count_the_calls_of_a_network_inside_from_0_as_layers_do() -> None:
    """As ConvNeXt's: its stem is a Sequential, which Keras 2 counts from 1."""
    stem = {"class_name": "Sequential", "name": "stem", "config": {"name": "stem", "layers": []}}
    first = {"class_name": "ReLU", "name": "r", "config": {"name": "r"}, "inbound_nodes": [[["stem", 1, 0, {}]]]}
    add = {"class_name": "TFOpLambda", "name": "op", "config": {"name": "op", "function": "__operators__.add"}}
    add["inbound_nodes"] = [["stem", 1, 0, {"y": ["r", 0, 0], "name": None}]]
    config, _ = rewrite({"class_name": "Functional", "config": {"name": "n", "layers": [stem, first, add]}})
    _, relu, operation = config["config"]["layers"]
    assert relu["inbound_nodes"] == [[["stem", 0, 0, {}]]]
    (node,) = operation["inbound_nodes"]
    assert [operand["config"]["keras_history"] for operand in node["args"]] == [["stem", 0, 0], ["r", 0, 0]]
    assert rewrite(config) == (config, ())


def test_a_registered_class_of_keras_own_networks_is_the_one_that_keras_has() -> None:
    """As InceptionResNetV2's; one that is not Keras' stays what it is, and is refused later."""
    for name, made in (("CustomScaleLayer", "CustomScaleLayer"), ("Evil", "Custom>Evil")):
        layer = {"class_name": f"Custom>{name}", "name": "c", "config": {"name": "c", "scale": 0.17}}
        config, _ = rewrite({"class_name": "Functional", "config": {"name": "n", "layers": [layer]}})
        found = config["config"]["layers"][0]
        assert (found["class_name"], "module" in found) == (made, made == name)


def test_an_argument_that_keras_3_cannot_have_is_refused() -> None:
    layer = {"class_name": "DepthwiseConv2D", "name": "d", "config": {"name": "d", "groups": 2}}
    with pytest.raises(InputError, match=r"layer 'd' \(DepthwiseConv2D\) has groups = 2, which Keras 3 does not know"):
        rewrite({"class_name": "Functional", "config": {"name": "n", "layers": [layer]}})


def test_an_initialiser_of_tensorflow_is_never_looked_up() -> None:
    """As EfficientNetV2 and tutorials have it; the weights are loaded anyway."""
    start = {"module": "tensorflow.python.ops.init_ops_v2", "class_name": "Constant", "config": {"value": 0}}
    options = {"name": "d", "bias_initializer": start | {"registered_name": "Constant"}}
    layer = {"class_name": "Dense", "name": "d", "config": options}
    config, told = rewrite({"class_name": "Functional", "config": {"name": "n", "layers": [layer]}})
    made = config["config"]["layers"][0]["config"]["bias_initializer"]
    assert (made["module"], made["class_name"], made["config"]) == ("keras.initializers", "Zeros", {})
    assert told == ("initialisers of TensorFlow became Zeros, since the weights are loaded",)
    assert rewrite(config) == (config, ())


@pytest.mark.slow
def test_the_probes_can_be_ones_own(kinds: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 14, 13, 3), np.uint8)
    source = kinds / f"{file_name('activation gelu')}.keras"
    model = oip_torch.convert(source, tmp_path / "x.onnx", probes=images, device="cpu")
    assert model.network.verification["probes"] == {"noise": 4, "given": 32}
    assert isinstance(model.domain, Domain)


@pytest.mark.slow
def test_a_network_of_open_size_is_compared(kinds: Path, tmp_path: Path, converted: Callable[[str], Path]) -> None:
    """The runtimes take the size from the ONNX file."""
    source = kinds / f"{file_name('height and width open')}.keras"
    oip_torch.convert(source, tmp_path / "x.onnx", size=(14, 13), device="cpu")
    found = oip_torch.compare(source, tmp_path / "x.onnx", runtimes=["tensorflow"], maps=[0], steps=3)
    assert found.agree
