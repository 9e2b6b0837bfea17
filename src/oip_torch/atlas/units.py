"""How is the work cut? Which cells of which layer are done next, and how many of them make a unit?

A unit should take some seconds, so that handing it over costs little, and not many, so that little is lost where it is
cut short. What a cell takes is measured by those that are done; the first unit of a layer is one cell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from oip_torch.atlas.job import Job
from oip_torch.atlas.layout import Layout
from oip_torch.base.platform import free_memory
from oip_torch.results.fields import Array

__all__ = ["Work"]

_SECONDS = 20.0
_SHARE_OF_MEMORY = 16  # of what is free, that the results of one unit may take
_MOST_BYTES = 4 << 20  # that they may take, however much is free: more would take memory and save no time


class Work:
    """What is left to do, as an iterator of jobs; it is told what became of them.

    Args:
        left: for each layer (cells, starts) bool, which cells are to be made.
        layouts: of each layer.
        make: the job of these maps and starts of a layer.
    """

    def __init__(
        self,
        left: Mapping[str, Array],
        layouts: Mapping[str, Layout],
        make: Callable[[str, range, range], Job],
    ) -> None:
        self._left = {layer: np.array(cells, bool) for layer, cells in left.items()}
        self._layouts, self._make = dict(layouts), make
        self._seconds: dict[str, float] = {}  # of a cell
        self._most: dict[str, int] = {}  # cells, where more did not fit in memory
        self._out = 0

    def __bool__(self) -> bool:
        return any(cells.any() for cells in self._left.values())

    @property
    def images(self) -> dict[str, int]:
        """How many are to be made yet, by layer."""
        return {
            layer: sum(
                int(left[cell].sum()) * len(range(*self._layouts[layer].rows(cell).indices(self._layouts[layer].maps)))
                for cell in range(len(left))
            )
            for layer, left in self._left.items()
        }

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        for layer, left in self._left.items():
            if left.any():
                self._out += 1
                return self._take(layer, left)
        raise StopIteration

    def done(self, job: Job, seconds: float) -> None:
        """All of a job's cells are written, and took so long together."""
        self._out -= 1
        of_one = seconds / len(job.cells)
        self._seconds[job.layer] = 0.5 * (self._seconds.get(job.layer, of_one) + of_one)

    def halve(self, job: Job) -> bool:
        """A job did not fit in memory: its cells are to do again, in smaller jobs; False where it is one cell."""
        self._out -= 1
        count = len(job.cells)
        if count == 1:
            return False
        first, cells = self.block(job)
        self._left[job.layer][first : first + cells, list(job.starts)] = True
        self._most[job.layer] = count // 2
        return True

    def block(self, job: Job) -> tuple[int, int]:
        """Number of a job's first cell, and how many follow each other there, of each start."""
        return job.maps[0] // job.batch, -(-len(job.maps) // job.batch)

    def _take(self, layer: str, left: Array) -> Job:
        layout, most = self._layouts[layer], self._wanted(layer, int(left.sum()))
        start, cell = (int(at) for at in np.argwhere(left.T)[0])
        cells = 1
        while cells < most and cell + cells < layout.cells and left[cell + cells, start]:
            cells += 1
        starts = 1
        if cells == layout.cells:  # whole columns: as many of them as are worth it
            while (starts + 1) * cells <= most and start + starts < layout.starts and left[:, start + starts].all():
                starts += 1
        left[cell : cell + cells, start : start + starts] = False
        maps = range(cell * layout.cell, min(layout.maps, (cell + cells) * layout.cell))
        return self._make(layer, maps, range(start, start + starts))

    def _wanted(self, layer: str, left: int) -> int:
        """How many cells the next unit of a layer should have."""
        if layer not in self._seconds:
            return 1
        by_time = int(_SECONDS / max(self._seconds[layer], 1e-6))
        by_memory = min(free_memory() // _SHARE_OF_MEMORY, _MOST_BYTES) // self._layouts[layer].cell_bytes
        by_rest = -(-left // (2 * max(1, self._out)))  # so that no worker has much to do when the others are ready
        return max(1, min(by_time, by_memory, by_rest, self._most.get(layer, left)))
