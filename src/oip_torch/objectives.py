"""What is maximised? An objective turns a layer's output into one score per image; larger is better."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Objective", "is_of_one_map", "map_mean", "map_peak", "of_each"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""(activations, maps) → scores: (batch, maps, height, width) or (batch, units), and (batch,) integers, to (batch,)."""


def map_mean(activations: Tensor, maps: Tensor) -> Tensor:
    """The mean activation over map `maps[i]` of image i, the method's objective; for a flat layer the unit itself.

    Args:
        activations: (batch, maps, height, width) or (batch, units).
        maps: (batch,) integers.

    Returns:
        (batch,) scores.
    """
    rows = of_each(activations, maps)
    return rows.flatten(1).mean(1) if rows.ndim > 1 else rows


def map_peak(activations: Tensor, maps: Tensor) -> Tensor:
    """The largest activation on map `maps[i]` of image i; arguments and result as of `map_mean`.

    A map fires if it fires at one place: what the mean hides, this follows.
    """
    rows = of_each(activations, maps)
    return rows.flatten(1).amax(1) if rows.ndim > 1 else rows


def of_each(activations: Tensor, maps: Tensor) -> Tensor:
    """Each image's own map: (batch, maps, …) and (batch,) → (batch, …)."""
    if activations.shape[1] == 1:  # the gradient of an index takes longer than that of a part
        return activations[:, 0]
    return activations[torch.arange(len(maps), device=maps.device), maps]


def is_of_one_map(*objectives: Objective) -> bool:
    """Whether all of them read of each image only its own map, so that the other maps need not be computed."""
    return all(objective in (map_mean, map_peak) for objective in objectives)
