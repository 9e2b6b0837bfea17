"""What comes of one ascent of a batch? The loop with its rules, and its results with their types."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from oip_torch.optim.concerns import StopSettings
from oip_torch.optim.loop import Leaves, Record, Score, State, Watch, converged, never, run, unmoved
from oip_torch.optim.optimizer import Optimizer
from oip_torch.optim.schedule import Schedule
from oip_torch.optim.views import Seen

__all__ = ["Ascents", "gradient_ascent", "rows_of"]


@dataclass(frozen=True)
class Ascents:
    """What came of a batch; row i of each tensor belongs to image i.

    Attributes:
        images: (batch, C, H, W), as they are optimised: see `Decoder.decode`.
        scores: (batch,).
        leaky_scores: (batch,) what was maximised, with the leak of the first step; the article calls what is ranked by
            it the precursor.
        traces: (batch, steps).
        snapshots: (batch, S, C, H, W).
        converged_at: (batch,) int, the step at which the criterion was first met, or -1.
        silent: (batch,) bool, whether the map is 0 all over on the image, and the score says no more than that.
        responded: (batch,) bool, whether it was not so at any step.
    """

    images: Tensor
    scores: Tensor
    leaky_scores: Tensor
    traces: Tensor
    snapshots: Tensor
    converged_at: Tensor
    silent: Tensor
    responded: Tensor

    def take(self, rows: Tensor) -> Ascents:
        """The images at these places, or where a mask is True."""
        return Ascents(*(tensor[rows] for tensor in self._tensors()))

    def where(self, mask: Tensor, other: Ascents) -> Ascents:
        """Image by image this one where the mask (batch,) is True, else the other."""
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return Ascents(*(torch.where(rows_of(mask, mine), mine, theirs) for mine, theirs in pairs))

    @staticmethod
    def cat(parts: Sequence[Ascents]) -> Ascents:
        """The images of all parts, one after the other."""
        return Ascents(*(torch.cat(tensors) for tensors in zip(*(part._tensors() for part in parts), strict=True)))

    @staticmethod
    def pick(candidates: Sequence[Ascents], which: Tensor) -> Ascents:
        """Of image i the candidate number `which[i]`, (batch,) int."""
        columns = torch.arange(len(which), device=which.device)
        every = zip(*(candidate._tensors() for candidate in candidates), strict=True)
        return Ascents(*(torch.stack(tensors)[which, columns] for tensors in every))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]


def rows_of(mask: Tensor, tensor: Tensor) -> Tensor:
    """(batch,) in a form that selects rows of (batch, …)."""
    return mask.view(-1, *[1] * (tensor.ndim - 1))


def gradient_ascent(
    score: Score,
    x: Tensor,
    channels: Tensor,
    schedule: Schedule,
    *,
    kept: Sequence[int] = (),
    inject: dict[int, Tensor] | None = None,
    stop: StopSettings | None = None,
    seen: Seen | None = None,
    optimizer: Optimizer = "rms",
    advance: Callable[[int], None] = lambda count: None,
    watch: Watch | None = None,
) -> Ascents:
    """The ascent of one batch.

    Args:
        score: what is maximised, and what is reported.
        x: (batch, C, H, W), what is optimised, as `Decoder.settle` leaves it.
        channels: (batch,) integers.
        schedule: step sizes, leaks and momenta.
        kept: the steps whose images are kept.
        inject: step → (batch, C, H, W), what is added to the images before that step.
        stop: when images leave, and what counts as converged; None: the default.
        seen: how the network sees the images at each step; None: as they are.
        optimizer: how a gradient becomes a direction.
        advance: told how many image-steps were done.
        watch: told of each step, see `Record`.
    """
    stop = stop or StopSettings()
    record = Record(x, schedule.steps, kept, advance, score.decoder.decode, watch)
    silence = score.silence(x, channels)
    # Where nothing will change but the image, one whose gradient is 0 stays where it is for ever.
    steady = not schedule.leaks and not inject and seen is None and not score.smoothness
    leaves: Leaves = never
    if score.maximised.couples_images:
        pass  # all stay, since each may move the others
    elif stop.rule == "converged":
        leaves = converged(stop.criterion, silence, steady=steady)
    elif steady:
        leaves = unmoved
    state = State.start(x, channels, optimizer)
    run(score, state, schedule, record, inject=inject, leaves=leaves, seen=seen, optimizer=optimizer)
    scores, leaky_scores, silent = score.final(record.images, channels, schedule.leak, silence)
    spoke = (record.traces != silence[:, None]) & ~record.traces.isnan()
    return Ascents(
        images=record.images,
        scores=scores,
        leaky_scores=leaky_scores,
        traces=record.traces,
        snapshots=record.snapshots,
        # Where no gradient is left the score stands still, and says nothing of the image.
        converged_at=torch.where(record.flat, -1, stop.criterion.met_at(record.traces, silence)),
        silent=silent,
        responded=~silent | spoke.any(1),
    )
