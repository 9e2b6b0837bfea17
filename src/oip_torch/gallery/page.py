"""How does an atlas become one page that needs no other file?"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from oip_torch.analysis.contents import LayerContents, NetworkContents
from oip_torch.base.errors import InputError
from oip_torch.base.files import as_path, replacing
from oip_torch.base.strict_json import check_plain
from oip_torch.gallery.entries import (
    best_row,
    count_words,
    layer_entry,
    map_rows,
    network_entry,
    settings_words,
    strip_entry,
)
from oip_torch.gallery.sprites import LOOKS, Sheet, Tiling, encoded, tiled
from oip_torch.results.fields import Array
from oip_torch.results.pictures import way_frames

__all__ = ["Gallery", "gallery_page", "write_gallery"]

_CHUNK = 16  # maps whose starts, ways and real images share a sheet: what is decoded when a map is opened
_SCRIPTS = "data.js", "grid.js", "map.js", "page.js"  # one script in the page, in this order
_FRAME_HEIGHT = 900  # pixels of a notebook's cell


@dataclass(frozen=True)
class Gallery:
    """A page, which a notebook shows in the cell.

    Attributes:
        html: all of it.
    """

    html: str

    def __repr__(self) -> str:
        return f"<Gallery: a page of {len(self.html) / 1e6:.1f} MB>"

    def _repr_html_(self) -> str:
        """In a frame of its own origin: the page's script reaches nothing of the notebook."""
        return (
            f'<iframe title="Gallery of an atlas" sandbox="allow-scripts" srcdoc="{escape(self.html)}" '
            f'style="width: 100%; height: {_FRAME_HEIGHT}px; border: 0"></iframe>'
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, whole or not at all; returns the path.

        Raises:
            InputError: another ending than .html or .htm, or the file cannot be written.
        """
        path = checked_path(path)
        with replacing(path) as temporary:
            temporary.write_text(self.html, encoding="utf-8")
        return path


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path, if it is that of a page; otherwise an `InputError`."""
    path = as_path(path, "an HTML file, with the ending .html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}: expected an HTML file, with the ending .html")
    return path


def write_gallery(
    network: NetworkContents,
    layers: Iterable[LayerContents],
    path: str | os.PathLike[str],
    report: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page of an atlas to a file, whole or not at all; returns the path. See `gallery_page`."""
    path = checked_path(path)
    return Gallery(gallery_page(network, layers, report)).save(path)


def gallery_page(
    network: NetworkContents, layers: Iterable[LayerContents], report: Mapping[str, Any] | None = None
) -> str:
    """HTML that needs no other file and no network: the layers, their maps, and a view of each map.

    Args:
        network: what the atlas says of the network.
        layers: what it holds of each of `network.of_layers`, in their order. They are taken one at a time, so that one
            layer's arrays and the page are in memory.
        report: of `oip compare`, as `reports.read_report` gives it.

    Raises:
        InputError: no images, or other layers than the network's.
    """
    try:
        check_plain([network.name, *(layer.name for layer in network.layers)])
    except ValueError as error:
        raise InputError(f"a name cannot be written on a page: {error}; expected text that UTF-8 has") from error
    channels, height, width = network.input_shape
    tiling = Tiling(height, width)
    held = []
    for contents in layers:
        if len(contents.oips):
            held.append(_Held.of(contents, tiling, report))
        del contents  # before the next one is read
    if not held:
        raise InputError("this atlas holds no images yet: expected at least one; run `oip atlas` first")
    entries = [each.entry for each in held]
    by_name = {entry["name"]: index for index, entry in enumerate(entries)}
    if unknown := by_name.keys() - {layer.name for layer in network.layers}:
        raise InputError(f"the network has no layer {sorted(unknown)[0]!r}: expected an atlas of this network")
    environment = Environment(loader=PackageLoader("oip_torch", "gallery"), autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    script, style = "\n".join(map(_asset, _SCRIPTS)), _asset("page.css")
    return environment.get_template("page.html.j2").render(
        network=network,
        data=network_entry(network, entries, report),
        strip=[strip_entry(layer, by_name.get(layer.name)) for layer in network.layers],
        layers=held,
        looks=list(LOOKS),
        counts=count_words(entries),
        settings=settings_words(network),
        reduction=_reduction_words(tiling),
        size=f"{height}×{width}×{channels}",
        script=script,
        style=style,
        policy=_policy(script, style),
    )


@dataclass(frozen=True)
class _Held:
    """What the page keeps of a layer: its entry, and the sheets by the names that page.js looks them up by."""

    entry: dict[str, Any]
    best: dict[str, Sheet]
    packs: dict[str, Sheet]

    @classmethod
    def of(cls, contents: LayerContents, tiling: Tiling, report: Mapping[str, Any] | None) -> _Held:
        oips = contents.oips
        oips.check_of_maps()
        entry = layer_entry(contents, report, _CHUNK)
        groups = list(map_rows(oips).items())
        best = [best_row(oips, rows) for _, rows in groups]
        lossless, packs = not tiling.reduced, {}

        def sheet(images: Array, look: str, size: tuple[int, int]) -> Sheet:
            return encoded([tiled(images, oips.ends, look, size)], lossless)

        for first in range(0, len(groups), _CHUNK):
            chunk, number = groups[first : first + _CHUNK], first // _CHUNK
            for look in LOOKS:
                parts = [part for _, rows in chunk for part in _map_pictures(contents, rows, look, tiling)]
                packs[f"{number}-{look}"] = encoded(parts, lossless)
            if contents.data is not None:
                real = _Real.of(contents, [map_ for map_, _ in chunk])
                for map_entry, places in zip(entry["maps"][first : first + _CHUNK], real.places, strict=True):
                    map_entry["data"]["pictures"] = places
                packs[f"{number}-real"] = sheet(real.pictures, "data", tiling.tile)
        if tiling.large is not None:
            for position, row in enumerate(best):
                for look in LOOKS:
                    packs[f"large-{position}-{look}"] = sheet(oips.images[row][None], look, tiling.large)
        sheets = {look: sheet(oips.images[best], look, tiling.tile) for look in LOOKS}
        entry |= {
            "tile": tiling.tile,
            "full": [tiling.height, tiling.width],
            "large": tiling.large,
            "columns": {name: pack.columns for name, pack in packs.items()},
            "bestColumns": sheets["data"].columns,
        }
        return cls(entry, {"data": sheets["data"]}, packs | {"best-strongest": sheets["strongest"]})


@dataclass(frozen=True)
class _Real:
    """The real images of some maps, each once, and where those of each map are among them."""

    pictures: Array
    places: list[list[int]]

    @classmethod
    def of(cls, contents: LayerContents, numbers: Sequence[int]) -> _Real:
        assert contents.data is not None
        own = contents.data.calibration
        indices, places = np.unique(own.top_indices[list(numbers)], return_inverse=True)
        pictures = own.pictures[np.searchsorted(own.picture_indices, indices)]
        return cls(pictures, places.reshape(len(numbers), -1).tolist())


def _map_pictures(contents: LayerContents, rows: Sequence[int], look: str, tiling: Tiling) -> Iterator[Array]:
    """The starts of one map, and then how the best of them came about: the snapshots, and the result."""
    oips = contents.oips
    yield tiled(oips.images[list(rows)], oips.ends, look, tiling.tile)
    yield tiled(way_frames(oips, best_row(oips, rows)), oips.ends, look, tiling.tile, together=True)


def _asset(name: str) -> str:
    return resources.files("oip_torch.gallery").joinpath(name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    """Nothing but this script and this style, and pictures that are in the page."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _reduction_words(tiling: Tiling) -> str:
    """What was done to the pictures, in a sentence."""
    if not tiling.reduced:
        return "Pictures are stored without loss, pixel by pixel."
    tile, large = ("×".join(map(str, size)) for size in (tiling.tile, tiling.large or ()))
    return (
        f"Pictures are reduced from {tiling.height}×{tiling.width} to {tile} pixels, that of each map's best image to "
        f"{large}, and compressed with loss."
    )
