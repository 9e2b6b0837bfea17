"""Where do results come from?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from oip_torch.network.domain import Domain

__all__ = ["Provenance"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made OIPs, besides their settings.

    Attributes:
        seed: of the random numbers: the start images', and those of views and their noise.
        start_sha256: of the images that were given as starts, over their number type, shape and bytes; None: the starts
            were made of random numbers.
        objective: its name, with all that shaped the images.
        scored_by: the name of what the scores are of: the objective without its regularisers; "" in older files.
        subject: what the images are of where they are of no map of the layer, such as "class_logit(3)"; else "".
        can_be_dead: whether a silent map counts as dead; None in older files.
        noun: what a channel of the layer is called: "map", "unit" or "class"; "image" where they are of no map.
        channels: how many the layer has; 0: a file that does not say it.
        activation: the layer's, such as "relu"; None where it has none.
        pre_activation: whether the scores are of what goes into that.
        leaking: the layers whose activations leaked on the way, and which activations these are.
        domain: how the network took the images, see `Domain`; None: a file of format 1, whose
            network took them as they are.
        source: the Keras file's name; of a wrapped module its class.
        source_sha256: and the file's digest; "" without a file.
        fingerprint: of graph and weights in use, see `FeatureModel.fingerprint`.
        weights: "as converted" or "as wrapped", or "changed since …".
        versions: of oip_torch, torch and numpy.
        device: "cpu", or the card's name.
        dtype: of the computation.
        not_finite: the (map, start) that left the finite numbers, and are not among the results.
        image_steps: that were done.
        predicted_bytes: the memory that all was estimated to take.
        seconds: that it took.
    """

    seed: int = 0
    start_sha256: str | None = None
    objective: str = "map_mean"
    scored_by: str = ""
    subject: str = ""
    can_be_dead: bool | None = None
    noun: str = "map"
    channels: int = 0
    activation: str | None = None
    pre_activation: bool = False
    leaking: dict[str, str] = field(default_factory=dict)
    domain: Domain | None = None
    source: str = ""
    source_sha256: str = ""
    fingerprint: str = ""
    weights: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    device: str = ""
    dtype: str = ""
    not_finite: tuple[tuple[int, int], ...] = ()
    image_steps: int = 0
    predicted_bytes: int = 0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Provenance:
        """What `to_dict` gave, also after a way through JSON; or the notes of a file of format 1."""
        old = {"graph_sha256": "fingerprint", "before_activation": "pre_activation"}
        given = {old.get(name, name): value for name, value in data.items()}
        casts: dict[str, Any] = {
            "can_be_dead": lambda value: None if value is None else bool(value),
            "activation": lambda value: None if value is None else str(value),
            "start_sha256": lambda value: None if value is None else str(value),
            "leaking": _texts,
            "versions": _texts,
            "domain": lambda value: None if value is None else Domain.from_dict(value),
            "not_finite": lambda value: tuple((int(number), int(start)) for number, start in value),
        }
        for field_ in dataclasses.fields(cls):
            casts.setdefault(field_.name, type(field_.default))
        return cls(**{name: cast(given[name]) for name, cast in casts.items() if name in given})


def _texts(value: dict[str, Any]) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}
