"""How does a function of ours run in a child process with limits, so that a file that it reads can do no harm?

Whatever a C library parses of an untrusted file is parsed so. The function lies in a module of this package that
imports little, takes values of JSON by name (paths as text, absolute), and returns two things: a value of JSON, and
arrays of numbers by name ({} where there are none; text travels as JSON, bytes as uint8). The arrays may also be an
iterator of pairs (name, array), which then need not be in memory all at once.

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

import contextlib
import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from oip_torch.base.child import Child
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.limits import Limits
from oip_torch.base.messages import one_line
from oip_torch.base.temporary import temporary_folder
from oip_torch.base.watchdog import did_nothing, watched

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["BoundedError", "reading_limits", "run_bounded"]

_NUMBERS = re.compile(r"[<>|][biufcSUV]\d{1,9}")  # of a NumPy type: nothing that holds objects
_GRACE = 5.0  # seconds that a child has beyond its time until the parent ends it itself, as where it was stopped


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
        file_bytes=most + (64 << 20),  # of the answer as well
        open_files=64,
        processes=0,  # no further one, and no thread
    )


def run_bounded(
    function: str, arguments: Mapping[str, Any], limits: Limits, *, patience: float | None = None
) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    """What a function returns that runs in a child process within limits; see the module's head.

    Args:
        function: "package.module:name", of this package.
        arguments: by name; values of JSON.
        limits: as `reading_limits` gives them, or others; `file_bytes` bounds the answer as well.
        patience: seconds after which a child is ended that takes no processor time (`base.watchdog`); None: it has the
            time of its limits.

    Returns:
        A value of JSON; arrays of numbers by name, writable.

    Raises:
        InputError: the function raised one.
        BoundedError: it raised something else, crashed, went beyond a limit, or its answer is none.
    """
    with temporary_folder("read") as folder:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        late = threading.Event()
        try:
            with Child(__name__, folder=folder, environment=one_thread, limits=limits, stdin=subprocess.PIPE) as child:

                def give_up() -> None:
                    late.set()
                    child.kill()

                timer = threading.Timer((limits.seconds or threading.TIMEOUT_MAX - _GRACE) + _GRACE, give_up)
                timer.daemon = True
                timer.start()
                try:
                    with _watched(child, patience) as stuck:
                        _say_job(child, function, arguments)
                        return _answer(cast("TextIO", child.process.stdout).buffer, limits)
                except EOFError:
                    code = child.process.wait()
                finally:
                    timer.cancel()
                if stuck.is_set() and patience:
                    raise BoundedError(f"its process {did_nothing(patience)}")
                raise BoundedError(_why(-signal.SIGALRM if late.is_set() else code, limits, child))
        except OSError as error:  # no memory or no descriptors for another process
            raise BoundedError(f"no process to read it in could be started: {error.strerror or error}") from None


def _watched(child: Child, patience: float | None) -> contextlib.AbstractContextManager[threading.Event]:
    return contextlib.nullcontext(threading.Event()) if patience is None else watched(child.process, patience)


def _say_job(child: Child, function: str, arguments: Mapping[str, Any]) -> None:
    """To the child's stdin, and not by a file, which a full disk would not take."""
    stream = cast("TextIO", child.process.stdin)
    child.process.stdin = None  # which is closed here
    with contextlib.suppress(BrokenPipeError), stream:  # it has ended: its answer, which is none, tells
        json.dump({"function": function, "arguments": dict(arguments)}, stream)


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


def _answer(stream: IO[bytes], limits: Limits) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
    """What the child says: a frame of JSON for each array, and its bytes, and a last one with the value.

    It is not trusted: a library may have been made to say it.

    Raises:
        EOFError: it ended before.
    """
    import numpy as np

    arrays: dict[str, npt.NDArray[Any]] = {}
    left = sys.maxsize if limits.file_bytes is None else limits.file_bytes
    try:
        while True:
            size = int.from_bytes(_exactly(stream, 8), "little")
            if size > left:
                raise ValueError(f"{size} bytes")
            told = json.loads(_exactly(stream, size))
            if "refused" in told:
                raise InputError(str(told["refused"]))
            if "failed" in told:
                raise BoundedError(str(told["failed"]))
            if "value" in told:
                return told["value"], arrays
            name, kind, shape = told["array"]
            if not _NUMBERS.fullmatch(kind) or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"an array of {kind} and shape {shape}")
            dtype = np.dtype(kind)
            left -= size + math.prod(shape) * dtype.itemsize
            if left < 0:
                raise ValueError("more bytes than were reckoned with")
            arrays[name] = np.empty(shape, dtype)
            view = arrays[name].reshape(-1).view(np.uint8).data if arrays[name].size else memoryview(b"")
            while len(view):
                if not (count := stream.readinto(view)):  # type: ignore[attr-defined]
                    raise EOFError
                view = view[count:]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise BoundedError(f"its reader gave no sound answer: {one_line(error)}") from None


def _exactly(stream: IO[bytes], count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def _run(function: str, arguments: dict[str, Any], answers: IO[bytes]) -> None:
    """In the child: call the function, and say what it returns."""

    def say(told: dict[str, Any]) -> None:
        frame = json.dumps(told).encode()
        answers.write(len(frame).to_bytes(8, "little") + frame)

    module, name = function.split(":")
    try:
        value, arrays = getattr(importlib.import_module(module), name)(**arguments)
        for key, array in arrays.items() if isinstance(arrays, Mapping) else arrays:
            if array.dtype.hasobject:
                raise TypeError(f"{key} holds objects: expected numbers")
            say({"array": [key, array.dtype.str, list(array.shape)]})
            answers.write(array.tobytes() if not array.flags.c_contiguous else array.reshape(-1).view("u1").data)
        say({"value": value})
    except InputError as error:
        say({"refused": str(error)})
    except MemoryError:
        say({"failed": "reading it takes too much memory"})
    except Exception as error:
        say({"failed": one_line(error)})
    answers.flush()


if __name__ == "__main__":
    _own = os.fdopen(os.dup(1), "wb")  # the answer has it to itself
    os.dup2(2, 1)  # where libraries may print
    _job = json.loads(sys.stdin.buffer.read())
    _run(_job["function"], _job["arguments"], _own)
    os._exit(0)  # without the clean-up of libraries, which may crash on what they have read
