"""Verification passes what computes as Keras does, and names the layer that does not: each check can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from conftest import ROOT
from onnx import numpy_helper

from oip_torch import FeatureModel, Network, VerificationError, cli
from oip_torch.keras import convert as conversion
from oip_torch.keras.verify import Doubt, verify
from oip_torch.network.onnx_file import Layers, read

NAMES = ["Conv2D_1", "Max_Pool_1", "Conv2D_2", "Max_Pool_2", "Conv2D_3", "Flatten", "Dense_1", "Dense_2"]

Arrays = dict[str, npt.NDArray[np.float32]]


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> tuple[onnx.ModelProto, Network]:
    proto, network = read(path)
    change(proto)
    return proto, network


def constant(proto: onnx.ModelProto, layer: str, position: int) -> onnx.TensorProto:
    """Kernel (1) or bias (2) of a convolution."""
    node = next(node for node in proto.graph.node if f"{layer}/before_activation" in node.output)
    assert node.op_type == "Conv"
    return next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[position])


def rewrite(tensor: onnx.TensorProto, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> None:
    before = numpy_helper.to_array(tensor)
    after = np.ascontiguousarray(change(before.copy()))
    assert after.shape == before.shape
    assert not np.array_equal(after, before)
    tensor.CopyFrom(numpy_helper.from_array(after, tensor.name))


def bias_off(layer: str, index: int = 3, by: float = 1e-2) -> Callable[[onnx.ModelProto], None]:
    def change(bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        bias[index] += by
        return bias

    return lambda proto: rewrite(constant(proto, layer, 2), change)


def kernel_turned(layer: str) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: rewrite(constant(proto, layer, 1), lambda kernel: kernel.transpose(0, 1, 3, 2))


def maps_swapped(layer: str) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: rewrite(constant(proto, layer, 1), lambda kernel: kernel[[1, 0, *range(2, len(kernel))]])


JOB: dict[str, Any] = {"size": None, "noise": 4, "digits": 8, "probes": None, "domain": {}, "dtype": "float32"}


def answers_of(folder: Path, source: Path, **job: Any) -> list[Arrays]:
    """What the export process hands over, as it does to a stdin that is closed: all at once."""
    (folder / "job.json").write_text(json.dumps(JOB | {"model": str(source)} | job))
    command = [sys.executable, "-m", "oip_torch.keras.export", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    names = [line[1:] for line in result.stdout.splitlines() if line.startswith(conversion._ANSWER)]
    return [dict(np.load(folder / name)) for name in names if name.endswith(".npz")]


@pytest.fixture(scope="session")
def reference(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    """What the export process hands over for the verification of the shipped network."""
    return answers_of(tmp_path_factory.mktemp("export"), shipped)


@pytest.fixture(scope="session")
def reference64(shipped: Path, reference: list[Arrays], tmp_path_factory: pytest.TempPathFactory) -> list[Arrays]:
    """The same in float64, of all layers."""
    target = ["Conv2D_3", *map(int, reference[-1]["gradient_target"])]
    doubt = {"doubtful": {name: index for index, name in enumerate(NAMES)}, "target": target}
    domain = read(ROOT / "models" / "mnist_cnn.onnx")[1].domain.to_dict()
    return answers_of(tmp_path_factory.mktemp("export64"), shipped, dtype="float64", domain=domain, **doubt)


def with_changed(answers: list[Arrays], **changes: Callable[[Any], Any]) -> list[Arrays]:
    """The answers, each array of these names changed."""
    return [
        {name: changes[name](array) if name in changes else array for name, array in answer.items()}
        for answer in answers
    ]


@pytest.mark.slow
def test_answers_hold_two_images_each_and_the_gradient_comes_last(reference: list[Arrays]) -> None:
    assert [len(answer["images"]) for answer in reference] == [2] * 6 + [12]
    assert ["gradient" in answer for answer in reference] == [False] * 6 + [True]


@pytest.mark.slow
def test_the_verification_passes_what_is_right(mnist_onnx: Path, reference: list[Arrays]) -> None:
    layers, verification = verify(FeatureModel.of_onnx(*read(mnist_onnx)), reference)
    assert [layer.name for layer in layers] == NAMES
    assert max(layer.max_error for layer in layers) == verification["max_error"] <= 1e-5
    assert verification["gradient"]["cosine"] >= 0.9999
    assert verification["gradient"]["layer"] == "Conv2D_3"
    assert verification["batch_sizes"] == [2, 1]
    assert "in_float64" not in verification
    for layer, stored in zip(layers, read(mnist_onnx)[1].layers, strict=True):
        np.testing.assert_allclose(layer.fingerprint, stored.fingerprint, rtol=0, atol=1e-4 * stored.fingerprint[1])


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Conv2D_1", "Conv2D_2", "Conv2D_3"])
@pytest.mark.parametrize("damage", [bias_off, kernel_turned, maps_swapped])
def test_the_verification_names_the_layer_that_is_wrong(
    mnist_onnx: Path,
    reference: list[Arrays],
    damage: Callable[[str], Callable[[onnx.ModelProto], None]],
    layer: str,
) -> None:
    wrong = FeatureModel.of_onnx(*changed(mnist_onnx, damage(layer)))
    with pytest.raises(
        VerificationError, match=rf"layer '{layer}' differs by .* of its maximum \(at most 1e-05"
    ) as caught:
        verify(wrong, reference)
    assert caught.value.failed[0] == layer
    rows = {row["name"]: row["max_error"] for row in caught.value.layers}
    assert list(rows) == NAMES
    for name in NAMES[: NAMES.index(layer)]:
        assert rows[name] <= 1e-5
    assert rows[layer] > 1e-5


@pytest.mark.slow
def test_float64_tells_rounding_from_error(
    mnist_onnx: Path, reference: list[Arrays], reference64: list[Arrays]
) -> None:
    """What misses its bound in float32 passes where float64 agrees, and is refused where it does not."""
    model = FeatureModel.of_onnx(*read(mnist_onnx))
    rounded = with_changed(reference, **{"4": lambda array: array + 2e-5 * array.max()})
    doubts: list[Doubt] = []
    layers, verification = verify(model, rounded, lambda doubt: doubts.append(doubt) or reference64)
    assert doubts == [Doubt(layers={"Conv2D_3": 4}, gradient=None)]
    by_name = {layer.name: layer for layer in layers}
    assert verification["in_float64"] == ["Conv2D_3"]
    assert by_name["Conv2D_3"].max_error > 1e-5
    assert by_name["Conv2D_3"].error_float64 < 1e-12
    assert "in float64)" in repr(Layers(layers))
    assert by_name["Conv2D_2"].error_float64 is None

    small = FeatureModel.of_onnx(*changed(mnist_onnx, bias_off("Conv2D_3", by=2e-3)))  # an error, and one of 1e-4
    with pytest.raises(VerificationError, match=r"layer 'Conv2D_3' differs by .* in float64 \(at most 1e-10") as caught:
        verify(small, reference, lambda doubt: reference64)
    assert caught.value.failed[0] == "Conv2D_3"


@pytest.mark.slow
def test_float64_decides_however_large_the_difference_in_float32_is(
    mnist_onnx: Path, reference: list[Arrays], reference64: list[Arrays]
) -> None:
    """A deep network may amplify a rounding to any size: its size does not tell it from an error."""
    model = FeatureModel.of_onnx(*read(mnist_onnx))
    far = with_changed(reference, **{"4": lambda array: array + 0.5 * array.max()})
    layers, verification = verify(model, far, lambda doubt: reference64)
    assert verification["in_float64"] == ["Conv2D_3"]
    assert verification["max_error"] > 0.1
    assert layers[4].error_float64 < 1e-12
    wrong = FeatureModel.of_onnx(*changed(mnist_onnx, kernel_turned("Conv2D_2")))
    with pytest.raises(
        VerificationError, match=r"'Conv2D_2' differs by .* in float64 .*, and by .* in float32"
    ) as caught:
        verify(wrong, reference, lambda doubt: reference64)
    assert "Conv2D_1" not in caught.value.failed


@pytest.mark.slow
def test_a_child_in_float64_computes_what_is_in_doubt_alone(
    shipped: Path, reference64: list[Arrays], tmp_path: Path
) -> None:
    domain = read(ROOT / "models" / "mnist_cnn.onnx")[1].domain.to_dict()
    doubt = {"doubtful": {"Conv2D_2": 2}, "target": reference64[-1]["gradient_target"].tolist()}
    doubt["target"] = ["Conv2D_3", *doubt["target"]]
    *answers, last = answers_of(tmp_path, shipped, dtype="float64", domain=domain, **doubt)
    assert [set(answer) for answer in answers] == [{"images", "2", "before:2"}] * 6
    for answer, whole in zip(answers, reference64, strict=False):
        np.testing.assert_allclose(answer["2"], whole["2"], rtol=0, atol=1e-12 * np.abs(whole["2"]).max())
    assert len(last["images"]) == len(last["gradient"]) == JOB["noise"]
    np.testing.assert_array_equal(last["gradient_target"], reference64[-1]["gradient_target"])


@pytest.mark.slow
def test_a_gradient_is_decided_on_noise_in_float64(
    mnist_onnx: Path, reference: list[Arrays], reference64: list[Arrays]
) -> None:
    """Flat images have ties, which a rounding decides; noise has none."""
    model = FeatureModel.of_onnx(*read(mnist_onnx))

    def turned(images: slice) -> Callable[[Any], Any]:
        def turn(gradient: Any) -> Any:
            gradient = gradient.copy()
            gradient[images] = gradient[images][:, ::-1]
            return gradient

        return turn

    digits_off = with_changed(reference, gradient=turned(slice(6, 7)))
    with pytest.raises(VerificationError, match=r"'Conv2D_3' has an input gradient of cosine .* \(at least 0.9999"):
        verify(model, digits_off)
    doubts: list[Doubt] = []
    gradient_alone = reference64[-1:]
    _, verification = verify(model, digits_off, lambda doubt: doubts.append(doubt) or gradient_alone)
    target = "Conv2D_3", *map(int, reference[-1]["gradient_target"])
    assert doubts == [Doubt(layers={}, gradient=target)]
    assert verification["gradient"]["cosine"] < 0.9999
    assert verification["gradient"]["cosine_float64"] > 1 - 1e-12
    with pytest.raises(VerificationError, match=r"cosine .* in float64 \(at least 0.999999 "):
        verify(model, digits_off, lambda doubt: with_changed(gradient_alone, gradient=turned(slice(2, 3))))


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_verification_never_passes_what_is_not_finite(
    mnist_onnx: Path, reference: list[Arrays], value: float
) -> None:
    wrong = FeatureModel.of_onnx(*changed(mnist_onnx, bias_off("Conv2D_2", by=value)))
    with pytest.raises(VerificationError, match="layer 'Conv2D_2' differs by inf") as caught:
        verify(wrong, reference, lambda doubt: pytest.fail("no rounding"))
    assert caught.value.failed[0] == "Conv2D_2"
    assert json.dumps(caught.value.layers, allow_nan=False)
    spoilt = with_changed(reference, **{"4": lambda array: np.where(array == array.max(), value, array)})
    with pytest.raises(VerificationError, match="layer 'Conv2D_3'"):  # nor where Keras itself is not finite
        verify(FeatureModel.of_onnx(*read(mnist_onnx)), spoilt)


@pytest.mark.slow
def test_the_verification_compares_the_classes(mnist_onnx: Path, reference: list[Arrays]) -> None:
    model = FeatureModel.of_onnx(*read(mnist_onnx))
    with pytest.raises(VerificationError, match="layer 'Dense_2'"):
        verify(model, with_changed(reference, **{"7": lambda array: np.roll(array, 1, axis=1)}))


@pytest.mark.slow
def test_a_failed_verification_is_exit_code_1_and_writes_nothing(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("oip_torch.keras.verify.MAX_LAYER_ERROR", -1.0)  # nothing can meet this
    monkeypatch.setattr("oip_torch.keras.verify.MAX_LAYER_ERROR_FLOAT64", -1.0)  # nor this
    assert cli.main(["convert", str(zoo / "small.keras"), "-o", str(tmp_path / "x.onnx"), "--json"]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: torch does not compute what Keras computes: layer 'conv' .*\n", printed.err)
    answer = json.loads(printed.out)
    assert answer["failed"] == ["conv"]
    assert answer["onnx"] is None
    assert os.listdir(tmp_path) == []
