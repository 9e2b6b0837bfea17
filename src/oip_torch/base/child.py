"""How is a child process started, how does it end, and what may it take?

A child runs one of our modules in a folder of its own, which its caller makes and removes. So what is opened or loaded
there can neither crash nor change the parent: the export with TensorFlow, each runtime of a comparison, and whatever a
C library parses of an untrusted file (`base.bounded`).

Every child starts as `python -m oip_torch.base.child`, limits itself, ties itself to its parent, and becomes its
module. The tie is a pipe whose other end the parent alone holds, open as long as it lives: when that closes, whatever
the parent died of, the kernel ends the child (O_ASYNC, SIGIO), though it may be in an endless loop of a C library. The
signal that Linux can send for a parent's death, PR_SET_PDEATHSIG, would come as soon as the *thread* ends that started
the child. There is no tie on Windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from oip_torch.base.limits import Limits, physical_memory, plain_environment
from oip_torch.base.messages import last_words

__all__ = ["Child", "network_limits"]

_PATIENCE = 5.0
"""Seconds that a child has for ending by itself once its stdin is closed; after that it is killed."""


def network_limits(*, sees_gpu: bool = False) -> Limits:
    """What a child may take that runs a whole network, from an untrusted file: three quarters of the memory.

    CUDA's drivers map the card's memory beside the machine's, and no measure of it is known: with a GPU it is free.
    """
    memory = None if sees_gpu else physical_memory() * 3 // 4
    return Limits(memory=memory, file_bytes=16 << 30, open_files=4096, processes=1 << 14)


class Child:
    """`python -m MODULE ARGUMENTS`, running from now on; use it in a `with` block, at whose end it has ended.

    After an error in the block, Ctrl-C included, the child is killed at once; it ends with its parent, too.

    Args:
        module: dotted name of a module of this package.
        arguments: its `sys.argv[1:]`.
        folder: the working and temporary folder, and where stderr goes.
        environment: variables besides those of the parent's that `plain_environment` lets through.
        limits: that it works within; None: those of `network_limits`.
        sees_gpu: False hides CUDA devices, so that all is computed in the exact float32 of the CPU, without TF32.
        stdin: `subprocess.PIPE` to talk to the child; by default it reads nothing.

    Attributes:
        process: its stdout, and its stdin where asked for, are pipes of UTF-8 text.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str],
        limits: Limits | None = None,
        sees_gpu: bool = False,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._stderr = folder / "stderr.txt"
        own = {
            "PYTHONIOENCODING": "utf-8",
            "TMPDIR": str(folder),  # what the child leaves when it is killed goes with the folder
        }
        if not sees_gpu:
            own["CUDA_VISIBLE_DEVICES"] = "-1"
        told = dataclasses.asdict(network_limits(sees_gpu=sees_gpu) if limits is None else limits)
        tie, self._tie = os.pipe() if os.name == "posix" else (-1, -1)
        try:
            with self._stderr.open("wb") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps([tie, told]), module, *arguments],
                    cwd=folder,  # `-m` puts it on the path, and the user's folder may hold a tensorflow.py
                    env={**plain_environment(os.environ), **own, **environment},
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    pass_fds=(tie,) if tie >= 0 else (),
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                )
        except BaseException:
            self._untie()
            raise
        finally:
            if tie >= 0:
                os.close(tie)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.process as process:  # closes the pipes, whatever happens
            try:
                if kind is None:
                    with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                        process.communicate(timeout=_PATIENCE)
            finally:
                process.kill()
                self._untie()
                process.wait()  # after Ctrl-C Popen itself waits a quarter of a second at most

    def _untie(self) -> None:
        if self._tie >= 0:
            os.close(self._tie)
            self._tie = -1

    def kill(self) -> None:
        """End the child at once, whatever it computes; from another thread too."""
        self.process.kill()

    def why_it_ended(self) -> str:
        """Wait for the end; returns "(exit code 1): REASON" or "(ended by SIGKILL): REASON", in one line."""
        code = self.process.wait()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"({how}): {last_words(self._stderr.read_text(errors='replace'))}"


def _tie_to_parent(end: int) -> None:
    """From now on the kernel ends this process once the pipe of this descriptor has no writer left."""
    import fcntl

    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which is to end
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)
    waiting = select.poll()
    waiting.register(end, select.POLLIN)
    if waiting.poll(0):  # the parent had died before
        os._exit(1)


def _become(start: str, module: str, arguments: list[str]) -> None:
    """Run the module in this process, as `python -m` does, tied to the parent and within the limits."""
    tie, told = json.loads(start)
    if tie >= 0:
        _tie_to_parent(tie)
    Limits(**told).apply()
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _become(sys.argv[1], sys.argv[2], sys.argv[3:])
