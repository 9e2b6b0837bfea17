"""Conversion: torch computes what Keras computes, layer by layer; what is written, and how its process ends."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from conftest import nchw
from onnx import numpy_helper
from test_verify import bias_off, changed, constant, kernel_turned, maps_swapped

import oip_torch
from oip_torch import ConversionError, FeatureModel, cli
from oip_torch.comparison.runtimes.process import RuntimeProcess
from oip_torch.keras import classes as keras_classes
from oip_torch.keras import convert as conversion
from oip_torch.network.load import with_exact_fingerprints
from oip_torch.network.onnx_file import graph_sha256, read, write

MNIST = ["Conv2D_1", "Max_Pool_1", "Conv2D_2", "Max_Pool_2", "Conv2D_3", "Flatten", "Dense_1", "Dense_2"]
LAYERS = {
    "mnist_cnn.keras": MNIST,
    "branches.keras": [
        *("stem", "stem_bn", "stem_relu", "left", "left_bn", "right", "right_bn", "pool", "joined", "mix", "drop"),
        *("average", "classes"),
    ],
    "rgb.keras": ["wide", "mean_pool", "narrow", "pixelwise", "flat", "logits"],
    "default_names.keras": [
        *("conv2d_2", "sequential/conv2d@1", "sequential/conv2d_1@1", "sequential/conv2d@2", "sequential/conv2d_1@2"),
        *("conv2d_3@1", "conv2d_3@2", "concatenate", "conv2d_4", "flatten", "dense"),
    ],
    "smooth.keras": ["Tanh_1", "Pool_1", "Elu_2", "Flat", "Sigmoid_3"],
    "silent.h5": ["Conv2D_1", "Max_Pool_1", "Conv2D_2", "Flatten", "Dense_1"],
    "augmented.keras": [
        *(f"data_augmentation/{name}" for name in keras_classes.AUGMENTATIONS),  # whatever is admitted is converted
        *("alone", "scaled", "normed", "conv", "flat", "logits"),
    ],
    "augmented.h5": [
        *(f"data_augmentation/Random{name}" for name in ("Flip", "Zoom", "Contrast", "Grayscale")),
        *("alone", "scaled", "normed", "conv", "flat", "logits"),
    ],
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LAYERS]
TOLERANCE = 1e-5  # of the largest value; measured: below 1e-6

Arrays = dict[str, npt.NDArray[np.float32]]


def nhwc(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def constants_in_order(proto: onnx.ModelProto) -> list[npt.NDArray[Any]]:
    """Those that the nodes take, in the nodes' order."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [constants[name] for node in proto.graph.node for name in node.input if name in constants]


def assert_equal(got: torch.Tensor, expected: npt.NDArray[np.float32], name: str) -> None:
    """Shapes alike, and no value off by more than the tolerance; an expectation of zeros must be met exactly."""
    array = nhwc(got)
    assert array.shape == expected.shape, name
    np.testing.assert_allclose(array, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(), err_msg=name)


# Good networks


@pytest.mark.parametrize("name", SLOW)
def test_every_layer_is_found_named_and_verified(converted: Callable[[str], Path], name: str) -> None:
    layers = oip_torch.load(converted(name), device="cpu").layers
    assert sorted(layers.names) == sorted(LAYERS[name])
    for layer in layers:
        assert layer.max_error is not None
        assert 0 <= layer.max_error <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_torch_agrees_with_tensorflow_beyond_our_own_verification(
    zoo: Path, converted: Callable[[str], Path], name: str
) -> None:
    """Against `keras.Model(inputs, layer.output)`, see keras_zoo.py, on other images than the verification's."""
    model = oip_torch.load(converted(name), device="cpu")
    expected: Arrays = dict(np.load(zoo / f"{name}.npz"))
    images = expected.pop("images")
    after = {layer: array for layer, array in expected.items() if not layer.startswith("before:")}
    before = {layer.removeprefix("before:"): array for layer, array in expected.items() if layer not in after}
    assert sorted(after) == sorted(LAYERS[name])
    for batch in (slice(0, 1), slice(1, 4), slice(0, 7)):
        with oip_torch.capture(model, *after) as maps:
            output = model(nchw(images[batch]))
        for layer, array in after.items():
            assert_equal(maps[layer], array[batch], layer)
        assert torch.equal(output, maps[model.network.output])
        if before:
            with oip_torch.capture(model, *before, pre_activation=True) as maps:
                model(nchw(images[batch]))
            for layer, array in before.items():
                assert_equal(maps[layer], array[batch], f"{layer} before its activation")


@pytest.mark.slow
def test_an_h5_file_gives_the_same_network(
    zoo: Path, converted: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command, with --json: one object on stdout, and nothing of TensorFlow's noise on stderr."""
    target = tmp_path / "new" / "b.onnx"
    assert cli.main(["convert", str(zoo / "branches.h5"), "-o", str(target), "--json"]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    answer = json.loads(printed.out)
    assert answer["onnx"] == str(target)
    assert answer["seconds"] > 0
    assert os.listdir(target.parent) == ["b.onnx"]
    h5, keras = (oip_torch.load(path, device="cpu") for path in (target, converted("branches.keras")))
    assert answer["layers"] == [layer.row() for layer in h5.layers]
    assert sorted(layer["name"] for layer in answer["layers"]) == sorted(LAYERS["branches.keras"])
    assert all(layer["max_error"] <= 1e-5 for layer in answer["layers"])
    images = torch.randn(3, 1, 27, 25, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(h5(images), keras(images), rtol=0, atol=0)


@pytest.mark.slow
def test_the_runtimes_of_keras_run_the_augmentation_layers(zoo: Path, converted: Callable[[str], Path]) -> None:
    """RandomGrayscale draws a seed at inference too, which a function that JAX traces must not store.

    And Rescaling's scale is the same number in all of them, in float64 too: with 1 / 127.5 itself they differ by 6e-8;
    likewise the divisor of Normalization, which the graph has in float32.
    """
    images = np.random.default_rng(0).uniform(0, 255, (2, 12, 10, 3))
    onnx_file = converted("augmented.h5")

    def ask(name: str) -> list[npt.NDArray[Any]]:
        with RuntimeProcess(name, zoo / "augmented.h5", onnx_file, threads=1) as process:
            layers = process.layers(images, "float64")
            gradients = process.gradients("conv", np.array([0, 3]), images, "float64")
        return [layers["data_augmentation/RandomGrayscale"], layers["conv"], *gradients]

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, ("tensorflow", "jax", "keras-torch", "torch")))
    for answer in answers:
        np.testing.assert_array_equal(answer[0], images)
        for got, expected in zip(answer[1:], answers[0][1:], strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MODEL.KERAS", "Model.Hdf5"])
def test_the_case_of_the_ending_does_not_matter(zoo: Path, shipped: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(shipped if name == "MODEL.KERAS" else zoo / "silent.h5", tmp_path / name)
    model = oip_torch.convert(tmp_path / name, device="cpu")
    assert model.network.source == name
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name.split('.')[0]}.onnx"])


@pytest.mark.slow
def test_a_layer_that_never_responds_is_verified_before_its_activation(converted: Callable[[str], Path]) -> None:
    model = oip_torch.load(converted("silent.h5"), device="cpu")
    assert model.network.verification["gradient"]["layer"] == "Conv2D_2"
    assert model.network.verification["gradient"]["before_activation"] is True
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert not model.up_to("Conv2D_2")(images).any()
    assert (model.up_to("Conv2D_2", pre_activation=True)(images) < -50).all()


@pytest.mark.slow
def test_the_sizes_and_activations_are_those_of_the_keras_layers(converted: Callable[[str], Path]) -> None:
    layers = oip_torch.load(converted("branches.keras"), device="cpu").layers
    rows = {layer.name: (layer.kind, layer.maps, layer.height, layer.width, layer.activation) for layer in layers}
    assert rows["stem"] == ("Conv2D", 6, 14, 13, "linear")
    assert rows["stem_bn"] == ("BatchNormalization", 6, 14, 13, None)
    assert rows["stem_relu"] == ("Activation", 6, 14, 13, "relu")
    assert rows["joined"] == ("Concatenate", 15, 14, 13, None)
    assert rows["classes"] == ("Dense", 5, 1, 1, "softmax")


def test_the_shipped_network_recognises_real_digits(
    model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
) -> None:
    images, labels = digits
    assert images.shape == (5000, 28, 28)
    with torch.no_grad():
        classes = model(model.standardize(images)).argmax(1).numpy()
    assert (classes == labels).mean() >= 0.99


# The process of TensorFlow


def export(folder: Path, job: dict[str, Any]) -> list[Any]:
    return list(conversion._answers(folder, job, Path("x.keras"), lambda stage: None))


def a_python_that(folder: Path, commands: str) -> str:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{commands}\n")
    python.chmod(0o755)
    return str(python)


@pytest.mark.slow
def test_an_error_of_the_process_is_told_by_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else stderr ends in; how a process died that could not tell, and what it was doing."""
    with pytest.raises(ConversionError, match=r"could not export x\.keras \(while .*\): KeyError"):
        export(tmp_path, {})
    (tmp_path / "error.json").unlink()
    words = "echo writing; echo 'std::bad_alloc' >&2; echo 'W0000 a log' >&2; kill -KILL $$"
    monkeypatch.setattr(sys, "executable", a_python_that(tmp_path, words))
    with pytest.raises(
        ConversionError, match=r"x\.keras: it died while writing \(ended by SIGKILL\): std::bad_alloc; less memory"
    ):
        export(tmp_path, {})


@pytest.mark.slow
def test_a_crash_of_tensorflow_is_followed_by_a_try_with_onednn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was handed over before the crash is not handed over again."""
    np.savez(tmp_path / "one.npz", number=1)
    np.savez(tmp_path / "two.npz", number=2)
    folder = tmp_path / "work"
    folder.mkdir()
    words = (
        f"cp {tmp_path}/one.npz .; printf '\\037one.npz\\n'; read line\n"
        "[ \"$TF_ENABLE_ONEDNN_OPTS\" = 1 ] || { echo 'double free' >&2; kill -ABRT $$; }\n"
        f"cp {tmp_path}/two.npz .; printf '\\037two.npz\\n'; read line\n"
    )
    monkeypatch.setattr(sys, "executable", a_python_that(tmp_path, words))
    answers = conversion._answers(folder, {}, Path("x.keras"), lambda stage: None)
    assert [int(answer["number"]) for answer in answers] == [1, 2]
    words = "echo differentiating; echo 'double free' >&2; kill -SEGV $$"
    monkeypatch.setattr(sys, "executable", a_python_that(tmp_path, words))
    with pytest.raises(ConversionError, match=r"died while differentiating \(ended by SIGSEGV\): double free"):
        export(folder, {})


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(shipped: Path, tmp_path: Path) -> None:
    """SIGINT to the command alone, while TensorFlow's process works: both end, and the folder goes."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "oip_torch", "convert", shipped, "-o", tmp_path / "x.onnx"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that the session's processes are those of the command
    ) as process:
        deadline = time.monotonic() + 60
        while not list(temporary.glob("oip_torch-convert-*/stderr.txt")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1)  # TensorFlow is being imported
        assert len(processes_of_session(process.pid)) == 2
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert time.monotonic() - began < 2
    assert processes_of_session(process.pid) == []
    assert os.listdir(temporary) == []
    assert os.listdir(tmp_path) == ["tmp"]


def processes_of_session(session: int) -> list[str]:
    return subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True).stdout.split()


# The file's own check


def assert_load_refuses(path: Path, match: str) -> None:
    with pytest.raises(oip_torch.InputError, match=match):
        oip_torch.load(path, device="cpu")


def test_one_flipped_bit_of_a_weight_is_noticed(mnist_onnx: Path, tmp_path: Path) -> None:
    content = bytearray(mnist_onnx.read_bytes())
    weights = constant(onnx.load(mnist_onnx), "Conv2D_2", 1).raw_data
    content[content.find(weights) + len(weights) // 2] ^= 1  # the lowest bit of a float's mantissa
    (tmp_path / "x.onnx").write_bytes(content)
    assert_load_refuses(tmp_path / "x.onnx", r"x\.onnx was changed or damaged after its conversion.*digest")
    assert len(oip_torch.load(tmp_path / "x.onnx", device="cpu", check=False).layers) == len(MNIST)


@pytest.mark.parametrize(
    ("damage", "layer"),
    [
        (bias_off("Conv2D_1"), "Conv2D_1"),
        (bias_off("Conv2D_3", by=-1e-2), "Conv2D_3"),
        (kernel_turned("Conv2D_2"), "Conv2D_2"),
        (maps_swapped("Conv2D_3"), "Conv2D_3"),
    ],
)
def test_the_self_check_names_the_layer(
    mnist_onnx: Path, tmp_path: Path, damage: Callable[[onnx.ModelProto], None], layer: str
) -> None:
    """With a digest that fits the damaged weights, as if a library computed wrongly."""
    proto, network = changed(mnist_onnx, damage)
    path = tmp_path / "x.onnx"
    network = oip_torch.Network(**{**vars(network), "graph_sha256": graph_sha256(proto)})
    write(proto, network, path)
    read(path)  # the digest alone does not tell
    assert_load_refuses(path, rf"layer '{layer}' gives \(.*\) where Keras gave \(.*\): the file is damaged")


def changed_maximum(figures: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return (*figures[:2], figures[2] * factor, figures[3])


def test_the_self_check_is_in_float64_where_that_decided(mnist_onnx: Path, tmp_path: Path) -> None:
    """However coarse float32 is said to be: figures of float64 agree to its own rounding."""
    proto, network = read(mnist_onnx)
    path, model = tmp_path / "x.onnx", oip_torch.load(mnist_onnx, device="cpu")
    layers = [
        dataclasses.replace(layer, max_error=0.5, error_float64=1e-13) if layer.name == "Conv2D_3" else layer
        for layer in network.layers
    ]
    exact = with_exact_fingerprints(model, layers)
    assert [layer.name for layer, old in zip(exact, layers, strict=True) if layer != old] == ["Conv2D_3"]
    write(proto, dataclasses.replace(network, layers=exact), path)
    loaded = oip_torch.load(path, device="cpu")
    assert loaded.layers["Conv2D_3"].error_float64 == 1e-13
    assert next(loaded.parameters()).dtype == torch.float32

    for off in (1e-3, -1e-3):
        wrong = [
            dataclasses.replace(layer, fingerprint=changed_maximum(layer.fingerprint, 1 + off))
            if layer.name == "Conv2D_3"
            else layer
            for layer in exact
        ]
        write(proto, dataclasses.replace(network, layers=tuple(wrong)), path)
        assert_load_refuses(path, "layer 'Conv2D_3' gives")


def test_the_self_check_names_the_layer_that_is_not_finite(mnist_onnx: Path, tmp_path: Path) -> None:
    proto, network = changed(mnist_onnx, bias_off("Conv2D_2", by=np.nan))
    write(proto, oip_torch.Network(**{**vars(network), "graph_sha256": graph_sha256(proto)}), tmp_path / "x.onnx")
    assert_load_refuses(tmp_path / "x.onnx", r"layer 'Conv2D_2' \(Conv2D\) gives NaN or infinite values")


@pytest.mark.slow
def test_the_self_check_tells_the_uses_of_a_shared_layer_apart(
    converted: Callable[[str], Path], tmp_path: Path
) -> None:
    proto, network = read(converted("default_names.keras"))
    swap = {"conv2d_3@1": "conv2d_3@2", "conv2d_3@2": "conv2d_3@1"}
    layers = tuple(
        oip_torch.Layer(**{**vars(layer), "tensor": swap.get(layer.tensor, layer.tensor)}) for layer in network.layers
    )
    write(proto, oip_torch.Network(**{**vars(network), "layers": layers}), tmp_path / "x.onnx")
    assert_load_refuses(tmp_path / "x.onnx", "layer 'conv2d_3@1' gives")


# Description


def test_the_file_says_what_it_is(mnist_onnx: Path, shipped: Path) -> None:
    proto, network = read(mnist_onnx)
    assert [layer.name for layer in network.layers] == MNIST
    rows = {layer.name: (layer.kind, layer.maps, layer.height, layer.width) for layer in network.layers}
    assert rows["Conv2D_2"] == ("Conv2D", 64, 11, 11)
    assert rows["Max_Pool_2"] == ("MaxPooling2D", 64, 5, 5)
    assert rows["Flatten"] == ("Flatten", 1152, 1, 1)
    assert network.output == "Dense_2"
    assert network.input_shape == (28, 28, 1)
    assert (network.domain.pixel_mean, network.domain.pixel_std) == ((33.318421,), (78.567490,))
    assert network.source == "mnist_cnn.keras"
    assert network.source_sha256 == hashlib.sha256(shipped.read_bytes()).hexdigest()
    assert network.graph_sha256 == graph_sha256(proto)
    assert {"oip_torch", "torch", "onnx2torch", "tensorflow", "keras", "tf2onnx", "onnx"} <= set(network.versions)
    assert all(re.match(r"\d+\.\d+", version) for version in network.versions.values())
    assert proto.opset_import[0].version == 15
    assert [entry.name for entry in proto.graph.input] == ["image"]
    assert [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim][1:] == [1, 28, 28]
    assert str(shipped.parent).encode() not in mnist_onnx.read_bytes()  # no path of this machine


@pytest.mark.slow
def test_another_conversion_of_the_same_file_gives_the_same_network(
    shipped: Path, model: FeatureModel, mnist_onnx: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes beside its source by default, and a given standardisation travels with it."""
    source = tmp_path / "copy of it.keras"
    source.write_bytes(shipped.read_bytes())
    again = oip_torch.convert(source, mean=127.5, std=[50], device="cpu")
    assert "is assumed" not in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["copy of it.keras", "copy of it.onnx"]
    first, second = onnx.load(mnist_onnx), onnx.load(tmp_path / "copy of it.onnx")
    assert [node.op_type for node in first.graph.node] == [node.op_type for node in second.graph.node]
    assert [value.name for value in first.graph.output] == [value.name for value in second.graph.output] == MNIST
    for one, other in zip(constants_in_order(first), constants_in_order(second), strict=True):
        np.testing.assert_array_equal(one, other)
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(4))
    for name, output in again.every_layer(images).items():
        assert torch.equal(output, model.every_layer(images)[name])
    loaded = oip_torch.load(tmp_path / "copy of it.onnx", device="cpu").network
    assert loaded == again.network
    assert (loaded.domain.pixel_mean, loaded.domain.pixel_std) == ((127.5,), (50.0,))
    assert loaded.source_sha256 == model.network.source_sha256


@pytest.mark.slow
def test_without_a_word_pixels_go_in_as_they_are(converted: Callable[[str], Path]) -> None:
    model = oip_torch.load(converted("rgb.keras"), device="cpu")
    assert (model.domain.pixel_mean, model.domain.pixel_std) == ((0.0,), (1.0,))
    assert "natural images' being assumed" in model.domain.source
    assert model.input_shape == (3, 20, 32)
    assert model.standardize(np.full((1, 20, 32, 3), 7, np.uint8)).unique().tolist() == [7.0]
