"""A function runs in a child within limits; whatever becomes of it is an answer, an InputError or one line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oip_torch.base import bounded, limits
from oip_torch.base.bounded import BoundedError, reading_limits, run_bounded
from oip_torch.base.errors import InputError
from oip_torch.base.limits import Limits, plain_environment

FUNCTIONS = """
import os, signal, sys, tempfile, time
import numpy as np
from oip_torch.base.errors import InputError

def echo(**arguments):
    return arguments, {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "none": np.zeros((0, 2), np.uint8)}
def surroundings():
    open(os.path.join(tempfile.gettempdir(), "left"), "w").close()
    return [os.getcwd(), tempfile.gettempdir(), sorted(os.environ)], {}
def refuses():
    raise InputError("x.onnx is no network: expected one")
def fails():
    raise KeyError("a" * 3000 + "\\n")
def takes():
    return None, {"a": np.ones(1 << 28)}
def spins():
    while True: pass
def sleeps():
    time.sleep(60)
def stops():
    os.kill(os.getpid(), signal.SIGSTOP)
def crashes():
    os.kill(os.getpid(), signal.SIGSEGV)
def writes():
    with open("large", "wb") as file: file.write(bytes(1 << 20))
    return None, {}
def opens():
    return None, {str(n): open("stderr.txt") for n in range(100)}
def prints():
    print("x" * 1_000_000)
    return "well", {}
def objects():
    return None, {"a": np.array([object()])}
def ends():
    sys.exit(3)
"""
LIMITS = Limits(memory=256 << 20, processor_seconds=20, seconds=60, file_bytes=1 << 16, open_files=40)


@pytest.fixture(autouse=True)
def _functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "functions_of_this_test.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{tmp_path}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def run(name: str, limits: Limits = LIMITS, **arguments: Any) -> tuple[Any, dict[str, Any]]:
    return run_bounded(f"functions_of_this_test:{name}", arguments, limits)


def test_values_and_arrays_come_back(tmp_path: Path) -> None:
    value, arrays = run("echo", a=[1, "é", None], b={"c": 1.5})
    assert value == {"a": [1, "é", None], "b": {"c": 1.5}}
    np.testing.assert_array_equal(arrays["a"], np.arange(6, dtype=np.float32).reshape(2, 3).T)
    assert arrays["none"].shape == (0, 2)
    assert arrays["a"].flags.writeable
    assert os.listdir(tmp_path) == ["functions_of_this_test.py"]


def test_its_folder_and_environment_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("TF_VAR_password", "x")
    (folder, temporary, names), _ = run("surroundings")
    assert folder == temporary
    assert Path(folder).parent == tmp_path
    assert not Path(folder).exists()
    assert "PATH" in names
    assert not {"AWS_SECRET_ACCESS_KEY", "TF_VAR_password", "PYTEST_CURRENT_TEST"} & set(names)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fails", r"KeyError '?a+ … a+\\n'"),
        ("takes", "reading it takes too much memory"),
        ("crashes", r"the library that reads it crashed \(SIGSEGV\)"),
        ("writes", r"OSError.*File too large|File too large|it unpacks to more"),
        ("opens", "Too many open files"),
        ("objects", "cannot write object arrays|object"),
        ("ends", r"its reader ended \(exit code 3\)"),
        ("missing", "no attribute 'missing'"),
    ],
)
def test_every_other_end_is_one_line(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(BoundedError, match=why) as caught:
        run(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert os.listdir(tmp_path) == ["functions_of_this_test.py"]


def test_time_is_limited_whatever_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_GRACE", 0.5)
    with pytest.raises(BoundedError, match="reading it takes more than 1 s, and was given up"):
        run("spins", Limits(processor_seconds=1))
    for name in ("sleeps", "stops"):
        with pytest.raises(BoundedError, match="reading it takes more than 1 s, and was given up"):
            run(name, Limits(seconds=1))


def test_an_input_error_stays_one_and_prints_are_not_read() -> None:
    with pytest.raises(InputError, match=r"^x\.onnx is no network: expected one$"):
        run("refuses")
    assert run("prints", Limits())[0] == "well"


def frame(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "answer",
    [
        frame("[]"),
        frame("{}"),
        frame('{"array": ["a", "|O8", [1]]}') + bytes(8),
        frame('{"array": ["a", "<f4", [20000]]}') + bytes(80_000),
        frame('{"array": ["a", "<f4", [-1]]}'),
        frame('{"array": ["a", "<f4", [1152921504606846976, 64]]}'),
        frame("[" * 50_000),
        b"\xff" * 100,
    ],
)
def test_an_answer_is_not_trusted(answer: bytes) -> None:
    with pytest.raises(BoundedError, match="its reader gave no sound answer"):
        bounded._answer(io.BytesIO(answer), LIMITS)


def test_an_answer_that_is_cut_off_is_none() -> None:
    whole = frame('{"array": ["a", "<f4", [2]]}') + np.arange(2, dtype=np.float32).tobytes() + frame('{"value": 1}')
    assert bounded._answer(io.BytesIO(whole), LIMITS)[0] == 1
    for end in range(len(whole)):
        with pytest.raises(EOFError):
            bounded._answer(io.BytesIO(whole[:end]), LIMITS)


def test_limits_in_force_stay_where_they_are_lower() -> None:
    """As after `ulimit -f 10 -d 200000 -n 30`."""
    code = """
import resource
from oip_torch.base.limits import Limits
for kind, value in ((resource.RLIMIT_FSIZE, 10240), (resource.RLIMIT_DATA, 2 << 30), (resource.RLIMIT_NOFILE, 30)):
    resource.setrlimit(kind, (value, value))
resource.setrlimit(resource.RLIMIT_NPROC, (10_000, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
Limits(memory=1 << 40, file_bytes=1 << 20, open_files=20, processes=5_000).apply()
for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
    print(*resource.getrlimit(kind))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    data, none = 2 << 30, 5000
    assert result.stdout.split() == [str(n) for n in (10240, 10240, data, data, 20, 20, none, none)]


def test_the_environment_is_of_a_closed_list() -> None:
    given = {"PATH": "a", "OMP_NUM_THREADS": "1", "TF_TOKEN": "x", "HF_TOKEN": "x", "OTHER": "x", "CUDA_API_KEY": "x"}
    assert plain_environment(given) == {"PATH": "a", "OMP_NUM_THREADS": "1"}
    assert plain_environment({"PYTHONPATH": f"src{os.pathsep}{os.pathsep}/x"}) == {
        "PYTHONPATH": f"{os.path.join(limits._START, 'src')}{os.pathsep}/x"
    }


def test_the_measure_follows_from_the_bytes() -> None:
    assert reading_limits(0).memory == 512 << 20
    assert reading_limits(1 << 30).memory == (2 << 30) + (512 << 20)
    assert reading_limits(1 << 30).processor_seconds == 59


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("subprocess.Popen", full)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    with pytest.raises(BoundedError, match="no process to read it in could be started: Too many open files"):
        run("echo")
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)
