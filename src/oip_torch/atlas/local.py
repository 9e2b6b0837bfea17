"""How is an atlas made on this machine? On a CPU each core works on a job of its own, on cards each card does.

The workers are threads: torch computes outside of Python's lock, the network need not travel, and a module of the
user's own is worked on as it is. docs/notes has threads and processes measured side by side.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import SimpleQueue

import torch

from oip_torch.atlas.job import OUT_OF_MEMORY, Job, Made, Outcome, run
from oip_torch.base.platform import free_bytes, matmul_precision
from oip_torch.network.model import FeatureModel

__all__ = ["local"]

_WAKE_SECONDS = 0.1  # how long a Ctrl-C may go unseen


def local(model: FeatureModel, jobs: Iterator[Job], watch: Callable[[int], None]) -> Iterator[Outcome]:
    """The engine of this machine."""
    stop = threading.Event()

    def advance(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        watch(count)

    models = _on_each_device(model)
    idle: SimpleQueue[FeatureModel] = SimpleQueue()
    for each in models:
        idle.put(each)
    cores = torch.get_num_threads()
    each_cores = max(1, cores // len(models))
    memory = None if model.device.type == "cuda" else free_bytes(model.device) // (2 * len(models))

    def work(job: Job) -> Made:
        own = idle.get()
        try:
            return run(job, own, memory=memory, watch=advance)
        finally:
            idle.put(own)

    again: list[Job] = []
    pending: dict[Future[Made], Job] = {}
    pool = ThreadPoolExecutor(len(models), initializer=torch.set_num_threads, initargs=(each_cores,))
    try:
        with matmul_precision(tf32=False):  # set once, and not by each thread for all of them
            while True:
                while len(pending) < len(models) and (job := next(jobs, None)) is not None:
                    pending[pool.submit(work, job)] = job
                if not pending:
                    break
                # Not for ever: a wait without an end is not woken by every signal on every system.
                done, _ = wait(pending, timeout=_WAKE_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    job = pending.pop(future)
                    try:
                        made = future.result()
                    except OUT_OF_MEMORY:
                        again.append(job)
                        continue
                    yield job, made
            for job in again:  # one after the other, with all of the memory
                try:
                    found: Made | BaseException = pool.submit(run, job, model, watch=advance).result()
                except OUT_OF_MEMORY as error:
                    found = error
                yield job, found
    except BaseException:  # Ctrl-C above all, and the end of who listens
        stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(cores)


class _StoppedError(Exception):
    """Another thread failed, or was interrupted: this one need not go on."""


def _on_each_device(model: FeatureModel) -> list[FeatureModel]:
    """The model for each worker: on a CPU the same for all of them, on cards one for each."""
    if model.device.type == "cpu":
        return [model] * torch.get_num_threads()
    others = [index for index in range(torch.cuda.device_count()) if index != (model.device.index or 0)]
    return [model, *(copy.deepcopy(model).to(torch.device("cuda", index)) for index in others)]
