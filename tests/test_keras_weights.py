"""Weights alone: are they those of the configuration beside them, and what is said where they are not?"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import ROOT
from test_bad_input import CONV, IMAGE, config_of, keras_h5, keras_zip, layer
from test_keras_kinds import assert_computes

import oip_torch
from oip_torch import InputError
from oip_torch.cli import main
from oip_torch.keras import formats
from oip_torch.keras.file import read_keras_file

KERAS_2 = ROOT / "tests" / "data" / "keras2"
ALONE = KERAS_2 / "alone"
JSON = ALONE / "augmented.json"
FORMS = ("alone.h5", "alone.weights.h5")


pytestmark = pytest.mark.usefixtures("in_this_process")


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[list[dict[str, Any]]], object]], Path]:
    """The configuration of `ALONE` with its layers changed."""

    def write(change: Callable[[list[dict[str, Any]]], object]) -> Path:
        config = json.loads(JSON.read_text(encoding="utf-8"))
        change(config["config"]["layers"])
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        return path

    return write


def options(layers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry["config"] for entry in layers if entry["config"]["name"] == name)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_weights_of_keras_2_and_their_configuration_compute_what_keras_2_computed(tmp_path: Path, form: str) -> None:
    model = oip_torch.convert(ALONE / form, tmp_path / "x.onnx", architecture=JSON, device="cpu")
    assert_computes(model, KERAS_2 / "augmented.npz")
    assert model.network.source == form


@pytest.mark.parametrize("form", FORMS)
def test_what_is_put_together_is_the_whole_network(tmp_path: Path, form: str) -> None:
    """The same configuration as in the file with both, admitted anew, and the same weights."""
    file = read_keras_file(ALONE / form, architecture=JSON)
    whole = read_keras_file(KERAS_2 / "augmented.h5")
    made = file.for_keras(tmp_path)
    again = read_keras_file(made)
    assert again.rewritten == ()
    layers, expected = (
        [(e["class_name"], e["config"]["name"]) for e in f.config["config"]["layers"]] for f in (again, whole)
    )
    assert layers == expected
    if made.suffix == ".h5":
        with h5py.File(made) as ours, h5py.File(KERAS_2 / "augmented.h5") as theirs:
            kernel = "model_weights/conv/conv/kernel:0"
            np.testing.assert_array_equal(ours[kernel], theirs[kernel])
            assert list(ours["model_weights"].attrs["layer_names"]) == list(
                theirs["model_weights"].attrs["layer_names"]
            )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda layers: options(layers, "conv").update(filters=7),
            r"the kernel of layer 'conv' has the shape \(3, 3, 3, 4\) in the file.*: expected \(3, 3, any, 7\); give",
        ),
        (
            lambda layers: options(layers, "logits").update(units=10),
            r"the kernel of layer 'logits' has the shape \(360, 3\) in the file.*: expected \(any, 10\)",
        ),
        (
            lambda layers: options(layers, "norm").update(scale=True),
            r"layer 'norm' \(BatchNormalization\) has 3 weights in the file.*: expected 4, gamma, beta, moving me",
        ),
        (
            lambda layers: options(layers, "conv").update(use_bias=False),
            r"layer 'conv' \(Conv2D\) has 2 weights in the file.*\(3, 3, 3, 4\), \(4,\): expected 1, kernel",
        ),
    ],
)
def test_weights_of_another_network_are_named(
    changed: Callable[..., Path], form: str, change: Callable[..., object], match: str
) -> None:
    with pytest.raises(InputError, match=rf"{form} does not fit .*changed\.json: {match}"):
        read_keras_file(ALONE / form, architecture=changed(change))


def test_more_or_fewer_layers_than_in_the_file_are_named(changed: Callable[..., Path]) -> None:
    fewer = changed(lambda layers: layers.pop())
    with pytest.raises(InputError, match=r"holds weights of 3 layers: expected 2 .*it has also 'logits'"):
        read_keras_file(ALONE / "alone.h5", architecture=fewer)
    with pytest.raises(InputError, match="holds weights of 'layers/dense', for which there is no layer"):
        read_keras_file(ALONE / "alone.weights.h5", architecture=fewer)
    one_more = {"class_name": "Dense", "config": {"name": "more", "units": 3}}
    more = changed(lambda layers: layers.append(one_more))
    with pytest.raises(InputError, match=r"holds weights of 3 layers: expected 4 .*without 'more'"):
        read_keras_file(ALONE / "alone.h5", architecture=more)
    with pytest.raises(InputError, match=r"layer 'more' \(Dense\) has 0 weights in the file .*none: expected 2"):
        read_keras_file(ALONE / "alone.weights.h5", architecture=more)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("no json", r"x\.json is no JSON .*: expected what open\('network\.json', 'w'\)\.write\(model\.to_json\(\)\)"),
        (b"\xff\xfe\x00", r"x\.json is no JSON"),
        ("[" * 100_000, r"x\.json is no JSON \(nested more than 200 levels deep\)"),
        ('{"class_name": "Sequential", "config": ' + '{"config": ' * 150 + "1" + "}" * 151, r"x\.json has no convolu"),
        ("[1, 2]", r"x\.json holds no network's configuration: expected"),
        (json.dumps(config_of(CONV)["config"]), r"x\.json holds no network's configuration: .*get_config\(\) alone"),
        (json.dumps({"class_name": "Dense", "config": {}}), r"x\.json holds a 'Dense': expected a Sequential"),
        (json.dumps(config_of(CONV, layer("Lambda", "sneaky"))), r"x\.json: layer 'sneaky' uses the Lambda code"),
        (json.dumps(config_of(layer("Conv2D", "c", {}))), r"alone\.h5 cannot be compared with .*KeyError 'filters'"),
    ],
)
def test_a_configuration_that_is_none_or_not_admitted(tmp_path: Path, text: str | bytes, match: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=match):
        read_keras_file(ALONE / "alone.h5", architecture=path)


def test_a_configuration_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(InputError, match=r"x\.json holds 17 MiB: expected what .*, at most 16"):
        read_keras_file(ALONE / "alone.h5", architecture=path)


def test_a_configuration_that_was_written_as_a_string_of_json(tmp_path: Path) -> None:
    """json.dump(model.to_json(), file)."""
    path = tmp_path / "x.json"
    path.write_text(json.dumps(JSON.read_text(encoding="utf-8")), encoding="utf-8")
    assert read_keras_file(ALONE / "alone.h5", architecture=path).input_shape == (12, 11, 3)


def test_files_that_are_no_weights_alone(tmp_path: Path) -> None:
    whole = keras_h5(tmp_path / "whole.h5", config_of(IMAGE, CONV))
    for path in (whole, KERAS_2 / "plain.keras"):
        with pytest.raises(InputError, match="holds its network beside the weights: expected no architecture"):
            read_keras_file(path, architecture=JSON)
    with pytest.raises(InputError, match=r"augmented\.json is not HDF5: expected weights that model\.save_weights"):
        read_keras_file(JSON, architecture=JSON)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(InputError, match=r"other\.h5 holds no weights of a Keras network"):
        read_keras_file(tmp_path / "other.h5", architecture=JSON)
    with h5py.File(tmp_path / "damaged.h5", "w") as file:
        file.attrs["layer_names"] = ["conv"]
        file["conv"] = np.zeros(3)
    with pytest.raises(InputError, match=r"damaged\.h5 (cannot be compared with|does not fit)"):
        read_keras_file(tmp_path / "damaged.h5", architecture=JSON)


def weights_of_keras_3(path: Path, **vars: Any) -> Path:
    """A network with a Conv2D of two filters, and these as its weights."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for number, value in vars.items():
            file[f"layers/conv2d/vars/{number}"] = value
    return keras_zip(path, config_of(CONV), buffer.getvalue())


KERNEL, BIAS = np.zeros((3, 3, 1, 2), np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("kernel", "bias", "match"),
    [
        (
            KERNEL[:2],
            BIAS,
            r"the kernel of layer 'conv' has the shape \(2, 3, 1, 2\) in the file .*: expected \(3, 3, any, 2",
        ),
        (KERNEL.astype(np.complex64), BIAS, r"'layers/conv2d/vars/0' is of type <c8: expected float32"),
        (KERNEL.astype(bool), BIAS, r"'conv, kernel' is of type \|b1: expected float32"),
        (KERNEL.astype(np.int32), BIAS, r"'conv, kernel' is of type <i4: expected float32"),
        (KERNEL, BIAS.astype(np.uint8), r"'conv, bias' is of type \|u1: expected float32"),
        (KERNEL, np.array(["a", "b"], "S1"), r"'layers/conv2d/vars/1' is of type \|S1: expected float32"),
    ],
)
def test_weights_of_other_shapes_and_types_than_the_network_has(
    tmp_path: Path, kernel: Any, bias: Any, match: str
) -> None:
    assert read_keras_file(weights_of_keras_3(tmp_path / "x.keras", **{"0": KERNEL, "1": BIAS})).rewritten == ()
    with pytest.raises(InputError, match=rf"x\.keras does not fit its configuration: {match}"):
        read_keras_file(weights_of_keras_3(tmp_path / "x.keras", **{"0": kernel, "1": bias}))


@pytest.mark.parametrize(
    ("kernel", "bias", "told"),
    [
        (KERNEL, BIAS, ()),
        (KERNEL.astype(np.float16), BIAS, ()),
        (KERNEL.astype(np.float64), BIAS, ("weights of float64 became float32",)),
        (KERNEL.astype(">f8"), BIAS.astype(np.float64), ("weights of float64 became float32 (2×)",)),
    ],
)
def test_weights_that_are_rounded_are_counted(tmp_path: Path, kernel: Any, bias: Any, told: tuple[str, ...]) -> None:
    path = weights_of_keras_3(tmp_path / "x.keras", **{"0": kernel, "1": bias})
    assert read_keras_file(path).rounded == told


@pytest.mark.slow
def test_weights_of_float64_are_rounded_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, told = tmp_path / "wide.h5", "weights of float64 became float32"
    shutil.copy(KERAS_2 / "augmented.h5", path)
    with h5py.File(path, "r+") as file:
        kernel = file["model_weights/conv/conv/kernel:0"][...].astype(np.float64) + 1e-12
        del file["model_weights/conv/conv/kernel:0"]
        file["model_weights/conv/conv/kernel:0"] = kernel
    assert main(["convert", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewritten"]["weights"] == [told]
    assert f"note: as Keras loads them, {told}" in caplog.messages
    assert oip_torch.load(path.with_suffix(".onnx")).network.rewritten["weights"] == [told]


@pytest.mark.parametrize("form", FORMS)
def test_weights_without_a_configuration_say_the_way(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(ALONE / form)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{form} holds weights without their network: expected the whole network; recipe, where the network" in line
    assert f"model.load_weights('{form}'); model.save('model.keras')" in line
    assert f"oip convert {form} --architecture network.json" in line


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("x.tflite", r"python -m tf2onnx\.convert --tflite x\.tflite --output model\.onnx; oip import model\.onnx"),
        ("x.pb", r"tf2onnx\.convert --graphdef x\.pb"),
        ("x.pt", r"oip_torch\.wrap\(module"),
        ("x.onnx", r"oip import x\.onnx"),
        ("x.json", r"oip convert WEIGHTS\.h5 --architecture x\.json"),
        ("x.pkl", r"save it with model\.save\('model\.keras'\)"),
    ],
)
def test_files_of_other_programs_say_the_way(tmp_path: Path, name: str, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"data")
    with pytest.raises(InputError, match=rf"ends in \.\w+: expected a Keras model saved as \.keras or \.h5; .*{match}"):
        read_keras_file(path)


@pytest.mark.parametrize(
    ("also", "match"),
    [
        ("keras_metadata.pb", r"tf_keras\.models\.load_model\('saved'\)\.save\('model\.h5'\)"),
        ("x", "--saved-model saved"),
    ],
)
def test_a_saved_model_says_the_way(tmp_path: Path, also: str, match: str) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    assert not formats.is_saved_model(folder)
    for name in ("saved_model.pb", also):
        (folder / name).write_bytes(b"data")
    with pytest.raises(InputError, match=rf"saved is a SavedModel of TensorFlow: expected a Keras model .*{match}"):
        read_keras_file(folder)


@pytest.mark.parametrize("way", ["bicubic", "lanczos3"])
def test_an_interpolation_that_torch_computes_otherwise_is_refused(tmp_path: Path, way: str) -> None:
    path = keras_h5(tmp_path / "x.h5", config_of(IMAGE, CONV, layer("UpSampling2D", "up", {"interpolation": way})))
    with pytest.raises(InputError, match=f"layer 'up' uses the interpolation '{way}': expected nearest or bilinear"):
        read_keras_file(path)
