"""What is one piece of an atlas's work, and what comes of it? `Job` is a value, and `run` does it the same everywhere.

A job consists of cells, so many maps with one start each. Every cell is worked on as batches of its own, one where
memory allows, since in another batch floating-point sums may round otherwise, and an ascent makes that large. So the
images are the same, bit by bit, however cells are put together to jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from oip_torch.base.errors import InputError
from oip_torch.network.model import FeatureModel
from oip_torch.optim.objectives import Objective, map_mean
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.oips import Oips
from oip_torch.search.plan import MemoryLimitError
from oip_torch.search.search import ascend_layer
from oip_torch.search.target import target_of

__all__ = ["OUT_OF_MEMORY", "Engine", "Job", "Made", "Outcome", "run"]

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError, MemoryLimitError)
"""What is raised where there is too little memory: on a card, by Python, and by our own plan."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The images of some maps with some starts: what an engine is given. Frozen, hashable, can be pickled.

    Attributes:
        fingerprint: of the network (`FeatureModel.fingerprint`).
        layer: its name.
        maps: their numbers, one after the other.
        starts: likewise.
        batch: how many maps a cell has; the last one may have fewer.
        at_once: how many of them are worked on at once; None: all.
        settings, seed, objective, pre_activation: as of `ascend`.
    """

    fingerprint: str
    layer: str
    maps: tuple[int, ...]
    starts: tuple[int, ...]
    batch: int
    settings: AscentSettings
    seed: int
    objective: Objective = map_mean
    pre_activation: bool = False
    at_once: int | None = None

    def __len__(self) -> int:
        return len(self.maps) * len(self.starts)

    @property
    def image_steps(self) -> int:
        """How many steps it takes at most, all images together."""
        return len(self) * self.settings.image_steps

    @property
    def cells(self) -> list[tuple[tuple[int, ...], int]]:
        """(maps, start) of each cell, start by start."""
        parts = [self.maps[first : first + self.batch] for first in range(0, len(self.maps), self.batch)]
        return [(part, start) for start in self.starts for part in parts]


@dataclass(frozen=True)
class Made:
    """What came of a job: OIPs for each of its cells, in their order."""

    cells: tuple[Oips, ...]

    @property
    def seconds(self) -> float:
        """That the ascents took."""
        return sum(oips.provenance.seconds for oips in self.cells)


Outcome = tuple[Job, Made | BaseException]
"""A job, and what came of it: the images; or an error of `OUT_OF_MEMORY`, where it did not fit."""

Engine = Callable[[FeatureModel, Iterator[Job], Callable[[int], None]], Iterator[Outcome]]
"""(model, jobs, watch) → what came of each job, in any order. Any other error is raised. A job is to be taken from the
iterator when there is a worker for it, since its size follows from what is done by then. `watch` may be told of
image-steps as they are done, by one thread at a time, and ends the work by what it raises."""


def run(
    job: Job, model: FeatureModel, *, memory: int | None = None, watch: Callable[[int], None] | None = None
) -> Made:
    """Make the images of a job. Depends on job and model alone; where memory is short, a cell is done in halves.

    Args:
        job: of this model.
        model: the work is done where its weights are.
        memory: as of `ascend`.
        watch: is told of image-steps that were done; what it raises ends the work.

    Returns:
        The images of each cell. Those that left the finite numbers are named by `provenance.not_finite` alone.

    Raises:
        InputError: another model.
        torch.OutOfMemoryError, MemoryError, MemoryLimitError: not even one image fits in memory.
    """
    if model.fingerprint != job.fingerprint:
        raise InputError(
            f"the job is of the network of digest {job.fingerprint[:12]}…, and this model's is "
            f"{model.fingerprint[:12]}…: expected the same network"
        )
    target = target_of(model, job.layer, job.pre_activation, job.objective, job.settings)
    made, batch = [], job.batch if job.at_once is None else job.at_once
    for maps, start in job.cells:
        while True:
            size = min(batch, len(maps))
            try:
                made.append(
                    ascend_layer(
                        *(target, maps, (start,), job.seed, job.settings),
                        batch_size=size,
                        memory=memory,
                        progress=False,
                        watch=watch,
                    )
                )
                break
            except OUT_OF_MEMORY:
                if size == 1:
                    raise
                batch = -(-size // 2)
            if model.device.type == "cuda":  # outside of `except`, whose traceback holds the tensors
                torch.cuda.empty_cache()
    return Made(tuple(made))
