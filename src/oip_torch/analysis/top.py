"""Which scores of every map are the highest so far, without keeping all of them?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Top"]


class Top:
    """The highest scores of every map so far, and the sum of all of them."""

    def __init__(self, kept: int, like: Tensor) -> None:
        self._kept = kept
        self._scores = like[:0]
        self._indices = torch.zeros_like(like[:0], dtype=torch.long)
        self._sums = torch.zeros_like(like[0], dtype=torch.float64)
        self._outside = torch.zeros_like(like[0], dtype=torch.long)  # not kept, though as high as the last one kept
        self._count = 0

    def add(self, scores: Tensor, first: int) -> None:
        """Scores (batch, maps) of the images from number `first` on."""
        numbers = torch.arange(first, first + len(scores), device=scores.device)[:, None].expand_as(scores)
        both = torch.cat([self._scores, scores])
        # Stable, so that of equal scores the earlier image stays in front.
        both, order = both.sort(dim=0, descending=True, stable=True)
        if len(both) > self._kept:
            last = both[self._kept - 1]
            if len(self._scores) == self._kept:
                self._outside = torch.where(self._scores[-1] == last, self._outside, 0)
            self._outside += (both[self._kept :] == last).sum(0)
        self._scores = both[: self._kept]
        self._indices = torch.cat([self._indices, numbers]).gather(0, order)[: self._kept]
        self._sums += scores.double().sum(0)
        self._count += len(scores)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """(kept, maps), descending."""
        return self._scores.double().cpu().numpy()

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """(kept, maps)."""
        return self._indices.cpu().numpy()

    @property
    def sums(self) -> npt.NDArray[np.float64]:
        """(maps,)."""
        return self._sums.cpu().numpy()

    def tied(self, top: int) -> npt.NDArray[np.int64]:
        """(maps,): how many images after the first `top` have the score of the last of these."""
        last = self._scores[min(top, len(self._scores)) - 1]
        after = (self._scores[top:] == last).sum(0) + torch.where(self._scores[-1] == last, self._outside, 0)
        return np.asarray(after.cpu().numpy())

    def quantile(self, share: float) -> npt.NDArray[np.float64]:
        """(maps,): linear between neighbours, as `np.quantile`."""
        position = (1 - share) * (self._count - 1)  # counted from the largest
        above = int(position)
        below = min(above + 1, self._count - 1)
        scores, part = self.scores, position - above
        return np.asarray(scores[above] * (1 - part) + scores[below] * part)
