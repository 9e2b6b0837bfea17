"""How is an ascent made? Its settings, by concern.

Three things are added to the article's loop, and can be turned off. The step shrinks along a cosine, so that the ascent
begins with leaps and ends on the summit. A step keeps part of the direction before, the more the longer the ascent goes
on: a ReLU network's score has ridges, across which successive gradients cancel, while along the ridge they add up. The
gradient is taken of a leaky activation, (1 - leak)·f(z) + leak·z, whose leak goes to 0 as the ascent goes on: where f
is flat, as a ReLU is below 0, there would be no gradient to follow.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, Unpack

from oip_torch.base.checks import is_whole, number, plain, shown, whole
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.optim.colors import Decorrelated
from oip_torch.optim.concerns import Fallback, Screening, Snapshots, StopSettings
from oip_torch.optim.constraint import Ball, Constraint, Limit, Range, Standardized
from oip_torch.optim.image import Blurred, Fourier, Image, Pen, Phases, Pixels
from oip_torch.optim.optimizer import Adam, Optimizer, check_optimizer, optimizer_summary
from oip_torch.optim.schedule import Criterion, Schedule
from oip_torch.optim.starts import StartSettings
from oip_torch.optim.views import Views

__all__ = ["AscentSettings", "logarithmic_steps"]


class Changes(TypedDict, total=False):
    """The keywords of `AscentSettings`: groups, and single settings of them."""

    schedule: Schedule
    screening: Screening
    fallback: Fallback | AscentSettings | None
    stopping: StopSettings
    recording: Snapshots
    start: StartSettings
    image: Image
    colors: Decorrelated | None
    constraint: Constraint
    optimizer: Optimizer
    views: Views | None
    smoothness: float
    stages: tuple[int, ...] | None
    tf32: bool
    steps: int
    epsilon: float
    epsilon_last: float | None
    momentum: float
    leak: float
    candidates: int
    candidate_steps: int
    candidate_epsilon: float
    survivors: int
    stop: Literal["steps", "converged"]
    tolerance: float
    patience: int
    first_check: int
    snapshots: tuple[int, ...] | None
    doublings: int


_GROUPS: dict[str, type] = {
    "schedule": Schedule,
    "screening": Screening,
    "stopping": StopSettings,
    "recording": Snapshots,
    "start": StartSettings,
}
_SINGLE: dict[str, tuple[str, str]] = {
    **{name: ("schedule", name) for name in ("steps", "epsilon", "epsilon_last", "momentum", "leak")},
    "candidates": ("screening", "candidates"),
    "candidate_steps": ("screening", "steps"),
    "candidate_epsilon": ("screening", "epsilon"),
    "survivors": ("screening", "survivors"),
    "stop": ("stopping", "rule"),
    "snapshots": ("recording", "steps"),
    "doublings": ("recording", "doublings"),
}
_OF_CRITERION = ("tolerance", "patience", "first_check")
"""Single settings by keyword: which group and field they are."""
_OTHERS: dict[str, Any] = {
    "stages": None,
    "tf32": False,
    "fallback": Fallback(),
    "image": Pixels(),
    "colors": None,
    "constraint": Standardized(),
    "optimizer": "rms",
    "views": None,
    "smoothness": 0.0,
}


_KINDS: dict[str, tuple[type, ...]] = {
    "fallback": (Fallback,),
    "image": (Pixels, Blurred, Pen, Fourier, Phases),
    "colors": (Decorrelated,),
    "constraint": (Standardized, Range, Ball),
    "optimizer": (Adam,),
    "views": (Views,),
}
"""Which values a setting can have that are dataclasses, besides the groups."""


@dataclass(frozen=True, kw_only=True, init=False)
class AscentSettings:
    """How an ascent is made. Frozen: results carry the settings that made them.

        AscentSettings(steps=100, epsilon=1.0)                  # single settings by their names,
        AscentSettings(screening=Screening(candidates=4))       # or a group of them

    The defaults are the best way that we know; docs/notes has the measurements behind them.

    Attributes:
        schedule: of each ascent that may end in the result. By keyword: steps, epsilon, epsilon_last, momentum, leak.
        screening: the multi-start search. By keyword: candidates, candidate_steps, candidate_epsilon, survivors.
        fallback: how a map that is inactive after the screening is optimised, in as many steps: by way of its peak, or
            by settings of its own, which begin anew with a screening as long, and take no more image-steps than are
            left. These are for a map that is hardly active, too: the best candidate's leaky score is no more than a
            silent map's score. None: as the others. Needs candidates.
        stopping: when images leave. By keyword: stop (the rule), tolerance, patience, first_check.
        recording: which steps' images are kept. By keyword: snapshots, doublings.
        start: the wavelengths of the start images.
        image: what is optimised, and which image it stands for: `Pixels` (the image itself), `Blurred`, `Pen`,
            `Fourier` or `Phases`.
        colors: how channels that are optimised become the image's: `Decorrelated`; None: they are the image's.
        constraint: what bounds the image: `Standardized` (the method), `Range` or `Ball`. Under `Pixels` without
            `colors` the image is bounded after each step; otherwise it is bounded as it is made, and the numbers that
            it is made of are brought to one size after each step.
        optimizer: the direction of a step, given the gradient g: "rms", g over its RMS (the method); "l2", g over its
            length, so that steps are smaller by the root of the number of pixels; "sign", 1 or -1 at each number; or
            `Adam`. The schedule's momentum works on it. The fallback's steps are along g over its RMS in any case.
        views: what the network sees at each step; None: the image as it is. The traces are of what it sees.
        smoothness: the share of the total variation's direction in that of a step, against it; 0 or more. The variation
            is the image's.
        stages: strategy 1: the ascent begins with the longest wavelengths alone, and each stage of so many steps adds
            the next shorter ones to the partly evolved image; `schedule.steps` is their sum. None: all wavelengths
            from the beginning.
        tf32: on CUDA, let the factors of products be rounded from 23 to 10 bits, which is faster and costs accuracy.
            Off, unlike torch's own default for convolutions.
    """

    schedule: Schedule
    screening: Screening
    fallback: Fallback | AscentSettings | None
    stopping: StopSettings
    recording: Snapshots
    start: StartSettings
    image: Image
    colors: Decorrelated | None
    constraint: Constraint
    optimizer: Optimizer
    views: Views | None
    smoothness: float
    stages: tuple[int, ...] | None
    tf32: bool

    def __init__(self, **changes: Unpack[Changes]) -> None:
        given: dict[str, Any] = dict(changes)
        known = Changes.__annotations__
        if unknown := [name for name in given if name not in known]:
            raise unknown_name("setting", unknown[0], known, most=len(known))
        groups = {name: given.get(name, kind()) for name, kind in _GROUPS.items()}
        for name, kind in _GROUPS.items():
            if not isinstance(groups[name], kind):
                raise InputError(f"{name} is {shown(groups[name])}: expected {kind.__name__}(…)")
        others = {name: given.get(name, own) for name, own in _OTHERS.items()}
        stages = others["stages"]
        if stages is not None:
            count, told = groups["start"].count, shown(stages)
            stages = plain(stages)
            stages = stages if isinstance(stages, tuple) else (stages,)
            if len(stages) != count or not all(is_whole(n) and n > 0 for n in stages):
                raise InputError(
                    f"stages are {told}: expected {count} numbers of steps, one for each component of the start, each "
                    "1 or more"
                )
            given["steps"] = sum(stages)
        if not isinstance(others["tf32"], bool):
            raise InputError(f"tf32 is {shown(others['tf32'])}: expected True or False")
        for name in ("fallback", "image", "colors", "constraint", "views"):
            kinds, optional = _KINDS[name], name not in ("image", "constraint")
            kinds = (*kinds, AscentSettings) if name == "fallback" else kinds
            if not isinstance(others[name], kinds) and not (optional and others[name] is None):
                *most, last = [f"{kind.__name__}(…)" for kind in kinds]
                expected = f"{', '.join(most)} or {last}" if most else last
                expected += ", or None" if optional else ""
                raise InputError(f"{name} is {shown(others[name])}: expected {expected}")
        check_optimizer(others["optimizer"])
        smoothness = others["smoothness"]
        if number("smoothness", smoothness, "a number of 0 or more") < 0:
            raise InputError(f"smoothness is {smoothness}: expected a number of 0 or more")
        for name in _GROUPS:
            single = {field: given[key] for key, (group, field) in _SINGLE.items() if group == name and key in given}
            if name == "stopping" and (ours := {key: given[key] for key in _OF_CRITERION if key in given}):
                single["criterion"] = replace(groups[name].criterion, **ours)
            object.__setattr__(self, name, replace(groups[name], **single) if single else groups[name])
        for name, value in (others | {"stages": stages, "smoothness": float(plain(smoothness))}).items():
            object.__setattr__(self, name, value)
        for step in self.recording.steps or ():
            if not is_whole(step) or not 0 <= step < self.way_steps:
                raise InputError(f"snapshot at step {shown(step)}: expected steps from 0 to {self.way_steps - 1}")
        fallback = self.fallback
        if isinstance(fallback, AscentSettings) and self.falls_back:
            if fallback.image_steps > self.steps_left:
                raise InputError(
                    f"the fallback's settings take {fallback.image_steps} image-steps: expected at most "
                    f"{self.steps_left}, what is left after the screening; choose fewer candidates or steps"
                )
            if fallback.screening_steps != self.screening_steps:
                raise InputError(
                    f"the fallback's candidates take {fallback.screening_steps} steps each: expected "
                    f"{self.screening_steps}, as these settings' own (candidate_steps)"
                )

    @classmethod
    def article(cls, **changes: Unpack[Changes]) -> AscentSettings:
        """The article to the letter: 600 steps of 0.01 from one start each; `changes` override it."""
        article: Changes = {"steps": 600, "epsilon": 0.01, "epsilon_last": None, "momentum": 0.0, "leak": 0.0}
        article |= {"candidates": 1, "survivors": 1, "fallback": None}
        return cls(**(article | changes))

    @classmethod
    def within(cls, image_steps: int, **changes: Unpack[Changes]) -> AscentSettings:
        """The best known way for a budget of image-steps per image, search included; 600 gives the defaults.

        A third of the budget goes to √(budget / 10) candidates, the rest to those that go on: two of them, or one where
        there are no more than four. What does not divide is left unspent: at most one step.
        """
        image_steps = whole("steps", image_steps, 1)
        candidates = max(1, round(math.sqrt(image_steps / 10)))
        split: Changes = {"candidates": candidates, "steps": image_steps}
        if candidates > 1:
            each, survivors = image_steps // (3 * candidates), 2 if candidates > 4 else 1
            split |= {"candidate_steps": each, "survivors": survivors}
            split |= {"steps": (image_steps - candidates * each) // survivors}
        return cls(**(split | changes))

    @classmethod
    def legible(cls, **changes: Unpack[Changes]) -> AscentSettings:
        """The best known way to an image that a person can read: drawn by a pen, seen under views that fade out.

        On Conv2D_3 of the shipped network it has 0.79 of the default's strength in the median, and 2.3 times its
        legibility.
        """
        return cls(**({"image": Pen(), "views": Views()} | changes))

    @classmethod
    def strokes(
        cls, limits: tuple[Limit, Limit] | Literal["data"] = "data", **changes: Unpack[Changes]
    ) -> AscentSettings:
        """The best known way to an image that could be one of the data's: within its range, smooth, under views.

        Not every map finds a stroke there: with mean 0 and standard deviation 1 a share of the image has to be ink. One
        that is hardly active after the screening falls back to the way of `legible`, within what is left of the steps.

        Args:
            limits: the least and largest value of a pixel in images of mean 0 and standard deviation 1:
                `calibration.limits`, what real images reach; "data": the domain's black and white.
            changes: override it.
        """
        own: Changes = {"constraint": Range(limits=limits), "views": Views(fade=None), "smoothness": 0.6}
        own |= {"survivors": 1, "steps": 400}
        made = cls(**(own | changes))
        # As `within` shares a budget, in candidates as long as these settings' own.
        each = made.screening.steps
        candidates = max(2, round(made.steps_left / (3 * each)))
        left, survivors = made.steps_left - candidates * each, 2 if candidates > 4 else 1
        if "fallback" in changes or not made.falls_back or left < 2:
            return made
        split: Changes = {"candidates": candidates, "candidate_steps": each}
        split |= {"survivors": survivors, "steps": left // survivors}
        split |= {"stopping": made.stopping, "start": made.start, "tf32": made.tf32}
        return replace(made, fallback=cls.legible(**split))

    @property
    def image_steps(self) -> int:
        """Steps spent on one image, the screening's included; with `stop` "converged" the most that can be spent."""
        if self.screening.candidates == 1:
            return self.schedule.steps
        return self.screening.candidates * self.screening.steps + self.steps_left

    @property
    def steps_left(self) -> int:
        """Image-steps that are spent on one image after the screening."""
        return self.survivors * self.schedule.steps

    @property
    def survivors(self) -> int:
        """How many candidates go on."""
        return min(self.screening.survivors, self.screening.candidates)

    @property
    def screening_steps(self) -> int:
        """Steps of the screening that come before the ascent; 0 without candidates."""
        return self.screening.steps if self.screening.candidates > 1 else 0

    @property
    def way_steps(self) -> int:
        """Steps from a start to its result: the screening's and the ascent's."""
        return self.screening_steps + self.schedule.steps

    @property
    def falls_back(self) -> bool:
        """Whether inactive maps are optimised another way."""
        return self.fallback is not None and self.screening.candidates > 1 and self.schedule.steps > 1

    @property
    def summary(self) -> str:
        """The way in words, for pictures: "600 steps of 0.01 from one start"."""
        schedule, screening = self.schedule, self.screening
        last = "" if schedule.epsilon_last is None else f" falling to {schedule.epsilon_last:g}"
        size = f"{schedule.epsilon:g}{last}"
        stop = " at most, until converged" if self.stopping.rule == "converged" else ""
        of_image = [self.image.summary, self.colors.summary if self.colors else "", self.constraint.summary]
        of_steps = [optimizer_summary(self.optimizer), self.views.summary if self.views else ""]
        special = [part for part in of_image + of_steps if part]
        special += [f"smoothness {self.smoothness:g}"] if self.smoothness else []
        by = f", by {', '.join(special)}" if special else ""
        if screening.candidates == 1:
            return f"{schedule.steps} steps{stop} of {size} from one start{by}"
        best = "the best one goes" if self.survivors == 1 else f"the best {self.survivors} go"
        way = (
            f"screening of {screening.candidates} starts by {screening.steps} steps, {best} on for {schedule.steps} "
            f"steps{stop} of {size}{by}"
        )
        other = self.fallback if self.falls_back and isinstance(self.fallback, AscentSettings) else None
        return f"{way}; where the map is hardly active by then, {other.summary}" if other else way

    @property
    def screening_schedule(self) -> Schedule:
        """Of a candidate's ascent: with the leak of the settings, and steps that shrink where theirs do."""
        last = self.schedule.epsilon_last
        return Schedule(
            steps=self.screening.steps,
            epsilon=self.screening.epsilon,
            epsilon_last=None if last is None else max(last, self.screening.epsilon / 100),
            leak=self.schedule.leak,
            momentum=0.0,
        )

    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps of the whole way whose images are kept, in order."""
        chosen = self.recording.steps
        return tuple(
            sorted(set(logarithmic_steps(self.way_steps, self.recording.doublings) if chosen is None else chosen))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AscentSettings:
        """The settings that `to_dict` gave, also after a way through JSON; or those of a file of version 0.1."""

        def made(kinds: tuple[type, ...], values: dict[str, Any]) -> Any:
            """Of these kinds the one that has these fields; where there is one alone, new fields have defaults."""
            known = {kind: {field.name for field in fields(kind)} for kind in kinds}
            kind = next((kind for kind in kinds if len(kinds) == 1 or values.keys() == known[kind]), None)
            if kind is None:
                raise InputError(f"there are no settings of the names {', '.join(map(str, values))} in this place")
            return kind(**{name: item(value) for name, value in values.items()})

        def item(value: Any) -> Any:
            return made((Schedule, Criterion), value) if isinstance(value, dict) else plain(value)

        old = {"finalists": "survivors"}
        given = {old.get(name, name): value for name, value in data.items() if name != "waking"}
        kinds = {name: (kind,) for name, kind in _GROUPS.items()} | _KINDS

        def read(name: str, value: Any) -> Any:
            if name == "fallback" and isinstance(value, dict) and "screening" in value:
                return cls.from_dict(value)
            return made(kinds[name], value) if name in kinds and isinstance(value, dict) else item(value)

        changes: Any = {name: read(name, value) for name, value in given.items()}
        if "waking" in data:
            changes["fallback"] = Fallback() if data["waking"] else None
        return cls(**changes)


def logarithmic_steps(steps: int, doublings: int = 6) -> tuple[int, ...]:
    """0, n, 2n, 4n, … and the last step, with n = ⌊steps / 2^doublings⌋: 600 gives 0, 9, 18, 36, 72, 144, 288, 599."""
    n = max(1, steps // 2**doublings)
    doubled = {n * 2**power for power in range(doublings)}
    return tuple(sorted({0, steps - 1} | {step for step in doubled if step < steps}))
