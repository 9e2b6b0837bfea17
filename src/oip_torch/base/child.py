"""How is a child process started, and how does it end?

A child runs one of our modules in a folder of its own, which its caller makes and removes. So what is opened or loaded
there can neither crash nor change the parent: the export with TensorFlow, and each runtime of a comparison.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from oip_torch.base.messages import last_words

__all__ = ["Child"]

_PATIENCE = 5.0
"""Seconds that a child has for ending by itself once its stdin is closed; after that it is killed."""


class Child:
    """`python -m MODULE ARGUMENTS`, running from now on; use it in a `with` block, at whose end it has ended.

    After an error in the block, Ctrl-C included, the child is killed at once.

    Args:
        module: dotted name of a module of this package.
        arguments: its `sys.argv[1:]`.
        folder: the working and temporary folder, and where stderr goes.
        environment: variables besides the parent's.
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
        with self._stderr.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=folder,  # `-m` puts it on the path, and the user's folder may hold a tensorflow.py
                env={**os.environ, **own, **environment},
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                errors="replace",
            )

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
                process.wait()  # after Ctrl-C Popen itself waits a quarter of a second at most

    def kill(self) -> None:
        """End the child at once, whatever it computes; from another thread too."""
        self.process.kill()

    def why_it_ended(self) -> str:
        """Wait for the end; returns "(exit code 1): REASON" or "(ended by SIGKILL): REASON", in one line."""
        code = self.process.wait()
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"({how}): {last_words(self._stderr.read_text(errors='replace'))}"
