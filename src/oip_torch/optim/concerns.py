"""What can be set of an ascent, one concern at a time: its search, its fallback, when images leave, what is kept?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from oip_torch.base.checks import number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.optim.schedule import Criterion, Schedule

__all__ = ["Fallback", "Screening", "Snapshots", "StopSettings"]


@dataclass(frozen=True, kw_only=True)
class Screening:
    """The multi-start search; the article calls it precursor.

    So many candidates are tried for each image, and the best of them by their leaky scores go on.

    Attributes:
        candidates: 1 or more; 1: no search.
        steps: of each candidate's ascent, without momentum.
        epsilon: its first step.
        survivors: how many go on (all, if there are fewer); the best of them in the end becomes the result.
    """

    candidates: int = 8
    steps: int = 25
    epsilon: float = 3.0
    survivors: int = 2

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        names = {"candidates": "candidates", "steps": "candidate_steps", "survivors": "survivors"}
        for name, said in names.items():
            object.__setattr__(self, name, whole(said, getattr(self, name), 1))
        object.__setattr__(self, "epsilon", plain(self.epsilon))
        if number("candidate_epsilon", self.epsilon, "a number above 0") <= 0:
            raise InputError(f"candidate_epsilon is {self.epsilon}: expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """How a map that is inactive after all of the screening is optimised: by way of its peak.

    The mean over a map can stay below 0 while one place of it could fire. So the largest pre-activation is maximised
    until it is as large as it gets; then what was asked for, in steps so small that the map does not fall silent again.
    Of the 13 maps of the shipped model's Conv2D_2 that are inactive after the screening 10 fire in the end; with first
    steps of 2 towards the peak half as many did.

    Attributes:
        to_peak: of the ascent of the largest pre-activation.
        from_peak: of the ascent of what was asked for. The steps of both say how the settings' steps are shared.
    """

    to_peak: Schedule = Schedule(steps=5, epsilon=0.2, epsilon_last=0.002, momentum=0.0, leak=1.0, leak_last=1.0)
    from_peak: Schedule = Schedule(steps=3, epsilon=0.1, epsilon_last=0.005, momentum=0.0, leak=0.02)

    def schedules(self, steps: int) -> tuple[Schedule, Schedule]:
        """The two of them, which take so many steps together, 2 or more."""
        up = max(1, steps * self.to_peak.steps // (self.to_peak.steps + self.from_peak.steps))
        return replace(self.to_peak, steps=up), replace(self.from_peak, steps=steps - up)


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """When images leave.

    Attributes:
        rule: "steps": every image takes all steps (one that nothing can move, all at once); "converged": an image that
            meets the criterion leaves the batch, and so does one that nothing can move; on CUDA who meets it is asked
            every 16 steps.
        criterion: when an image has converged, counted from the ascent's first step. A score that stands still since
            the map is silent, or since no gradient is left, has not converged.
    """

    rule: Literal["steps", "converged"] = "steps"
    criterion: Criterion = Criterion()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rule not in ("steps", "converged"):
            raise InputError(f"stop is {shown(self.rule)}: expected 'steps' or 'converged'")


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """The steps whose images are kept, of the whole way: the screening's steps, if there is one, and the ascent's.

    Attributes:
        steps: their numbers; None: 0, n, 2n, 4n, … and the last, with n = ⌊steps of the way / 2^k⌋ and k = `doublings`.
        doublings: see above.
    """

    steps: tuple[int, ...] | None = None
    doublings: int = 6

    def __post_init__(self) -> None:
        """Check the values, and make them plain."""
        object.__setattr__(self, "doublings", whole("doublings", self.doublings, 0))
        steps = plain(self.steps)
        object.__setattr__(self, "steps", steps if steps is None or isinstance(steps, tuple) else (steps,))
