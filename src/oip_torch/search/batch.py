"""How are the images of a batch brought from their starts to their OIPs?

Candidates are tried, the most promising go on, and maps that sleep go another way; all of it counted in image-steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from oip_torch.base.platform import recorded_gradients
from oip_torch.base.tensors import standardize
from oip_torch.network.model import FeatureModel
from oip_torch.optim.ascent import AscentSettings, climb
from oip_torch.optim.loop import Ascents, Schedule, rows_of
from oip_torch.optim.objectives import Objective, check_objective, is_of_one_map, map_peak, of_each
from oip_torch.optim.starts import Key, components

__all__ = ["Batch", "Target", "target_of"]

_TO_THE_PEAK = Schedule(steps=5, epsilon=0.2, epsilon_last=0.002, leak=1.0, leak_last=1.0)
_FROM_THE_PEAK = Schedule(steps=3, epsilon=0.1, epsilon_last=0.005, leak=0.02)
"""How a sleeping map is woken: two climbs that share the steps as 5 to 3. Of the 13 maps of the shipped model's
Conv2D_2 that sleep after their trials 10 fire in the end; with first steps of 2 towards the peak half as many did."""


@dataclass(frozen=True)
class Target:
    """What is looked at, and what is maximised there; the networks up to it are built once, and for one call alone.

    `rising`: whether the objective grows where the map responds. Where it does not, a silent map is no failure.
    """

    model: FeatureModel
    layer: str
    before_activation: bool
    objective: Objective
    rising: bool
    climbed: Callable[..., fx.GraphModule]

    @property
    def wakes(self) -> bool:
        """Whether there is something to wake: the layer's own activation, in a map that should respond."""
        return self.rising and not self.before_activation

    def nearest_activations(self) -> dict[str, str]:
        """See `FeatureModel.nearest_activations`."""
        return self.model.nearest_activations(self.layer, before_activation=self.before_activation)

    def step_bytes(self, *, leaky: bool, one_map: bool) -> int:
        """See `FeatureModel.step_bytes`."""
        return self.model.step_bytes(self.layer, leaky=leaky, one_map=one_map, before_activation=self.before_activation)


def target_of(model: FeatureModel, layer: str, before_activation: bool, objective: Objective) -> Target:
    """The target of one call; an `InputError` where the objective cannot be maximised."""
    climbed = functools.cache(functools.partial(model.climbed, layer, before_activation=before_activation))
    rising = True
    if not is_of_one_map(objective):
        image = torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype)
        with torch.no_grad():
            activations = model.up_to(layer, before_activation=before_activation)(image)
        rising = check_objective(objective, activations)
    return Target(model, layer, before_activation, objective, rising, climbed)


class Batch:
    """The images of some (map, start) that are ascended together, and the image-steps that they have cost."""

    def __init__(
        self,
        target: Target,
        keys: Sequence[tuple[int, int]],
        seed: int,
        settings: AscentSettings,
        advance: Callable[[int], None],
    ) -> None:
        self.target, self.model, self.keys, self.seed = target, target.model, keys, seed
        self.settings, self.advance = settings, advance
        self.maps = torch.tensor([key[0] for key in keys], device=self.model.device)
        self.columns = torch.arange(len(keys), device=self.model.device)
        self.spent = 0

    @recorded_gradients()
    def ascend(self) -> dict[str, Any]:
        """What `_room` has room for, of these images."""
        settings = self.settings
        asleep = torch.zeros_like(self.maps, dtype=torch.bool)
        if settings.candidates == 1:
            numbers = torch.zeros_like(self.maps)
            result = self.climb_on(self.beginning(numbers), numbers, asleep)
        else:
            trials, chosen, awake = self.precursor()
            if settings.waking and settings.steps > 1 and self.target.wakes:
                asleep = ~awake
            tries = [
                _after(trial, self.climb_on(trial.images, numbers, asleep))
                for trial, numbers in zip(trials, chosen, strict=True)
            ]
            result = functools.reduce(_better, tries)
        with torch.no_grad():
            before = self.model.up_to(self.target.layer, before_activation=True)(result.images)
        found = {
            "images": result.images.movedim(-3, -1),  # outside, channels come last
            "scores": result.scores,
            "largest_before": of_each(before, self.maps).reshape(len(self.maps), -1).amax(1),
            "traces": result.traces,
            "snapshots": result.snapshots.movedim(-3, -1),
            "converged_at": result.converged_at,
            "dead": ~result.responded & self.target.wakes,
            "woken": asleep & ~result.silent,
        }
        return {name: tensor.cpu().numpy() for name, tensor in found.items()}

    def precursor(self) -> tuple[list[Ascents], Tensor, Tensor]:
        """The most promising candidates of each image after a short climb each, the best first.

        Promising is judged by the leaky score, which ranks sleeping maps as well.

        Returns:
            The finalists' trials, the best of all images first; (finalists, batch) their numbers; and (batch,) whether
            the map responded to any candidate.
        """
        awake = torch.zeros_like(self.maps, dtype=torch.bool)
        kept = tuple(step for step in self.settings.snapshot_steps() if step < self.settings.trial_steps)
        best: list[Ascents] = []
        numbers = self.maps.new_empty(0, len(self.maps))
        for candidate in range(self.settings.candidates):
            number = torch.full_like(self.maps, candidate)
            trial = self.climb(self.beginning(number), self.maps, self.settings.candidate_schedule, kept=kept)
            awake |= ~trial.silent
            best, numbers = [*best, trial], torch.cat([numbers, number[None]])
            ranked = torch.stack([each.leaky_scores for each in best]).nan_to_num(nan=-math.inf, posinf=-math.inf)
            order = ranked.topk(min(self.settings.finalists, len(ranked)), dim=0).indices
            best, numbers = [Ascents.pick(best, place) for place in order], numbers.gather(0, order)
        return best, numbers, awake

    def climb_on(self, x: Tensor, numbers: Tensor, asleep: Tensor) -> Ascents:
        """An ascent that may end in the result: the maps that sleep by way of their peak, the others straight."""
        tried = self.settings.trial_steps
        added: dict[int, Tensor] = {}
        if self.settings.stages is not None:
            ends = np.cumsum(self.settings.stages)[:-1].tolist()
            added = dict(zip(ends, self.parts(numbers)[1:], strict=True))
        kept = tuple(step - tried for step in self.settings.snapshot_steps() if step >= tried)

        def straight(rows: Tensor) -> Ascents:
            there = {step: part[rows] for step, part in added.items()}
            schedule = self.settings.schedule
            return self.climb(x[rows], self.maps[rows], schedule, kept=kept, added=there, settings=self.settings)

        if not asleep.any():
            return straight(torch.ones_like(asleep))
        parts = [self.by_the_peak(x[asleep], self.maps[asleep], kept)]
        if not asleep.all():
            parts.append(straight(~asleep))
        order = torch.cat([torch.nonzero(asleep), torch.nonzero(~asleep)]).flatten().argsort()
        return Ascents.cat(parts).take(order)

    def by_the_peak(self, x: Tensor, maps: Tensor, kept: tuple[int, ...]) -> Ascents:
        """The ascent of maps that sleep.

        The mean over a map can stay below 0 while one place of it could fire. So the largest pre-activation is ascended
        until it is as large as it gets; then what was asked for, in steps so small that the map does not fall asleep
        again.
        """
        all_steps = self.settings.steps
        steps = max(1, all_steps * _TO_THE_PEAK.steps // (_TO_THE_PEAK.steps + _FROM_THE_PEAK.steps))
        up = dataclasses.replace(_TO_THE_PEAK, steps=steps)
        on = dataclasses.replace(_FROM_THE_PEAK, steps=all_steps - steps)
        peak = self.climb(x, maps, up, ascended=map_peak, kept=tuple(step for step in kept if step < steps))
        later = tuple(step - steps for step in kept if step >= steps)
        mean = self.climb(peak.images, maps, on, kept=later, settings=self.settings)
        # The largest pre-activation is the evidence of a map that stays dead, and tells its tries apart.
        return dataclasses.replace(_after(peak, mean), leaky_scores=peak.leaky_scores)

    def climb(self, x: Tensor, maps: Tensor, schedule: Schedule, **more: Any) -> Ascents:
        """`climb`, counted."""

        def advance(count: int) -> None:
            self.spent += count
            self.advance(count)

        return climb(self.target.climbed, x, maps, schedule, self.target.objective, advance=advance, **more)

    def parts(self, numbers: Tensor) -> Tensor:
        """(components, batch, …) of each image's candidate of this number."""
        keys: list[Key] = [(*key, number) for key, number in zip(self.keys, numbers.tolist(), strict=True)]
        made = components(
            self.model.input_shape, keys, layer=self.target.layer, seed=self.seed, settings=self.settings.start
        )
        return made.to(self.model.device, self.model.dtype)

    def beginning(self, numbers: Tensor) -> Tensor:
        """The start from its components: all of them, or with stages the longest wavelengths alone."""
        parts = self.parts(numbers)
        return standardize(parts.sum(0) if self.settings.stages is None else parts[0])


def _better(first: Ascents, second: Ascents) -> Ascents:
    """Image by image the better one of two ascents: by its score, and where both sleep by its leaky score."""
    equal = (second.scores == first.scores) & (second.leaky_scores > first.leaky_scores)
    lost = ~first.scores.isfinite() & second.scores.isfinite()
    return second.where((second.scores > first.scores) | equal | lost, first)


def _after(before: Ascents, then: Ascents) -> Ascents:
    """Two ascents, the second from where the first ended, as one way.

    It ends with the second's image, or where its steps led to a lower score with the first's.
    """
    steps = before.traces.shape[1]
    began = then.traces[:, 0]
    worse = began > then.scores
    return dataclasses.replace(
        then,
        images=torch.where(rows_of(worse, then.images), before.images, then.images),
        scores=torch.where(worse, began, then.scores),
        silent=torch.where(worse, before.silent, then.silent),
        traces=torch.cat([before.traces, then.traces], dim=1),
        snapshots=torch.cat([before.snapshots, then.snapshots], dim=1),
        converged_at=torch.where(then.converged_at < 0, -1, then.converged_at + steps),
        responded=before.responded | then.responded,
    )
