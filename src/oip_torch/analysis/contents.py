"""What does an atlas hold of a network, and of each of its layers? Values that a reader gets, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oip_torch.analysis.calibration import LayerCalibration
from oip_torch.analysis.noise_control import NoiseControl
from oip_torch.analysis.quality import Quality
from oip_torch.network.domain import Domain
from oip_torch.network.onnx_file import Layer
from oip_torch.results.fields import Array
from oip_torch.results.oips import Oips

__all__ = ["DataContents", "LayerContents", "NetworkContents"]


@dataclass(frozen=True, kw_only=True)
class DataContents:
    """What real images draw from the maps of one layer.

    Attributes:
        calibration: maximum and mean of each map, and its top images.
        fields: (maps, top, 4) int: top, bottom, left, right (ends excluded) of the part of each top image that the unit
            saw where the map is largest.
        classes: (maps, classes) float, the mean score of the map over the images of each class; None without labels.
        class_names: (classes,) of the data's classes; empty without labels.
        likeness: (maps, maps) float, correlation of the maps' scores over the images; NaN where one never varies.
        count: how many images the data had.
        scores: (images, maps) float32, the score of the map on each image of the data, or on 2,000 that are spread
            evenly over it; `match` pairs maps by them. None: not kept.
        scored_sha256: of these images, as `images_sha256` gives it; scores of other images do not compare.
    """

    calibration: LayerCalibration
    fields: Array
    classes: Array | None = None
    class_names: tuple[str, ...] = ()
    likeness: Array
    count: int
    scores: Array | None = None
    scored_sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerContents:
    """All that an atlas holds of one layer.

    Attributes:
        layer: its entry of the network's table.
        oips: all images that are there, map by map, start by start.
        planned: how many images there will be when all units are done.
        quality: figures of these images, in their order; None while the layer is not finished.
        noise: which maps are not distinguishable from noise; None with one start, and while it is not finished.
        data: what real images draw from the maps; None where the atlas was made without data.
    """

    layer: Layer
    oips: Oips
    planned: int
    quality: Quality | None = None
    noise: NoiseControl | None = None
    data: DataContents | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkContents:
    """All that an atlas holds of the network itself.

    Attributes:
        name: of the file or module that it was made of, for a title.
        fingerprint: of graph and weights in use (`FeatureModel.fingerprint`).
        source_sha256: of the file that the network comes from; "" for a module of the user's own.
        input_shape: (channels, height, width).
        domain: how pixels become inputs, and what the data look like.
        layers: the table of all layers of the network, those that the atlas leaves out among them.
        settings: of the ascents, as `AscentSettings.to_dict`.
        seed: of the ascents.
        versions: package → version of those that made it.
        of_layers: names of the layers that the atlas holds, in the network's order.
    """

    name: str
    fingerprint: str
    source_sha256: str
    input_shape: tuple[int, int, int]
    domain: Domain | None
    layers: tuple[Layer, ...]
    settings: Mapping[str, Any]
    seed: int
    versions: Mapping[str, str] = field(default_factory=dict)
    of_layers: tuple[str, ...] = ()
