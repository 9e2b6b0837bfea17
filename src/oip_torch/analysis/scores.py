"""What do the layers say to real images, and to OIPs of theirs?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from oip_torch.base.errors import InputError
from oip_torch.base.platform import costs
from oip_torch.base.tensors import standardize
from oip_torch.network.domain import Domain
from oip_torch.network.extract import truncate
from oip_torch.network.model import FeatureModel
from oip_torch.results.oips import Oips

__all__ = ["LayerOutputs", "check_made_by", "map_means", "standardized_batches"]

_MOST_AT_ONCE = 64  # more take more memory, and no less time an image
_MOST_BYTES = 256 << 20  # that a batch may take in the network


def standardized_batches(model: FeatureModel, images: npt.NDArray[Any], size: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first image, standardised images (batch, channels, height, width))."""
    for first in range(0, len(images), size):
        yield first, standardize(model.standardize(images[first : first + size]))


class LayerOutputs:
    """What some layers say to images. The network runs up to them and no further, and keeps nothing else.

        outputs = LayerOutputs(model, ["Conv2D_1", "Dense_1"], before=["Dense_1"])
        outputs(x)["Conv2D_1"]              # (batch, maps, height, width)

    Args:
        model: it stays as it is.
        names: of the layers.
        before: those of them that are looked at before their activation.
    """

    def __init__(self, model: FeatureModel, names: Sequence[str], before: Sequence[str] = ()) -> None:
        self._model, self._names = model, tuple(names)
        taps = [model.tap(name, pre_activation=name in before) for name in names]
        self._network = truncate(model.graph_module, [tap.node for tap in taps])

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """By layer, of standardised images (batch, channels, height, width).

        Raises:
            InputError: a layer leaves the finite numbers.
        """
        images = self._model.to_input(x)
        found: dict[str, Tensor] = dict(zip(self._names, self._network(images), strict=True))
        sums = [output.detach().sum(dtype=torch.float64) for output in found.values()]
        if not bool(torch.stack(sums).isfinite().all()):
            self._model.every_layer(images)  # names the layer in which it arises
        return found

    @property
    def at_once(self) -> int:
        """How many images make a batch: 64, or as many as take 256 MiB of memory, and one at least."""

        def run(count: int) -> None:
            x = torch.zeros(count, *self._model.input_shape, device=self._model.device, dtype=self._model.dtype)
            with torch.no_grad():
                self(x)

        of_one = (costs(lambda: run(2)) - costs(lambda: run(1))).bytes
        return max(1, min(_MOST_AT_ONCE, _MOST_BYTES // max(1, of_one)))


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
