"""Runs commands and functions on hostile files, each in a process of its own, and says all that came of it.

Started as a process: it imports torch and the package once, and then makes a fork for each job, so that a case takes
its own time only. Nothing else is done here before a fork, so that no thread of a library is lost in it. A job is a
line of JSON on stdin, its outcome one on stdout. Orphans of a job become children of this process, which sees them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["CPU_SECONDS", "MEMORY"]

CPU_SECONDS = 15.0
"""Of all processes of a job together: what it may take. In these, and not by the clock, since a test may run on a busy
machine; by the clock a job has five times as long, after which it is said to hang."""

MEMORY = 2 << 30
"""Bytes that all processes of a job may hold at once; each page that several share is counted in parts."""

_IMPORTED = """
zarr.storage oip_torch.analysis.calibration oip_torch.analysis.quality oip_torch.atlas.atlas
oip_torch.atlas.exports oip_torch.atlas.making oip_torch.cli.ascent_files oip_torch.cli.commands oip_torch.gallery.page
oip_torch.gallery.reports oip_torch.keras.convert oip_torch.keras.importing oip_torch.network.load oip_torch.plots
oip_torch.results.oips oip_torch.search.search encodings.ascii h5netcdf h5netcdf.legacyapi h5py jinja2 matplotlib.pyplot
numpy.lib.format onnx.checker onnx2torch onnxruntime pandas PIL.PngImagePlugin pydantic xarray xarray.backends.h5netcdf_
xarray.backends.zarr zarr zarr.codecs
""".split()

_WATCH = Path(__file__).resolve().parent / "watch"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_TICKS = os.sysconf("SC_CLK_TCK")
_GRACE = 2.0  # seconds in which what a job has started may end after it


def main() -> None:
    """Answer jobs until stdin ends."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    sys.path.insert(0, str(_WATCH))
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy every page

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job, and watch it until it has ended.

    Returns:
        code: exit code, or "HANG", or "MEMORY", or the name of the signal that ended it.
        stdout, stderr: what it printed.
        cpu, wall, peak: seconds, seconds, and bytes.
        orphans: the command lines of processes that were still there after it.
    """
    folder = Path(job["folder"])
    out, err = folder.parent / "stdout", folder.parent / "stderr"
    began = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        _become(job, folder, out, err)
    code: str | int | None = None
    peak, spent = 0, 0.0
    while code is None:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            code = signal.Signals(-code).name if code < 0 else code
            break
        family = [child, *_below(child)]
        peak = max(peak, _memory(family))
        spent = sum(map(_cpu, family))
        if peak > MEMORY:
            code = "MEMORY"
        elif spent > CPU_SECONDS or time.monotonic() - began > 5 * CPU_SECONDS:
            code = "HANG"
        time.sleep(0.02)
    wall = time.monotonic() - began
    if isinstance(code, str) and code in ("HANG", "MEMORY"):
        for process in [child, *_below(child)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        os.waitpid(child, 0)
        orphans: list[str] = []
        _end_all()
    else:
        orphans = _orphans()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "code": code,
        "stdout": out.read_text(errors="replace"),
        "stderr": err.read_text(errors="replace"),
        "cpu": round(max(cpu, spent), 2),
        "wall": round(wall, 2),
        "peak": peak,
        "orphans": orphans,
    }


def _become(job: dict[str, Any], folder: Path, out: Path, err: Path) -> NoReturn:
    """The job, in the fork."""
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        for descriptor, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(job["environment"])
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_WATCH), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if job["aside"]:
            os.execv(sys.executable, [sys.executable, "-m", "oip_torch", *job["words"]])
        import sitecustomize

        tempfile.tempdir = None
        sitecustomize.install(*(os.environ[f"OIP_CORPUS_{name}"] for name in ("LOG", "HIDDEN", "CANARY")))
        code = _call(job["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _call(words: list[str]) -> int:
    """A command, or a function that no command calls; exit codes and messages are the command line's."""
    import oip_torch
    from oip_torch import cli

    if words[0] == "misbehave":
        _misbehave(words[1])
        return 2
    readers = {"Oips.load": oip_torch.Oips.load, "Calibration.load": oip_torch.Calibration.load}
    if words[0] not in readers:
        return cli.main(words)
    try:
        readers[words[0]](words[1])
    except oip_torch.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _misbehave(how: str) -> None:
    """What no file is to bring about, so that a test sees that it is found out."""
    print("error: misbehaved", file=sys.stderr)
    if how == "secret":
        Path(os.environ["OIP_CORPUS_HIDDEN"]).read_bytes()
    elif how == "child":  # another process reads it
        subprocess.run([sys.executable, "-c", "import os; open(os.environ['OIP_CORPUS_HIDDEN']).read()"], check=True)
    elif how == "shell":
        os.system("true")
    elif how == "canary":
        Path(os.environ["OIP_CORPUS_CANARY"]).touch()
    elif how == "left":
        Path("left").touch()
    elif how == "temporary":
        tempfile.mkdtemp()
    elif how == "orphan":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    elif how == "memory":
        held = b"x" * (MEMORY + (1 << 28))
        time.sleep(2)
        del held
    elif how == "loop":
        while True:
            pass
    elif how == "lines":
        print("and one more", file=sys.stderr)
    elif how == "code":
        os._exit(1)
    elif how == "pickle":
        pickle.loads(b"cos\nsystem\n(S'true'\ntR.")  # noqa: S301


def _stat(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _below(process: int) -> list[int]:
    """All descendants of a process."""
    found, todo = [], [process]
    while todo:
        try:
            text = Path(f"/proc/{todo[0]}/task/{todo[0]}/children").read_text()
        except OSError:
            text = ""
        # What another thread than the first one has started stands with that thread.
        for task in Path(f"/proc/{todo[0]}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                text += " " + task.read_text()
        children = sorted({int(number) for number in text.split()} - set(found))
        found += children
        todo = [*todo[1:], *children]
    return found


def _memory(family: list[int]) -> int:
    """Bytes of all of them. What they share is told apart only where it may matter: it takes the kernel long."""
    resident = 0
    for process in family:
        with contextlib.suppress(OSError):
            resident += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    return resident if resident < MEMORY // 2 else sum(map(_proportional, family))


def _proportional(process: int) -> int:
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _cpu(process: int) -> float:
    fields = _stat(process)
    return sum(map(int, fields[11:15])) / _TICKS if fields else 0.0


def _orphans() -> list[str]:
    """The command lines of what a job has left running; all of it is ended."""
    until = time.monotonic() + _GRACE
    while (left := _below(os.getpid())) and time.monotonic() < until:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)
    found = []
    for process in left:
        with contextlib.suppress(OSError):
            if _stat(process)[:1] != ["Z"]:
                found.append(Path(f"/proc/{process}/cmdline").read_text().replace("\0", " "))
    _end_all()
    return found


def _end_all() -> None:
    """End whatever is left of a job: all of it became children of this process."""
    while left := _below(os.getpid()):
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


if __name__ == "__main__":
    main()
