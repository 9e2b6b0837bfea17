"""What is a callback told of a step?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from oip_torch.base.tensors import to_array
from oip_torch.optim.loop import State

__all__ = ["Callback", "Phase", "Step", "one_at_a_time"]

Phase = Literal["screening", "ascent", "fallback"]


class Step:
    """One step of the images that are optimised together: what `ascend` tells its `callback`.

    What is of each image has a row for each of the n that are still on their way. Nothing is brought from the device
    before it is asked for, and then as a copy: a step may be kept, and costs little where only some are looked at.

    Attributes:
        layer: its name.
        phase: "screening", then "ascent", or "fallback" for inactive maps.
        attempt: the number of the candidate that is screened; afterwards that of the survivor, the best one first.
        step: counted from the beginning of the screening, as in `Oips.traces`.
    """

    def __init__(
        self,
        layer: str,
        phase: Phase,
        attempt: int,
        step: int,
        keys: tuple[Sequence[tuple[int, int]], Tensor],
        decode: Callable[[Tensor], Tensor],
        state: State,
        scores: Tensor,
    ) -> None:
        self.layer, self.phase, self.attempt, self.step = layer, phase, attempt, step
        self._keys, self._decode, self._x, self._rows, self._scores = keys, decode, state.x, state.rows, scores

    def __repr__(self) -> str:
        return f"<Step {self.step} of {self.layer!r}, {self.phase} {self.attempt}: {len(self._x)} images>"

    def __len__(self) -> int:
        return len(self._x)

    @property
    def maps(self) -> npt.NDArray[np.int64]:
        """(n,) int, the map of each image."""
        return self._of_keys(0)

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(n,) int, the number of its start."""
        return self._of_keys(1)

    @property
    def scores(self) -> npt.NDArray[Any]:
        """(n,) float, the objective of the images that this step found; with views, of what the network saw."""
        return np.array(to_array(self._scores))

    @property
    def images(self) -> npt.NDArray[Any]:
        """(n, height, width, channels) float, the images that this step found, in the units of `Oips.images`."""
        return np.array(to_array(self._decode(self._x)))

    def _of_keys(self, part: int) -> npt.NDArray[np.int64]:
        keys, rows = self._keys
        return np.array([keys[row][part] for row in rows[self._rows].tolist()], np.int64)


Callback = Callable[[Step], object]


def one_at_a_time(callback: Callback) -> Callback:
    """The callback for several threads: one call at a time, and none after one that failed."""
    lock = threading.Lock()
    failed = threading.Event()

    def call(step: Step) -> None:
        with lock:
            if failed.is_set():
                return  # until all have heard of it
            try:
                callback(step)
            except BaseException:
                failed.set()
                raise

    return call
