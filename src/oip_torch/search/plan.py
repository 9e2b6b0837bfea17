"""How are the images worked on: so many in a batch, batches at once, threads on each, in so much memory?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from oip_torch.base.errors import InputError
from oip_torch.base.platform import Costs, free_bytes, in_words
from oip_torch.network.passes import step_costs, weight_bytes
from oip_torch.optim.settings import AscentSettings
from oip_torch.search.target import Target

__all__ = ["MemoryLimitError", "Plan", "image_costs", "plan_of"]

_BATCH = {"cpu": 64, "cuda": 4096}  # images at once; beyond that the time per image no longer falls
_BESIDE = 2.0  # with what allocator and libraries take: on CPUs processes grew by 1.3 to 2 of what their tensors hold
_LIBRARIES = 32 << 20  # what the first ascent of a process takes for kernels and threads
_CORE_BYTES = 64 << 20  # of a core's batch: with images so large that this is few of them, time per image is the same
_THREAD_PRODUCTS = 3 * 10**8  # multiply-adds of a batch's step that are worth a thread: about 10 ms of it
_STATUS = 44  # bytes of an image's status, and of the step at which it converged


class MemoryLimitError(InputError):
    """What is asked for does not fit in the memory that may be taken."""


@dataclass(frozen=True)
class Plan:
    """Images in a batch, batches at once, threads on each, and the bytes that all of it is estimated to take."""

    batch_size: int
    workers: int
    threads: int
    bytes: int


def plan_of(target: Target, count: int, settings: AscentSettings, batch_size: int | None, memory: int | None) -> Plan:
    """As many images at once as are worth it and fit; an `InputError` where not even one does.

    Args:
        target: its networks are measured on one and two images.
        count: of images in all.
        settings: how many steps and snapshots there are.
        batch_size: the most that is wanted at once; None: by device.
        memory: bytes that may be taken; None: half of what is free.
    """
    model, objective = target.model, target.objective
    on_cpu = model.device.type == "cpu"
    # The networks are made before they are planned for: what is free without their weights.
    networks: list[Any] = [score.network for score in target.scores()]
    weights = sum(map(weight_bytes, networks))
    beside = _LIBRARIES + weights
    free = (free_bytes(model.device) + weights) // 2 if memory is None else memory
    results = count * _result_bytes(target, settings) if on_cpu else 0
    cores = torch.get_num_threads() if on_cpu else 1
    costs = image_costs(target, settings)
    one = costs.bytes
    room = max(0, free - results - beside)
    least = count if objective.couples_images else 1  # that have to be in one batch
    workers = min(cores, count // least, room // (least * one))
    if workers == 0:
        raise MemoryLimitError(
            f"OIPs of {target.layer!r}, {count} in number, need {in_words(beside + results + least * one)} of "
            f"memory, {in_words(results)} of it for the results, and {in_words(free)} may be used: ask for fewer maps "
            "or starts, keep fewer snapshots (AscentSettings(snapshots=())), or allow more (memory=BYTES or --memory "
            "GIB, at most what is free)"
        )
    most = _BATCH[model.device.type] if batch_size is None else batch_size
    if on_cpu and batch_size is None:
        most = min(most, max(1, _CORE_BYTES // one))
    most = max(least, min(most, room // (workers * one)))
    rounds = -(-count // (workers * most))
    size = -(-count // (workers * rounds))  # of equal batches, so that no core waits for another one in the end
    # Threads wait for each other at every operation, and where another program holds a core for its time slice too.
    worth = max(1, min(cores // workers, size * costs.products // _THREAD_PRODUCTS))
    threads = worth if on_cpu else torch.get_num_threads()
    return Plan(size, workers, threads, beside + results + workers * size * one)


def image_costs(target: Target, settings: AscentSettings) -> Costs:
    """What one more image of a batch takes, as estimated in advance: bytes while it is at work, products of a step."""
    model, kept = target.model, settings.snapshot_steps()
    steps = [
        step_costs(score.network, model.input_shape, model.device, model.dtype)  # type: ignore[arg-type]
        for score in target.scores()
    ]
    step = max(costs.bytes for costs in steps)
    # While a batch is at work it holds the results of two survivors and of the better ones, what is kept of the
    # survivors' screening, and about so many images.
    screened = sum(step < settings.screening_steps for step in kept)
    images = 16 + 3 * (1 + settings.screening.survivors) * screened
    result, image = _result_bytes(target, settings), math.prod(model.input_shape)
    size = int(_BESIDE * (step + 3 * result + images * image * model.dtype.itemsize))
    return Costs(size, max(costs.products for costs in steps))


def _result_bytes(target: Target, settings: AscentSettings) -> int:
    """That one image takes of the results."""
    image, itemsize = math.prod(target.model.input_shape), target.model.dtype.itemsize
    return (image * (1 + len(settings.snapshot_steps())) + settings.way_steps + 2) * itemsize + _STATUS
