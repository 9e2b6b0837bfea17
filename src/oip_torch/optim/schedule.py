"""How large are the steps of an ascent, how leaky its activations, and when has an image converged?"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from oip_torch.base.checks import number, plain, whole
from oip_torch.base.errors import InputError

__all__ = ["TINY", "Criterion", "Schedule"]

TINY = 1e-7  # of the article: keeps the division by a zero gradient, or a zero score, finite


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Step sizes, leaks and momenta of one ascent, by step: the first along a cosine, the others along a line.

    Attributes:
        steps: 1 or more.
        epsilon: the first step, > 0, in units of the image's standard deviation (the direction has RMS 1).
        epsilon_last: the last step, > 0; None: all steps are `epsilon`.
        momentum: share of the direction before in that of the last step, 0 to below 1; it rises from 0.
        leak: share of the pre-activation in what is maximised at the first step, 0 to 1.
        leak_last: the same at the last step.
    """

    steps: int = 200
    epsilon: float = 3.0
    epsilon_last: float | None = 0.01
    momentum: float = 0.8
    leak: float = 0.3
    leak_last: float = 0.0

    def __post_init__(self) -> None:
        """Check the values, and make them plain: NumPy's numbers could not be saved."""
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        whole("steps", self.steps, 1)
        for name in ("epsilon", "epsilon_last"):
            value = getattr(self, name)
            if not (name == "epsilon_last" and value is None) and number(name, value, "a number above 0") <= 0:
                raise InputError(f"{name} is {value}: expected a number above 0")
        for name, wanted in (
            ("leak", "a number from 0 to 1"),
            ("leak_last", "a number from 0 to 1"),
            ("momentum", "a number from 0 to below 1"),
        ):
            value = number(name, getattr(self, name), wanted)
            if not 0 <= value <= 1 or (name == "momentum" and value == 1):
                raise InputError(f"{name} is {value}: expected {wanted}")

    def at(self, step: int) -> tuple[float, float, float]:
        """(epsilon, leak, momentum) of a step from 0 to steps - 1."""
        done = step / max(1, self.steps - 1)
        leak = self.leak + (self.leak_last - self.leak) * done
        epsilon = self.epsilon
        if self.epsilon_last is not None:
            epsilon = self.epsilon_last + (epsilon - self.epsilon_last) * 0.5 * (1 + math.cos(math.pi * done))
        return epsilon, leak, self.momentum * done

    def rates(self, device: torch.device | str | None = None) -> Tensor:
        """(steps, 3), what `at` says of each step, float64: a device that has them need not be told at each step."""
        return torch.tensor([self.at(step) for step in range(self.steps)], dtype=torch.float64, device=device)

    @property
    def leaks(self) -> bool:
        """Whether any step has a leak."""
        return self.leak > 0 or self.leak_last > 0


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Converged: the score's relative change is below `tolerance` in `patience` steps from `first_check` on.

    |s - s_before| / (|s| + 1e-7), as the article's text means it; its code divides by s - 6 and takes no absolute
    value.
    """

    tolerance: float = 5e-4
    patience: int = 4
    first_check: int = 10

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        whole("patience", self.patience, 1)
        whole("first_check", self.first_check, 0)
        if number("tolerance", self.tolerance, "a number above 0") <= 0:
            raise InputError(f"tolerance is {self.tolerance}: expected a number above 0")

    def calm(self, traces: Tensor, silence: Tensor) -> Tensor:
        """(batch, steps) scores → (batch, steps - 1), whether they changed but little from one to the next.

        Scores of a silent map, (batch,) `silence`, stand still as well, and are not calm.
        """
        small = traces.diff(dim=1).abs() / (traces[:, 1:].abs() + TINY) < self.tolerance
        return small & (traces[:, 1:] != silence[:, None])

    def met_at(self, traces: Tensor, silence: Tensor) -> Tensor:
        """(batch, steps) scores → (batch,), the first step that ends `patience` calm ones in succession, or -1."""
        first = max(self.first_check, 1)  # of step 0 no change is known
        calm = self.calm(traces[:, first - 1 :], silence)
        if calm.shape[1] < self.patience:
            return torch.full_like(traces[:, 0], -1, dtype=torch.long)
        met = calm.unfold(1, self.patience, 1).all(2)
        return torch.where(met.any(1), met.long().argmax(1) + first + self.patience - 1, -1)
