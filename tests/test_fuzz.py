"""A short run of scripts/fuzz.py, always with the same inputs: no reader does anything but take or refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

IN_PROCESS = 150, ("onnx", "command")
IN_CHILDREN = 15, ("graph", "metadata", "config", "keras", "hdf5", "npz", "oips", "calibration")  # a process for each


def fuzz(folder: Path, *words: str) -> dict[str, Any]:
    """The counts of a run."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fuzz.py", "--seed", "0", "--findings", folder, *words],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "chosen"), [IN_PROCESS, IN_CHILDREN], ids=["in_process", "in_children"])
def test_no_reader_does_anything_but_take_or_refuse(tmp_path: Path, number: int, chosen: tuple[str, ...]) -> None:
    counts = fuzz(tmp_path, "--inputs", str(number), "--only", ",".join(chosen))
    assert counts.keys() == set(chosen)
    for name, each in counts.items():
        assert each["findings"] == {}, (name, each["findings"])
        assert each["inputs"] == number
        assert each["taken"] + each["refused"] == number
        assert each["refused"] > 0  # else the mutations would show nothing
