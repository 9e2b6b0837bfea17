"""How are several runtimes asked at once?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from oip_torch.base.errors import RuntimeProcessError
from oip_torch.comparison.runtimes.process import RuntimeProcess

__all__ = ["RuntimePool", "runtime_pool"]

T = TypeVar("T")


class RuntimePool:
    """Runtimes in processes of their own, asked beside each other; see `runtime_pool`.

    Attributes:
        processes: by name.
        failed: by the name of each runtime that could not answer: why. It is not asked again.
    """

    def __init__(self, processes: Mapping[str, RuntimeProcess], threads: ThreadPoolExecutor) -> None:
        self.processes = processes
        self.failed: dict[str, str] = {}
        self._threads = threads

    def ask(self, question: Callable[[RuntimeProcess], T]) -> dict[str, T]:
        """The answer of each runtime that has not failed, in the order of `processes`."""
        answers: dict[str, T] = {}

        def attempt(name: str) -> None:
            with self.noting_failure(name):
                answers[name] = question(self.processes[name])

        for _ in self._threads.map(attempt, [name for name in self.processes if name not in self.failed]):
            pass  # an error of ours comes out of the iterator
        return {name: answers[name] for name in self.processes if name in answers}

    @contextlib.contextmanager
    def noting_failure(self, name: str) -> Iterator[None]:
        """Inside the block, a runtime that cannot answer is noted in `failed`, and no error."""
        try:
            yield
        except RuntimeProcessError as failure:
            self.failed[name] = str(failure)


@contextlib.contextmanager
def runtime_pool(names: Sequence[str], keras_file: Path, onnx_file: Path) -> Iterator[RuntimePool]:
    """A pool for a `with` block, in which the processes end however it ends.

    Each runtime has its own share of the cores, as many at once as there are cores: that wastes less than one after
    another on all of them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(names))
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(RuntimeProcess(name, keras_file, onnx_file, cores // workers)) for name in names
        }
        threads = stack.enter_context(ThreadPoolExecutor(workers))
        try:
            yield RuntimePool(processes, threads)
        except BaseException:  # Ctrl-C above all: the threads wait for their runtimes' answers, and we for the threads
            for process in processes.values():
                process.stop()
            raise
