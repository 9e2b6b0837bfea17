"""The command line's contract: JSON keys, exit codes, files. Bad input: test_bad_input.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oip_torch import Calibration, Oips
from oip_torch.cli import main

LAYER_KEYS = {"name", "kind", "maps", "height", "width", "activation", "max_error"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, object] = json.loads(out)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("script", [False, True])
def test_convert(shipped: Path, tmp_path: Path, script: bool) -> None:
    root = Path(__file__).resolve().parent.parent
    command = [str(root / "scripts" / "convert_keras_to_torch.py")] if script else ["-m", "oip_torch.cli", "convert"]
    result = subprocess.run(
        [sys.executable, *command, str(shipped), "-o", str(tmp_path / "m.onnx"), "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) >= {"onnx", "layers", "seconds"}
    assert data["onnx"] == str(tmp_path / "m.onnx")
    assert [layer["name"] for layer in data["layers"]][:5] == "Conv2D_1 Max_Pool_1 Conv2D_2 Max_Pool_2 Conv2D_3".split()
    assert len(data["layers"]) >= 8
    for layer in data["layers"]:
        assert set(layer) == LAYER_KEYS
        assert 0 <= layer["max_error"] <= 1e-5
    assert "MNIST's standardisation is assumed: mean 33.318421, standard deviation 78.56749" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_layers(mnist_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run(capsys, "layers", mnist_onnx)
    third = data["layers"][4]  # type: ignore[index]
    assert set(third) == LAYER_KEYS
    assert {key: third[key] for key in ("name", "kind", "maps", "height", "width", "activation")} == {
        "name": "Conv2D_3",
        "kind": "Conv2D",
        "maps": 128,
        "height": 3,
        "width": 3,
        "activation": "relu",
    }
    assert main(["layers", str(mnist_onnx)]) == 0
    assert "Conv2D_3    Conv2D        128   3×3    relu" in capsys.readouterr().out


def test_layers_needs_no_torch(mnist_onnx: Path) -> None:
    code = "import sys; from oip_torch.cli import main; main(['layers', sys.argv[1]]); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(mnist_onnx)], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_ascend(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--starts", "2", "--steps", "10", "--device", "cpu", "-o", tmp_path / "new" / "folder"]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", "3", "17", *options)
    assert (data["images"], data["maps"], data["steps"], data["device"]) == (4, 2, 40, "cpu")
    assert data["above_data"] is None
    oips = Oips.load(tmp_path / "new" / "folder" / "oips.nc")
    assert data["alive"] == int((oips.best().scores > 0).sum())
    layer = data["layers"]["Conv2D_3"]  # type: ignore[index]
    assert {"maps", "alive", "above_data", "median_score"} <= set(layer)
    for file in data["files"]:  # type: ignore[attr-defined]
        assert Path(file).stat().st_size > 500
    assert {"oips.nc", "sheet.png", "trace.png"} < {path.name for path in (tmp_path / "new" / "folder").iterdir()}


def test_real_data_beside_the_oips(
    mnist_onnx: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "some.npz", x_test=digits[0][:100])
    options = ["--steps", "60", "--data", tmp_path / "some.npz", "-o", tmp_path / "out"]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", "0", "3", *options)
    calibration = Calibration.load(tmp_path / "out" / "calibration.nc")
    oips = Oips.load(tmp_path / "out" / "oips.nc")
    assert data["above_data"] == int((oips.scores > calibration["Conv2D_3"].maximum[[0, 3]]).sum()) == 2
    assert (tmp_path / "out" / "beside_data.png").stat().st_size > 500


def test_dead_maps_come_with_evidence(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--settings", "article", "--steps", "5", "-o", tmp_path]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", *range(8), *options)
    dead = data["layers"]["Conv2D_3"]["dead"]  # type: ignore[index]
    assert len(dead) == 8 - data["alive"] > 0  # type: ignore[operator]
    assert all(entry["tries"] == 1 and entry["largest_before"] <= 0 for entry in dead)


def test_article_settings_and_seed(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        capsys,
        *("ascend", mnist_onnx, "Conv2D_1", "0", "--settings", "article", "--steps", "8", "--seed", "9"),
        *("-o", tmp_path),
    )
    oips = Oips.load(tmp_path / "oips.nc")
    assert oips.settings["candidates"] == 1
    assert oips.settings["epsilon"] == 0.01
    assert oips.info["seed"] == 9
    assert oips.traces.shape == (1, 8)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("convert", "layers", "ascend"))
