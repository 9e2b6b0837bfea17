"""How is an ascent made? Its settings, and what they make of the loop.

Three things are added to the article's loop, and can be turned off. The step shrinks along a cosine, so that the ascent
begins with leaps and ends on the summit. A step keeps part of the direction before, the more the longer the ascent goes
on: a ReLU network's score has ridges, across which successive gradients cancel, while along the ridge they add up. The
gradient is taken of a leaky activation, (1 - leak)·f(z) + leak·z, whose leak goes to 0 as the ascent goes on: where f
is flat, as a ReLU is below 0, there would be no gradient to follow.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from oip_torch.base.checks import is_whole, number, plain, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.optim.loop import (
    Ascents,
    Criterion,
    Leaves,
    Record,
    Schedule,
    Score,
    State,
    converged,
    never,
    run,
    unmoved,
)
from oip_torch.optim.objectives import Objective, is_of_one_map
from oip_torch.optim.starts import StartSettings

__all__ = ["AscentSettings", "climb", "logarithmic_steps"]


@dataclass(frozen=True, kw_only=True)
class AscentSettings:
    """How an ascent is made. Frozen: results carry the settings that made them.

    The defaults are the best way that we know; docs/experiments.md has the measurements behind them.

    Attributes:
        steps: of each ascent that may end in the result, ≥ 1; with `stages`, their sum.
        epsilon: the first step, > 0, in units of the image's standard deviation (the gradient has RMS 1).
        epsilon_last: the last step; between the two the step follows a cosine. None: all steps are `epsilon`.
        momentum: share of the direction before in that of the last step, 0 to below 1; it rises from 0 linearly.
        leak: share of the pre-activation in the objective at the first step, 0 to 1; it falls to 0 linearly.
        candidates: the precursor: so many starts are tried for each image, and the most promising go on. 1: none.
        candidate_steps: of each candidate's trial.
        candidate_epsilon: the first step of a trial, which takes its steps without momentum.
        finalists: how many candidates go on (all, if there are fewer), `steps` each; the best becomes the result.
        waking: whether a map that sleeps after all trials is ascended another way, in as many steps: first its largest
            pre-activation, then, in small steps, what was asked for. Needs candidates.
        stages: strategy 1: the ascent begins with the longest wavelengths alone, and each stage of so many steps adds
            the next shorter ones to the partly evolved image. None: all wavelengths from the beginning.
        stop: "steps": every image takes all steps (one that nothing can move, all at once); "converged": an
            image that meets the criterion leaves the batch, and so does one that nothing can move.
        tolerance, patience, first_check: converged means that the relative change of the score,
            |s - s_before| / (|s| + 1e-7), is below `tolerance` in `patience` successive steps, from step `first_check`
            of the ascent on. The article's code divides by score - 6 and takes no absolute value; this is what its text
            means. A score that stands still since the map is silent, or since no gradient is left, has not converged.
        snapshots: the steps whose images are kept, of the whole way: the trial's steps, if there are candidates, and
            then the ascent's. None: 0, n, 2n, 4n, … and the last, with n = ⌊way_steps / 2^k⌋ and k = `doublings`.
        start: the wavelengths of the start images.
        tf32: on CUDA, let the factors of products be rounded from 23 to 10 bits, which is faster and costs accuracy:
            docs/performance.md says how much. Off, unlike torch's own default for convolutions.
    """

    steps: int = 200
    epsilon: float = 3.0
    epsilon_last: float | None = 0.01
    momentum: float = 0.8
    leak: float = 0.3
    candidates: int = 8
    candidate_steps: int = 25
    candidate_epsilon: float = 3.0
    finalists: int = 2
    waking: bool = True
    stages: tuple[int, ...] | None = None
    stop: Literal["steps", "converged"] = "steps"
    tolerance: float = 5e-4
    patience: int = 4
    first_check: int = 10
    snapshots: tuple[int, ...] | None = None
    doublings: int = 6
    start: StartSettings = field(default_factory=StartSettings)
    tf32: bool = False

    def __post_init__(self) -> None:
        """Check the values, and make them plain: NumPy's numbers could not be saved."""
        for field_ in dataclasses.fields(self):
            if field_.name != "start":
                object.__setattr__(self, field_.name, plain(getattr(self, field_.name)))
        if not isinstance(self.start, StartSettings):
            raise InputError(f"start is {shown(self.start)}: expected StartSettings(…)")
        if self.stages is not None:
            stages = self.stages if isinstance(self.stages, tuple) else (self.stages,)
            if len(stages) != self.start.count or not all(is_whole(n) and n > 0 for n in stages):
                raise InputError(
                    f"stages are {shown(self.stages)}: expected {self.start.count} numbers of steps, one for each "
                    "component of the start, each 1 or more"
                )
            object.__setattr__(self, "steps", sum(stages))
        for name in ("steps", "patience", "candidates", "candidate_steps", "finalists"):
            whole(name, getattr(self, name), 1)
        for name in ("first_check", "doublings"):
            whole(name, getattr(self, name), 0)
        for name in ("epsilon", "candidate_epsilon", "tolerance", "epsilon_last"):
            value = getattr(self, name)
            if not (name == "epsilon_last" and value is None) and number(name, value, "a number above 0") <= 0:
                raise InputError(f"{name} is {value}: expected a number above 0")
        for name, wanted in (("leak", "a number from 0 to 1"), ("momentum", "a number from 0 to below 1")):
            value = number(name, getattr(self, name), wanted)
            if not 0 <= value <= 1 or (name == "momentum" and value == 1):
                raise InputError(f"{name} is {value}: expected {wanted}")
        for name in ("waking", "tf32"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {shown(getattr(self, name))}: expected True or False")
        if self.stop not in ("steps", "converged"):
            raise InputError(f"stop is {shown(self.stop)}: expected 'steps' or 'converged'")
        if self.snapshots is not None:
            steps = self.snapshots if isinstance(self.snapshots, tuple) else (self.snapshots,)
            object.__setattr__(self, "snapshots", steps)
            if wrong := [step for step in steps if not is_whole(step) or not 0 <= step < self.way_steps]:
                raise InputError(f"snapshot at step {shown(wrong[0])}: expected steps from 0 to {self.way_steps - 1}")

    @classmethod
    def article(cls, **changes: Any) -> AscentSettings:
        """The article to the letter: 600 steps of 0.01 from one start each; `changes` override fields."""
        article: dict[str, Any] = {"steps": 600, "epsilon": 0.01, "epsilon_last": None, "momentum": 0.0}
        article |= {"leak": 0.0, "candidates": 1, "finalists": 1, "waking": False}
        return cls(**(article | changes))

    @classmethod
    def within(cls, image_steps: int, **changes: Any) -> AscentSettings:
        """The best known way for a budget of image-steps per image, search included; 600 gives the defaults.

        A third of the budget goes to √(budget / 10) candidates, the rest to those that go on: two of them, or one where
        there are no more than four. What does not divide is left unspent: at most one step.
        """
        image_steps = whole("steps", image_steps, 1)
        candidates = max(1, round(math.sqrt(image_steps / 10)))
        if candidates == 1:
            return cls(**({"steps": image_steps, "candidates": 1} | changes))
        candidate_steps, finalists = image_steps // (3 * candidates), 2 if candidates > 4 else 1
        split: dict[str, Any] = {"candidates": candidates, "candidate_steps": candidate_steps, "finalists": finalists}
        return cls(**(split | {"steps": (image_steps - candidates * candidate_steps) // finalists} | changes))

    @property
    def image_steps(self) -> int:
        """Steps spent on one image, the candidates' included; with `stop` "converged" the most that can be spent."""
        if self.candidates == 1:
            return self.steps
        return self.candidates * self.candidate_steps + min(self.finalists, self.candidates) * self.steps

    @property
    def trial_steps(self) -> int:
        """Steps of the trial that comes before the ascent; 0 without candidates."""
        return self.candidate_steps if self.candidates > 1 else 0

    @property
    def way_steps(self) -> int:
        """Steps from a start to its result: the trial's and the ascent's."""
        return self.trial_steps + self.steps

    @property
    def summary(self) -> str:
        """The way in words, for pictures: "600 steps of 0.01 from one start"."""
        last = "" if self.epsilon_last is None else f" falling to {self.epsilon_last:g}"
        size = f"{self.epsilon:g}{last}"
        stop = " at most, until converged" if self.stop == "converged" else ""
        if self.candidates == 1:
            return f"{self.steps} steps{stop} of {size} from one start"
        on = min(self.finalists, self.candidates)
        best = "the best one goes" if on == 1 else f"the best {on} go"
        return (
            f"trials of {self.candidate_steps} steps from {self.candidates} starts, {best} on for {self.steps} "
            f"steps{stop} of {size}"
        )

    @property
    def criterion(self) -> Criterion:
        """When an image has converged."""
        return Criterion(tolerance=self.tolerance, patience=self.patience, first_check=self.first_check)

    @property
    def schedule(self) -> Schedule:
        """Of an ascent that may end in the result."""
        return Schedule(
            steps=self.steps,
            epsilon=self.epsilon,
            epsilon_last=self.epsilon_last,
            leak=self.leak,
            momentum=self.momentum,
        )

    @property
    def candidate_schedule(self) -> Schedule:
        """Of a candidate's trial."""
        last = self.epsilon_last
        return Schedule(
            steps=self.candidate_steps,
            epsilon=self.candidate_epsilon,
            epsilon_last=None if last is None else max(last, self.candidate_epsilon / 100),
            leak=self.leak,
        )

    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps of the whole way whose images are kept, in order."""
        chosen = self.snapshots if self.snapshots is not None else logarithmic_steps(self.way_steps, self.doublings)
        return tuple(sorted(set(chosen)))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AscentSettings:
        """The settings that `to_dict` gave, also after a way through JSON."""

        def tuples(fields: dict[str, Any]) -> dict[str, Any]:
            return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}

        return cls(**(tuples(data) | {"start": StartSettings(**tuples(data["start"]))}))


def logarithmic_steps(steps: int, doublings: int = 6) -> tuple[int, ...]:
    """0, n, 2n, 4n, … and the last step, with n = ⌊steps / 2^doublings⌋: 600 gives 0, 9, 18, 36, 72, 144, 288, 599."""
    n = max(1, steps // 2**doublings)
    doubled = {n * 2**power for power in range(doublings)}
    return tuple(sorted({0, steps - 1} | {step for step in doubled if step < steps}))


def climb(
    climbed: Callable[..., fx.GraphModule],
    x: Tensor,
    maps: Tensor,
    schedule: Schedule,
    objective: Objective,
    *,
    ascended: Objective | None = None,
    kept: tuple[int, ...] = (),
    added: dict[int, Tensor] | None = None,
    settings: AscentSettings | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Ascents:
    """The ascent of one batch.

    Args:
        climbed: `FeatureModel.climbed` of the layer that is looked at: leaky=, one_map= → the network up to it.
        x: (batch, channels, height, width), standardised.
        maps: (batch,) integers.
        schedule: step sizes, leaks and momenta.
        objective: what the images are scored by.
        ascended: what is maximised, where that is not the objective.
        kept: the steps whose images are kept.
        added: step → (batch, channels, height, width), what is added to the images before that step.
        settings: when to stop, and what counts as converged.
        advance: told how many image-steps were done.
    """
    settings, ascended = settings or AscentSettings(), ascended or objective
    one_map = is_of_one_map(objective, ascended)
    score = Score(climbed(leaky=schedule.leak > 0, one_map=one_map), objective, ascended, one_map)
    record = Record(x, schedule.steps, kept, advance)
    # Where nothing will change but the image, one whose gradient is 0 stays where it is for ever.
    steady = schedule.leak == schedule.leak_last == 0 and not added
    leaves: Leaves = unmoved if steady else never
    if settings.stop == "converged":
        leaves = converged(settings.criterion, score, steady=steady)
    run(score, State.start(x, maps), schedule, record, inject=added, leaves=leaves)
    scores, leaky_scores, silent = score.final(record.images, maps, schedule.leak)
    assert score.silence is not None
    spoke = (record.traces != score.silence[:, None]) & ~record.traces.isnan()
    return Ascents(
        images=record.images,
        scores=scores,
        leaky_scores=leaky_scores,
        traces=record.traces,
        snapshots=record.snapshots,
        # Where no gradient is left the score stands still, and says nothing of the image.
        converged_at=torch.where(record.flat, -1, settings.criterion.met_at(record.traces, score.silence)),
        silent=silent,
        responded=~silent | spoke.any(1),
    )
