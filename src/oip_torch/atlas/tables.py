"""What is worked out of a layer as a whole, and how does it become a table and come back? Real data, quality, noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from oip_torch.analysis.calibration import Calibration, LayerCalibration, calibrate
from oip_torch.analysis.contents import DataContents
from oip_torch.analysis.noise_control import NoiseControl
from oip_torch.analysis.quality import Quality
from oip_torch.analysis.responses import respond
from oip_torch.analysis.scores import LayerOutputs, map_means, standardized_batches
from oip_torch.atlas.recipe import Data
from oip_torch.base.image_files import images_sha256
from oip_torch.base.platform import matmul_precision
from oip_torch.network.model import FeatureModel
from oip_torch.results.fields import Array, variables_of
from oip_torch.results.oips import Oips

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["data_of", "data_tables", "noise_of", "noise_table", "quality_of", "quality_table", "scored_rows"]

SCORED = 2000
"""Images of the data of which each map's score is kept: enough for correlations, and some MB a layer."""

_BATCH = 256


def scored_rows(count: int) -> Array:
    """Which of so many images: all, or 2,000 spread evenly, since data may be sorted by class."""
    return np.arange(min(count, SCORED)) * count // min(count, SCORED)


def data_tables(
    model: FeatureModel, data: Data, names: Sequence[str], pre_activation: bool | None, progress: bool | None
) -> dict[str, xr.Dataset]:
    """By layer: what the images draw from its maps."""
    calibration = calibrate(model, data.images, names, pre_activation=pre_activation, progress=progress)
    classes = None if data.labels is None else np.unique(data.labels)
    means, likeness, scores = _over_images(model, data, names, calibration, classes)
    scored = images_sha256(data.images[scored_rows(len(data.images))])
    tables = {}
    for name in names:
        own = _own_pictures(calibration[name])
        table = dataclasses.replace(calibration, layers={name: own}).to_xarray()
        table["fields"] = ("map", "top", "end"), _fields(model, name, own)
        table["likeness"] = ("map", "other_map"), likeness[name]
        table["scores"] = ("scored", "map"), scores[name]
        table.attrs["scored_sha256"] = scored
        if classes is not None:
            table["classes"] = ("map", "class"), means[name]
            told = data.class_names
            table.attrs["class_names"] = [str(number) if told is None else told[number] for number in classes.tolist()]
        tables[name] = table
    return tables


def data_of(table: xr.Dataset, layer: str) -> tuple[DataContents, Calibration]:
    """What `data_tables` put into a table.

    Raises:
        InputError, KeyError, ValueError: it is something else.
    """
    calibration = Calibration.from_xarray(table)
    own = calibration[layer]
    maps, top = own.top_indices.shape
    held = {name: table[name].to_numpy() for name in ("fields", "likeness", "scores", "classes") if name in table}
    names = tuple(str(name) for name in table.attrs.get("class_names", ()))
    scored = min(calibration.count, SCORED)
    expected = {"fields": (maps, top, 4), "likeness": (maps, maps), "classes": (maps, len(names))}
    expected["scores"] = scored, maps
    for name, values in held.items():
        if values.shape != expected[name]:
            raise ValueError(f"{name} of shape {values.shape}")
    contents = DataContents(
        calibration=own,
        fields=held["fields"],
        likeness=held["likeness"],
        classes=held.get("classes"),
        class_names=names,
        count=calibration.count,
        scores=held["scores"],
        scored_sha256=str(table.attrs["scored_sha256"]),
    )
    return contents, calibration


def quality_table(quality: Quality, maps: int, starts: int) -> xr.Dataset:
    """Over map and start; NaN where there is no image."""
    import xarray as xr

    held = {}
    for name, (_, values) in variables_of(quality).items():
        if name not in ("map", "start"):
            held[name] = np.full((maps, starts), np.nan)
            held[name][quality.maps, quality.starts] = values
    return xr.Dataset({name: (("map", "start"), values) for name, values in held.items()})


def quality_of(table: xr.Dataset, oips: Oips) -> Quality:
    """What `quality_table` put into a table, in the order of the OIPs."""
    rows = oips.maps, oips.starts
    names = [field.name for field in dataclasses.fields(Quality) if field.name not in ("layer", "maps", "starts")]
    held = {name: table[name].to_numpy()[rows] for name in names}
    return Quality(layer=oips.layer, maps=oips.maps, starts=oips.starts, **held)


def noise_table(noise: NoiseControl, maps: int) -> xr.Dataset:
    """Over map; NaN and 0 where there is no image. Yes and no are 1 and 0, since versions of xarray differ there."""
    import xarray as xr

    held: dict[str, Array] = {}
    for name, (_, values) in variables_of(noise).items():
        if name != "map":
            held[name] = np.zeros(maps, np.int8) if values.dtype == bool else np.full(maps, np.nan)
            held[name][noise.maps] = values
    attributes = {"draws": noise.draws, "noise_images": noise.noise_images}
    return xr.Dataset({name: ("map", values) for name, values in held.items()}, attrs=attributes)


def noise_of(table: xr.Dataset, oips: Oips) -> NoiseControl:
    """What `noise_table` put into a table, of the maps that there are images of."""
    maps = np.unique(oips.maps)
    own = ("layer", "noun", "fingerprint", "draws", "noise_images", "maps")
    names = [field.name for field in dataclasses.fields(NoiseControl) if field.name not in own]
    held: dict[str, Any] = {name: table[name].to_numpy()[maps] for name in names}
    held["noise"] = held["noise"].astype(bool)
    return NoiseControl(
        layer=oips.layer,
        noun=oips.noun,
        fingerprint=oips.provenance.fingerprint,
        draws=int(table.attrs["draws"]),
        noise_images=int(table.attrs["noise_images"]),
        maps=maps,
        **held,
    )


def _own_pictures(layer: LayerCalibration) -> LayerCalibration:
    """With the pictures of its own maps alone; a calibration's are shared by all layers."""
    own = np.isin(layer.picture_indices, layer.top_indices)
    return dataclasses.replace(layer, picture_indices=layer.picture_indices[own], pictures=layer.pictures[own])


def _fields(model: FeatureModel, layer: str, data: LayerCalibration) -> Array:
    """(maps, top, 4): what the unit saw of each top image where the map is largest."""
    maps, top = data.top_indices.shape
    found = np.empty((maps * top, 4), np.int64)
    rows = np.searchsorted(data.picture_indices, data.top_indices).reshape(-1)
    numbers = np.repeat(np.arange(maps), top)
    for first in range(0, maps * top, _BATCH):
        part = slice(first, first + _BATCH)
        pictures, own = data.pictures[rows[part]], numbers[part].tolist()
        fields = respond(model, pictures, layer, own, pre_activation=data.pre_activation).fields
        assert fields is not None
        found[part] = fields
    return found.reshape(maps, top, 4)


def _over_images(
    model: FeatureModel, data: Data, names: Sequence[str], calibration: Calibration, classes: Array | None
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """By layer: (maps, classes) mean scores; (maps, maps) correlations of the scores over the images; these of some."""
    before = [name for name in names if calibration[name].pre_activation]
    center = {name: torch.from_numpy(calibration[name].mean) for name in names}
    sums = {name: torch.zeros(len(center[name]), len(center[name]), dtype=torch.float64) for name in names}
    count = 0 if classes is None else len(classes)
    rows = scored_rows(len(data.images))
    kept = {name: np.empty((len(rows), len(center[name])), np.float32) for name in names}
    of_class = {name: np.zeros((len(center[name]), count)) for name in names}
    outputs = LayerOutputs(model, names, before)
    with torch.no_grad(), matmul_precision():
        for first, x in standardized_batches(model, data.images, outputs.at_once):
            for name, output in outputs(x).items():
                scores = map_means(output).double().cpu()
                off = scores - center[name]
                sums[name] += off.T @ off
                begin, end = np.searchsorted(rows, (first, first + len(scores)))
                kept[name][begin:end] = scores[rows[begin:end] - first].numpy()
                if classes is not None and data.labels is not None:
                    member = data.labels[first : first + len(scores), None] == classes
                    of_class[name] += scores.T.numpy() @ member.astype(np.float64)
    if classes is not None and data.labels is not None:
        many = (data.labels[:, None] == classes).sum(0)
        of_class = {name: total / many for name, total in of_class.items()}
    return of_class, {name: _correlations(total.numpy()) for name, total in sums.items()}, kept


def _correlations(products: Array) -> Array:
    """Of sums of products of deviations; NaN where one never varies."""
    length = np.sqrt(np.diag(products))
    scale = np.outer(length, length)
    return np.asarray(np.where(scale > 0, np.clip(products / np.where(scale > 0, scale, 1.0), -1, 1), np.nan))
