"""How are the images of a batch brought from their starts to their OIPs?

Candidates are screened, the best survive, and maps that are inactive go another way; all of it counted in image-steps.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oip_torch.base.platform import recorded_gradients
from oip_torch.optim.ascent import Ascents, gradient_ascent, rows_of
from oip_torch.optim.concerns import Fallback, Snapshots
from oip_torch.optim.loop import Score, State, Watch
from oip_torch.optim.objectives import channel_of_each
from oip_torch.optim.schedule import Schedule
from oip_torch.optim.settings import AscentSettings
from oip_torch.optim.starts import Key, components, random_stream
from oip_torch.optim.views import seen_under
from oip_torch.search.step import Callback, Phase, Step
from oip_torch.search.target import Target

__all__ = ["Batch"]


class Batch:
    """The images of some (channel, start) that are optimised together, and the image-steps that they have cost."""

    def __init__(
        self,
        target: Target,
        keys: Sequence[tuple[int, int]],
        seed: int,
        settings: AscentSettings,
        advance: Callable[[int], None],
        given: Tensor | None = None,
        callback: Callback | None = None,
    ) -> None:
        self.target, self.model, self.keys, self.seed = target, target.model, keys, seed
        self.settings, self.advance, self.given, self.callback = settings, advance, given, callback
        self.decoder = target.score.decoder
        self.channels = torch.tensor([key[0] for key in keys], device=self.model.device)
        self.rows = torch.arange(len(keys), device=self.model.device)
        # Of what the network sees, where that changes from step to step: other numbers than those of the starts.
        views, noise = f"views of {target.layer}", f"noise seen by {target.layer}"
        self.streams = [
            (random_stream(seed, views, key), random_stream(seed, noise, key)) for key in keys if settings.views
        ]
        self.spent = 0

    @recorded_gradients()
    def run(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of `Oips` that hold something of each image, by their names; one row for each key."""
        if self.settings.screening.candidates == 1:
            numbers = torch.zeros_like(self.channels)
            inactive = torch.zeros_like(self.channels, dtype=torch.bool)
            return self.figures(self.ascend_on(self.start(numbers), numbers, inactive), inactive)
        screened, chosen, active = self.screen()
        if self.target.other is None:
            return self.go_on(screened, chosen, active)
        best = screened[0]
        strong = best.leaky_scores > self.target.score.silence(best.images, self.channels)
        parts = []
        if strong.any():
            parts.append(
                self.part(strong).go_on([each.take(strong) for each in screened], chosen[:, strong], active[strong])
            )
        if not strong.all():
            parts.append(self.another_way(~strong))
        order = torch.cat([torch.nonzero(strong), torch.nonzero(~strong)]).flatten().argsort().cpu().numpy()
        return {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}

    def part(self, rows: Tensor) -> Batch:
        """The batch of these rows, (batch,) bool, which goes on where this one is; its cost is counted here as well."""
        chosen = torch.nonzero(rows).flatten().tolist()
        keys = [self.keys[row] for row in chosen]
        part = Batch(self.target, keys, self.seed, self.settings, self.count, callback=self.callback)
        part.streams = [self.streams[row] for row in chosen if self.streams]
        return part

    def another_way(self, rows: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        """What `run` gives, of these rows, (batch,) bool, by the fallback's settings."""
        settings, other, target = self.settings, self.settings.fallback, self.target.other
        assert isinstance(other, AscentSettings)
        assert target is not None
        kept, steps = settings.snapshot_steps(), other.way_steps
        other = dataclasses.replace(other, recording=Snapshots(steps=tuple(step for step in kept if step < steps)))
        keys = [self.keys[row] for row in torch.nonzero(rows).flatten().tolist()]
        found = Batch(target, keys, self.seed, other, self.count, callback=self.callback).run()
        # Their way is shorter: after its end there is no score, and the image stays.
        rest = np.full((len(keys), settings.way_steps - steps), np.nan, found["traces"].dtype)
        ends = np.repeat(found["images"][:, None], len(kept) - found["snapshots"].shape[1], axis=1)
        return found | {
            "traces": np.concatenate([found["traces"], rest], axis=1),
            "snapshots": np.concatenate([found["snapshots"], ends], axis=1),
            "status": np.where(found["status"] == "dead", "dead", "fallback"),
        }

    def go_on(self, screened: Sequence[Ascents], chosen: Tensor, active: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        """What `run` gives, from what `screen` gave."""
        inactive = torch.zeros_like(active) if self.target.to_peak is None else ~active
        together = self.target.objective.couples_images
        tries = [
            _after(trial, self.ascend_on(trial.images, numbers, inactive, survivor), together=together)
            for survivor, (trial, numbers) in enumerate(zip(screened, chosen, strict=True))
        ]
        return self.figures(functools.reduce(functools.partial(_better, together=together), tries), inactive)

    def figures(self, result: Ascents, inactive: Tensor) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of what came out; `inactive`: (batch,), which of them went by the peak."""
        target = self.target
        with torch.no_grad():
            images = self.decoder.decode(result.images)
            before = target.pre_activations(self.model.to_input(images))
            if target.objective.of_own_channel:
                before = channel_of_each(before, self.channels)
        dead = (~result.responded & target.can_be_dead).cpu().numpy()
        recovered = (inactive & ~result.silent).cpu().numpy()
        converged = (result.converged_at >= 0).cpu().numpy()
        figures = {
            "images": images.movedim(-3, -1),  # outside, channels come last
            "scores": result.scores,
            "max_preactivation": before.reshape(len(before), -1).amax(1),
            "traces": result.traces,
            "snapshots": result.snapshots.movedim(-3, -1),
            "converged_at": torch.where(~result.responded & target.can_be_dead, -1, result.converged_at),
        }
        status = np.where(recovered, "recovered", np.where(converged, "converged", "finished"))
        return {name: tensor.cpu().numpy() for name, tensor in figures.items()} | {
            "status": np.where(dead, "dead", status)
        }

    def screen(self) -> tuple[list[Ascents], Tensor, Tensor]:
        """The best candidates of each image after a short ascent each, the best first.

        They are ranked by the leaky score, which ranks inactive maps as well.

        Returns:
            The survivors' ascents, the best of all images first; (survivors, batch) their numbers; and (batch,) whether
            the map responded to any candidate.
        """
        settings = self.settings
        active = torch.zeros_like(self.channels, dtype=torch.bool)
        kept = tuple(step for step in settings.snapshot_steps() if step < settings.screening_steps)
        best: list[Ascents] = []
        numbers = self.channels.new_empty(0, len(self.channels))
        for candidate in range(settings.screening.candidates):
            number = torch.full_like(self.channels, candidate)
            start, score = self.start(number), self.target.score
            watch = self.watch("screening", candidate, 0, self.rows, score)
            trial = self.optimize(score, start, self.rows, settings.screening_schedule, kept=kept, watch=watch)
            active |= ~trial.silent
            best, numbers = [*best, trial], torch.cat([numbers, number[None]])
            ranked = torch.stack([each.leaky_scores for each in best]).nan_to_num(nan=-math.inf, posinf=-math.inf)
            order = ranked.topk(min(settings.screening.survivors, len(ranked)), dim=0).indices
            best, numbers = [Ascents.pick(best, place) for place in order], numbers.gather(0, order)
        return best, numbers, active

    def ascend_on(self, x: Tensor, numbers: Tensor, inactive: Tensor, survivor: int = 0) -> Ascents:
        """An ascent that may end in the result: the inactive maps by way of their peak, the others straight."""
        settings, before = self.settings, self.settings.screening_steps
        injected: dict[int, Tensor] = {}
        if settings.stages is not None:
            ends = np.cumsum(settings.stages)[:-1].tolist()
            injected = dict(zip(ends, map(self.decoder.of_noise, self.parts(numbers)[1:]), strict=True))
        kept = tuple(step - before for step in settings.snapshot_steps() if step >= before)

        def straight(rows: Tensor) -> Ascents:
            inject = {step: part[rows] for step, part in injected.items()}
            schedule, score = settings.schedule, self.target.score
            more: dict[str, Any] = {
                "stop": settings.stopping,
                "watch": self.watch("ascent", survivor, before, rows, score),
            }
            return self.optimize(score, x[rows], rows, schedule, kept=kept, inject=inject, **more)

        if not inactive.any():
            return straight(self.rows)
        parts = [self.by_the_peak(x[inactive], self.rows[inactive], kept, survivor)]
        if not inactive.all():
            parts.append(straight(self.rows[~inactive]))
        order = torch.cat([torch.nonzero(inactive), torch.nonzero(~inactive)]).flatten().argsort()
        return Ascents.cat(parts).take(order)

    def by_the_peak(self, x: Tensor, rows: Tensor, kept: tuple[int, ...], survivor: int = 0) -> Ascents:
        """The ascent of the inactive maps of these rows of the batch: see `Fallback`."""
        fallback, target = self.settings.fallback, self.target
        assert isinstance(fallback, Fallback)
        assert target.to_peak is not None
        assert target.from_peak is not None
        up, on = fallback.schedules(self.settings.schedule.steps)
        # Its own step sizes are in units of the RMS.
        own: dict[str, Any] = {"optimizer": "rms"}
        first = self.settings.screening_steps
        early = tuple(step for step in kept if step < up.steps)
        watch = self.watch("fallback", survivor, first, rows, target.to_peak)
        peak = self.optimize(target.to_peak, x, rows, up, kept=early, watch=watch, **own)
        later = tuple(step - up.steps for step in kept if step >= up.steps)
        watch = self.watch("fallback", survivor, first + up.steps, rows, target.from_peak)
        stop = self.settings.stopping
        mean = self.optimize(target.from_peak, peak.images, rows, on, kept=later, stop=stop, watch=watch, **own)
        # The largest pre-activation is the evidence of a map that stays dead, and tells its tries apart.
        return dataclasses.replace(_after(peak, mean), leaky_scores=peak.leaky_scores)

    def watch(self, phase: Phase, attempt: int, first: int, rows: Tensor, score: Score) -> Watch | None:
        """What tells the callback of the steps of an ascent of these rows, whose first one is number `first`."""
        callback = self.callback
        if callback is None:
            return None
        named = (self.target.layer, phase, attempt)

        def tell(t: int, state: State, scores: Tensor) -> None:
            callback(Step(*named, first + t, (self.keys, rows), score.decoder.decode, state, scores))

        return tell

    def optimize(self, score: Score, x: Tensor, rows: Tensor, schedule: Schedule, **more: Any) -> Ascents:
        """`gradient_ascent` of these rows of the batch, counted."""
        more = {"optimizer": self.settings.optimizer} | more
        if self.settings.views is not None:
            moves, noises = zip(*(self.streams[row] for row in rows.tolist()), strict=True)
            drawn = np.stack([stream.uniform(-1, 1, (schedule.steps, 4)) for stream in moves])
            more["seen"] = seen_under(self.settings.views, torch.from_numpy(drawn).to(x), noises)
        return gradient_ascent(score, x, self.channels[rows], schedule, advance=self.count, **more)

    def count(self, image_steps: int) -> None:
        """So many more were done."""
        self.spent += image_steps
        self.advance(image_steps)

    def parts(self, numbers: Tensor) -> Tensor:
        """(components, batch, …) of each image's candidate of this number."""
        keys: list[Key] = [(*key, number) for key, number in zip(self.keys, numbers.tolist(), strict=True)]
        made = components(
            self.model.input_shape, keys, layer=self.target.layer, seed=self.seed, settings=self.settings.start
        )
        return made.to(self.model.device, self.model.dtype)

    def start(self, numbers: Tensor) -> Tensor:
        """The images given, or the start from its components: all, or with stages the longest wavelengths alone."""
        if self.given is not None:
            return self.decoder.settle(self.decoder.of_images(self.given))
        parts = self.parts(numbers)
        noise = parts.sum(0) if self.settings.stages is None else parts[0]
        return self.decoder.settle(self.decoder.of_noise(noise))


def _better(first: Ascents, second: Ascents, *, together: bool = False) -> Ascents:
    """Image by image the better one of two ascents: by its score, and where both are silent by its leaky score.

    `together`: all images of one of them, by the sum of the scores: images that were made to go with each other.
    """
    if together:
        return second if bool(second.scores.nansum() > first.scores.nansum()) else first
    equal = (second.scores == first.scores) & (second.leaky_scores > first.leaky_scores)
    lost = ~first.scores.isfinite() & second.scores.isfinite()
    return second.where((second.scores > first.scores) | equal | lost, first)


def _after(before: Ascents, then: Ascents, *, together: bool = False) -> Ascents:
    """Two ascents, the second from where the first ended, as one way.

    It ends with the second's image, or where its steps led to a lower score with the first's; `together`: with all of
    the second's, since the first's were chosen image by image, and were not made to go with each other.
    """
    steps = before.traces.shape[1]
    began = then.traces[:, 0]
    worse = torch.zeros_like(then.silent) if together else began > then.scores
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
