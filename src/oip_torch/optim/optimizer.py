"""In which direction does a step go, given the gradient?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from oip_torch.base.checks import number, plain, shown
from oip_torch.base.errors import InputError

__all__ = ["Adam", "Optimizer", "check_optimizer", "optimizer_summary"]

_EPSILON = 1e-8  # of the paper


@dataclass(frozen=True, kw_only=True)
class Adam:
    """The mean of the gradients over the root of the mean of their squares, number by number, both running.

        m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²,   direction = (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + 1e-8)

    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015; the step sizes are the schedule's. The schedule's
    momentum works on the directions besides; `momentum=0.0` leaves Adam alone.

    Attributes:
        beta1: of the mean, 0 to below 1.
        beta2: of the squares, 0 to below 1.
    """

    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        for name in ("beta1", "beta2"):
            value = plain(getattr(self, name))
            if not 0 <= number(name, value, "a number from 0 to below 1") < 1:
                raise InputError(f"{name} is {value}: expected a number from 0 to below 1")
            object.__setattr__(self, name, float(value))

    def direction(self, gradient: Tensor, moments: Tensor, step: int | Tensor) -> Tensor:
        """(n, C, H, W) of a step from 0 on; `moments`, (n, 2, C, H, W), m and v, are brought up to date.

        `step`: a number, or a tensor of no dimension.
        """
        done = (step + 1).double() if isinstance(step, Tensor) else step + 1
        mean, square = moments[:, 0], moments[:, 1]
        mean.mul_(self.beta1).add_(gradient, alpha=1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        size = (square / (1 - self.beta2**done)).sqrt_()
        return torch.div(mean, size.add_(_EPSILON)).div_(1 - self.beta1**done)


Optimizer = Literal["rms", "l2", "sign"] | Adam
"""The gradient over its RMS, over its length, its signs, or Adam's direction."""


def check_optimizer(value: object) -> None:
    """Raise an `InputError` where this is no `Optimizer`."""
    if not isinstance(value, Adam) and not (isinstance(value, str) and value in ("rms", "l2", "sign")):
        raise InputError(f"optimizer is {shown(value)}: expected 'rms', 'l2', 'sign' or Adam(…)")


def optimizer_summary(optimizer: Optimizer) -> str:
    """In words, for pictures; "" for the method's way."""
    if isinstance(optimizer, Adam):
        return f"Adam ({optimizer.beta1:g} and {optimizer.beta2:g})"
    return {"rms": "", "l2": "steps along the gradient over its length", "sign": "the gradient's signs"}[optimizer]
