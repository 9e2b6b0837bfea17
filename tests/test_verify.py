"""Verification passes what computes as Keras does, and names the layer that does not: each check can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from oip_torch import FeatureModel, Network, VerificationError, cli
from oip_torch.keras.verify import verify
from oip_torch.network.onnx_file import read

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


@pytest.fixture(scope="session")
def reference(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What the export process hands over for the verification of the shipped network."""
    folder = tmp_path_factory.mktemp("export")
    job = {"model": str(shipped), "noise": 4, "digits": 8, "domain": {}}
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, "-m", "oip_torch.keras.export", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return dict(np.load(folder / "reference.npz"))


@pytest.mark.slow
def test_the_verification_passes_what_is_right(mnist_onnx: Path, reference: Arrays) -> None:
    layers, verification = verify(FeatureModel.of_onnx(*read(mnist_onnx)), reference)
    assert [layer.name for layer in layers] == NAMES
    assert max(layer.max_error for layer in layers) == verification["max_error"] <= 1e-5
    assert verification["gradient"]["cosine"] >= 0.9999
    assert verification["gradient"]["layer"] == "Conv2D_3"
    assert verification["batch_sizes"] == [12, 1]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Conv2D_1", "Conv2D_2", "Conv2D_3"])
@pytest.mark.parametrize("damage", [bias_off, kernel_turned, maps_swapped])
def test_the_verification_names_the_layer_that_is_wrong(
    mnist_onnx: Path,
    reference: Arrays,
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
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_verification_never_passes_what_is_not_finite(mnist_onnx: Path, reference: Arrays, value: float) -> None:
    wrong = FeatureModel.of_onnx(*changed(mnist_onnx, bias_off("Conv2D_2", by=value)))
    with pytest.raises(VerificationError, match="layer 'Conv2D_2' differs by inf") as caught:
        verify(wrong, reference)
    assert caught.value.failed[0] == "Conv2D_2"
    assert json.dumps(caught.value.layers, allow_nan=False)
    spoilt = reference | {"4": np.where(reference["4"] == reference["4"].max(), value, reference["4"])}
    with pytest.raises(VerificationError, match="layer 'Conv2D_3'"):  # nor where Keras itself is not finite
        verify(FeatureModel.of_onnx(*read(mnist_onnx)), spoilt)


@pytest.mark.slow
def test_the_verification_compares_the_gradient_and_the_classes(mnist_onnx: Path, reference: Arrays) -> None:
    model = FeatureModel.of_onnx(*read(mnist_onnx))
    gradient = reference["gradient"].copy()
    gradient[2] = gradient[2][:, ::-1]
    with pytest.raises(
        VerificationError, match=r"'Conv2D_3' has an input gradient of cosine .* \(at least 0.9999"
    ) as caught:
        verify(model, reference | {"gradient": gradient})
    assert caught.value.failed == ["Conv2D_3"]
    other_class = np.roll(reference["7"], 1, axis=1)
    with pytest.raises(VerificationError, match="layer 'Dense_2'"):
        verify(model, reference | {"7": other_class})


@pytest.mark.slow
def test_a_failed_verification_is_exit_code_1_and_writes_nothing(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("oip_torch.keras.verify.MAX_LAYER_ERROR", 1e-12)  # float32 cannot meet this
    assert cli.main(["convert", str(zoo / "small.keras"), "-o", str(tmp_path / "x.onnx"), "--json"]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(r"error: torch does not compute what Keras computes: layer 'conv' .*\n", printed.err)
    answer = json.loads(printed.out)
    assert answer["failed"] == ["conv"]
    assert answer["onnx"] is None
    assert os.listdir(tmp_path) == []
