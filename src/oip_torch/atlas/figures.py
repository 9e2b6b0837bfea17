"""Which layers of an atlas lack what is worked out of them as a whole, and how is it added? Data, quality, noise."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from oip_torch.analysis.calibration import Calibration
from oip_torch.analysis.legibility import Readers
from oip_torch.analysis.noise_control import noise_control
from oip_torch.analysis.quality import Quality, assess
from oip_torch.atlas.atlas import Cells, data_in
from oip_torch.atlas.layout import FIGURES
from oip_torch.atlas.recipe import Data, Recipe
from oip_torch.atlas.store import Store
from oip_torch.atlas.tables import data_tables, noise_table, quality_table
from oip_torch.base.platform import free_memory, in_words
from oip_torch.network.model import FeatureModel
from oip_torch.results.oips import Oips

__all__ = ["add_data", "add_figures"]

_COPIES = 2  # of a layer's images that are held at one time, at most
_PART_COPIES = 8  # of the images that `assess` is given at once
_PART_BYTES = 8 << 20  # that these may take

logger = logging.getLogger("oip_torch")


def add_data(store: Store, recipe: Recipe, model: FeatureModel, data: Data | None, progress: bool | None) -> bool:
    """What real images draw from the layers that lack it; returns whether there was one."""
    if data is None:
        return False
    groups = {name: f"{recipe.group(name)}/data" for name in recipe.network.of_layers}
    lacking = [name for name, group in groups.items() if store.read_table(group, data.sha256) is None]
    if lacking:
        for name, table in data_tables(model, data, lacking, recipe.pre_activation, progress).items():
            store.write_table(groups[name], table, data.sha256)
    return bool(lacking)


def add_figures(store: Store, recipe: Recipe, model: FeatureModel, data: Data | None) -> bool:
    """Quality and noise control of the layers that are whole and lack them; returns whether there was one."""
    added = False
    for name in recipe.network.of_layers:
        group = recipe.group(name)
        cells = Cells.read(store, recipe, name, FIGURES)
        wanted = ["quality", "noise"] if recipe.starts > 1 else ["quality"]
        lacking = [table for table in wanted if store.read_table(f"{group}/{table}", cells.sha256) is None]
        if not lacking or not cells.state.finished or not len(cells.oips):
            continue
        layout = cells.layout
        if (needed := _COPIES * layout.bytes_of(["images"])) > (most := free_memory() // 2):
            logger.warning(
                "note: quality and noise control of %r are left out: they need %s of memory, and %s may be used",
                *(name, in_words(needed), in_words(most)),
            )
            continue
        oips = Cells.read(store, recipe, name, (*FIGURES, "images")).oips
        if "quality" in lacking:
            found = data_in(store, recipe, name)
            readers = None if data is None else _readers(model, oips, data)
            quality = _assessed(model, oips, None if found is None else found[1], readers)
            store.write_table(f"{group}/quality", quality_table(quality, layout.maps, layout.starts), cells.sha256)
        if "noise" in lacking:
            noise = noise_control(model, oips)
            store.write_table(f"{group}/noise", noise_table(noise, layout.maps), cells.sha256)
        added = True
    return added


def _readers(model: FeatureModel, oips: Oips, data: Data) -> Readers | None:
    """For the figures of legibility; None where there is one image alone."""
    images, training = (data.images[::2], data.images[1::2]) if data.training is None else (data.images, data.training)
    if not len(training):
        return None
    return Readers.of(model, oips.layer, images, training, pre_activation=oips.pre_activation, progress=False)


def _assessed(model: FeatureModel, oips: Oips, calibration: Calibration | None, readers: Readers | None) -> Quality:
    """What `assess` says, asked of so many maps at a time, with all of their starts, that it takes 8 MiB."""
    of_map = np.unique(oips.maps, return_index=True)[1]
    most = _PART_BYTES // (_PART_COPIES * oips.images[0].nbytes)  # images
    ends = [0]
    for first, end in zip(of_map, [*of_map[1:], len(oips)], strict=True):
        if end - ends[-1] > most and first > ends[-1]:
            ends.append(int(first))
    parts = [
        assess(model, oips.take(range(first, end)), calibration, readers=readers)
        for first, end in zip(ends, [*ends[1:], len(oips)], strict=True)
    ]
    names = [field.name for field in dataclasses.fields(Quality) if field.name != "layer"]
    return Quality(
        layer=oips.layer, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    )
