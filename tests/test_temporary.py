"""Temporary folders are gone after their block, and those of killed processes after the next one's start."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oip_torch import InputError
from oip_torch.base.temporary import folder_beside, remove_leftovers, remove_own, temporary_folder


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    path = tmp_path / "there"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


def test_a_folder_says_whose_it_is_and_goes_with_its_block(there: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), temporary_folder("convert") as folder:
        assert folder.parent == there
        assert folder.name.startswith(f"oip_torch-convert-{os.getpid()}-")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "full").write_text("of something")
        raise ZeroDivisionError
    assert not folder.exists()
    with folder_beside(there) as folder:
        assert folder.name.startswith(f".oip-{os.getpid()}-")
    assert os.listdir(there) == []


KILLED = """
import os, signal
from pathlib import Path
from oip_torch.base.temporary import folder_beside, temporary_folder
with temporary_folder("compare") as one, folder_beside(Path(os.environ["TMPDIR"])) as two:
    (one / "file").write_text("x")
    (two / "file").write_text("x")
    print(flush=True)
    input()
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(there: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED], stdin=-1, stdout=-1) as living:
        assert living.stdout is not None
        living.stdout.readline()
        with temporary_folder("read"), folder_beside(there):
            pass
        assert len(os.listdir(there)) == 2
        living.send_signal(signal.SIGKILL)
        living.wait()
        assert len(os.listdir(there)) == 2
        remove_leftovers()
        assert [name[:5] for name in os.listdir(there)] == [".oip-"]
        with folder_beside(there) as own:
            assert os.listdir(there) == [own.name]
    assert os.listdir(there) == []


def test_what_is_not_ours_stays(there: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir(mode=0o700)
    (others / "file").write_text("x")
    (there / "oip_torch-link").symlink_to(others)
    (there / "oip_torch-file").write_text("x")
    (there / "oip_torch-open-to-all").mkdir(mode=0o755)
    (there / "something").mkdir(mode=0o700)
    remove_leftovers()
    assert len(os.listdir(there)) == 4
    assert os.listdir(others) == ["file"]


def test_whoever_ends_at_once_takes_its_folders_along(there: Path) -> None:
    with temporary_folder("convert") as one:
        (one / "file").write_text("x")
        remove_own()
        assert os.listdir(there) == []


def test_a_place_that_takes_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    remove_leftovers()
    with pytest.raises(
        InputError, match=r"no temporary folder can be made in .*nowhere: No such file.*set TMPDIR to one"
    ):
        with temporary_folder("convert"):
            pytest.fail("there is a folder")
