"""What the gallery's tests share: contents of an atlas, made by hand of the shipped network and real digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

import oip_torch as oip
from oip_torch.analysis.contents import DataContents, LayerContents, NetworkContents

Digits = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]

QUICK = oip.AscentSettings(
    candidates=2, candidate_steps=4, survivors=1, steps=12, epsilon=1.0, epsilon_last=0.1, fallback=None
)


def contents_of(
    model: oip.FeatureModel, layer: str, digits: Digits | None, *, maps: Iterable[int], starts: int = 2
) -> LayerContents:
    """All that an atlas holds of some maps of a layer; without digits none of the data."""
    oips = oip.ascend(model, layer, list(maps), starts=starts, settings=QUICK, progress=False)
    calibration = data = readers = None
    if digits is not None:
        images, labels = digits
        calibration = oip.calibrate(model, images, layer, progress=False)
        readers = oip.Readers.of(model, layer, images, images, count=500, progress=False)
        data = data_of(model, calibration, layer, images, labels)
    return LayerContents(
        layer=model.layers[layer],
        oips=oips,
        planned=len(oips),
        quality=oip.assess(model, oips, calibration, readers=readers),
        noise=oip.noise_control(model, oips, draws=2) if starts > 1 else None,
        data=data,
    )


def data_of(
    model: oip.FeatureModel,
    calibration: oip.Calibration,
    layer: str,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
) -> DataContents:
    own = calibration[layer]
    maps, top = own.top_indices.shape
    numbers = np.repeat(np.arange(maps), top)
    fields = oip.respond(model, own.top_images.reshape(-1, *own.pictures.shape[1:]), layer, numbers).fields
    with torch.no_grad():
        activations = model.up_to(layer)(model.to_input(oip_images(images)))
    scores = activations.flatten(2).mean(2).double().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        likeness = np.corrcoef(scores.T)
    names = tuple(str(number) for number in np.unique(labels))
    assert fields is not None
    return DataContents(
        calibration=own,
        fields=fields.reshape(maps, top, 4),
        classes=np.stack([scores[labels == int(name)].mean(0) for name in names], axis=1),
        class_names=names,
        likeness=likeness,
        count=len(images),
    )


def oip_images(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Digits as tensors of mean 0 and standard deviation 1, one by one."""
    x = torch.from_numpy(images.astype(np.float32))[:, None]
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True, correction=0)


def renamed(contents: LayerContents, name: str) -> LayerContents:
    """The same contents of a layer that is called so."""
    return dataclasses.replace(
        contents,
        layer=dataclasses.replace(contents.layer, name=name),
        oips=dataclasses.replace(contents.oips, layer=name),
    )


def network_of(
    model: oip.FeatureModel, held: Sequence[LayerContents], name: str = "mnist_cnn", *, more: bool = True
) -> NetworkContents:
    """The network of these layers; with more, its others as well, of which there are no pictures."""
    height, width, channels = model.network.input_shape
    own = {contents.layer.name for contents in held}
    others = [layer for layer in model.layers if layer.name not in own] if more else []
    oips = held[0].oips
    return NetworkContents(
        name=name,
        fingerprint=oips.provenance.fingerprint,
        source_sha256=model.network.source_sha256,
        input_shape=(channels, height, width),
        domain=model.domain,
        layers=(*(contents.layer for contents in held), *others),
        settings=oips.settings.to_dict(),
        seed=0,
        versions=oips.provenance.versions,
        of_layers=tuple(contents.layer.name for contents in held),
    )
