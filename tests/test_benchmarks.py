"""The benchmarks run, in their smallest form, and write what they promise: their figures are not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CALLS = {  # large.py takes minutes: converting ResNet50 alone does
    "speed": ["--rounds", "1", "--steps", "3", "--without-rivals", "--only", "graph"],
    "growth": [
        *("--rounds", "1", "--steps", "3", "--images", "8", "16", "--maps", "1"),
        *("--layers", "Conv2D_1", "--sides", "18"),
    ],
    "startup": ["--rounds", "1", "--only", "package-after-torch", "layers"],
    "gpu": ["--device", "cpu", "--small"],
}
TABLES = {
    "speed": "| TensorFlow, tf.function, one batch |",
    "growth": "| time per OIP: spread from 8 to 16 images, 3 image-steps, search included, in % |",
    "startup": "| `oip layers FILE` |",
    "gpu": "| TF32 | 128 |",
}


def benchmark(name: str, *arguments: str | Path) -> str:
    """Its stdout; as on a machine without a card."""
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def printed(folder: Path, mnist_onnx: Path) -> dict[str, str]:
    """By part what it printed; what it wrote is in the folder."""
    return {
        name: benchmark(name, *arguments, "--network", mnist_onnx, "-o", folder / f"{name}.json")
        for name, arguments in CALLS.items()
    }


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize("name", CALLS)
def test_a_part_prints_tables_and_writes_finite_numbers(name: str, printed: dict[str, str], folder: Path) -> None:
    result = json.loads((folder / f"{name}.json").read_text())
    assert TABLES[name] in printed[name]
    assert {"machine", "versions"} < result.keys()
    assert all(math.isfinite(value) and value >= 0 for value in numbers(result))
    times = {
        "speed": lambda: [row["job_seconds"]["median"] for row in result["contestants"].values()],
        "growth": lambda: [row["seconds"]["median"] for rows in result["parts"].values() for row in rows],
        "startup": lambda: [row["seconds"]["median"] for row in result["measures"].values()],
        "gpu": lambda: [row["seconds"] for key in ("whole_network", "over_batches", "loops") for row in result[key]],
    }[name]()
    assert len(times) == {"speed": 4, "growth": 7, "startup": 2, "gpu": 5 + 2 + 3}[name]
    assert all(value > 0 for value in times)


def test_the_figure_is_drawn_and_a_missing_card_is_told(
    printed: dict[str, str], folder: Path, mnist_onnx: Path
) -> None:
    written = (folder / "gpu.json").read_bytes()
    assert "no GPU: " in benchmark("bench", "-o", folder, "--only", "gpu", "--network", mnist_onnx)
    assert (folder / "gpu.json").read_bytes() == written
    assert (folder / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_legibility_ranks_its_controls(folder: Path, mnist_onnx: Path, digits: Any) -> None:
    np.savez(folder / "data.npz", x_test=digits[0][::10], x_train=digits[0][3::10])
    arguments = ["--data", folder / "data.npz", "--network", mnist_onnx, "--layer", "Conv2D_1"]
    printed = benchmark("legibility", *arguments, "-o", folder / "legibility.json")
    assert "| blurred noise |" in printed
    pictures = json.loads((folder / "legibility.json").read_text())["pictures"]
    assert pictures["top training digit"]["legibility"] > pictures["white noise"]["legibility"]
    assert pictures["blurred noise"]["looks"] > pictures["white noise"]["looks"]
