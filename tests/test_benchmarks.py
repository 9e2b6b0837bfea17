"""The benchmarks run, in their smallest form, and write what they say they do: their numbers are not judged here."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
CALLS: dict[str, list[str | Path]] = {  # large.py takes minutes: converting ResNet50 alone does
    "speed": ["--rounds", "1", "--steps", "3", "--without-rivals", "--only", "graph"],
    "growth": [
        *("--rounds", "1", "--steps", "3", "--images", "8", "16", "--maps", "1"),
        *("--layers", "Conv2D_1", "--sides", "18"),
    ],
    "startup": ["--rounds", "1", "--only", "package-after-torch", "layers"],
    "gpu": ["--device", "cpu", "--small"],
    "against": [ROOT / "src", "--rounds", "1", "--steps", "3"],  # beside itself
}
TABLES = {
    "speed": "| TensorFlow, tf.function, one batch |",
    "growth": "| time per OIP: spread from 8 to 16 images, 3 image-steps, search included, in % |",
    "startup": "| `oip layers FILE` |",
    "gpu": "| TF32, 128 |",
    "against": "the default, search included",
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
    rows = {
        "speed": lambda: [row["job_seconds"] for row in result["contestants"].values()],
        "growth": lambda: [row["seconds"] for rows in result["parts"].values() for row in rows],
        "startup": lambda: [row["seconds"] for row in result["measures"].values()],
        "gpu": lambda: [row["seconds"] for key in ("whole_network", "over_batches", "loops") for row in result[key]],
        "against": lambda: [row[f"{tree}_seconds"] for row in result["ways"].values() for tree in ("this", "other")],
    }[name]()
    assert len(rows) == {"speed": 4, "growth": 7, "startup": 2, "gpu": 5 + 2 + 3, "against": 4}[name]
    assert all(row["median"] > 0 for row in rows)
    if name == "gpu":  # the rest of the ways need a card
        assert [(row["way"], row["difference"]) for row in result["steps"]] == [
            ("rates from the host", 0.0),
            ("rates there", 0.0),
        ]


def test_work_is_counted_and_equal(printed: dict[str, str], folder: Path) -> None:
    speed = json.loads((folder / "speed.json").read_text())
    products = 24 * 24 * 32 * 9 + 10 * 10 * 64 * 32 * 9 + 3 * 3 * 1 * 64 * 9  # what one map of Conv2D_3 reads
    assert speed["needed_mflop_per_image_step"] == pytest.approx(2 * 2 * products / 1e6)
    for name, steps in {"graph": 8, "batched": 3 * 128, "quick": 3 * 128}.items():  # a share of its steps: one
        assert speed["contestants"][name]["image_steps"] == [steps]
    against = json.loads((folder / "against.json").read_text())
    assert [row["same"] for row in against["ways"].values()] == ["yes", "yes"]


def test_another_folder_than_a_source_tree_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "against.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert "holds no oip_torch: give the src folder of a checkout" in result.stderr


def test_each_part_of_the_engine_can_be_left_out(mnist_onnx: Path) -> None:
    text = benchmark("tricks", "--rounds", "1", "--steps", "1", "--network", mnist_onnx)
    assert len([line for line in text.splitlines() if line.count("|") == 3]) == 1 + 7


def test_a_rival_is_timed_by_its_second_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script's frame, around a package that stands in: none of them is installed here."""
    monkeypatch.setattr(sys, "argv", ["run.py", "lucent", "a.keras", "a.onnx", str(tmp_path), "--steps", "4"])
    starts, calls = np.random.default_rng(0).normal(size=(2, 5, 5, 1)).astype(np.float32), []
    np.save(tmp_path / "starts-128.npy", starts)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # the module sets it: put back afterwards
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    module = runpy.run_path(str(ROOT / "benchmarks" / "rivals" / "run.py"))
    stand_in = lambda job: lambda steps: calls.append(steps) or 3 * job.starts + 1  # noqa: E731
    module["RIVALS"]["lucent"] = (stand_in, ("numpy",))
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        module["main"]()
    told = json.loads(stdout.getvalue())
    assert calls == [4, 4]
    assert told["seconds"] > 0
    assert told["image_steps"] == 2 * 4
    images = np.load(tmp_path / "images.npy")
    np.testing.assert_allclose([images.mean((1, 2, 3)), images.std((1, 2, 3))], [[0, 0], [1, 1]], atol=1e-5)


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


def test_the_ways_of_looking_are_measured(mnist_onnx: Path, folder: Path, digits: Any) -> None:
    """On the layer of the fewest maps, and on few digits."""
    real = digits[0]
    np.savez(folder / "few.npz", x_test=real[::10], x_train=real[1::10])
    arguments = (mnist_onnx, "--data", folder / "few.npz", "--layers", "Conv2D_1")
    printed = benchmark("presets", *arguments, "-o", folder / "presets.json")
    assert "| network | layer | way |" in printed
    rows = json.loads((folder / "presets.json").read_text())["presets"]
    assert [(row["way"], row["seed"]) for row in rows] == [
        (way, seed) for way in ("default", "legible", "strokes") for seed in (0, 1)
    ]
    assert all(math.isfinite(number) for number in numbers(rows))
    assert [row["strength"] for row in rows[:2]] == [1, 1]
    assert all(row["image_steps"] <= 600 for row in rows)
    assert rows[4]["looks"] > rows[2]["looks"] > rows[0]["looks"]
