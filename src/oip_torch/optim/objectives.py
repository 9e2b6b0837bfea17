"""What is maximised? Objectives are values: weighted sums of scores, one number per image; larger is better.

    map_mean                                # the method's: the mean activation over the map
    map_mean + 0.1 * map_peak
    Objective.of(lambda activations, channels: …)

A score reads one place of the network: the layer that the OIPs are made for, another layer by its name, or the image
itself, which makes it a regulariser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from oip_torch.base.checks import number, shown
from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line

__all__ = [
    "Objective",
    "Place",
    "Reads",
    "ScoreFunction",
    "Term",
    "channel_of_each",
    "check_objective",
    "map_mean",
    "map_peak",
    "mean_of_channel",
    "peak_of_channel",
]

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""(activations, channels) → (batch,) scores; (batch, channels, height, width) or (batch, units), and (batch,) int."""


class Place(Enum):
    """What a score reads, where that is no layer named by the objective."""

    LAYER = "the layer that the OIPs are made for"
    INPUT = "the image"


Reads = Place | str
"""A `Place`, or the name of a layer."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand: weight · score.

    Attributes:
        name: what results say of it.
        score: what is computed of the place that is read.
        reads: which place.
        weight: finite, not 0.
        reads_one_channel: whether the score reads of each image only its own channel, so that the others need not be
            computed; it is given activations of one channel then, and channel 0.
        couples_images: whether images enter each other's scores; all images of a call are optimised in one batch then.
        grows: whether the score grows where the map responds; where it does not, a silent map is no failure. None: it
            is not known, and found out by asking.
    """

    name: str
    score: ScoreFunction
    reads: Reads = Place.LAYER
    weight: float = 1.0
    reads_one_channel: bool = False
    couples_images: bool = False
    grows: bool | None = None


@dataclass(frozen=True)
class Objective:
    """A weighted sum of scores; see the module's head. `a + b`, `a - b` and `0.1 * a` make new ones."""

    terms: tuple[Term, ...]

    @classmethod
    def of(
        cls, score: ScoreFunction, *, name: str | None = None, reads: Reads = Place.LAYER, couples_images: bool = False
    ) -> Objective:
        """An objective from a function of one's own, (activations, channels) → (batch,).

        Raises:
            InputError: it cannot be called.
        """
        if not callable(score):
            raise InputError(
                f"objective is {shown(score)}: expected one of oip_torch.objectives, such as map_mean, or a function "
                "of (activations, channels)"
            )
        name = name or getattr(score, "__name__", None) or "custom"
        return cls((Term(name=str(name), score=score, reads=reads, couples_images=couples_images),))

    def __call__(self, activations: Mapping[Reads, Tensor] | Tensor, channels: Tensor) -> Tensor:
        """(batch,) scores, from what lies at each place that is read, and (batch,) channels.

        A tensor stands for what lies at every place: `map_mean(activations, channels)`.
        """
        total: Tensor | None = None
        for term in self.terms:
            read = activations if isinstance(activations, Tensor) else activations[term.reads]
            score = term.score(read, channels)
            score = score if term.weight == 1 else term.weight * score
            total = score if total is None else total + score
        assert total is not None
        return total

    @property
    def name(self) -> str:
        """What results say of it: "map_mean", "map_mean + 0.1 map_peak"."""
        parts: list[str] = []
        for term in self.terms:
            size = "" if abs(term.weight) == 1 else f"{abs(term.weight):g} "
            sign = "-" if term.weight < 0 else "+" if parts else ""
            parts.append(f"{sign} {size}{term.name}".strip() if parts else f"{sign}{size}{term.name}")
        return " ".join(parts)

    @property
    def places(self) -> tuple[Reads, ...]:
        """What it reads of the network, each once: the layer of the OIPs first, the image not among them."""
        read = [term.reads for term in self.terms if term.reads is not Place.INPUT]
        return tuple(dict.fromkeys([Place.LAYER, *read]))

    @property
    def reads_one_channel(self) -> bool:
        """Whether of each image only its own channel has to be computed."""
        of_network = [term for term in self.terms if term.reads is not Place.INPUT]
        return all(term.reads is Place.LAYER and term.reads_one_channel for term in of_network)

    @property
    def couples_images(self) -> bool:
        """Whether images enter each other's scores."""
        return any(term.couples_images for term in self.terms)

    @property
    def reported(self) -> Objective:
        """What the network has to say: without the terms that read the image alone."""
        terms = tuple(term for term in self.terms if term.reads is not Place.INPUT)
        return self if len(terms) == len(self.terms) else Objective(terms)

    def __add__(self, other: Objective) -> Objective:
        if not isinstance(other, Objective):
            return NotImplemented
        return Objective(self.terms + other.terms)

    def __sub__(self, other: Objective) -> Objective:
        return self + -other

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: float) -> Objective:
        weight = number("the weight of an objective", factor)
        if weight == 0:
            raise InputError("the weight of an objective is 0: expected a number above or below 0")
        return Objective(tuple(replace(term, weight=weight * term.weight) for term in self.terms))

    __rmul__ = __mul__


def mean_of_channel(activations: Tensor, channels: Tensor) -> Tensor:
    """The mean activation over channel `channels[i]` of image i; for a flat layer the unit itself.

    Args:
        activations: (batch, channels, height, width) or (batch, units).
        channels: (batch,) integers.

    Returns:
        (batch,) scores.
    """
    rows = channel_of_each(activations, channels)
    return rows.flatten(1).mean(1) if rows.ndim > 1 else rows


def peak_of_channel(activations: Tensor, channels: Tensor) -> Tensor:
    """The largest activation on channel `channels[i]` of image i; arguments and result as of `mean_of_channel`."""
    rows = channel_of_each(activations, channels)
    return rows.flatten(1).amax(1) if rows.ndim > 1 else rows


def channel_of_each(activations: Tensor, channels: Tensor) -> Tensor:
    """Each image's own channel: (batch, channels, …) and (batch,) → (batch, …)."""
    if activations.shape[1] == 1:  # the gradient of an index takes longer than that of a part
        return activations[:, 0]
    return activations[torch.arange(len(channels), device=channels.device), channels]


map_mean = Objective((Term(name="map_mean", score=mean_of_channel, reads_one_channel=True, grows=True),))
"""The mean activation over the map: the method's objective."""

map_peak = Objective((Term(name="map_peak", score=peak_of_channel, reads_one_channel=True, grows=True),))
"""The largest activation on the map. A map fires if it fires at one place: what the mean hides, this follows."""


def check_objective(objective: Objective, activations: Mapping[Reads, Tensor]) -> bool:
    """Whether an objective can be maximised, by what it says of made-up activations of four images.

    Args:
        objective: its terms of one's own are called.
        activations: of the places that it reads, the image among them, for any images.

    Returns:
        Whether it grows where the map responds. Where it does not, a silent map is no failure.

    Raises:
        InputError: a score fails, gives other than one number for each image, has no gradient, or lets images enter
            each other's scores without saying so.
    """
    if not objective.reported.terms:
        raise InputError(
            f"the objective {objective.name} reads the image alone: expected a term that reads the network as well, "
            "such as map_mean"
        )
    for term in objective.terms:
        if term.reads is not Place.LAYER and term.grows is None:
            _check(term, activations[term.reads])
    of_layer = [term for term in objective.terms if term.reads is Place.LAYER]
    grows = [_check(term, activations[term.reads]) if term.grows is None else term.grows for term in of_layer]
    return bool(grows) and all(known and term.weight > 0 for known, term in zip(grows, of_layer, strict=True))


def _check(term: Term, activations: Tensor) -> bool:
    """See `check_objective`."""
    stream = torch.Generator("cpu").manual_seed(0)
    shape = (4, *activations.shape[1:])
    values = torch.randn(shape, generator=stream, device="cpu").to(activations).requires_grad_()
    channels = torch.tensor([0, 0, shape[1] - 1, shape[1] - 1], device=activations.device)
    scores = _scores(term, values, channels)
    slope = torch.autograd.grad(scores[0], values, allow_unused=True)[0] if scores.requires_grad else None
    if slope is None:
        raise InputError(
            f"the objective {term.name} has no gradient: expected a score that is computed from the activations by "
            "differentiable operations of torch"
        )
    with torch.no_grad():
        others = torch.cat([values[:1], 1 - 2 * values[1:]])
        beside = _scores(term, others, channels)[0]
        alone = _scores(term, values[:1], channels[:1])[0]
        same = torch.allclose(torch.stack([beside, alone]), scores[0], rtol=1e-4, atol=1e-6, equal_nan=True)
        if not term.couples_images and (slope[1:].any() or not same):
            raise InputError(
                f"the objective {term.name} lets images enter each other's scores, so that results would depend on "
                "the batch: expected each image's score to come from its own activations alone; if it is meant, say "
                "so by Objective.of(score, couples_images=True)"
            )
        silent = torch.zeros_like(values)
        responding = silent.clone()
        responding[torch.arange(4, device=channels.device), channels] = 1.0
        return bool((_scores(term, responding, channels) > _scores(term, silent, channels)).all())


def _scores(term: Term, activations: Tensor, channels: Tensor) -> Tensor:
    """What the score function says, checked."""
    count = len(channels)
    try:
        scores = term.score(activations, channels)
    except Exception as error:
        raise InputError(
            f"the objective {term.name} failed on activations of shape {tuple(activations.shape)} and channels of "
            f"shape ({count},): {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (count,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise InputError(
            f"the objective {term.name} gave {got} for {count} images: expected a tensor of one score for each, of "
            f"shape ({count},)"
        )
    return scores
