"""Signals to real processes: one line, exit code 130 or 143, within two seconds, and nothing stays behind.

Those at random moments are in test_faults.py; here are the moments and ways that are hard to hit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from oip_torch.cli import main

SECONDS = 2.0


class Interrupted:
    """A command that is interrupted, once or twice, and what must hold then."""

    def __init__(self, folder: Path) -> None:
        self.temporary, self.work = folder / "tmp", folder / "work"
        for path in (self.temporary, self.work):
            path.mkdir()

    def __call__(
        self, *arguments: str | Path, when: Callable[[psutil.Process], bool], times: int = 1, stdout: str = ""
    ) -> None:
        command = [sys.executable, *map(str, arguments)]
        with subprocess.Popen(
            command,
            cwd=self.work,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                seen = psutil.Process(process.pid)
                limit = time.monotonic() + 120
                while not when(seen):
                    assert process.poll() is None, process.communicate()
                    assert time.monotonic() < limit
                    time.sleep(0.01)
                children = seen.children(recursive=True)
                began = time.monotonic()
                for _ in range(times):  # to this process alone: a terminal would send it to the children as well
                    process.send_signal(signal.SIGINT)
                    time.sleep(0.02)
                out, err = process.communicate(timeout=60)
                seconds = time.monotonic() - began
            finally:
                process.kill()
        assert (process.returncode, out, err) == (130, stdout, "error: interrupted\n")
        assert seconds < SECONDS
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert os.listdir(self.temporary) == []
        assert os.listdir(self.work) == []


@pytest.fixture
def interrupted(tmp_path: Path) -> Interrupted:
    return Interrupted(tmp_path)


def after(seconds: float) -> Callable[[psutil.Process], bool]:
    """So long after the process has begun."""
    return lambda process: time.time() - process.create_time() >= seconds


def computing(children: int) -> Callable[[psutil.Process], bool]:
    """So many children have each computed for two seconds, which is long enough for them to have begun."""
    return lambda process: sum(sum(child.cpu_times()[:2]) > 2 for child in process.children()) >= children


AT_THE_IMPORT = """
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            for _ in range({times}):
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from oip_torch.cli import main
sys.exit(main())
"""
"""Sends the signal at the very moment when the command imports a module."""


@pytest.mark.parametrize(
    "module", ["logging", "typer", "oip_torch.cli.commands", "numpy", "oip_torch.network.onnx_file", "onnx"]
)
def test_from_the_first_import_on(mnist_onnx: Path, tmp_path: Path, module: str) -> None:
    code = AT_THE_IMPORT.format(module=module, times=2)
    for words, stdout in ((["layers"], ""), (["layers", "--json"], '{"error": "interrupted"}\n')):
        command = [sys.executable, "-c", code, *words, str(mnist_onnx)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert (result.returncode, result.stdout, result.stderr) == (130, stdout, "error: interrupted\n")


def test_little_is_imported_before_an_interrupt_is_answered() -> None:
    code = "import sys; import oip_torch.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent / "src")
    }).stdout.split()  # fmt: skip
    assert "oip_torch.cli" in modules
    assert not {"typing", "enum", "json", "logging", "typer", "numpy"} & set(modules)


SWALLOWED = """
import os, signal, sys, time
import oip_torch.network.onnx_file

def read(path):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
    except:
        pass
    time.sleep(60)

oip_torch.network.onnx_file.read = read
from oip_torch.cli import main
sys.exit(main())
"""
IN_A_DESTRUCTOR = """
import os, signal, sys
import oip_torch.network.onnx_file

class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        [None for _ in range(1000)]

def read(path):
    Late()
    import time
    time.sleep(60)

oip_torch.network.onnx_file.read = read
from oip_torch.cli import main
sys.exit(main())
"""
A_THREAD_THAT_COMPUTES = """
import os, signal, sys, threading, time
import oip_torch.network.onnx_file

def read(path):
    threading.Thread(target=time.sleep, args=(60,)).start()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

oip_torch.network.onnx_file.read = read
from oip_torch.cli import main
sys.exit(main())
"""
IN_AN_EXEC = """
import sys
import oip_torch.network.onnx_file

def read(path):
    exec("import os, signal; os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(10**9): pass")

oip_torch.network.onnx_file.read = read
from oip_torch.cli import main
sys.exit(main())
"""


HELD_IN_A_LIBRARY = """
import hashlib, os, signal, subprocess, sys, threading
from pathlib import Path
import oip_torch.network.onnx_file
from oip_torch.base.temporary import folder_beside, temporary_folder

def read(path):
    with temporary_folder("convert") as one, folder_beside(Path.cwd()) as two:
        (one / "file").write_text("x")
        (two / "file").write_text("x")
        child = subprocess.Popen(["sleep", "60"], cwd=one)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # for many minutes, and no signal ends it

oip_torch.network.onnx_file.read = read
from oip_torch.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("json", [False, True])
def test_a_library_that_does_not_come_back_does_not_hold_it_up(json: bool, tmp_path: Path) -> None:
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    began = time.monotonic()
    command = [sys.executable, "-c", HELD_IN_A_LIBRARY, "layers", "x.onnx", *(["--json"] if json else [])]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=work, env=environment)
    assert time.monotonic() - began < 30  # the library sleeps for 60, as does the child, which has our streams
    assert (result.returncode, result.stderr) == (143, "error: terminated\n")
    assert result.stdout == ('{"error": "terminated"}\n' if json else "")
    assert (os.listdir(temporary), os.listdir(work)) == ([], [])


@pytest.mark.parametrize("code", [SWALLOWED, IN_A_DESTRUCTOR, A_THREAD_THAT_COMPUTES, IN_AN_EXEC])
@pytest.mark.parametrize("json", [False, True])
def test_what_holds_an_interrupt_up_does_not_for_long(code: str, json: bool) -> None:
    began = time.monotonic()
    command = [sys.executable, "-c", code, "layers", "x.onnx", *(["--json"] if json else [])]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert time.monotonic() - began < 10  # with the start of Python and its imports; the sleeps take 60
    assert (result.returncode, result.stderr) == (130, "error: interrupted\n")
    assert result.stdout == ('{"error": "interrupted"}\n' if json else "")


def test_who_is_started_without_interrupts_goes_on(mnist_onnx: Path) -> None:
    """As a shell starts what it runs in the background."""
    code = AT_THE_IMPORT.format(module="oip_torch.network.onnx_file", times=1)
    command = [sys.executable, "-c", code, "layers", str(mnist_onnx)]
    result = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command], capture_output=True, text=True, timeout=100
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_inside_another_program_its_signals_stay(
    mnist_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("oip_torch.network.onnx_file.read", interrupt)
    assert main(["layers", str(mnist_onnx)]) == 130
    assert capsys.readouterr() == ("", "error: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch", "onnx2torch", "oip_torch.search.search"])
def test_while_torch_is_imported(mnist_onnx: Path, tmp_path: Path, module: str) -> None:
    code = AT_THE_IMPORT.format(module=module, times=2)
    command = [sys.executable, "-c", code, "ascend", str(mnist_onnx), "Conv2D_1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_convert(shipped: Path, interrupted: Interrupted) -> None:
    words = ["-m", "oip_torch", "convert", shipped, "-o", "x.onnx", "--json"]
    interrupted(*words, when=computing(1), times=3, stdout='{"error": "interrupted"}\n')


@pytest.mark.slow
def test_compare(shipped: Path, mnist_onnx: Path, interrupted: Interrupted) -> None:
    """The runtimes compute for minutes: without being stopped they would hold the command up."""
    words = ["-m", "oip_torch", "compare", shipped, mnist_onnx, "--steps", "100000", "-o", "out"]
    interrupted(*words, when=computing(min(2, os.cpu_count() or 1)), times=3)


def test_a_signal_after_all_is_said_changes_no_exit_code() -> None:
    """Python has taken its handlers away when modules are taken down."""
    code = (
        "import os\n"
        "from oip_torch.cli.interrupts import Interrupts\n"
        "interrupts = Interrupts(str)\n"
        "interrupts.answer()\n"
        "interrupts.settle(0)\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, number=os.getpid()):\n"
        "        kill(number, 15)\n"
        "late = Late()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
