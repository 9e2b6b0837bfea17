"""What is maximised? An objective turns a layer's output into one score per image; larger is better."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line

__all__ = ["Objective", "check_objective", "is_of_one_map", "map_mean", "map_peak", "name_of", "of_each"]

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


def name_of(objective: Objective) -> str:
    """What results say of it."""
    return getattr(objective, "__name__", "custom")


def check_objective(objective: Objective, activations: Tensor) -> bool:
    """Whether an objective of the user's own can be maximised, by what it says of made-up activations of four images.

    Args:
        objective: any object.
        activations: of the layer for any images, (batch, maps, height, width) or (batch, units).

    Returns:
        Whether it grows where its map responds. Where it does not, a silent map is no failure.

    Raises:
        InputError: it is no function, fails, gives other than one score for each image, has no gradient, or lets images
            enter each other's scores.
    """
    if not callable(objective):
        raise InputError(
            f"objective is {shown(objective)}: expected a function of (activations, maps), such as objectives.map_mean"
        )
    stream = torch.Generator("cpu").manual_seed(0)
    shape = (4, *activations.shape[1:])
    values = torch.randn(shape, generator=stream, device="cpu").to(activations).requires_grad_()
    maps = torch.tensor([0, 0, shape[1] - 1, shape[1] - 1], device=activations.device)
    scores = _scores(objective, values, maps)
    slope = torch.autograd.grad(scores[0], values, allow_unused=True)[0] if scores.requires_grad else None
    if slope is None:
        raise InputError(
            f"the objective {name_of(objective)} has no gradient: expected a score that is computed from the "
            "activations by differentiable operations of torch"
        )
    with torch.no_grad():
        others = torch.cat([values[:1], 1 - 2 * values[1:]])
        beside = _scores(objective, others, maps)[0]
        alone = _scores(objective, values[:1], maps[:1])[0]
        same = torch.allclose(torch.stack([beside, alone]), scores[0], rtol=1e-4, atol=1e-6, equal_nan=True)
        if slope[1:].any() or not same:
            raise InputError(
                f"the objective {name_of(objective)} lets images enter each other's scores, so that results would "
                "depend on the batch: expected each image's score to come from its own activations alone"
            )
        silent = torch.zeros_like(values)
        responding = silent.clone()
        responding[torch.arange(4, device=maps.device), maps] = 1.0
        return bool((_scores(objective, responding, maps) > _scores(objective, silent, maps)).all())


def _scores(objective: Objective, activations: Tensor, maps: Tensor) -> Tensor:
    """What the objective says, checked."""
    name, count = name_of(objective), len(maps)
    try:
        scores = objective(activations, maps)
    except Exception as error:
        raise InputError(
            f"the objective {name} failed on activations of shape {tuple(activations.shape)} and maps of shape "
            f"({count},): {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise InputError(
            f"the objective {name} gave {got} for {count} images: expected a tensor of one score for each, of shape "
            f"({count},)"
        )
    return scores
