"""Where there is no TensorFlow, ONNX files load and OIPs are made; and importing the package starts nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import without

import oip_torch

ABSENT = ("tensorflow", "keras", "tf2onnx", "onnxruntime", "jax")
ASCENT = """
import importlib.util
import json
import sys
import oip_torch

assert importlib.util.find_spec("tensorflow") is None

model = oip_torch.load(sys.argv[1], device="cpu")
oips = oip_torch.ascend(model, "Conv2D_2", [3, 5], settings=oip_torch.AscentSettings.article(steps=5))
oips.save(sys.argv[2])
again = oip_torch.Oips.load(sys.argv[2])
print(json.dumps({"layers": model.layers.names, "maps": again.maps.tolist(), "scores": again.scores.tolist()}))
"""


def python(code: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_loading_and_ascending_need_no_tensorflow(mnist_onnx: Path, tmp_path: Path) -> None:
    answer = json.loads(python(without(*ABSENT) + ASCENT, mnist_onnx, tmp_path / "oips.nc"))
    assert len(answer["layers"]) == 8
    assert answer["maps"] == [3, 5]
    model = oip_torch.load(mnist_onnx, device="cpu")
    here = oip_torch.ascend(model, "Conv2D_2", [3, 5], settings=oip_torch.AscentSettings.article(steps=5))
    assert answer["scores"] == pytest.approx(here.scores.tolist(), rel=1e-5)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, oip_torch; dir(oip_torch); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = python(code).split()
    assert "oip_torch" in loaded
    heavy = {"torch", "torchvision", "tensorflow", "keras", "matplotlib", "onnx", "onnx2torch", "xarray", "numpy"}
    assert heavy.isdisjoint(loaded)


def test_the_public_names_are_these_and_each_is_there() -> None:
    assert sorted(oip_torch.__all__) == oip_torch.__all__ == [
        "Adam",
        "AscentSettings",
        "Atlas",
        "Ball",
        "Blurred",
        "Calibration",
        "CaptureError",
        "Comparison",
        "ConversionError",
        "Criterion",
        "DataContents",
        "DeadMaps",
        "Decorrelated",
        "Domain",
        "Fallback",
        "FeatureMaps",
        "FeatureModel",
        "Fourier",
        "InputError",
        "Layer",
        "LayerContents",
        "LayerMatch",
        "Match",
        "Network",
        "NetworkContents",
        "NoiseControl",
        "Oip",
        "OipError",
        "Oips",
        "Pen",
        "Phases",
        "Pixels",
        "Provenance",
        "Quality",
        "Range",
        "Readers",
        "ReceptiveField",
        "Responses",
        "Schedule",
        "Screening",
        "Snapshots",
        "Standardized",
        "StartSettings",
        "Step",
        "StopSettings",
        "VerificationError",
        "Views",
        "ascend",
        "assess",
        "calibrate",
        "capture",
        "certify_dead",
        "compare",
        "convert",
        "import_onnx",
        "load",
        "make_atlas",
        "match",
        "noise_control",
        "objectives",
        "open_atlas",
        "plots",
        "read_images",
        "receptive_field",
        "respond",
        "start_images",
        "wrap",
    ]  # fmt: skip
    for name in oip_torch.__all__:
        thing = getattr(oip_torch, name)
        assert thing.__doc__
        assert getattr(thing, "__name__", name).rpartition(".")[2] == name
    assert set(oip_torch.__all__) < set(dir(oip_torch))
    assert oip_torch.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="module 'oip_torch' has no attribute 'nonsense'"):
        oip_torch.nonsense  # noqa: B018


@pytest.mark.slow
def test_a_public_name_survives_the_import_of_the_modules() -> None:
    """A submodule called like a function would take its place once imported."""
    code = """
import importlib, pkgutil
import oip_torch
for module in pkgutil.iter_modules(oip_torch.__path__):
    if not module.name.startswith("keras_"):
        importlib.import_module(f"oip_torch.{module.name}")
print(*(name for name in oip_torch.__all__ if type(getattr(oip_torch, name)).__name__ == "module"))
"""
    assert python(code).split() == ["objectives", "plots"]
