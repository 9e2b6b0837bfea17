"""What do the layers say to real images, and to OIPs of theirs?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from torch import Tensor

from oip_torch.base.errors import InputError
from oip_torch.base.tensors import standardize
from oip_torch.network.capture import capture
from oip_torch.network.domain import Domain
from oip_torch.network.model import FeatureModel
from oip_torch.results.oips import Oips

__all__ = ["check_made_by", "layer_outputs", "map_means", "standardized_batches"]


def standardized_batches(model: FeatureModel, images: npt.NDArray[Any], size: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first image, standardised images (batch, channels, height, width))."""
    for first in range(0, len(images), size):
        yield first, standardize(model.standardize(images[first : first + size]))


def layer_outputs(model: FeatureModel, x: Tensor, names: list[str], before: list[str]) -> dict[str, Tensor]:
    """What the layers say, and those in `before` before their activation."""
    if not before:
        outputs = model.every_layer(model.to_input(x))
        return {name: outputs[name] for name in names}
    with capture(model, *before, pre_activation=True) as caught:
        outputs = model.every_layer(model.to_input(x))
    return {name: caught[name] if name in before else outputs[name] for name in names}


def map_means(activations: Tensor) -> Tensor:
    """What `objectives.map_mean` gives for every map at once.

    (batch, maps, height, width) or (batch, units) → (batch, maps) scores.
    """
    return activations.flatten(2).mean(2) if activations.ndim > 2 else activations


def check_made_by(model: FeatureModel, oips: Oips) -> None:
    """Raise an `InputError` where OIPs are of no map, or made with another network or through another domain."""
    oips.check_of_maps()
    if oips.provenance.fingerprint != model.fingerprint:
        raise InputError("these OIPs were made with another network: expected the model that made them; load that one")
    if not (oips.provenance.domain or Domain()).is_like(model.domain):
        raise InputError(
            "these OIPs were made through another input domain: expected the domain that the model has now"
        )
