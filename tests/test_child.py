"""A child process works in its folder, ends with its block, and says why it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from oip_torch.base.child import Child, network_limits
from oip_torch.base.limits import plain_environment


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


PARENT = """
import sys, time
from pathlib import Path
from oip_torch.base.child import Child
import threading
def start():
    global child
    child = Child("module_of_this_test", folder=Path(sys.argv[1]), environment={})
    print(child.process.pid, child.process.stdout.readline().strip(), flush=True)
starter = threading.Thread(target=start)  # which ends, and its child does not
starter.start()
starter.join()
time.sleep(60)
"""
STUBBORN = """
import re, signal
for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(kind, signal.SIG_IGN)
print("on", flush=True)
re.match("(a+)+$", "a" * 64 + "b")  # in C, for ever, and without letting another thread run
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "module_of_this_test.py").write_text(STUBBORN)
    with subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, word = parent.stdout.readline().split()
        assert word == "on"
        time.sleep(0.2)
        assert psutil.pid_exists(int(pid))
        assert psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        parent.send_signal(how)
    until = time.monotonic() + 10
    while psutil.pid_exists(int(pid)) and psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_parent_that_died_before(tmp_path: Path) -> None:
    """Its end of the pipe is closed when the child looks."""
    (tmp_path / "module_of_this_test.py").write_text("print('ran')")
    end, other = os.pipe()
    os.close(other)
    result = subprocess.run(
        [sys.executable, "-m", "oip_torch.base.child", f"[{end}, {{}}]", "module_of_this_test"],
        cwd=tmp_path,
        pass_fds=[end],
        capture_output=True,
        env=plain_environment(os.environ),
    )
    os.close(end)
    assert result.returncode != 0
    assert b"ran" not in result.stdout


def test_what_a_whole_network_may_take() -> None:
    limits = network_limits()
    assert limits.memory == psutil.virtual_memory().total * 3 // 4
    assert network_limits(sees_gpu=True).memory is None


def test_it_sees_no_secret_and_leaves_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_USER", "x")
    before = psutil.Process().num_fds()
    with child(tmp_path, "import os\nprint(*os.environ)") as running:
        out, _ = running.process.communicate()
    assert "PATH" in out
    assert "SECRET_OF_THE_USER" not in out
    assert psutil.Process().num_fds() == before
