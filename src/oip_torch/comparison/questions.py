"""What is every runtime asked? The same images, channels and starts for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from oip_torch.base.errors import InputError, OipError
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.comparison.runtimes import BEFORE, Array
from oip_torch.keras.classes import CONVOLUTIONS
from oip_torch.network.domain import Domain
from oip_torch.network.model import FeatureModel
from oip_torch.network.probes import digits, noise
from oip_torch.optim.settings import AscentSettings
from oip_torch.optim.starts import start_images
from oip_torch.search.search import ascend

__all__ = ["Questions", "default_layer", "prepare_questions", "spread_channels"]

_MOST_CHANNELS, _MOST_GRADIENT_LAYERS = 64, 8
_MOST_IMAGES, _MOST_PIXELS = 16, 1 << 17  # of each kind
_EPSILON = 0.01  # of the article
_STRONGEST = 4  # so many of an image's strongest channels have their turn in the gradients
_OIP_STEPS = 100  # of the OIPs among the images
_GRAIN, _GRAIN_SEED = 0.01, 1  # another seed than that of the images of noise


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What every runtime is asked; arrays are (…, height, width, channels) in float64.

    Attributes:
        layers: names of all layers of the ONNX file.
        images: kind → images for the layers, as the network takes them.
        gradient_channels: layer, or `BEFORE` + layer → (gradient images,) the index of a channel for each image.
        gradient_images: those of all kinds, each with a grain of noise. On a flat ground, which digits have and OIPs of
            a first convolution, neighbours are equal but for rounding: which of them a max pooling hands the gradient
            to would be chance, and differ from processor to processor.
        layer: whose channels are ascended.
        tap: the layer's name, or `BEFORE` + the name: what exactly is ascended.
        channel_count: how many channels the layer has.
        channels: (ascents,) the indices of those that are ascended.
        starts: (ascents, height, width, channels) the images that they start from, standardised one by one.
        domain: how the network takes standardised images.
        steps: of each ascent.
        epsilon: the length of a step.
        seed: of the starts.
    """

    layers: list[str]
    images: Mapping[str, Array]
    gradient_channels: Mapping[str, Array]
    gradient_images: Array
    layer: str
    tap: str
    channel_count: int
    channels: Array
    starts: Array
    domain: Domain
    steps: int
    epsilon: float
    seed: int

    @property
    def all_images(self) -> Array:
        """Those of all kinds, one kind after the other."""
        return np.concatenate(list(self.images.values()))

    @property
    def kinds(self) -> dict[str, slice]:
        """Where each kind's images lie in `all_images`."""
        ends = np.cumsum([len(images) for images in self.images.values()]).tolist()
        return {kind: slice(end - len(self.images[kind]), end) for kind, end in zip(self.images, ends, strict=True)}


def prepare_questions(
    model: FeatureModel, layer: str, channels: list[int], *, pre_activation: bool, steps: int, seed: int
) -> Questions:
    """Images of each kind and the channels to score in them, and the starts of the ascents.

    Raises:
        InputError: the ascents cannot be made: of too little memory, say.
    """
    tap = BEFORE + layer if pre_activation else layer
    images = {
        kind: array.astype(np.float64)
        for kind, array in _images(model, layer, channels, pre_activation=pre_activation, seed=seed).items()
    }
    grained = _grained(np.concatenate(list(images.values())))
    starts = start_images(model.input_shape, [(channel, 0) for channel in channels], layer=layer, seed=seed)
    return Questions(
        layers=model.layers.names,
        images=images,
        gradient_channels=_gradient_channels(model, tap, grained),
        gradient_images=grained,
        layer=layer,
        tap=tap,
        channel_count=model.layers[layer].maps,
        channels=np.array(channels),
        starts=to_array(starts).astype(np.float64),
        domain=model.domain,
        steps=steps,
        epsilon=_EPSILON,
        seed=seed,
    )


def _grained(images: Array) -> Array:
    """(batch, height, width, channels) with noise of `_GRAIN` of each image's standard deviation."""
    grains = noise(len(images), images.shape[1:], _GRAIN_SEED)
    return np.asarray(images + _GRAIN * images.std((1, 2, 3), keepdims=True) * grains)


def default_layer(model: FeatureModel) -> str:
    """The last convolution, or else the last layer, whose maps are larger than one pixel."""
    large = [layer.name for layer in model.layers if (layer.height or 1) * (layer.width or 1) > 1]
    if not large:
        raise InputError("no layer has maps larger than one pixel: name the layer to ascend")
    convolutions = [name for name in large if model.layers[name].kind in CONVOLUTIONS]
    return (convolutions or large)[-1]


def spread_channels(count: int) -> list[int]:
    """At most `_MOST_CHANNELS` of so many, evenly."""
    return sorted(set(np.linspace(0, count - 1, min(count, _MOST_CHANNELS)).round().astype(int).tolist()))


def _images(
    model: FeatureModel, layer: str, channels: list[int], *, pre_activation: bool, seed: int
) -> dict[str, Array]:
    """By kind; OIPs are among them because they drive a network where data does not."""
    network = model.network
    count = max(2, min(_MOST_IMAGES, _MOST_PIXELS // math.prod(network.input_shape)))
    domain = network.domain
    images: dict[str, Array] = {
        "noise": domain.to_input(noise(count, network.input_shape)),
        "digits": digits(count, network.input_shape, domain),
    }
    some = channels[:: -(-len(channels) // count)]
    settings = AscentSettings.within(_OIP_STEPS)
    try:
        oips = ascend(model, layer, some, seed=seed, settings=settings, pre_activation=pre_activation, progress=False)
        images["OIPs"] = domain.to_input(oips.images)
    except InputError:
        raise
    except OipError:  # no finite numbers come from this ONNX file: the layers will say where that begins
        pass
    return images


def _gradient_channels(model: FeatureModel, tap: str, images: Array) -> dict[str, Array]:
    """Layer → (images,) one of each image's strongest channels; for some layers, and for what is ascended.

    Not always the very strongest, so that several have their turn.
    """
    x = to_tensor(images, dtype=torch.float32)
    layer = tap.removeprefix(BEFORE)
    with torch.no_grad():
        outputs = model.every_layer(x)
        if layer != tap:
            outputs[tap] = model.up_to(layer, pre_activation=True)(x)
    names = model.layers.names
    spread = np.linspace(0, len(names) - 1, min(len(names), _MOST_GRADIENT_LAYERS)).round().astype(int)
    rows = np.arange(len(x))
    found = {}
    for name in dict.fromkeys([*(names[index] for index in spread), tap]):
        means = outputs[name].flatten(2).mean(2) if outputs[name].ndim > 2 else outputs[name]
        strongest = means.argsort(1, descending=True)[:, :_STRONGEST]
        found[name] = strongest.numpy()[rows, rows % strongest.shape[1]]
    return found
