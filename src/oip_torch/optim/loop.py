"""How does an image ascend? The loop: gradient, record, normalise, step, standardise.

With x the image, a(x) the activations of the chosen map and v the velocity,

    score(x) = mean of a(x) over the map
    g = d score / d x
    v = momentum · v + (1 - momentum) · g / (sqrt(mean(g²)) + 1e-7)
    x = standardize(x + epsilon · v)

for many images at once; each has its own map, and nothing of one image enters another. The standardisation is what
bounds the problem: above a ReLU the score is piecewise linear, and without it grows without limit. Images may leave
before the last step; which ones, a rule says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oip_torch.base.tensors import rms, standardize
from oip_torch.optim.objectives import Objective, of_each

__all__ = [
    "Ascents",
    "Criterion",
    "Leaves",
    "Record",
    "Schedule",
    "Score",
    "State",
    "converged",
    "never",
    "rows_of",
    "run",
    "unmoved",
]

_TINY = 1e-7  # of the article: keeps the division by a zero gradient finite

Network = Callable[[Tensor, float, Tensor], tuple[Tensor, Tensor]]
"""(n, C, H, W) images, leak, (n,) channels → the layer's output and its leaky output, (n, maps or 1, …) each."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Step sizes, leaks and momenta of one ascent, by step: the first along a cosine, the others along a line."""

    steps: int
    epsilon: float
    epsilon_last: float | None
    leak: float
    leak_last: float = 0.0
    momentum: float = 0.0

    def at(self, step: int) -> tuple[float, float, float]:
        """(epsilon, leak, momentum) of a step from 0 to steps - 1."""
        done = step / max(1, self.steps - 1)
        leak = self.leak + (self.leak_last - self.leak) * done
        epsilon = self.epsilon
        if self.epsilon_last is not None:
            epsilon = self.epsilon_last + (epsilon - self.epsilon_last) * 0.5 * (1 + math.cos(math.pi * done))
        return epsilon, leak, self.momentum * done


@dataclass
class State:
    """The images that are still on their way; row i of each tensor belongs to one of them.

    Attributes:
        x: (n, C, H, W), standardised.
        channels: (n,) int, the map that each is made for.
        velocity: (n, C, H, W), the direction of the last step.
        steepness: (n, 1, 1, 1), the RMS of the last gradient.
        rows: (n,) int, the image's place in the batch.
    """

    x: Tensor
    channels: Tensor
    velocity: Tensor
    steepness: Tensor
    rows: Tensor

    @classmethod
    def start(cls, x: Tensor, channels: Tensor) -> State:
        """All images of the batch, at rest."""
        return cls(
            x, channels, torch.zeros_like(x), x.new_zeros(len(x), 1, 1, 1), torch.arange(len(x), device=x.device)
        )

    def keep(self, mask: Tensor) -> State:
        """Those where the mask (n,) is True."""
        return State(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))


@dataclass
class Score:
    """What is reported of an image, and what is maximised.

    Attributes:
        network: up to the layer; with `one_channel` it returns of each image the map that it is made for alone.
        reported: the objective of the plain output.
        maximised: the objective of the leaky output.
        one_channel: see `network`.
        silence: (batch,) what a map that is 0 all over scores; known after the first call.
    """

    network: Network
    reported: Objective
    maximised: Objective
    one_channel: bool
    silence: Tensor | None = None

    def gradient(self, state: State, leak: float) -> tuple[Tensor, Tensor]:
        """(n,) the scores of the images, and (n, C, H, W) the gradients of what is maximised."""
        x = state.x.detach().requires_grad_()
        plain, leaky = self.network(x, leak, state.channels)
        picked = self._picked(state.channels)
        if self.silence is None:
            self.silence = self.reported(torch.zeros_like(plain), picked).detach()
        maximised = self.maximised(leaky, picked)
        (gradient,) = torch.autograd.grad(maximised.sum(), x)  # of the sum: no image's score needs another image
        same = leaky is plain and self.maximised is self.reported
        return maximised.detach() if same else self.reported(plain.detach(), picked), gradient

    @torch.no_grad()
    def final(self, x: Tensor, channels: Tensor, leak: float) -> tuple[Tensor, Tensor, Tensor]:
        """(batch,) each: the scores, the leaky scores, and whether the map is silent, and the score says just that."""
        plain, leaky = self.network(x, leak, channels)
        picked = self._picked(channels)
        scores = self.reported(plain, picked)
        silent = (of_each(plain, picked) == 0).reshape(len(x), -1).all(1) & (scores == self.silence)
        return scores, self.maximised(leaky, picked), silent

    def _picked(self, channels: Tensor) -> Tensor:
        return torch.zeros_like(channels) if self.one_channel else channels


class Record:
    """What is kept of a batch on its way.

    Attributes:
        traces: (batch, steps) the score of the image that each step found; NaN after an image has left.
        snapshots: (batch, S, C, H, W) the images that the steps `kept` found.
        images: (batch, C, H, W) the final ones.
        flat: (batch,) whether no gradient was left in an image's last step.
    """

    def __init__(self, x: Tensor, steps: int, kept: Sequence[int], advance: Callable[[int], None]) -> None:
        self.steps, self.kept, self.advance = steps, list(kept), advance
        self.traces = x.new_full((len(x), steps), math.nan)
        self.snapshots = x.new_empty((len(x), len(kept), *x.shape[1:]))
        self.images = torch.empty_like(x)
        self.flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def step(self, t: int, state: State, scores: Tensor) -> None:
        """What step t found."""
        self.traces[state.rows, t] = scores
        if t in self.kept:
            self.snapshots[state.rows, self.kept.index(t)] = state.x
        self.advance(len(state.rows))

    def retire(self, t: int, state: State, leaving: Tensor | None) -> State:
        """The images that leave after step t come to their ends; returns the others."""
        if leaving is None or not bool(leaving.any()):
            return state
        gone = state.rows[leaving]
        self.images[gone] = state.x[leaving]
        self.flat[gone] = (state.steepness.flatten() == 0)[leaving]
        for index, later in enumerate(self.kept):
            if later > t:
                self.snapshots[gone, index] = state.x[leaving]
        return state.keep(~leaving)


class Leaves(Protocol):
    """A rule by which images leave early."""

    def __call__(self, t: int, state: State, record: Record) -> Tensor | None:
        """Which images leave after step t: (n,) bool, or None for none, which costs nothing."""


def never(t: int, state: State, record: Record) -> None:
    """All images take all steps."""


def unmoved(t: int, state: State, record: Record) -> Tensor | None:
    """After the first step, images whose gradient is 0: where only the image changes, nothing will ever move them.

    They take the other steps at once.
    """
    if t > 0 or record.steps == 1:
        return None
    still = (state.velocity == 0).flatten(1).all(1)
    record.traces[state.rows[still], 1:] = record.traces[state.rows[still], :1]
    record.advance(int(still.sum()) * (record.steps - 1))
    return still


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Converged: the score's relative change is below `tolerance` in `patience` steps from `first_check` on.

    |s - s_before| / (|s| + 1e-7), as the article's text means it; its code divides by s - 6 and takes no absolute
    value.
    """

    tolerance: float
    patience: int
    first_check: int

    def calm(self, traces: Tensor, silence: Tensor) -> Tensor:
        """(batch, steps) scores → (batch, steps - 1), whether they changed but little from one to the next.

        Scores of a silent map, (batch,) `silence`, stand still as well, and are not calm.
        """
        small = traces.diff(dim=1).abs() / (traces[:, 1:].abs() + _TINY) < self.tolerance
        return small & (traces[:, 1:] != silence[:, None])

    def met_at(self, traces: Tensor, silence: Tensor) -> Tensor:
        """(batch, steps) scores → (batch,), the first step that ends `patience` calm ones in succession, or -1."""
        first = max(self.first_check, 1)  # of step 0 no change is known
        calm = self.calm(traces[:, first - 1 :], silence)
        if calm.shape[1] < self.patience:
            return torch.full_like(traces[:, 0], -1, dtype=torch.long)
        met = calm.unfold(1, self.patience, 1).all(2)
        return torch.where(met.any(1), met.long().argmax(1) + first + self.patience - 1, -1)


def converged(criterion: Criterion, score: Score, *, steady: bool) -> Leaves:
    """Images that meet the criterion leave; where only the image changes (`steady`), also those that nothing moves."""

    def rule(t: int, state: State, record: Record) -> Tensor | None:
        if t == 0 and steady:
            return (state.velocity == 0).flatten(1).all(1)
        if t - criterion.patience + 1 < max(criterion.first_check, 1):
            return None
        assert score.silence is not None
        recent = record.traces[state.rows, t - criterion.patience : t + 1]
        return criterion.calm(recent, score.silence[state.rows]).all(1)

    return rule


def run(
    score: Score,
    state: State,
    schedule: Schedule,
    record: Record,
    *,
    inject: Mapping[int, Tensor] | None = None,
    leaves: Leaves = never,
) -> None:
    """Ascend; what comes of it is in the record.

    Args:
        score: what is asked.
        state: the images at their start.
        schedule: step sizes, leaks and momenta.
        record: receives scores, snapshots and final images.
        inject: step → (batch, C, H, W), what is added to the images before that step.
        leaves: which images leave early.
    """
    for t in range(schedule.steps):
        epsilon, leak, momentum = schedule.at(t)
        if inject and t in inject:
            state.x = standardize(state.x + inject[t][state.rows])
        scores, gradient = score.gradient(state, leak)  # gradient
        record.step(t, state, scores)  # record
        accumulate(state, gradient, momentum)  # normalise
        state.x = standardize(state.x + epsilon * state.velocity)  # step, standardise
        state = record.retire(t, state, leaves(t, state, record))  # images that leave
        if not len(state.rows):
            return
    record.retire(schedule.steps, state, torch.ones_like(state.rows, dtype=torch.bool))


def accumulate(state: State, gradient: Tensor, momentum: float) -> None:
    """velocity = momentum · velocity + (1 - momentum) · g / (rms(g) + 1e-7), in the memory that is there."""
    state.steepness = rms(gradient)
    state.velocity.mul_(momentum).addcmul_(gradient, (1 - momentum) / (state.steepness + _TINY))


@dataclass(frozen=True)
class Ascents:
    """What came of a batch; row i of each tensor belongs to image i.

    Attributes:
        images: (batch, C, H, W).
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
