"""One process at a time writes to an atlas, and a killed one locks nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import oip_torch as oip
from oip_torch.atlas.lock import locked


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until it is killed."""
    code = (
        "import sys, time\nfrom oip_torch.atlas.lock import locked\n"
        "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_told_of_the_first_until_that_is_killed(model: oip.FeatureModel, tmp_path: Path) -> None:
    folder = tmp_path / "atlas.zarr"
    with holder(folder) as process:
        try:
            with pytest.raises(
                oip.InputError, match=rf"by process {process.pid} on .* since 2\d\d\d-.*: expected one wr"
            ):
                oip.make_atlas(model, path=folder)
            assert not folder.exists()
        finally:
            process.send_signal(signal.SIGKILL)
    assert Path(f"{folder}.lock").exists()
    with locked(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_threads_take_turns(tmp_path: Path) -> None:
    told: list[str] = []

    def second() -> None:
        try:
            with locked(tmp_path / "a.zarr"):
                told.append("held")
        except oip.InputError as error:
            told.append(str(error))

    with locked(tmp_path / "a.zarr"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"by process {os.getpid()} on" in told[0]
    second()
    assert told[1:] == ["held"]


def test_what_cannot_be_locked_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with (
        pytest.raises(oip.InputError, match=r"atlas.zarr cannot be written to: .*expected a folder whose parent"),
        locked(file / "deep" / "atlas.zarr"),
    ):
        pass
    with pytest.raises(RuntimeError), locked(tmp_path / "deep" / "er" / "atlas.zarr"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
