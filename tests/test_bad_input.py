"""Bad input: one line that says what is wrong, exit code 2, nothing written, and no code of an untrusted file run."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import onnx2torch
import pytest
import torch
from conftest import in_format_1, without
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import oip_torch
from oip_torch import InputError, cli
from oip_torch.base.limits import Limits
from oip_torch.keras import convert as conversion
from oip_torch.keras import file as keras_file
from oip_torch.network import onnx_file

RANDOM = np.random.default_rng(0).bytes(5000)
Refused = Callable[..., None]


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and time of change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns if path.is_file() else 0)
        for path in folder.rglob("*")
    }


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder: what a command leaves where it should not lies here."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs the command, and checks all that must hold whenever it refuses something."""
    monkeypatch.setattr(conversion, "_export", lambda *_: pytest.fail("TensorFlow was started"))
    monkeypatch.setenv("COLUMNS", "60")  # usage errors must not be wrapped either

    def run(match: str, *arguments: str | Path) -> None:
        before = listing(work)
        code = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 2, printed
        assert printed.out == ""
        assert re.fullmatch(r"error: [^\n]+\n", printed.err), printed.err
        assert re.search(match, printed.err), printed.err
        assert listing(work) == before

    return run


# Files that are none, for every kind of file


BAD_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello\n",
    "random": RANDOM,
    "zip_start": b"PK\x03\x04" + RANDOM,
    "h5_start": b"\x89HDF\r\n\x1a\n" + RANDOM,
    "onnx_start": b"\x08\x08\x12\x07" + RANDOM,
}
COMMANDS = {".keras": ["convert"], ".h5": ["convert"], ".onnx": ["layers", "ascend"]}
ENDINGS = [(ending, command) for ending, commands in COMMANDS.items() for command in commands]


def call(command: str, path: Path) -> list[str | Path]:
    return [command, path, *(["Conv2D_1"] if command == "ascend" else [])]


@pytest.mark.parametrize(("ending", "command"), ENDINGS)
def test_missing_directory_and_no_regular_file(work: Path, refused: Refused, ending: str, command: str) -> None:
    what = "an ONNX file" if ending == ".onnx" else "a Keras model saved as .keras or .h5"
    refused(rf"no{ending} does not exist: expected {what}; check the path", *call(command, work / f"no{ending}"))
    refused(r"does not exist", *call(command, work / f"{'n' * 300}{ending}"))
    refused(r"no such\.\w+ does not exist", *call(command, work / f"no\nsuch{ending}"))
    (work / f"folder{ending}").mkdir()
    refused(rf"folder{ending} is a directory: expected {what}", *call(command, work / f"folder{ending}"))
    os.mkfifo(work / f"pipe{ending}")
    refused(rf"pipe{ending} is no regular file: expected {what}", *call(command, work / f"pipe{ending}"))


@pytest.mark.parametrize("content", BAD_FILES)
@pytest.mark.parametrize(("ending", "command"), ENDINGS)
def test_files_of_another_kind(work: Path, refused: Refused, ending: str, command: str, content: str) -> None:
    path = work / f"bad{ending}"
    path.write_bytes(BAD_FILES[content])
    refused(rf"bad{ending} is (empty \(0 bytes\)|not (a )?readable)", *call(command, path))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.9999])
def test_truncated_files(work: Path, refused: Refused, shipped: Path, mnist_onnx: Path, share: float) -> None:
    for source, command in ((shipped, "convert"), (mnist_onnx, "layers"), (mnist_onnx, "ascend")):
        content = source.read_bytes()
        path = work / f"cut{source.suffix}"
        path.write_bytes(content[: int(share * len(content))])
        refused(
            rf"cut{source.suffix} (is not (a )?readable|is no valid|was not made by|was changed)", *call(command, path)
        )


def test_a_truncated_h5_file(work: Path, refused: Refused) -> None:
    path = keras_h5(work / "cut.h5", config_of(CONV))
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        refused(r"cut\.h5 is not readable as HDF5", "convert", path)


def test_a_name_with_another_ending(work: Path, refused: Refused, shipped: Path) -> None:
    for name in ("model.pb", "model", "model.pkl"):
        (work / name).write_bytes(shipped.read_bytes())
        refused(rf"{name} ends in .*: expected a Keras model saved as \.keras or \.h5", "convert", work / name)


# Keras files, refused before TensorFlow starts


def layer(kind: str, name: str, config: dict[str, Any] | None = None, **marks: Any) -> dict[str, Any]:
    """A layer's entry in a configuration."""
    return {"module": "keras.layers", "class_name": kind, "config": {"name": name, **(config or {})}, **marks}


IMAGE = layer("InputLayer", "image", {"batch_shape": [None, 8, 8, 1]})
CONV = layer("Conv2D", "conv", {"filters": 2, "kernel_size": [3, 3], "activation": "relu"})


def config_of(*layers: Any, **marks: Any) -> dict[str, Any]:
    """The configuration of a Sequential network."""
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [IMAGE, *layers]}, **marks}


def weights_h5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers/conv/vars/0"] = np.zeros((3, 3, 1, 2), np.float32)
        file["layers/conv/vars/1"] = np.zeros(2, np.float32)
    return buffer.getvalue()


def keras_zip(path: Path, config: Any, weights: bytes | None = None, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", weights_h5() if weights is None else weights)
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def keras_h5(path: Path, config: Any) -> Path:
    path.write_bytes(weights_h5())
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
    return path


def test_the_files_made_here_would_pass_without_their_fault(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    for path in (keras_zip(tmp_path / "x.keras", config_of(CONV)), keras_h5(tmp_path / "x.h5", config_of(CONV))):
        assert keras_file.read_keras_file(path).path == path


EVAL = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
HOSTILE: dict[str, tuple[Any, str]] = {
    "lambda": (config_of(CONV, layer("Lambda", "l")), "layer 'l' uses the Lambda code"),
    "lambda_code": (
        config_of(CONV, layer("Activation", "a", {"activation": {"class_name": "__lambda__", "config": {"code": ""}}})),
        "layer 'a' uses the class '__lambda__'",
    ),
    "lambda_in_a_nested_model": (
        config_of(CONV, layer("Sequential", "inner", {"layers": [layer("Lambda", "deep")]}, module="keras")),
        "layer 'deep' uses the Lambda code",
    ),
    "lambda_in_a_shared_config": (config_of(CONV, shared_objects=[layer("Lambda", "s")]), "layer 's' uses the Lambda"),
    "eval": (config_of(layer("Conv2D", "c", {"activation": EVAL})), "layer 'c' uses the function 'eval'"),
    "eval_as_a_class": (
        config_of(CONV, {"module": "builtins", "class_name": "eval", "config": {"x": 1}}),
        r"uses the function \{'x': 1\}|uses the class 'eval'",
    ),
    "relu_of_another_module": (
        config_of(layer("Conv2D", "c", {"activation": EVAL | {"module": "antigravity", "config": "relu"}})),
        "layer 'c' uses the function",
    ),
    "unhashable_function": (config_of(layer("Conv2D", "c", {"activation": EVAL | {"config": [1]}})), "layer 'c'"),
    "registered": (
        config_of(CONV, layer("Layer", "mine", registered_name="evil>Layer", module=None)),
        "layer 'mine' uses the class 'evil>Layer'",
    ),
    "registered_over_a_known_one": (
        config_of(layer("Conv2D", "c", registered_name="evil>Conv2D")),
        "layer 'c' uses the class 'evil>Conv2D'",
    ),
    "known_name_of_another_module": (config_of(layer("Conv2D", "c", module="os")), "layer 'c' uses the class 'Conv2D'"),
    "look_alike_module": (config_of(layer("Conv2D", "c", module="kerasevil")), "layer 'c' uses the class 'Conv2D'"),
    "module_that_is_no_name": (config_of(layer("Conv2D", "c", module=["os"])), "layer 'c' uses the class 'Conv2D'"),
    "other_keras_class": (config_of(CONV, layer("TorchModuleWrapper", "t")), "layer 't' uses the class"),
    "file_reading_layer": (config_of(CONV, layer("StringLookup", "t")), "layer 't' uses the class 'StringLookup'"),
    "function_of_keras": (
        config_of(CONV, {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "http://x"}}),
        "uses the class 'get_file'",
    ),
    "custom_model": ({"module": "evil", "class_name": "Net", "config": {}}, "holds a 'Net': expected a Sequential"),
    "class_that_is_no_name": ({"class_name": ["Sequential"], "config": {}}, r"holds a \['Sequential'\]"),
    "no_convolution": (config_of(layer("Flatten", "f"), layer("Dense", "d")), "has no convolution: expected a CNN"),
    "name_in_the_place_of_a_layer": (config_of(CONV, "deserialize"), "has a layer 'deserialize': expected a class and"),
    "name_in_the_place_of_arguments": (
        config_of(CONV, {"class_name": "Activation", "config": "Input"}),
        "a layer 'Activation' has the configuration 'Input': expected its arguments by name",
    ),
    "activation_by_name": (
        config_of(CONV, layer("Activation", "a", {"activation": "deserialize"})),
        "layer 'a' uses the activation 'deserialize': expected one of Keras' own",
    ),
    "activation_in_a_list": (
        config_of(CONV, layer("Activation", "a", {"activation": ["Input"]})),
        r"layer 'a' uses the activation \['Input'\]: expected one of Keras' own",
    ),
    "activation_without_a_class": (
        config_of(CONV, layer("Activation", "a", {"activation": {"config": "Input"}})),
        r"layer 'a' uses the activation \{'config': 'Input'\}",
    ),
    "many_layers": (
        config_of(*[{"class_name": "ReLU", "config": {}}] * 5001),
        "has 5002 layers: expected at most 5000",
    ),
    "large_activation": (
        config_of(CONV, layer("ZeroPadding2D", "pad", {"padding": 10**5})),
        r"the output of layer 'pad' \(ZeroPadding2D\) has 200006×200006×2 elements: expected at most 268435456",
    ),
    "infinite_number": ('{"class_name": "Sequential", "config": {"layers": [1e999]}}', "has a layer inf"),
    "list": ([1, 2], "holds no network configuration"),
    "null": (None, "holds no network configuration"),
    "no_json": ("{", r"is not a readable \.keras file|has an unreadable model_config"),
    "deep": ("[" * 50_000, r"is not a readable \.keras file|has an unreadable model_config"),
    "deep_but_valid": (
        '{"class_name": "Sequential", "config": {"x": ' + "[" * 900 + "]" * 900 + "}}",
        r"has no convolution|is not a readable \.keras file|has an unreadable model_config|too deep",
    ),
}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("ending", [".keras", ".h5"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_configurations(work: Path, refused: Refused, name: str, ending: str) -> None:
    config, match = HOSTILE[name]
    path = (keras_zip if ending == ".keras" else keras_h5)(work / f"x{ending}", config)
    refused(match, "convert", path)


def test_archives_that_hold_other_things(work: Path, refused: Refused) -> None:
    good = config_of(CONV)
    refused(r"holds '\.\./x': expected .*assets", "convert", keras_zip(work / "a.keras", good, **{"../x": b"x"}))
    refused(r"holds 'assets/x'", "convert", keras_zip(work / "b.keras", good, **{"assets/x": b"x"}))
    with zipfile.ZipFile(work / "c.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(good))
    refused(r"is a zip file, but no Keras model: it lacks model\.weights\.h5", "convert", work / "c.keras")
    refused(r"not readable as HDF5", "convert", keras_zip(work / "d.keras", good, b"no HDF5"))
    assert not (work.parent / "x").exists()


def packed(path: Path, **members: bytes) -> Path:
    """A network whose parts are packed by gzip, some of them others."""
    parts = {
        "metadata.json": b"{}",
        "config.json": json.dumps(config_of(CONV)).encode(),
        "model.weights.h5": weights_h5(),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (parts | members).items():
            archive.writestr(name, content)
    return path


def test_a_bomb_is_not_unpacked(work: Path, refused: Refused) -> None:
    path = packed(work / "bomb.keras", **{"model.weights.h5": bytes(100 << 20)})
    refused(
        r"bomb\.keras unpacks to more than 0\.0\d+ GiB, .*; set OIP_MAX_UNPACKED_GIB if it is sound", "convert", path
    )
    path = packed(work / "text.keras", **{"config.json": b"[" + b"[]," * (6 << 20) + b"1]"})
    refused(r"text\.keras has a config\.json of 18 MiB: expected a network's, at most 16", "convert", path)
    path = packed(work / "values.keras", **{"config.json": b"[" + b"[]," * (1 << 20) + b"1]"})
    refused(
        r"values\.keras is not a readable \.keras file \(2097153 values: expected at most 1000000\)", "convert", path
    )


def test_packed_weights_are_read(work: Path) -> None:
    assert keras_file.read_keras_file(packed(work / "x.keras")).input_shape == (8, 8, 1)
    assert os.listdir(work) == ["x.keras"]


def test_many_parts_of_one_name(work: Path, refused: Refused) -> None:
    path = keras_zip(work / "x.keras", config_of(CONV))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")  # that the name is there already
        for _ in range(1000):
            archive.writestr("config.json", "{}")
    refused(r"x\.keras holds 1003 files of 3 names: expected one of each", "convert", path)


def test_hdf5_that_crashes_its_reader(work: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feigned, since where the library does depends on its version."""
    path = keras_h5(work / "x.h5", config_of(CONV))
    start = work / "start"
    start.mkdir()
    for line, match in (
        ("os.kill(os.getpid(), 11)", r"\(the library that reads it crashed \(SIGSEGV\)\)"),
        ("while True: pass", r"\(reading it takes more than 1 s, and was given up\)"),
        ("bytearray(1 << 40)", r"\(reading it takes too much memory\)"),
    ):
        (start / "h5py.py").write_text(f"import os\n{line}\n")
        monkeypatch.setenv("PYTHONPATH", f"{start}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        monkeypatch.setattr(keras_file, "reading_limits", lambda _: Limits(processor_seconds=1, memory=1 << 30))
        refused(rf"x\.h5 is not readable as HDF5 {match}: expected a model that Keras saved", "convert", path)


def linked(path: Path, kind: str) -> Path:
    """An HDF5 model whose data are somewhere else."""
    keras_h5(path, config_of(CONV))
    secret = path.with_name("secret.h5")
    with h5py.File(secret, "w") as file:
        file["x"] = np.zeros(2, np.float32)
    (path.parent / "secret.bin").write_bytes(bytes(8))
    with h5py.File(path, "a") as file:
        group = file["layers/conv/vars"]
        del group["1"]
        if kind == "external link":
            group["1"] = h5py.ExternalLink(str(secret), "x")
        elif kind == "soft link":
            group["1"] = h5py.SoftLink("/layers/conv/vars/0")
        elif kind == "external data":
            group.create_dataset("1", (2,), np.float32, external=[(str(path.parent / "secret.bin"), 0, 8)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((2,), np.float32)
            layout[:] = h5py.VirtualSource(str(secret), "x", (2,))
            group.create_virtual_dataset("1", layout)
    return path


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_weights_that_lie_elsewhere(work: Path, refused: Refused, kind: str) -> None:
    path = linked(work / "x.h5", kind)
    refused(r"x\.h5 links its data '1' to another place: expected all weights inside the file", "convert", path)
    inside = keras_zip(work / "x.keras", config_of(CONV), path.read_bytes())
    refused(r"x\.keras links its data '1' to another place", "convert", inside)


def test_odd_things_in_hdf5(work: Path, refused: Refused) -> None:
    path = keras_h5(work / "loop.h5", config_of(CONV))
    with h5py.File(path, "a") as file:
        file["layers/loop"] = file["layers"]  # a group inside itself
    refused(r"loop\.h5 ", "convert", path)
    path = keras_h5(work / "type.h5", config_of(CONV))
    with h5py.File(path, "a") as file:
        file["layers/type"] = np.dtype("f8")  # neither group nor data: harmless
    assert keras_file.read_keras_file(path).path == path
    path = keras_h5(work / "number.h5", config_of(CONV))
    with h5py.File(path, "a") as file:
        file.attrs["model_config"] = np.arange(3)
    refused(r"number\.h5 has an unreadable model_config", "convert", path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("lambda.keras", "layer 'sneaky' uses the Lambda code"),
        ("lambda.h5", "layer 'sneaky' uses the Lambda code"),
        ("custom.keras", "layer 'mine' uses the class 'zoo>Custom'"),
        ("custom.h5", "layer 'mine' uses the class 'zoo>Custom'"),
        ("no_convolution.keras", r"no_convolution\.keras has no convolution: expected a CNN"),
        ("two_inputs.keras", r"two_inputs\.keras has 2 inputs \(one, other\): expected one image input; recipe"),
        (
            "flat.keras",
            r"flat\.keras takes inputs of shape \(None, 64\): expected images .* recipe: .*Input\(\(8, 8, 1\)",
        ),
        ("open.keras", r"open\.keras leaves height or width open .*: say which size the images have"),
        ("pixel.keras", r"pixel\.keras takes images of one pixel"),
        ("small.weights.h5", r"small\.weights\.h5 holds weights without their network: .* --architecture network"),
    ],
)
def test_real_keras_files_that_are_refused_without_tensorflow(
    zoo: Path, work: Path, refused: Refused, name: str, match: str
) -> None:
    refused(match, "convert", zoo / name, "-o", work / "new" / "x.onnx")
    assert not (zoo / "lambda_ran").exists()


NEEDS_TENSORFLOW = {
    "nan.keras": r"nan\.keras: the weights conv/bias hold NaN or infinity: expected finite numbers",
    "infinite.h5": r"infinite\.h5: the weights .*conv/bias hold NaN or infinity: expected finite numbers",
    "unbuilt.keras": r"unbuilt\.keras was never built: .* recipe: .*model\.build\(\(None, height, width, channels",
    "surplus.keras": r"Keras cannot load surplus\.keras: Unrecognized keyword arguments passed to Conv2D: .*'surplus'",
}


@pytest.mark.slow
def test_networks_that_tensorflow_must_read_first(
    zoo: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two at a time; of TensorFlow's own noise nothing shows, and of its folder nothing stays."""
    temporary = work / "tmp"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with ThreadPoolExecutor(2) as pool:
        codes = list(
            pool.map(
                lambda name: cli.main(["convert", str(zoo / name), "-o", str(work / f"{name}.onnx")]), NEEDS_TENSORFLOW
            )
        )
    printed = capfd.readouterr()
    assert codes == [2] * len(NEEDS_TENSORFLOW), printed
    assert printed.out == ""
    # print writes line and line end apart: two lines may end together.
    nothing, *messages = printed.err.split("error: ")
    assert nothing == ""
    assert len(messages) == len(NEEDS_TENSORFLOW)
    assert printed.err.count("\n") == len(messages)
    for name, match in NEEDS_TENSORFLOW.items():
        assert [message for message in messages if re.match(match, message)], (name, messages)
    assert listing(work).keys() == {"tmp"}


# ONNX files


@pytest.fixture
def proto(mnist_onnx: Path) -> onnx.ModelProto:
    return onnx.load(mnist_onnx)


def metadata(proto: onnx.ModelProto) -> dict[str, Any]:
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "oip_torch")
    return json.loads(entry.value)


def written(path: Path, proto: onnx.ModelProto, *, text: str | None = None, **changes: Any) -> Path:
    """The file with a digest that fits, so that nothing is refused for that reason alone."""
    data = metadata(proto) | {"graph_sha256": onnx_file.graph_sha256(proto)} | changes
    helper.set_model_props(proto, {"oip_torch": json.dumps(data) if text is None else text})
    path.write_bytes(proto.SerializeToString())
    return path


def add_node(proto: onnx.ModelProto, *arguments: Any, **attributes: Any) -> onnx.NodeProto:
    proto.graph.node.append(helper.make_node(*arguments, **attributes))
    return proto.graph.node[-1]


def test_the_onnx_file_made_here_would_pass_without_its_fault(tmp_path: Path, proto: onnx.ModelProto) -> None:
    add_node(proto, "Relu", ["Conv2D_1"], ["unused"], name="harmless")
    assert len(oip_torch.load(written(tmp_path / "x.onnx", proto), device="cpu").layers) == 8


def external(proto: onnx.ModelProto) -> None:
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    tensor.ClearField("raw_data")


def external_in_a_node(proto: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "t")
    tensor.external_data.add(key="location", value="../secret")
    add_node(proto, "Constant", [], ["c"], value=tensor)


def custom_domain(proto: onnx.ModelProto) -> None:
    add_node(proto, "Relu", ["Conv2D_1"], ["c"], domain="com.microsoft")
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def control_flow(proto: onnx.ModelProto) -> None:
    value = helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [1])
    node = helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    branch = helper.make_graph([node], "branch", [], [value])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    add_node(proto, "If", ["yes"], ["c"], then_branch=branch, else_branch=branch)


def own_function(proto: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    proto.functions.append(helper.make_function("own", "F", ["x"], ["y"], body, [helper.make_opsetid("", 15)]))
    proto.opset_import.append(helper.make_opsetid("own", 1))


def gigantic(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.array([10**6, 10**6], np.int64), "shape"))
    add_node(proto, "ConstantOfShape", ["shape"], ["c"])


def gigantic_weights(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(onnx.TensorProto(name="w", data_type=1, dims=[1 << 20, 1 << 20], raw_data=b"1234"))


def sparse(proto: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.array([5], np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def text(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(helper.make_tensor("words", onnx.TensorProto.STRING, [1], [b"x"]))
    add_node(proto, "Identity", ["words"], ["c"])


def unknown_operation(proto: onnx.ModelProto) -> None:
    add_node(proto, "Exec", ["Conv2D_1"], ["c"])


def loose_end(proto: onnx.ModelProto) -> None:
    add_node(proto, "Relu", ["nowhere"], ["c"])


def missing_tensor(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].output[0] = "Other"
    proto.graph.output[-1].name = "Other"


def two_graph_inputs(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


def no_graph(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]


HOSTILE_ONNX: dict[Callable[[onnx.ModelProto], None], str] = {
    external: r"refused: it has the weights '.*' in another file; expected all data inside",
    external_in_a_node: r"refused: it has the weights 't' in another file",
    custom_domain: r"refused: it has operations of the domain 'com\.microsoft'",
    control_flow: r"refused: it has control flow \(If\)",
    own_function: r"refused: it has functions of its own",
    gigantic: r"refused: it has a tensor of 1000000000000 elements per image \('c'\)",
    gigantic_weights: r"refused: it has the weights 'w' of shape \[1048576, 1048576\]",
    sparse: r"refused: it has sparse weights",
    text: r"refused: it has text among its weights \('words'\); expected numbers",
    unknown_operation: r"no valid ONNX graph \(.*Exec",
    loose_end: r"no valid ONNX graph \(.*nowhere",
    missing_tensor: r"no tensor 'Dense_2' for layer 'Dense_2'",
    two_graph_inputs: r"does not take one input 'image'",
    no_graph: r"not readable as ONNX: it holds no graph",
}


@pytest.mark.parametrize("spoil", HOSTILE_ONNX, ids=lambda spoil: spoil.__name__)
def test_hostile_graphs(
    work: Path, refused: Refused, proto: onnx.ModelProto, spoil: Callable[[onnx.ModelProto], None]
) -> None:
    spoil(proto)
    path = written(work / "x.onnx", proto)
    for command in ("layers", "ascend"):
        refused(rf"x\.onnx.*{HOSTILE_ONNX[spoil]}.*make one with `oip convert MODEL\.keras`", *call(command, path))


def lacking(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: {name: value for name, value in data.items() if name != key}


def with_layer(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data | {"layers": [data["layers"][0] | changes, *data["layers"][1:]]}


def with_domain(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data | {"domain": data["domain"] | changes}


DAMAGED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lacking("layers"), "damaged metadata .KeyError: 'layers'"),
    (lacking("format"), "damaged metadata"),
    (lambda data: data | {"format": 4}, "has metadata of format 4: this version reads formats 1 to 3"),
    (lambda data: data | {"format": "3"}, "has metadata of format '3': this version reads"),
    (lambda data: data | {"layers": []}, "damaged metadata .no output layer"),
    (lambda data: data | {"layers": "Conv2D_1"}, "damaged metadata"),
    (lambda data: data | {"layers": {"a": 1}}, "damaged metadata"),
    (lambda data: data | {"output": "Other"}, "damaged metadata .no output layer"),
    (lambda data: data | {"input_shape": [28, 28]}, "damaged metadata"),
    (lambda data: data | {"input_shape": [28, 28, float("inf")]}, "damaged metadata"),
    (
        lambda data: data | {"input_shape": [0, 28, 1]},
        "damaged metadata .input_shape is 0: expected a whole number from 1",
    ),
    (
        lambda data: data | {"input_shape": [1 << 30, 1 << 30, 1]},
        "damaged metadata .input_shape is 1073741824: expected",
    ),
    (with_domain(mean=["x"]), "damaged metadata"),
    (with_domain(mean=3), "damaged metadata"),
    (lambda data: data | {"domain": []}, "damaged metadata"),
    (lambda data: in_format_1(data) | {"mean": ["x"]}, "damaged metadata"),
    (lambda data: in_format_1(data) | {"std": [0]}, "damaged metadata"),
    (lambda data: data | {"versions": []}, "damaged metadata"),
    (lambda data: data | {"verification": 3}, "damaged metadata"),
    (lambda data: data | {"format": 1}, "damaged metadata .KeyError: 'figures'"),
    (lambda data: in_format_1(data) | {"proof": 3}, "damaged metadata"),
    (lambda data: in_format_1(data) | {"layers": [3]}, "damaged metadata"),
    (with_layer(maps=float("inf")), "damaged metadata"),
    (with_layer(maps=None), "damaged metadata"),
    (with_layer(max_error=None), "damaged metadata"),
    (with_layer(fingerprint=7), "damaged metadata"),
    (lambda data: data | {"input_shape": [14, 14, 1]}, r"input \(14, 14, 1\), where the graph takes \(1, 28, 28\)"),
    (with_domain(mean=[]), r"damaged metadata .*mean of the domain is \(\)"),
    (with_domain(mean=[float("nan")]), "damaged metadata .NaN stands where a finite number is expected"),
    (with_domain(std=[0]), r"damaged metadata .*std is \(0\.0,\)"),
    (with_domain(std=[1, 1]), r"damaged metadata .*std of the domain: got 2 numbers, expected 1"),
    (with_domain(white=[-9]), "damaged metadata .*expected the first below the second"),
    (with_layer(maps=5000), "layer 'Conv2D_1' with 5000 maps, where the graph gives 32"),
    (with_layer(maps=-32), "maps of layer 'Conv2D_1' is -32: expected a whole number from 1"),
    (with_layer(name="Conv2D_2"), "two layers of one name"),
    (with_layer(tensor="Conv2D_1/before_activation"), "its layers are not the graph's outputs"),
    (with_layer(tensor="image"), "no tensor 'image' for layer 'Conv2D_1'"),
    (lambda data: [data], "damaged metadata"),
    (lambda data: None, "damaged metadata"),
    (lambda data: 3, "damaged metadata"),
]


@pytest.mark.parametrize(("change", "match"), DAMAGED)
def test_damaged_metadata(
    work: Path, refused: Refused, proto: onnx.ModelProto, change: Callable[[dict[str, Any]], Any], match: str
) -> None:
    path = written(work / "x.onnx", proto, text=json.dumps(change(metadata(proto))))
    refused(rf"x\.onnx .*{match}", "layers", path)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"format": 2, "layers": [{"name": "Conv', "[" * 100_000])
def test_metadata_that_is_no_json(work: Path, refused: Refused, proto: onnx.ModelProto, text: str) -> None:
    refused(r"x\.onnx has damaged metadata", "layers", written(work / "x.onnx", proto, text=text))


def test_an_onnx_file_of_others_is_told_from_ours(work: Path, refused: Refused, proto: onnx.ModelProto) -> None:
    del proto.metadata_props[:]
    (work / "x.onnx").write_bytes(proto.SerializeToString())
    match = r"x\.onnx was not made by oip_torch: the metadata 'oip_torch' .* missing; take it in with `oip import FILE"
    for command in ("layers", "ascend"):
        refused(match, *call(command, work / "x.onnx"))


def test_a_graph_that_does_not_run(work: Path, proto: onnx.ModelProto) -> None:
    name = next(node.input[1] for node in proto.graph.node if "Flatten" in node.output)
    shape = next(constant for constant in proto.graph.initializer if constant.name == name)
    shape.CopyFrom(numpy_helper.from_array(np.array([7, -1, 11]), name))
    path = written(work / "x.onnx", proto)
    with pytest.raises(InputError, match=r"is no valid ONNX graph|the network does not run"):
        oip_torch.load(path, device="cpu")


def test_text_in_the_graph_that_is_no_utf8(work: Path, refused: Refused, proto: onnx.ModelProto) -> None:
    content = written(work / "x.onnx", proto).read_bytes()
    for marked in (b"Max_Pool_1", b"oip_torch", b"MaxPool"):
        (work / "x.onnx").write_bytes(content.replace(marked, b"\xff" + marked[1:]))
        refused(r"x\.onnx ", "layers", work / "x.onnx")


# Without a dot, since onnx2torch replaces those.
CODE = """training"), exec("open('PWNED', 'w')" + chr(46) + "close()"), (\""""


def rename_tensor(proto: onnx.ModelProto, old: str, new: str) -> None:
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*proto.graph.output, *proto.graph.initializer]:
        if value.name == old:
            value.name = new


def test_onnx2torch_alone_would_run_a_name(work: Path, proto: onnx.ModelProto) -> None:
    """torch.fx writes `getattr(self, "NAME")(…)` into Python source: without this, the next test would show nothing."""
    for node in proto.graph.node:
        node.name = CODE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = onnx2torch.convert(proto)
    with pytest.raises(TypeError, match="'str' object is not callable"):
        network(torch.zeros(1, 1, 28, 28))
    assert os.listdir(work) == ["PWNED"]


@pytest.mark.parametrize("code", [CODE, '\nopen("PWNED", "w")\n', "a.b", "", "\\", "'"])
def test_names_are_never_run(work: Path, proto: onnx.ModelProto, code: str) -> None:
    """Neither those of nodes, nor those of tensors or layers."""
    for node in proto.graph.node:
        node.name = code
    proto.graph.name = code or "g"  # ONNX wants one
    layers = metadata(proto)["layers"]
    tensors = {tensor.name for tensor in proto.graph.initializer}
    for tensor in tensors | {layer[key] for layer in layers for key in ("tensor", "tensor_before")}:
        rename_tensor(proto, tensor, f"{tensor}{code}")
    for layer in layers:
        layer.update({key: f"{layer[key]}{code}" for key in ("name", "tensor", "tensor_before")})
    path = written(work / "x.onnx", proto, layers=layers, output=f"Dense_2{code}")
    model = oip_torch.load(path, device="cpu")
    images = torch.zeros(1, 1, 28, 28)
    model(images)
    for layer in model.layers.names:
        for before in (False, True):
            model.up_to(layer, pre_activation=before)(images)
    assert os.listdir(work) == ["x.onnx"]


def test_a_file_is_not_admitted_beyond_its_size(
    work: Path, refused: Refused, mnist_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (work / "x.onnx").open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse: takes no room on the disk
    refused(r"x\.onnx has 2147483649 bytes: expected at most 2147483648", "layers", work / "x.onnx")


# Calls


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["Conv2D_9"], r"no layer 'Conv2D_9': did you mean 'Conv2D_[123]'\? expected one of Conv2D_"),
        (["conv2d_2"], r"no layer 'conv2d_2': did you mean 'Conv2D_2'\?"),
        (["Max_Pol_1"], r"did you mean 'Max_Pool_1'\?"),
        (["zzz"], r"no layer 'zzz': expected one of Conv2D_1, Max_Pool_1, .*Dense_2"),
        (["Conv2D_3", "128"], r"layer 'Conv2D_3' has no map 128: expected a number from 0 to 127"),
        (["Conv2D_3", "5", "1000"], r"layer 'Conv2D_3' has no map 1000: expected a number from 0 to 127"),
        (["Conv2D_3", "--", "-1"], r"layer 'Conv2D_3' has no map -1: expected a number from 0 to 127"),
        (["Conv2D_3", "--", "3", "-1"], r"layer 'Conv2D_3' has no map -1"),
        (["Conv2D_3", "-1"], r"No such option: -1"),
        (["Conv2D_3", "--maps", "-1"], r"layer 'Conv2D_3' has no map -1"),
        (["Conv2D_3", "0-128"], r"layer 'Conv2D_3' has no map 128"),
        (["Conv2D_3", "one"], r"MAP 'one': expected map numbers and ranges, as in 3 or 0-5,9"),
        (["Conv2D_3", "3.5"], r"MAP '3\.5': expected map numbers"),
        (["Conv2D_3", "9" * 5000], r"MAP '9+ … 9+': expected map numbers"),
        (["Conv2D_3", ""], r"MAP '': expected map numbers"),
        (["Conv2D_3", "0,,5"], r"MAP '': expected map numbers"),
        (["Conv2D_3", "7", "3-"], r"MAP '3-': expected map numbers"),
        (["Conv2D_3", "--", "-3-5"], r"MAP '-3-5': expected map numbers"),
        (["Conv2D_3", "0,5-2"], r"MAP '5-2': its end is below its start; expected a range .* as in 0-5"),
        (["Conv2D_3", "0-999999999999"], r"MAP '0-999999999999': it has 1000000000000 maps; expected a range"),
        (["Conv2D_3", "--maps", "5-2"], r"--maps '5-2': its end is below its start"),
        (["Conv2D_3", "--maps", "x"], r"--maps 'x': expected map numbers"),
        (["Conv2D_3", "1", "--steps", "0"], r"steps is 0: expected a whole number, 1 or more"),
        (["Conv2D_3", "1", "--steps", "-5"], r"steps is -5"),
        (["Conv2D_3", "1", "--steps", "1.5"], r"Invalid value for '--steps'"),
        (["Conv2D_3", "1", "--steps", "x"], r"Invalid value for '--steps'"),
        (["Conv2D_3", "1", "--starts", "2.5"], r"Invalid value for '--starts'"),
        (["Conv2D_3", "1", "--seed", ""], r"Invalid value for '--seed'"),
        (["Conv2D_3", "1", "--memory", "nan"], r"--memory nan: expected a number of GiB above 0"),
        (["Conv2D_3", "1", "--memory", "-inf"], r"--memory -inf: expected a number of GiB above 0"),
        (["Conv2D_3", "1", "--memory", "1e300"], r"--memory 1e\+300: expected a number of GiB above 0"),
        (["Conv2D_3", "1", "--device", "gpu"], r"device 'gpu': expected auto, cpu or cuda"),
        (["Conv2D_3", "1", "--starts", "0"], r"starts is 0: expected a whole number, 1 or more"),
        (["Conv2D_3", "1", "--starts", "-1"], r"starts is -1"),
        (["Conv2D_3", "1", "--memory", "0"], r"--memory 0\.0: expected a number of GiB above 0"),
        (
            ["Conv2D_3", "1", "--memory", "1e-6"],
            r"OIPs of 'Conv2D_3', 1 in number, need [\d.]+ MiB of memory, .* and 1\.05 KiB may be used",
        ),
        (["Conv2D_3", "1", "--epsilon", "0"], r"epsilon is 0\.0: expected a number above 0"),
        (["Conv2D_3", "1", "--epsilon", "-0.1"], r"epsilon is -0\.1"),
        (["Conv2D_3", "1", "--epsilon", "nan"], r"epsilon is nan"),
        (["Conv2D_3", "1", "--epsilon", "inf"], r"epsilon is inf"),
        (["Conv2D_3", "1", "--seed", "-1"], r"seed is -1: expected a whole number, 0 or more"),
        (
            ["Conv2D_3", "1", "--settings", "nonsense"],
            r"--settings nonsense: expected article, default, legible or strokes",
        ),
        (["Conv2D_3", "1", "--device", "abacus"], r"device 'abacus': expected auto, cpu or cuda"),
        (["Conv2D_3", "1", "--device", "meta"], r"device 'meta': expected auto, cpu or cuda"),
        (["Conv2D_3", "1", "--nonsense"], r"No such option: --nonsense"),
        ([], r"Missing argument 'LAYER'"),
    ],
)
def test_wrong_calls_of_ascend(refused: Refused, mnist_onnx: Path, arguments: list[str], match: str) -> None:
    refused(match, "ascend", mnist_onnx, *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ascend", "FILE", "Conv2D_9"],
        ["ascend", "FILE", "Conv2D_3", "999", "-o", "results"],
        ["ascend", "FILE", "Conv2D_3", "--steps", "0"],
        ["ascend", "FILE", "Conv2D_3", "5-2"],
        ["layers", "missing.onnx"],
        ["convert", "missing.keras"],
        ["compare", "missing.keras", "FILE"],
        ["layers"],
        ["layers", "FILE", "--nonsense"],
        ["nonsense"],
    ],
)
def test_with_json_the_error_is_told_on_stdout_as_well(
    work: Path, mnist_onnx: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    words = [str(mnist_onnx) if word == "FILE" else word for word in arguments]
    assert cli.main([*words, "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert printed.err == f"error: {json.loads(printed.out)['error']}\n"
    assert list(json.loads(printed.out)) == ["error"]
    assert listing(work) == {}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--mean", "33"], r"only one of mean and std was given: expected both, or neither"),
        (["--std", "78"], r"only one of mean and std was given"),
        (["--mean", "x", "--std", "1"], r"--mean x: expected a number, or one per channel as in 103\.9,116\.8"),
        (["--mean", "1", "--std", "1,,2"], r"--std 1,,2: expected a number"),
        (["--mean", "1", "--std", "0"], r"expected finite numbers, and each std above 0"),
        (["--mean", "nan", "--std", "1"], r"expected finite numbers"),
        (["-o", "x.txt"], r"the output x\.txt ends in \.txt: expected a name ending in \.onnx"),
        (["-o", "x"], r"the output x ends in nothing: expected a name ending in \.onnx"),
        (["-o", "."], r"the output \. is a directory: expected the name of an ONNX file"),
        (["--nonsense"], r"No such option: --nonsense"),
        (["surplus"], r"unexpected extra argument.*\(surplus\)"),
        (["--device", "abacus"], r"device 'abacus': expected auto, cpu or cuda"),
    ],
)
def test_wrong_calls_of_convert(refused: Refused, shipped: Path, arguments: list[str], match: str) -> None:
    refused(match, "convert", shipped, *arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nonsense"], r"No such command 'nonsense'"),
        (["--nonsense"], r"No such option: --nonsense"),
        (["layers"], r"Missing argument 'FILE\.onnx'"),
        (["convert"], r"Missing argument 'MODEL\.keras\|\.h5'"),
    ],
)
def test_wrong_commands(refused: Refused, arguments: list[str], match: str) -> None:
    refused(rf"{match}.*see `oip --help`", *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none(refused: Refused, mnist_onnx: Path, shipped: Path) -> None:
    match = r"device 'cuda' was asked for, but torch finds no CUDA device here; use auto or cpu"
    refused(match, "ascend", mnist_onnx, "Conv2D_3", "1", "--device", "cuda")
    refused(match, "convert", shipped, "--device", "cuda", "-o", "x.onnx")


UNWRITABLE = [
    *("file/results", "file/deeper/results", f"{'n' * 300}/results"),
    *(["/proc/results"] if Path("/proc/self").is_dir() else []),  # a folder where not even root can write
]


@pytest.mark.parametrize("folder", UNWRITABLE)
def test_an_output_that_cannot_be_written(
    work: Path, refused: Refused, mnist_onnx: Path, shipped: Path, folder: str
) -> None:
    (work / "file").write_text("in the way")
    match = r"cannot write to the folder .*; choose another output folder"
    refused(match, "ascend", mnist_onnx, "Conv2D_3", "1", "--steps", "1", "-o", folder)
    refused(match, "convert", shipped, "-o", f"{folder}/x.onnx")


def test_an_output_folder_that_is_a_file(work: Path, refused: Refused, mnist_onnx: Path) -> None:
    (work / "file").write_text("in the way")
    refused(r"file", "ascend", mnist_onnx, "Conv2D_3", "1", "--steps", "1", "-o", "file")


# TensorFlow is not installed


@pytest.mark.slow
def test_without_tensorflow_convert_says_what_to_install(shipped: Path, work: Path, tmp_path: Path) -> None:
    """As where it is not installed: no such package is found."""
    (tmp_path / "sitecustomize.py").write_text(without("tensorflow", "tf2onnx"))
    result = subprocess.run(
        [sys.executable, "-m", "oip_torch", "convert", shipped, "-o", "x.onnx"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=600,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    match = r'error: tensorflow and tf2onnx (is|are) not installed, .* run `pip install "\.\[convert\]"` .*\n'
    assert re.fullmatch(match, result.stderr)
    assert os.listdir(work) == []


# Any damage


def admitted(check: Callable[[Path], Any], path: Path, content: bytes) -> bool:
    """Whether the file passes; any exception but InputError comes through."""
    path.write_bytes(content)
    message = None
    try:
        check(path)
    except InputError as error:
        message = str(error)
    assert message is None or (str(path) in message and "\n" not in message)
    return message is None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@pytest.fixture(scope="module")
def small_keras(scratch: Path) -> bytes:
    return keras_zip(scratch / "small.keras", config_of(CONV)).read_bytes()


@pytest.fixture(scope="module")
def structure(mnist_onnx: Path) -> tuple[bytes, list[int]]:
    """The ONNX file, and the places in it that are not weights: most of the file is."""
    content = mnist_onnx.read_bytes()
    weights = [tensor.raw_data for tensor in onnx.load(mnist_onnx).graph.initializer if len(tensor.raw_data) > 1000]
    inside = np.ones(len(content), bool)
    for data in weights:
        inside[content.find(data) :][: len(data)] = False
    return content, np.flatnonzero(inside).tolist()


fewer = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # children
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


@few
@given(flips=flips)
def test_flipped_bytes_of_an_onnx_file(
    structure: tuple[bytes, list[int]], scratch: Path, flips: list[tuple[float, int]]
) -> None:
    content, places = bytearray(structure[0]), structure[1]
    for place, bits in flips:
        content[places[int(place * len(places))]] ^= bits
    admitted(onnx_file.read, scratch / "x.onnx", bytes(content))


@few
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_onnx_files(structure: tuple[bytes, list[int]], scratch: Path, share: float) -> None:
    assert not admitted(onnx_file.read, scratch / "x.onnx", structure[0][: int(share * len(structure[0]))])


@fewer
@given(flips=flips)
def test_flipped_bytes_of_a_keras_file(small_keras: bytes, scratch: Path, flips: list[tuple[float, int]]) -> None:
    content = bytearray(small_keras)
    for place, bits in flips:
        content[int(place * len(content))] ^= bits
    admitted(keras_file.read_keras_file, scratch / "x.keras", bytes(content))


@fewer
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_keras_files(small_keras: bytes, scratch: Path, share: float) -> None:
    assert not admitted(keras_file.read_keras_file, scratch / "x.keras", small_keras[: int(share * len(small_keras))])
