"""What does an atlas hold? `Atlas`: what was made so far, layer by layer, in the package's own values."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oip_torch.analysis.calibration import Calibration
from oip_torch.analysis.contents import DataContents, LayerContents, NetworkContents
from oip_torch.atlas.layout import FIGURES, LARGE, NOT_FINITE, NOT_MADE, Layout, digest
from oip_torch.atlas.recipe import Recipe
from oip_torch.atlas.store import Store
from oip_torch.atlas.tables import data_of, noise_of, quality_of
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.results.fields import Array
from oip_torch.results.oips import STATUSES, Oips
from oip_torch.results.provenance import Provenance

if TYPE_CHECKING:
    from oip_torch.gallery.page import Gallery

__all__ = ["Atlas", "Cells", "LayerState", "about", "data_in", "layout_of", "open_atlas"]


@dataclass(frozen=True)
class LayerState:
    """How far a layer is: cells, which are made and written one by one, and images.

    Attributes:
        done, planned: cells.
        images: that are there or were lost, since they left the finite numbers.
        planned_images: of all cells.
        torn: cells that were written, and are not what was written: `make_atlas(…, resume=True)` makes them again.
    """

    done: int
    planned: int
    images: int
    planned_images: int
    torn: int = 0

    @property
    def finished(self) -> bool:
        """Whether all cells are whole."""
        return self.done == self.planned


class Atlas(Mapping[str, LayerContents]):
    """OIPs of all maps of a network, as far as they are made; from `open_atlas` or `make_atlas`.

        atlas = oip.open_atlas("atlas.zarr")
        atlas.network.name, atlas.layers, atlas.state
        atlas["Conv2D_3"].oips                      # all images of the layer that are there

    A layer is read when it is asked for, and each time anew: nothing is kept, and what another process has written by
    then is among it.

    Attributes:
        path: where it lies.
        network: what it holds of the network.
        starts: how many each map has, or will have.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.name
        self._recipe = Recipe.from_attributes(store.attributes(), store.name)
        self.network: NetworkContents = self._recipe.network
        self.starts = self._recipe.starts

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that it holds, in the network's order."""
        return self.network.of_layers

    @property
    def state(self) -> dict[str, LayerState]:
        """How far each layer is. All of it is read, and compared with the digests that were written with it."""
        return {name: self._cells(name, ()).state for name in self.layers}

    def __getitem__(self, layer: str) -> LayerContents:
        """All of a layer.

        Raises:
            InputError: the atlas does not have it; or what lies there is not what was written.
        """
        return self._contents(layer, (*FIGURES, *LARGE))

    def figures(self, layer: str) -> LayerContents:
        """The same without images, traces and snapshots, which are empty: all numbers of a layer in little memory."""
        return self._contents(layer, FIGURES)

    def _contents(self, layer: str, kept: Collection[str]) -> LayerContents:
        cells = self._cells(layer, kept)
        if cells.state.torn:
            raise InputError(
                f"{self.path}: {cells.state.torn} of {cells.state.planned} parts of {layer!r} are damaged: make them "
                "again, with --resume or make_atlas(…, resume=True)"
            )
        entry = next(entry for entry in self.network.layers if entry.name == layer)
        found = self.data(layer)
        quality = noise = None
        if cells.state.finished and len(cells.oips):
            group = self._recipe.group(layer)
            tables = {name: self._store.read_table(f"{group}/{name}", cells.sha256) for name in ("quality", "noise")}
            try:
                quality = None if tables["quality"] is None else quality_of(tables["quality"], cells.oips)
                noise = None if tables["noise"] is None else noise_of(tables["noise"], cells.oips)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise InputError(f"{self.path}: the figures of {layer!r} are damaged ({error})") from None
        return LayerContents(
            layer=entry,
            oips=cells.oips,
            planned=cells.state.planned_images,
            quality=quality,
            noise=noise,
            data=None if found is None else found[0],
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __contains__(self, layer: object) -> bool:
        return layer in self.layers

    def __repr__(self) -> str:
        state = self.state
        images, planned = (sum(getattr(own, of) for own in state.values()) for of in ("images", "planned_images"))
        return (
            f"<Atlas of {self.network.name!r}: {images} of {planned} images, {self.starts} starts of the maps of "
            f"{', '.join(self.layers)}; {self.path}>"
        )

    def gallery(self, report: str | os.PathLike[str] | None = None) -> Gallery:
        """The page of `oip gallery`: a notebook shows it in the cell, and its `save` writes it to a file.

        Args:
            report: a folder that `oip compare -o` wrote, whose figures are shown as well; None: without.

        Raises:
            InputError: no images yet, a damaged atlas, or no report of this network.
        """
        from oip_torch.gallery.page import Gallery, gallery_page
        from oip_torch.gallery.reports import read_report

        compared = None if report is None else read_report(report, [layer.name for layer in self.network.layers])
        return Gallery(gallery_page(self.network, (self[name] for name in self.layers), compared))

    def data(self, layer: str) -> tuple[DataContents, Calibration] | None:
        """What real images draw from a layer, as the gallery and the figures of quality want it; None without data."""
        return data_in(self._store, self._recipe, layer)

    def export(
        self,
        folder: str | os.PathLike[str],
        what: str | Iterable[str] = ("sheets", "csv"),
        layers: str | Iterable[str] | None = None,
        *,
        maps: int | Iterable[int] | None = None,
        width: int | None = None,
        scale: int = 8,
        fps: float = 2.0,
        replace: bool = False,
    ) -> list[Path]:
        """Write what other programs read, all of it or nothing; returns the files.

        - sheets: LAYER.png, a contact sheet of the best image of each map (`oip_torch.plots.sheet`).
        - csv: figures.csv, a row for each map and start: score, status, the figures of `Quality`, and whether the map
          is not distinguishable from noise (1, 0). What is undefined is empty; images that are not there have the
          status not_made or not_finite. A name that a spreadsheet would take for a formula has an apostrophe before it.
        - npz, safetensors: LAYER.npz and so on, all images of a layer with their scores, ways and figures.
        - gif, mp4: LAYER_MAP_START.gif, how the best image of each map came about (`Oips.save_animation`).

        Args:
            folder: where to; it is made if it is missing.
            what: some of these kinds, as a text with commas or one by one.
            layers: names; None: all of the atlas.
            maps: of gif and mp4; None: all.
            width: of a sheet, 300 to 16,384 pixels; None: as many as its pictures need.
            scale: of gif and mp4, as in `Oips.save_animation`.
            fps: likewise.
            replace: whether files of these names may be there, and are replaced.

        Raises:
            InputError: another kind, layer or map, no images, files that are there without `replace`, or the folder
                cannot be written to.
        """
        from oip_torch.atlas.exports import export

        return export(self, folder, what, layers, maps, width, scale, fps, replace)

    def _cells(self, layer: str, kept: Collection[str]) -> Cells:
        if layer not in self.layers:
            raise unknown_name("layer of the atlas", layer, self.layers)
        return Cells.read(self._store, self._recipe, layer, kept)


def open_atlas(path: str | os.PathLike[str]) -> Atlas:
    """Open an atlas that `oip atlas` or `make_atlas` has made, or has begun.

    It is read as data, and nothing in it is run: arrays of numbers of the expected sizes, and texts.

    Args:
        path: of its folder, or a URL that fsspec knows, such as "s3://bucket/atlas.zarr".

    Raises:
        InputError: nothing is there, or something else.
    """
    return Atlas(Store(path, writable=False))


def data_in(store: Store, recipe: Recipe, layer: str) -> tuple[DataContents, Calibration] | None:
    """What real images draw from a layer; None where there is none."""
    if recipe.data is None:
        return None
    table = store.read_table(f"{recipe.group(layer)}/data", recipe.data)
    try:
        return None if table is None else data_of(table, layer)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{store.name}: what real images draw from {layer!r} is damaged ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What lies in a layer's group.

    Attributes:
        layout: of its arrays.
        made, torn: (cells, starts) bool.
        oips: the images that are whole.
        sha256: over all that is there, and over the real data; what is worked out from it says of what it was.
    """

    layout: Layout
    made: Array
    torn: Array
    oips: Oips
    sha256: str

    @property
    def state(self) -> LayerState:
        """How far it is."""
        rows = np.array([self.layout.rows(cell).stop - self.layout.rows(cell).start for cell in range(len(self.made))])
        return LayerState(
            done=int(self.made.sum()),
            planned=self.made.size,
            images=int((rows[:, None] * self.made).sum()),
            planned_images=self.layout.maps * self.layout.starts,
            torn=int(self.torn.sum()),
        )

    @classmethod
    def read(cls, store: Store, recipe: Recipe, layer: str, kept: Collection[str]) -> Cells:
        """All of it, checked; of these arrays what is in `oips`, which without the figures has no images."""
        layout, provenance = about(store, recipe, layer)
        arrays, made, torn, digest_of_cells = store.read_cells(recipe.group(layer), layout, kept)
        sha256 = digest({}, {"cells": digest_of_cells.hex(), "data": recipe.data}).hex()
        oips = _oips(layout, arrays, made, recipe, provenance, layer)
        return cls(layout=layout, made=made, torn=torn, oips=oips, sha256=sha256)


def _oips(
    layout: Layout, arrays: dict[str, Array], made: Array, recipe: Recipe, provenance: Provenance, layer: str
) -> Oips:
    """The images that are there; of arrays that were not kept there is nothing in them."""
    height, width, channels = layout.image
    empty = {"images": (height, width, 0), "traces": (0,), "snapshots": (0, height, width, channels)}
    status = arrays.get("status", np.full((layout.maps, layout.starts), NOT_MADE))
    if unknown := set(np.unique(status).tolist()) - set(range(NOT_MADE, NOT_FINITE + 1)):
        raise InputError(f"the atlas has the status {unknown.pop()} in {layer!r}: expected {NOT_MADE} to {NOT_FINITE}")
    maps, starts = np.nonzero((status != NOT_MADE) & (status != NOT_FINITE))
    whole = len(maps) == status.size  # then what is there is what is kept, and need not be copied
    held = {
        name: arrays[name].reshape(-1, *arrays[name].shape[2:]) if whole else arrays[name][maps, starts]
        for name in (*FIGURES, *LARGE)
        if name in arrays and "cell" not in name
    }
    for name in set(FIGURES + LARGE) - held.keys():
        held[name] = np.zeros((len(maps), *empty.get(name, ())), np.float32)
    settings = recipe.settings_of(layer)
    steps = settings.snapshot_steps() if "snapshots" in arrays else ()
    return Oips(
        layer=layer,
        maps=maps,
        starts=starts,
        images=held["images"],
        scores=held["scores"],
        max_preactivation=held["max_preactivation"],
        traces=held["traces"],
        snapshots=held["snapshots"],
        snapshot_steps=np.array(steps, np.int64),
        status=np.array(STATUSES)[held["status"].astype(int)],
        converged_at=held["converged_at"].astype(np.int64),
        settings=settings,
        provenance=replace(
            provenance,
            not_finite=tuple((int(number), int(start)) for number, start in np.argwhere(status == NOT_FINITE)),
            image_steps=int(arrays["cell_steps"][made].sum()) if "cell_steps" in arrays else 0,
            seconds=float(arrays["cell_seconds"][made].sum()) if "cell_seconds" in arrays else 0.0,
        ),
    )


def about(store: Store, recipe: Recipe, layer: str) -> tuple[Layout, Provenance]:
    """The layout of a layer's arrays, and what made them, as its group says it."""
    attributes: dict[str, Any] = store.attributes(recipe.group(layer))
    try:
        if attributes["layer"] != layer:
            raise ValueError(f"it is of {str(attributes['layer'])[:40]!r}")
        cell = int(attributes["cell"])
        layout = layout_of(recipe, layer, cell)
        if not 1 <= cell <= layout.maps:
            raise ValueError(f"cells of {cell} maps")
        return layout, Provenance.from_dict(attributes["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{store.name}: the group of {layer!r} is damaged ({error})") from None


def layout_of(recipe: Recipe, layer: str, cell: int) -> Layout:
    """Of the arrays of a layer, with so many maps in a cell."""
    channels, height, width = recipe.network.input_shape
    settings = recipe.settings_of(layer)
    entry = next(entry for entry in recipe.network.layers if entry.name == layer)
    return Layout(
        maps=entry.maps,
        starts=recipe.starts,
        cell=cell,
        image=(height, width, channels),
        steps=settings.way_steps,
        snapshots=len(settings.snapshot_steps()),
    )
