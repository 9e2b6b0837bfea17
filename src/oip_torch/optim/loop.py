"""How does an image ascend? The loop: gradient, record, normalise, step, standardise.

With x the image, a(x) the activations of the chosen map and v the velocity,

    score(x) = mean of a(x) over the map
    g = d score / d x
    v = momentum · v + (1 - momentum) · g / (sqrt(mean(g²)) + 1e-7)
    x = standardize(x + epsilon · v)

for many images at once; each has its own map, and nothing of one image enters another. The standardisation is what
bounds the problem: above a ReLU the score is piecewise linear, and without it grows without limit. What x stands for,
what bounds it and how g becomes a direction can be set (`optim.decoder`, `optim.optimizer`). Images may leave before
the last step; which ones, a rule says.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from oip_torch.base.tensors import rms
from oip_torch.optim.decoder import Decoder
from oip_torch.optim.image import total_variation_gradient
from oip_torch.optim.objectives import Objective, Place, Reads, channel_of_each
from oip_torch.optim.optimizer import Adam, Optimizer
from oip_torch.optim.schedule import TINY, Criterion, Schedule
from oip_torch.optim.views import Seen

__all__ = [
    "Extracted",
    "Leaves",
    "Rates",
    "Record",
    "Score",
    "State",
    "Watch",
    "converged",
    "never",
    "run",
    "step",
    "unmoved",
]

_LEAVE_AT = {"cpu": 1, "cuda": 16}  # every so many steps: a card that is asked who leaves, and its host, wait

Rates = tuple[float | Tensor, float | Tensor, float | Tensor]
"""(epsilon, leak, momentum) of a step: numbers, or tensors of no dimension on the device."""

Extracted = Callable[[Tensor, float | Tensor, Tensor], Sequence[Tensor]]
"""(n, C, H, W) images, leak, (n,) channels → outputs of the places that are read, then their leaky outputs; each
(n, channels or 1, …)."""


@dataclass
class State:
    """The images that are still on their way; row i of each tensor belongs to one of them.

    Attributes:
        x: (n, C, H, W) what is optimised: the images themselves, or what `Decoder.decode` makes them of.
        channels: (n,) int, the channel that each is made for.
        velocity: (n, C, H, W), the direction of the last step.
        steepness: (n, 1, 1, 1), the RMS of the last gradient.
        rows: (n,) int, the image's place in the batch.
        moments: (n, 2, C, H, W), what `Adam` keeps from step to step; (n, 0, C, H, W) for the others.
    """

    x: Tensor
    channels: Tensor
    velocity: Tensor
    steepness: Tensor
    rows: Tensor
    moments: Tensor

    @classmethod
    def start(cls, x: Tensor, channels: Tensor, optimizer: Optimizer = "rms") -> State:
        """All images of the batch, at rest."""
        return cls(
            x=x,
            channels=channels,
            velocity=torch.zeros_like(x),
            steepness=x.new_zeros(len(x), 1, 1, 1),
            rows=torch.arange(len(x), device=x.device),
            moments=x.new_zeros(len(x), 2 if isinstance(optimizer, Adam) else 0, *x.shape[1:]),
        )

    def keep(self, mask: Tensor) -> State:
        """Those where the mask (n,) is True."""
        return State(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))


Watch = Callable[[int, State, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What is reported of an image, and what is maximised. Built once for a call, and the same for every batch.

    Attributes:
        network: up to the places that are read.
        sizes: place → the size of its output for one image, (channels, height, width) or (units,).
        maximised: the objective, of the leaky outputs.
        reported: what the images are scored by, of the plain outputs.
        one_channel: whether the network returns of each image its own channel alone.
        to_input: standardised images as the network takes them; None: as they are.
        decoder: which image the optimised numbers stand for, and what bounds it.
        smoothness: the share of the total variation's direction in that of a step, against it.
    """

    network: Extracted
    sizes: Mapping[Reads, tuple[int, ...]]
    maximised: Objective
    reported: Objective
    one_channel: bool
    to_input: Callable[[Tensor], Tensor] | None = None
    decoder: Decoder = Decoder()
    smoothness: float = 0.0

    def gradient(
        self, state: State, leak: float | Tensor, see: Callable[[Tensor], Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """(n,) the scores of the images, as `see` shows them, and (n, C, H, W) the gradients of what is maximised."""
        parameters = state.x.detach().requires_grad_()
        x = self.decoder.decode(parameters)
        plain, leaky = self._outputs(x if see is None else see(x), leak, state.channels)
        picked = self._picked(state.channels)
        maximised = self.maximised(leaky, picked)
        # Of the sum: no score needs another image.
        (gradient,) = torch.autograd.grad(maximised.sum(), parameters, retain_graph=self.smoothness > 0)
        if self.smoothness:
            smoother = -total_variation_gradient(x.detach())
            if x is not parameters:
                (smoother,) = torch.autograd.grad(x, parameters, smoother)
            gradient = gradient / (rms(gradient) + TINY) + self.smoothness * smoother / (rms(smoother) + TINY)
        if self.maximised is self.reported and all(leaky[place] is plain[place] for place in self.sizes):
            return maximised.detach(), gradient
        return self.reported({place: output.detach() for place, output in plain.items()}, picked), gradient

    @torch.no_grad()
    def final(
        self, parameters: Tensor, channels: Tensor, leak: float, silence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(batch,) each: the scores, the leaky scores, and whether the map is silent, and the score says just that.

        `silence`: (batch,) what `silence` gives for these channels.
        """
        x = self.decoder.decode(parameters)
        plain, leaky = self._outputs(x, leak, channels)
        picked = self._picked(channels)
        scores = self.reported(plain, picked)
        own = channel_of_each(plain[Place.LAYER], picked)
        silent = (own == 0).reshape(len(x), -1).all(1) & (scores == silence)
        return scores, self.maximised(leaky, picked), silent

    @torch.no_grad()
    def silence(self, x: Tensor, channels: Tensor) -> Tensor:
        """(batch,) what maps that are 0 all over score."""
        outputs = {}
        for place, (width, *size) in self.sizes.items():
            outputs[place] = x.new_zeros(1).expand(len(x), 1 if self.one_channel else width, *size)
        return self.reported(outputs, self._picked(channels))

    def _outputs(
        self, x: Tensor, leak: float | Tensor, channels: Tensor
    ) -> tuple[dict[Reads, Tensor], dict[Reads, Tensor]]:
        """What lies at each place, plain and leaky."""
        outputs = self.network(x if self.to_input is None else self.to_input(x), leak, channels)
        count = len(self.sizes)
        sides = (dict(zip(self.sizes, part, strict=True)) for part in (outputs[:count], outputs[count:]))
        plain, leaky = ({**side, Place.INPUT: x} for side in sides)
        return plain, leaky

    def _picked(self, channels: Tensor) -> Tensor:
        return torch.zeros_like(channels) if self.one_channel else channels


class Record:
    """What is kept of a batch on its way.

    Attributes:
        traces: (batch, steps) the score of the image that each step found; NaN after an image has left.
        snapshots: (batch, S, C, H, W) the images that the steps `kept` found.
        images: (batch, C, H, W) the final ones, as they are optimised.
        flat: (batch,) whether no gradient was left in an image's last step.
        watch: told of each step, if there is one: its number, the images that are on their way, and their scores.
    """

    def __init__(
        self,
        x: Tensor,
        steps: int,
        kept: Sequence[int],
        advance: Callable[[int], None],
        decode: Callable[[Tensor], Tensor],
        watch: Watch | None = None,
    ) -> None:
        self.steps, self.kept, self.advance, self.decode, self.watch = steps, list(kept), advance, decode, watch
        self.traces = x.new_full((len(x), steps), math.nan)
        self.snapshots = x.new_empty((len(x), len(kept), *x.shape[1:]))
        self.images = torch.empty_like(x)
        self.flat = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def step(self, t: int, state: State, scores: Tensor) -> None:
        """What step t found."""
        self.traces[state.rows, t] = scores
        if t in self.kept:
            self.snapshots[state.rows, self.kept.index(t)] = self.decode(state.x)
        self.advance(len(state.rows))
        if self.watch is not None:
            self.watch(t, state, scores)

    def retire(self, t: int, state: State, leaving: Tensor | None) -> State:
        """The images that leave after step t come to their ends; returns the others."""
        if leaving is None or not bool(leaving.any()):
            return state
        gone = state.rows[leaving]
        self.images[gone] = state.x[leaving]
        self.flat[gone] = (state.steepness.flatten() == 0)[leaving]
        for index, later in enumerate(self.kept):
            if later > t:
                self.snapshots[gone, index] = self.decode(state.x[leaving])
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


def converged(criterion: Criterion, silence: Tensor, *, steady: bool) -> Leaves:
    """Images that meet the criterion leave; where only the image changes (`steady`), also those that nothing moves.

    `silence`: see `Score.silence`.
    """

    def rule(t: int, state: State, record: Record) -> Tensor | None:
        if t == 0 and steady:
            return (state.velocity == 0).flatten(1).all(1)
        if t - criterion.patience + 1 < max(criterion.first_check, 1):
            return None
        recent = record.traces[state.rows, t - criterion.patience : t + 1]
        return criterion.calm(recent, silence[state.rows]).all(1)

    return rule


def run(
    score: Score,
    state: State,
    schedule: Schedule,
    record: Record,
    *,
    inject: Mapping[int, Tensor] | None = None,
    leaves: Leaves = never,
    seen: Seen | None = None,
    optimizer: Optimizer = "rms",
) -> None:
    """Ascend; what comes of it is in the record.

    Args:
        score: what is maximised, and what is reported.
        state: the images at their start.
        schedule: step sizes, leaks and momenta.
        record: receives scores, snapshots and final images.
        inject: step → (batch, C, H, W), what is added to the images before that step.
        leaves: which images leave early.
        seen: how the network sees the images at each step; None: as they are.
        optimizer: how a gradient becomes a direction; the state was started with it.
    """
    every = _LEAVE_AT.get(state.x.device.type, 1)
    for t in range(schedule.steps):
        if inject and t in inject:
            state.x = score.decoder.settle(state.x + inject[t][state.rows])
        see = seen and seen(t, state.rows)
        step(score, state, t, schedule.at(t), functools.partial(record.step, t, state), see, optimizer)
        if t % every == 0:
            state = record.retire(t, state, leaves(t, state, record))  # images that leave
        if not len(state.rows):
            return
    record.retire(schedule.steps, state, torch.ones_like(state.rows, dtype=torch.bool))


def step(
    score: Score,
    state: State,
    t: int | Tensor,
    rates: Rates,
    told: Callable[[Tensor], None],
    see: Callable[[Tensor], Tensor] | None = None,
    optimizer: Optimizer = "rms",
) -> None:
    """One step of all images of a state.

    All shapes are the state's, and nothing is read back from the device. What changes from step to step may be given as
    tensors, so that a recording of one step can be played for the others (`tests/test_loop.py` does).

    Args:
        score: what is maximised, and what is reported.
        state: is brought to after the step.
        t: the number of the step, from 0 on; or a tensor of no dimension, int64.
        rates: of this step.
        told: of the scores, (n,), while the state is as it was before the step.
        see: how the network sees the images at this step; None: as they are.
        optimizer: how a gradient becomes a direction.
    """
    epsilon, leak, momentum = rates
    scores, gradient = score.gradient(state, leak, see)  # gradient
    told(scores)  # record
    accumulate(state, gradient, momentum, optimizer, t)  # normalise
    state.x = score.decoder.settle(state.x + epsilon * state.velocity)  # step, standardise


def accumulate(state: State, gradient: Tensor, momentum: float | Tensor, optimizer: Optimizer, t: int | Tensor) -> None:
    """velocity = momentum · velocity + (1 - momentum) · direction, in the memory that is there.

    The direction is g / (rms(g) + 1e-7), or what another optimizer makes of the gradient.
    """
    state.steepness = rms(gradient)
    state.velocity.mul_(momentum)
    if optimizer in ("rms", "l2"):
        size = state.steepness if optimizer == "rms" else state.steepness * math.sqrt(gradient[0].numel())
        state.velocity.addcmul_(gradient, (1 - momentum) * (size + TINY).reciprocal())
        return
    direction = optimizer.direction(gradient, state.moments, t) if isinstance(optimizer, Adam) else gradient.sign()
    state.velocity.add_((1 - momentum) * direction)
