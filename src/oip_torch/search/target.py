"""What is looked at, and what is maximised there? The networks up to it are built once for a call, and for it alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from oip_torch.network.extract import Tap, extract, nearest_activations, truncate
from oip_torch.network.model import FeatureModel
from oip_torch.optim.concerns import Fallback
from oip_torch.optim.decoder import Decoder
from oip_torch.optim.loop import Score
from oip_torch.optim.objectives import Objective, Place, Reads, check_objective, map_peak
from oip_torch.optim.settings import AscentSettings

__all__ = ["Target", "target_of"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A layer and an objective, ready to be optimised.

    Attributes:
        model: whose layer it is.
        layer: its name.
        pre_activation: whether what goes into its activation is looked at.
        objective: what the images are made for.
        grows: whether the objective grows where the map responds. Where it does not, a silent map is no failure.
        score: of the screening and of the ascents.
        to_peak, from_peak: of the fallback's ascents; None where nothing falls back by the peak. The way to the peak of
            the map is one to its position where the objective is of one.
        other: where the fallback is other settings, the same by those.
        pre_activations: the network up to what goes into the layer's activation.
    """

    model: FeatureModel
    layer: str
    pre_activation: bool
    objective: Objective
    grows: bool
    score: Score
    to_peak: Score | None
    from_peak: Score | None
    other: Target | None
    pre_activations: fx.GraphModule

    @property
    def can_be_dead(self) -> bool:
        """Whether a silent map is a failure: the layer's own activation is looked at, in a map that should respond."""
        return self.grows and not self.pre_activation

    @property
    def leaking(self) -> dict[str, str]:
        """The layers whose activations leak on the way, and which activations these are."""
        read = {term.reads for term in self.objective.terms if term.reads is not Place.INPUT}
        taps = [
            tap for place, tap in _taps(self.model, self.layer, self.pre_activation, self.objective) if place in read
        ]
        names = dict.fromkeys(name for tap in taps for name in nearest_activations(self.model, tap))
        return {name: str(self.model.layers[name].activation) for name in names}

    @property
    def noun(self) -> str:
        """What `maps` are: what a channel of the layer is called, or "image" where the images are of no map."""
        return self.model.noun(self.layer) if self.objective.of_own_channel else "image"

    @property
    def subject(self) -> str:
        """What the images are of, where that is no map of the layer: "class_logit(3)", "whole_layer of Conv2D_3"."""
        reported = self.objective.reported
        if self.objective.of_own_channel:
            return ""
        if all(term.reads is not Place.LAYER for term in reported.terms):
            return reported.name
        before = f" before its {self.model.layers[self.layer].activation}" if self.pre_activation else ""
        return f"{reported.name} of {self.layer}{before}"

    def scores(self) -> list[Score]:
        """All that are used, those of equal networks once."""
        of_network = {id(score.network): score for score in (self.score, self.to_peak, self.from_peak) if score}
        return [*of_network.values(), *(self.other.scores() if self.other else [])]


def target_of(
    model: FeatureModel, layer: str, pre_activation: bool, objective: Objective, settings: AscentSettings
) -> Target:
    """The target of one call.

    Raises:
        InputError: the objective cannot be maximised, or reads a layer that is not there; or the settings are of images
            of another size or other channels.
    """
    taps = dict(_taps(model, layer, pre_activation, objective))
    blank = torch.zeros(1, *model.input_shape, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        outputs = truncate(model.graph_module, [tap.node for tap in taps.values()])(model.to_input(blank))
    activations = dict(zip(taps, outputs, strict=True))
    grows = check_objective(objective, {**activations, Place.INPUT: blank})
    decoder = Decoder.of(
        *(settings.image, settings.colors, settings.constraint), shape=model.input_shape, ends=model.domain.ends
    )
    sizes = {place: tuple(output.shape[1:]) for place, output in activations.items()}
    networks: dict[tuple[bool, bool], fx.GraphModule] = {}

    def score(maximised: Objective, *, leak: bool) -> Score:
        one_channel = objective.reads_one_channel and maximised.reads_one_channel
        form = leak, one_channel
        if form not in networks:
            networks[form] = extract(model, list(taps.values()), leak=leak, one_channel=one_channel)
        return Score(
            network=networks[form],
            sizes=sizes,
            maximised=maximised,
            reported=objective.reported,
            one_channel=one_channel,
            to_input=None if model.domain.is_standard else model.to_input,
            decoder=decoder,
            smoothness=settings.smoothness,
        )

    main = score(objective, leak=settings.schedule.leaks)
    to_peak = from_peak = other = None
    can_fall_back = settings.falls_back and grows and not pre_activation and not objective.couples_images
    if can_fall_back and isinstance(settings.fallback, Fallback):
        at_one = tuple(term for term in objective.terms if term.is_of_own_channel and term.of_one_position)
        to_peak = score(Objective(at_one) if at_one else map_peak, leak=settings.fallback.to_peak.leaks)
        from_peak = score(objective, leak=settings.fallback.from_peak.leaks)
    elif can_fall_back and isinstance(settings.fallback, AscentSettings):
        other = target_of(model, layer, pre_activation, objective, settings.fallback)
    return Target(
        model=model,
        layer=layer,
        pre_activation=pre_activation,
        objective=objective,
        grows=grows,
        score=main,
        to_peak=to_peak,
        from_peak=from_peak,
        other=other,
        pre_activations=model.up_to(layer, pre_activation=True),
    )


def _taps(model: FeatureModel, layer: str, pre_activation: bool, objective: Objective) -> list[tuple[Reads, Tap]]:
    """The places that an objective reads of the network, and where they are."""
    found: list[tuple[Reads, Tap]] = []
    for place in objective.places:
        if place is Place.LAYER:
            found.append((place, model.tap(layer, pre_activation=pre_activation)))
        else:
            name = model.network.output if isinstance(place, Place) else place
            found.append((place, model.tap(name, pre_activation=model.wants_pre_activation(name, None))))
    return found
