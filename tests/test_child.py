"""A child process works in its folder, ends with its block, and says why it ended."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from oip_torch.base.child import Child


def child(folder: Path, code: str, *arguments: str, **options: object) -> Child:
    """A module of this code, in the folder, which `-m` finds there."""
    folder.joinpath("module_of_this_test.py").write_text(code)
    return Child("module_of_this_test", *arguments, folder=folder, **({"environment": {}} | options))


TELL = """
import os, sys, tempfile
print(*sys.argv[1:], os.getcwd(), tempfile.gettempdir(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OWN"], "é")
print("read:", sys.stdin.read())
"""


def test_it_works_in_its_folder_and_sees_what_it_shall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for sees_gpu, device in ((False, "-1"), (True, "7")):
        with child(tmp_path, TELL, "a", "b", environment={"OWN": "x"}, sees_gpu=sees_gpu) as running:
            out, _ = running.process.communicate()
        assert out == f"a b {tmp_path} {tmp_path} {device} x é\nread: \n"
        assert running.why_it_ended() == "(exit code 0): it said nothing"


def test_the_callers_folder_is_not_on_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file there may bear the name of a library."""
    users, own = tmp_path / "users", tmp_path / "own"
    users.mkdir()
    own.mkdir()
    (users / "tensorflow.py").write_text("")
    monkeypatch.chdir(users)
    with child(own, "import sys\nprint(sys.path)") as running:
        out, _ = running.process.communicate()
    assert str(users) not in out


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise KeyError('a')", r"(exit code 1): KeyError: 'a'"),
        ("import sys\nprint('all is lost', file=sys.stderr)\nsys.exit(3)", "(exit code 3): all is lost"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGABRT)", "(ended by SIGABRT): it said nothing"),
    ],
)
def test_it_says_why_it_ended(tmp_path: Path, code: str, why: str) -> None:
    with child(tmp_path, code) as running:
        assert running.why_it_ended() == why


ECHO = """
import sys
for line in sys.stdin:
    print(line.strip() * 2, flush=True)
open("ended well", "w").close()
"""


def test_who_is_talked_to_ends_when_the_talk_does(tmp_path: Path) -> None:
    with child(tmp_path, ECHO, stdin=subprocess.PIPE) as running:
        assert running.process.stdin is not None
        assert running.process.stdout is not None
        running.process.stdin.write("ab\n")
        running.process.stdin.flush()
        assert running.process.stdout.readline() == "abab\n"
    assert running.process.returncode == 0
    assert "ended well" in os.listdir(tmp_path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_ends_it_at_once(tmp_path: Path, error: type[BaseException]) -> None:
    began = time.monotonic()
    with pytest.raises(error):
        with child(tmp_path, "import time\ntime.sleep(60)") as running:
            raise error
    assert time.monotonic() - began < 3
    assert not psutil.pid_exists(running.process.pid)
    assert running.why_it_ended() == "(ended by SIGKILL): it said nothing"


def test_who_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oip_torch.base.child._PATIENCE", 0.1)
    with child(tmp_path, "import time\ntime.sleep(60)") as running:
        pass
    assert running.process.returncode == -9
