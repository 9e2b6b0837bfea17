"""What is an objective made of, and can it be maximised?

A weighted sum of terms, one number per image; larger is better. A term reads one place of the network: the layer that
the OIPs are made for, another layer by its name, the network's output, or the image itself. `objectives` has the ready
ones.
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

__all__ = ["Objective", "Place", "Reads", "ScoreFunction", "Term", "check_objective"]

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""(activations, channels) → (batch,) scores; (batch, channels, height, width) or (batch, units), and (batch,) int."""


class Place(Enum):
    """What a score reads, where that is no layer named by the objective."""

    LAYER = "the layer that the OIPs are made for"
    OUTPUT = "the network's output, before a softmax or sigmoid"
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
        of_one_position: whether the score is of one position of the map, so that no other one can be its peak.
        of_own_channel: whether the score is of the image's own channel. Where no term is, the images are of no map.
        regularises: whether it shapes the images only, and is not part of what is reported; all that read the image do.
        fits: told the size of what is read, (channels, height, width) or (units,), and the place in words; raises an
            `InputError` where the score asks for something that is not there.
    """

    name: str
    score: ScoreFunction
    reads: Reads = Place.LAYER
    weight: float = 1.0
    reads_one_channel: bool = False
    couples_images: bool = False
    grows: bool | None = None
    of_one_position: bool = False
    of_own_channel: bool = True
    regularises: bool = False
    fits: Callable[[tuple[int, ...], str], None] | None = None

    @property
    def is_reported(self) -> bool:
        """Whether it says something of the network, and not of the images alone."""
        return self.reads is not Place.INPUT and not self.regularises

    @property
    def is_of_own_channel(self) -> bool:
        """Whether what it reports is of the image's own channel of the layer."""
        return self.is_reported and self.reads is Place.LAYER and self.of_own_channel

    @property
    def where(self) -> str:
        """What is read, in words."""
        return self.reads.value if isinstance(self.reads, Place) else f"layer {self.reads!r}"


@dataclass(frozen=True)
class Objective:
    """A weighted sum of scores; see the module's head. `a + b`, `a - b` and `0.1 * a` make new ones."""

    terms: tuple[Term, ...]

    @classmethod
    def of(
        cls,
        score: ScoreFunction,
        *,
        name: str | None = None,
        reads: Reads = Place.LAYER,
        couples_images: bool = False,
        of_own_channel: bool = True,
    ) -> Objective:
        """An objective from a function of one's own, (activations, channels) → (batch,).

        Args:
            score: of what lies at the place that it reads, (batch, channels, height, width) or (batch, units), and of
                each image's channel, (batch,).
            name: what results say of it; None: the function's name.
            reads: a `Place`, or the name of a layer.
            couples_images: whether images enter each other's scores.
            of_own_channel: False for a score that does not look at `channels`: the images are then of no map.

        Raises:
            InputError: it cannot be called.
        """
        if not callable(score):
            raise InputError(
                f"objective is {shown(score)}: expected one of oip_torch.objectives, such as map_mean, or a function "
                "of (activations, channels)"
            )
        name = name or getattr(score, "__name__", None) or "custom"
        term = Term(name=str(name), score=score, reads=reads, couples_images=couples_images)
        return cls((replace(term, of_own_channel=bool(of_own_channel)),))

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
        """Whether of each image only its own channel has to be computed; what couples images is told all channels."""
        of_network = [term for term in self.terms if term.reads is not Place.INPUT]
        one = all(term.reads is Place.LAYER and term.reads_one_channel for term in of_network)
        return one and not self.couples_images

    @property
    def of_own_channel(self) -> bool:
        """Whether the images are of maps: whether something that is reported is of the image's own channel."""
        return any(term.is_of_own_channel for term in self.terms)

    @property
    def couples_images(self) -> bool:
        """Whether images enter each other's scores."""
        return any(term.couples_images for term in self.terms)

    @property
    def reported(self) -> Objective:
        """What the network has to say of each image: without the terms that only shape the images."""
        terms = tuple(term for term in self.terms if term.is_reported)
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


def check_objective(objective: Objective, activations: Mapping[Reads, Tensor]) -> bool:
    """Whether an objective can be maximised, by what it says of made-up activations of four images.

    Args:
        objective: its terms of one's own are called.
        activations: of the places that it reads, the image among them, for any images.

    Returns:
        Whether it grows where the map responds. Where it does not, a silent map is no failure.

    Raises:
        InputError: a score fails, gives other than one number for each image, has no gradient, lets images enter each
            other's scores without saying so, or asks for something that is not there.
    """
    if not objective.reported.terms:
        raise InputError(
            f"the objective {objective.name} shapes the images alone: expected a term that says something of the "
            "network as well, such as map_mean"
        )
    grows = []
    for term in objective.terms:
        read = activations[term.reads]
        if term.fits is not None:
            term.fits(tuple(read.shape[1:]), term.where)
        known = _check(term, read) if term.grows is None else term.grows
        if term.is_of_own_channel:
            grows.append(known and term.weight > 0)
    return bool(grows) and all(grows)


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
