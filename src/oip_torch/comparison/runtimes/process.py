"""How is a runtime asked, in its process?

`RuntimeProcess` starts `python -m oip_torch.comparison.runtimes.process` and asks it by a line of JSON on its stdin;
arrays travel as npz files in a folder that is removed in the end. So nothing of a runtime can disturb another one, or
us.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from oip_torch.base.child import Child
from oip_torch.base.errors import RuntimeProcessError
from oip_torch.base.messages import one_line
from oip_torch.base.temporary import temporary_folder
from oip_torch.base.watchdog import did_nothing, patience, watched
from oip_torch.comparison.runtimes import RUNTIMES, Array, Dtype

__all__ = ["RuntimeProcess"]


class RuntimeProcess:
    """A runtime in a process of its own; use it in a `with` block. Starts when it is first asked.

    Args:
        name: of `RUNTIMES`.
        keras_file: the Keras network.
        onnx_file: the same, converted.
        threads: that it may compute with.

    Every method raises `RuntimeProcessError` when the process cannot answer.
    """

    def __init__(self, name: str, keras_file: Path, onnx_file: Path, threads: int) -> None:
        self.name, self.spec = name, RUNTIMES[name]
        self.seconds = 0.0  # spent on answers
        self._files = str(keras_file.resolve()), str(onnx_file.resolve())
        self._threads = threads
        self._child: Child | None = None
        self._patience = patience()
        self._stopped = False
        self._lock = threading.Lock()  # of the two above: another thread may stop it
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> RuntimeProcess:
        self._folder = self._cleanup.enter_context(temporary_folder("compare"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)  # first the process, then its folder

    def stop(self) -> None:
        """End the process at once, whatever it computes; from another thread too. It is not started again."""
        with self._lock:
            self._stopped = True
            if self._child is not None:
                self._child.kill()

    def layers(self, images: Array, dtype: Dtype) -> dict[str, Array]:
        """See `Runtime.layers`."""
        names, arrays = self._ask("layers", {"images": images}, {"dtype": dtype})
        return dict(zip(names, arrays, strict=True))

    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        """See `Runtime.gradients`."""
        _, (scores, gradients) = self._ask(
            "gradients", {"channels": channels, "images": images}, {"layer": layer, "dtype": dtype}
        )
        self._check("scores", scores, (len(images),))
        self._check("gradients", gradients, images.shape)
        return scores, gradients

    def run_ascent(
        self,
        layer: str,
        channels: Array,
        images: Array,
        dtype: Dtype,
        *,
        steps: int,
        epsilon: float,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> tuple[Array, Array]:
        """See `Runtime.run_ascent`."""
        options: dict[str, Any] = {"layer": layer, "dtype": dtype, "steps": steps, "epsilon": epsilon}
        options |= {"mean": list(mean), "std": list(std)}
        _, (traces, finals) = self._ask("run_ascent", {"channels": channels, "images": images}, options)
        self._check("traces", traces, (len(images), steps))
        self._check("images", finals, images.shape)
        return traces, finals

    def _check(self, what: str, got: Array, shape: tuple[int, ...]) -> None:
        if got.shape != shape:
            raise RuntimeProcessError(f"{self.name} gives {what} of shape {got.shape}: expected {shape}")

    def _ask(self, method: str, arrays: dict[str, Array], options: dict[str, Any]) -> tuple[list[str], list[Array]]:
        began = time.perf_counter()
        with self._lock:
            if self._stopped:
                raise RuntimeProcessError(f"{self.name} was stopped")
            child = self._child = self._child or self._start()
        np.savez(self._folder / "question.npz", allow_pickle=False, **arrays)
        assert child.process.stdin is not None
        assert child.process.stdout is not None
        with watched(child.process, self._patience) as stuck:
            try:
                child.process.stdin.write(json.dumps({"method": method, "options": options}) + "\n")
                child.process.stdin.flush()
                line = child.process.stdout.readline()
            except OSError:
                line = ""
        if stuck.is_set():
            raise RuntimeProcessError(f"{self.name} {did_nothing(self._patience)}")
        if not line:
            raise RuntimeProcessError(f"{self.name} stopped {child.why_it_ended()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeProcessError(f"{self.name} could not compute {method}: {answer['error']}")
        with np.load(self._folder / "answer.npz", allow_pickle=False) as file:
            found = [file[str(index)] for index in range(len(file.files))]
        self.seconds += time.perf_counter() - began
        return answer["names"], found

    def _start(self) -> Child:
        threads = str(self._threads)
        environment = {"OMP_NUM_THREADS": threads, "TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "1"}
        if self._threads == 1:
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
        return self._cleanup.enter_context(
            Child(
                *("oip_torch.comparison.runtimes.process", self.name, *self._files),
                folder=self._folder,
                environment=environment | dict(self.spec.environment),
                sees_gpu=self.spec.options.get("device", "cpu") != "cpu",
                stdin=subprocess.PIPE,
            )
        )


def _serve(name: str, keras_file: str, onnx_file: str, answers: TextIO) -> None:
    """Answer the lines on stdin until it closes; what an answer holds lies in the working folder."""
    module, cls = RUNTIMES[name].home.split(":")
    runtime = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if runtime is None:
                home = importlib.import_module(f"oip_torch.comparison.runtimes.{module}")
                runtime = getattr(home, cls)(Path(keras_file), Path(onnx_file), **RUNTIMES[name].options)
            with np.load("question.npz", allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            found = getattr(runtime, question["method"])(**arrays, **question["options"])
        except Exception as error:
            answer: dict[str, Any] = {"error": f"{type(error).__name__}: {one_line(error)}"}
        else:
            names = list(found) if isinstance(found, dict) else []
            values = found.values() if isinstance(found, dict) else found
            np.savez("answer.npz", allow_pickle=False, **{str(index): value for index, value in enumerate(values)})
            answer = {"names": names}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    # Frameworks print as they please: that goes to stderr, and the answers have the old stdout to themselves.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _serve(sys.argv[1], sys.argv[2], sys.argv[3], own)
