"""How does a function of ours run in a child process with limits, so that a file that it reads can do no harm?

Whatever a C library parses of an untrusted file is parsed so. The function lies in a module of this package that
imports little, takes values of JSON by name (paths as text, absolute), and returns two things: a value of JSON, and
arrays of numbers by name ({} where there are none; text travels as JSON, bytes as uint8).

    def count_nodes(path: str) -> tuple[Any, dict[str, np.ndarray]]:   # in oip_torch.network.some_module
        ...                                     # an InputError is raised here as anywhere, with its whole message
        return {"nodes": 12}, {}

    try:
        value, arrays = run_bounded(
            "oip_torch.network.some_module:count_nodes", {"path": str(path.resolve())}, reading_limits(1 << 30)
        )
    except BoundedError as error:               # it crashed, took too long or too much memory, or raised anything else
        raise InputError(f"{path} is not readable as ONNX ({error}): expected …") from None

An `InputError` of the function is raised again in the parent; every other end is a `BoundedError` whose text is the
reason in one line. The child has a temporary folder of its own that is removed in the end, and ends with its parent.
A start takes 0.1 s, and 0.3 s where NumPy and h5py are imported.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oip_torch.base.child import Child
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.limits import Limits
from oip_torch.base.messages import one_line
from oip_torch.base.temporary import temporary_folder

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BoundedError", "reading_limits", "run_bounded"]

_NUMBERS = re.compile(r"[<>|][biufSV]\d{1,3}")  # of a NumPy type: nothing that holds objects
_GRACE = 5.0  # seconds that a child has beyond its time until the parent ends it itself, as where it was stopped
_ANSWER, _ARRAYS = "answer.json", "arrays.bin"


class BoundedError(OipError):
    """The function came to no end: the text says why, in one line."""


def reading_limits(most: int) -> Limits:
    """What a child may take that reads a file of which it hands over at most so many bytes.

    Twice that in memory, and 512 MiB for its libraries; a second for each 20 MB beyond 8 seconds.
    """
    seconds = 8 + most // (20 << 20)
    return Limits(
        memory=2 * most + (512 << 20),
        processor_seconds=seconds,
        seconds=6.0 * seconds,  # on a machine that is busy with other things
        file_bytes=most + (64 << 20),
        open_files=64,
        processes=0,  # no further one, and no thread
    )


def run_bounded(function: str, arguments: Mapping[str, Any], limits: Limits) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    """What a function returns that runs in a child process within limits; see the module's head.

    Args:
        function: "package.module:name", of this package.
        arguments: by name; values of JSON.
        limits: as `reading_limits` gives them, or others.

    Returns:
        A value of JSON; arrays of numbers by name, writable.

    Raises:
        InputError: the function raised one.
        BoundedError: it raised something else, crashed, went beyond a limit, or its answer is none.
    """
    with temporary_folder("read") as folder:
        (folder / "job.json").write_text(json.dumps({"function": function, "arguments": dict(arguments)}))
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            with Child(__name__, folder=folder, environment=one_thread, limits=limits) as child:
                try:
                    code = child.process.wait(None if limits.seconds is None else limits.seconds + _GRACE)
                except subprocess.TimeoutExpired:
                    child.kill()
                    code = -signal.SIGALRM
        except OSError as error:  # no memory or no descriptors for another process
            raise BoundedError(f"no process to read it in could be started: {error.strerror or error}") from None
        if code != 0:
            raise BoundedError(_why(code, limits, child))
        return _answer(folder, limits)


def _why(code: int, limits: Limits, child: Child) -> str:
    """The reason of an end before the answer."""
    if code == -signal.SIGXCPU:
        return f"reading it takes more than {limits.processor_seconds} s, and was given up"
    if code == -signal.SIGALRM:
        return f"reading it takes more than {limits.seconds:.0f} s, and was given up"
    if code == -signal.SIGXFSZ:
        return "it unpacks to more than was reckoned with"
    if code == -signal.SIGKILL:
        return "its reader was killed, as the system does where memory runs out"
    if code < 0:
        return f"the library that reads it crashed ({signal.Signals(-code).name})"
    why = child.why_it_ended()
    return "reading it takes too much memory" if "MemoryError" in why else f"its reader ended {why}"


def _answer(folder: Path, limits: Limits) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    """The answer that lies in the folder, which is not trusted either: a library may have been made to write it."""
    import numpy as np

    try:
        size = (folder / _ANSWER).stat().st_size
        if limits.file_bytes is not None and size > limits.file_bytes:
            raise ValueError(f"{size} bytes")
        told = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
        if "refused" in told:
            raise InputError(str(told["refused"]))
        if "failed" in told:
            raise BoundedError(str(told["failed"]))
        arrays: dict[str, npt.NDArray[Any]] = {}
        with (folder / _ARRAYS).open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            for name, kind, shape in told["arrays"]:
                if not _NUMBERS.fullmatch(kind) or any(type(n) is not int or n < 0 for n in shape):
                    raise ValueError(f"an array of {kind} and shape {shape}")
                dtype, count = np.dtype(kind), math.prod(shape)
                left -= count * dtype.itemsize
                if left < 0:
                    raise ValueError(f"too few bytes for {name}")
                arrays[name] = np.fromfile(file, dtype, count).reshape(shape)
        return told["value"], arrays
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise BoundedError(f"its reader gave no sound answer: {one_line(error)}") from None


def _run(function: str, arguments: dict[str, Any]) -> None:
    """In the child: call the function, and leave what it returns in the working folder."""
    module, name = function.split(":")
    told: dict[str, Any]
    try:
        value, arrays = getattr(importlib.import_module(module), name)(**arguments)
        told = {"value": value, "arrays": []}
        with open(_ARRAYS, "wb") as file:
            for key, array in arrays.items():
                told["arrays"].append([key, array.dtype.str, list(array.shape)])
                array.tofile(file)
    except InputError as error:
        told = {"refused": str(error)}
    except MemoryError:
        told = {"failed": "reading it takes too much memory"}
    except Exception as error:
        told = {"failed": one_line(error)}
    with open(_ANSWER, "w", encoding="utf-8") as file:
        json.dump(told, file)


if __name__ == "__main__":
    os.dup2(2, 1)  # what a library prints: the parent does not read it
    _job = json.loads(Path("job.json").read_text())
    _run(_job["function"], _job["arguments"])
    sys.stdout.flush()
    os._exit(0)  # without the clean-up of libraries, which may crash on what they have read
