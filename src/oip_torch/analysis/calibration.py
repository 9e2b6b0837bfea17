"""What does real data draw from each map?

A score says little by itself: one map gives 2 at most, another 20. Beside the largest score that real images draw from
the map it says how far an OIP goes beyond the data; and the images that excite a map most show what it is used for.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.analysis.image_statistics import radial_power_spectrum
from oip_torch.analysis.scores import LayerOutputs, map_means, standardized_batches
from oip_torch.analysis.top import Top
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.base.files import read_netcdf, write_netcdf
from oip_torch.base.image_files import check_pixels, images_sha256
from oip_torch.base.messages import one_line
from oip_torch.base.platform import matmul_precision
from oip_torch.base.progress import bar
from oip_torch.base.tensors import to_array
from oip_torch.network.domain import Domain
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.results.fields import Array, array, arrays_of, large_of, rows_of, variables_of
from oip_torch.results.oips import Oips

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Calibration",
    "LayerCalibration",
    "calibrate",
]

_FORMAT = 1
_QUANTILE = 0.999


@dataclass(frozen=True, kw_only=True)
class LayerCalibration:
    """What the data draws from the maps of one layer.

    Attributes:
        maximum: (maps,) float, the largest score of any image.
        p999: (maps,) float, the 99.9th percentile of the scores, linear between neighbours as in `np.percentile`; that
            a single odd image does not move.
        mean: (maps,) float, over all images.
        top_indices: (maps, top) int, which images of the data excite the map most, the most exciting first; of equal
            ones the first in the data.
        top_scores: (maps, top) float, their scores.
        tied: (maps,) int, how many images of the data that are not among these have exactly the score of the last of
            them: if any, chance has chosen between equals. None: a file saved before this was counted.
        pre_activation: whether the scores are of what goes into the layer's activation, as those of OIPs can be.
        picture_indices: (P,) int, ascending: which images of the data are kept; shared by all layers.
        pictures: (P, height, width, channels) float, these images, standardised one by one; shared by all layers.
    """

    maximum: Array = array("map")
    p999: Array = array("map")
    mean: Array = array("map")
    top_indices: Array = array("map", "top")
    top_scores: Array = array("map", "top")
    picture_indices: Array = array("picture", stored="picture_index", kind=np.int64)
    pictures: Array = array("picture", "y", "x", "channel", large=True)
    tied: Array | None = array("map", default=None)
    pre_activation: bool = False

    @property
    def excited(self) -> npt.NDArray[np.bool_]:
        """(maps,): whether the data excites the map. Where it does not, a ratio to its maximum would mean nothing.

        It does not where the largest score is 0 or below, or below a hundredth of what the data draws from the layer's
        maps in the median (of those from which it draws anything).
        """
        some = self.maximum[self.maximum > 0]
        return np.asarray(self.maximum > (0.01 * np.median(some) if len(some) else 0.0))

    @property
    def top_ranks(self) -> npt.NDArray[np.int64]:
        """(maps, top): 1 for the most exciting image, and for all that score as much; and so on.

        Images of equal scores have no order: in `top_indices` they stand as they do in the data.
        """
        return np.asarray(1 + (self.top_scores[:, None, :] > self.top_scores[:, :, None]).sum(2))

    def top_of(self, map: int) -> npt.NDArray[np.floating]:
        """(top, height, width, channels): the images that excite one map most, each with mean 0 and deviation 1."""
        chosen: npt.NDArray[np.floating] = self.pictures[np.searchsorted(self.picture_indices, self.top_indices[map])]
        return chosen

    @property
    def top_images(self) -> npt.NDArray[np.floating]:
        """(maps, top, height, width, channels): `top_of` every map. Made anew, since it may be large."""
        chosen: npt.NDArray[np.floating] = self.pictures[np.searchsorted(self.picture_indices, self.top_indices)]
        return chosen


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a data set draws from the maps of a network; by layer: `calibration["Conv2D_3"].maximum[17]`.

    Attributes:
        layers: name → `LayerCalibration`.
        count: how many images the data had.
        spectrum: (rings,) float, the mean of `radial_power_spectrum` over the standardised images.
        graph_sha256: of graph and weights in use (`FeatureModel.fingerprint`): for others these figures mean nothing.
        source_sha256: of the Keras file that the network comes from.
        limits: what pixels of the standardised images reach: the 5 % quantile of the images' least values and the 95 %
            quantile of their largest. None: a file saved before they were kept.
        domain: how the network took the images, see `Domain`; None: a file of before it was kept, as they are.
        images_sha256: of the images as `calibrate` was given them, 64 hexadecimal digits over their number type, shape
            and bytes: other pixels, another order or another type give another digest. None: a file saved before
            digests of the data were kept.
    """

    layers: dict[str, LayerCalibration]
    count: int
    spectrum: Array = array("ring")
    graph_sha256: str
    source_sha256: str
    limits: tuple[float, float] | None = None
    domain: Domain | None = None
    images_sha256: str | None = None

    def __getitem__(self, layer: str) -> LayerCalibration:
        if layer not in self.layers:
            raise unknown_name("calibrated layer", layer, self.layers)
        return self.layers[layer]

    def top_mean(self, layer: str, count: int = 9) -> npt.NDArray[np.floating]:
        """The mean of the images that excite each map most, standardised: a start near the data.

            oip.ascend(model, "Conv2D_3", start=calibration.top_mean("Conv2D_3"))

        What begins there inherits what these images show: legibility figures of such OIPs say little by themselves.

        Args:
            layer: its name.
            count: of how many images, from 1 to as many as are kept (`calibrate(…, top=9)`).

        Returns:
            (maps, height, width, channels), each with mean 0 and standard deviation 1.

        Raises:
            InputError: a layer that was not calibrated, or more images than are kept.
        """
        own, count = self[layer], whole("count", count, 1)
        kept = own.top_indices.shape[1]
        if count > kept:
            raise InputError(f"count is {count}: expected 1 to {kept}, as many top images as this calibration keeps")
        means = np.stack([own.top_of(number)[:count].mean(0) for number in range(len(own.maximum))])
        centred = means - means.mean((1, 2, 3), keepdims=True)
        return np.asarray(centred / centred.std((1, 2, 3), keepdims=True), means.dtype)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __repr__(self) -> str:
        maps = ", ".join(f"{name} ({len(layer.maximum)} maps)" for name, layer in self.layers.items())
        digest = "of unknown digest" if self.images_sha256 is None else f"of digest {self.images_sha256[:12]}…"
        return f"<Calibration by {self.count} images {digest}: {maps}>"

    def check(self, other: FeatureModel | Oips) -> None:
        """Raise an `InputError` if a model, or the model that made OIPs, is another one than was calibrated.

        Likewise if OIPs were scored before their layer's activation and the data after it, or the other way round; or
        if they are of no map.
        """
        if isinstance(other, Oips):
            other.check_of_maps()
        made_by = other.fingerprint if isinstance(other, FeatureModel) else other.provenance.fingerprint
        if made_by != self.graph_sha256:
            whose = "the model's" if isinstance(other, FeatureModel) else "that of the model which made the OIPs"
            raise InputError(
                f"this calibration is of another network: its graph has the digest {self.graph_sha256[:12]}…, {whose} "
                f"is {str(made_by)[:12]}…; calibrate again with this model"
            )
        theirs = (other.domain if isinstance(other, FeatureModel) else other.provenance.domain) or Domain()
        own = self.domain or Domain()
        if not own.is_like(theirs):
            raise InputError(
                f"this calibration is of another input domain (mean {own.mean}, std {own.std}) than "
                f"{'the model' if isinstance(other, FeatureModel) else 'the OIPs'} (mean {theirs.mean}, std "
                f"{theirs.std}): calibrate again with the model that made them"
            )
        if isinstance(other, Oips) and self[other.layer].pre_activation != other.pre_activation:
            ours, other_side = ("after", "before") if other.pre_activation else ("before", "after")
            raise InputError(
                f"this calibration scored {other.layer!r} {ours} its activation, these OIPs {other_side} it: calibrate "
                f"again with pre_activation={other.pre_activation}"
            )

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset: the maps of all layers one after the other along the dimension map."""
        import xarray as xr

        of_layers = [variables_of(layer) for layer in self.layers.values()]
        joined = {
            # What is told map by map stands one layer after the other; the pictures are shared by all.
            name: (sizes, np.concatenate([of[name][1] for of in of_layers]) if sizes[0] == "map" else values)
            for name, (sizes, values) in of_layers[0].items()
            if all(name in of for of in of_layers)
        }
        dataset = xr.Dataset(
            joined | variables_of(self),
            attrs={
                "oip_torch_calibration_format": _FORMAT,
                "layers": json.dumps([[name, len(layer.maximum)] for name, layer in self.layers.items()]),
                "before_activation": json.dumps([name for name, own in self.layers.items() if own.pre_activation]),
                "count": self.count,
                "graph_sha256": self.graph_sha256,
                "source_sha256": self.source_sha256,
                "domain": json.dumps(None if self.domain is None else self.domain.to_dict()),
                **({} if self.limits is None else {"limits": list(self.limits)}),
                **({} if self.images_sha256 is None else {"images_sha256": self.images_sha256}),
            },
        )
        return dataset.set_coords("picture_index")

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Calibration:
        """The inverse of `to_xarray`."""
        if dataset.attrs.get("oip_torch_calibration_format") != _FORMAT:
            raise InputError(
                f"no calibration of format {_FORMAT} in this dataset: expected one that Calibration.save wrote"
            )
        try:
            sizes = [(str(name), int(maps)) for name, maps in json.loads(dataset.attrs["layers"])]
            arrays = arrays_of(LayerCalibration, dataset)
            before = json.loads(dataset.attrs.get("before_activation", "[]"))
            domain = json.loads(dataset.attrs.get("domain", "null"))
            limits = dataset.attrs.get("limits")
            if len(dict(sizes)) < len(sizes):
                raise ValueError("a layer, which is there twice,")
            if not sizes or sum(maps for _, maps in sizes) != dataset.sizes["map"]:
                raise ValueError("the number of maps")
            if not np.isin(arrays["top_indices"], arrays["picture_indices"]).all():
                raise ValueError("a picture")
            layers, first = {}, 0
            for name, maps in sizes:
                shared = LayerCalibration(**arrays, pre_activation=name in before)
                layers[name] = dataclasses.replace(shared, **rows_of(shared, "map", np.arange(first, first + maps)))
                first += maps
            return cls(
                layers=layers,
                count=int(dataset.attrs["count"]),
                **arrays_of(cls, dataset),
                graph_sha256=str(dataset.attrs["graph_sha256"]),
                source_sha256=str(dataset.attrs["source_sha256"]),
                limits=(float(limits[0]), float(limits[1])) if limits is not None else None,
                domain=None if domain is None else Domain.from_dict(domain),
                # The figures do not need it, so that older files without it stay readable.
                images_sha256=str(dataset.attrs["images_sha256"]) if "images_sha256" in dataset.attrs else None,
            )
        except RecursionError:
            raise InputError("this dataset is no calibration: what it says of itself is nested too deeply") from None
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            reason = one_line(error)
            raise InputError(f"this dataset is no complete calibration: {reason} is missing or damaged") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it to one NetCDF file, whole or not at all; returns the path.

        Raises:
            InputError: an ending other than .nc, or the file cannot be written.
        """
        return write_netcdf(self.to_xarray(), path, compressed=large_of(LayerCalibration))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote. NetCDF holds numbers and text only, no pickles.

        Raises:
            InputError: missing or damaged file, or other contents.
        """
        return cls.from_xarray(read_netcdf(path, "Calibration.save"))


def calibrate(
    model: FeatureModel,
    images: npt.ArrayLike,
    layers: str | Layer | Iterable[str | Layer] | None = None,
    *,
    top: int = 9,
    pre_activation: bool | None = None,
    batch_size: int | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Score every map on real images.

        calibration = oip.calibrate(model, np.load("mnist.npz")["x_test"])
        calibration["Conv2D_3"].maximum         # (128,)

    The images are standardised one by one to mean 0 and standard deviation 1, as OIPs are if their constraint leaves no
    mean or contrast free (`Oips.standardized`), and shown to the network through its domain, as OIPs are: the score of
    a map grows with the contrast of the image, and without this a dark digit and an OIP would be compared by their
    contrast. So both answer the same question: which pattern of this contrast excites the map most?

    Args:
        model: from `load` or `convert`.
        images: (N, height, width) or (N, height, width, channels), pixel values 0–255, as in Keras' `mnist.npz`.
        layers: names, or entries of `model.layers`; None: every layer whose output has maps, (batch, maps, height,
            width).
        top: how many of the most exciting images are kept for each map; fewer where the data has fewer.
        pre_activation: score what goes into the layers' activations; None: where that is a softmax or a sigmoid. As
            in `ascend`, so that scores compare.
        batch_size: images at once; None: 256, or as many as take 256 MiB in the network. All layers are scored in one
            pass, and memory does not grow with the scores of the data: a thousandth of them is kept, which the 99.9th
            percentile needs.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Raises:
        InputError: an argument of a wrong kind, unknown layer, images of a wrong shape or range.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
    model.check_dtype()
    top, batch_size = whole("top", top, 1), None if batch_size is None else whole("batch_size", batch_size, 1)
    array = check_pixels(images, "the images")
    names = _chosen_layers(model, layers)
    before = [name for name in names if model.wants_pre_activation(name, pre_activation)]
    nodes = {name: model.tap(name, pre_activation=name in before).node for name in names}
    once = list({node: name for name, node in nodes.items()}.values())  # a block has the node of its last layer
    outputs = LayerOutputs(model, once, [name for name in before if name in once])
    batch_size = batch_size or outputs.at_once
    count = len(array)
    kept = min(count, max(top, math.ceil((1 - _QUANTILE) * (count - 1)) + 2))
    tops: dict[str, Top] = {}
    power, ends = np.zeros(1), []
    with bar("calibrating", count, progress) as advance, torch.no_grad(), matmul_precision():
        for first, x in standardized_batches(model, array, batch_size):
            for name, output in outputs(x).items():
                scores = map_means(output)
                tops.setdefault(name, Top(kept, scores)).add(scores, first)
            power = power + radial_power_spectrum(to_array(x)).sum(0)
            ends.append(torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))]).double().cpu().numpy())
            advance(len(x))
    least, largest = np.concatenate(ends, axis=1)
    wanted = {name: top_of.indices[:top].T for name, top_of in tops.items()}
    picture_indices = np.unique(np.concatenate([indices.ravel() for indices in wanted.values()]))
    pictures = np.concatenate([to_array(x) for _, x in standardized_batches(model, array[picture_indices], batch_size)])
    by_node = {
        nodes[name]: LayerCalibration(
            maximum=found.scores[0],
            p999=found.quantile(_QUANTILE),
            mean=found.sums / count,
            top_indices=wanted[name],
            top_scores=found.scores[:top].T,
            tied=found.tied(top),
            picture_indices=picture_indices,
            pictures=pictures,
        )
        for name, found in tops.items()
    }
    return Calibration(
        layers={name: dataclasses.replace(by_node[nodes[name]], pre_activation=name in before) for name in names},
        count=count,
        spectrum=power / count,
        graph_sha256=model.fingerprint,
        source_sha256=model.network.source_sha256,
        limits=(float(np.quantile(least, 0.05)), float(np.quantile(largest, 0.95))),
        domain=model.domain,
        images_sha256=images_sha256(array),
    )


def _chosen_layers(model: FeatureModel, layers: str | Layer | Iterable[str | Layer] | None) -> list[str]:
    if layers is None:
        names = [layer.name for layer in model.layers if model.has_maps(layer.name)]
        if not names:
            raise InputError("this network has no layer with maps: name the layers, as in layers=['Dense_1']")
        return names
    given = [layers] if isinstance(layers, (str, Layer)) else layers
    if not isinstance(given, Iterable):
        raise InputError(f"layers is {shown(layers)}: expected names of layers, or None for every layer with maps")
    names = list(dict.fromkeys(model.layer(layer).name for layer in given))
    if not names:
        raise InputError("calibrate got no layer: expected at least one name, or None for every layer with maps")
    return names
