"""How does an atlas become files that other programs read: sheets, animations, a table, arrays?"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oip_torch.analysis.quality import Quality
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.base.files import as_path, check_output_folder, replacing_in
from oip_torch.results.animation import check_video
from oip_torch.results.fields import Array, variables_of
from oip_torch.results.oips import STATUSES
from oip_torch.results.pictures import file_name

if TYPE_CHECKING:
    from oip_torch.analysis.contents import LayerContents
    from oip_torch.atlas.atlas import Atlas

__all__ = ["KINDS", "export", "figure_rows"]

KINDS = ("sheets", "csv", "npz", "safetensors", "gif", "mp4")
_TABLE = "figures.csv"

_LEAST_WIDTH, _MOST_PIXELS = 300, 16_384
_DPI = 110
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for a formula
_OF_QUALITY = [
    field.name for field in dataclasses.fields(Quality) if field.name not in ("layer", "maps", "starts", "scores")
]
_COLUMNS = ["layer", "map", "start", "score", "status", "converged_at", "map_mean", *_OF_QUALITY, "noise"]


def export(
    atlas: Atlas,
    folder: str | os.PathLike[str],
    what: str | Iterable[str],
    layers: str | Iterable[str] | None,
    maps: int | Iterable[int] | None,
    width: int | None,
    scale: int,
    fps: float,
    replace: bool,
) -> list[Path]:
    """See `Atlas.export`."""
    folder = as_path(folder, "a folder")
    kinds = _kinds(what)
    chosen = _layers(atlas, layers)
    if width is not None and not _LEAST_WIDTH <= whole("width", width, 1) <= _MOST_PIXELS:
        raise InputError(f"width is {width}: expected {_LEAST_WIDTH} to {_MOST_PIXELS} pixels, or None")
    if maps is not None and not {"gif", "mp4"} & set(kinds):
        raise InputError(f"maps are given, but {', '.join(kinds)} hold all of them: expected gif or mp4 as well")
    if "mp4" in kinds:
        check_video()
    if folder.is_dir() and not replace:
        own = {file_name(layer) for layer in chosen}
        there = sorted(path.name for path in folder.iterdir() if _is_one_of(path.name, own, kinds))
        if there:
            raise InputError(
                f"{folder / there[0]} is there already{f', and {len(there) - 1} more' if len(there) > 1 else ''}: "
                "expected a folder without; with --replace (replace=True) they are replaced"
            )
    names: list[str] = []
    with replacing_in(folder, names) as temporary:
        table = None
        if "csv" in kinds:
            table = (temporary / _TABLE).open("w", encoding="utf-8", newline="")
            names.append(_TABLE)
        try:
            writer = None if table is None else csv.writer(table)
            if writer is not None:
                writer.writerow(_COLUMNS)
            images = 0
            for layer in chosen:  # one at a time: a layer's images may be many
                contents = atlas[layer]
                images += len(contents.oips)
                if writer is not None:
                    writer.writerows(figure_rows(contents, atlas.starts))
                if len(contents.oips):
                    names += _write(temporary, contents, kinds, maps, width, scale, fps)
            if not images:
                raise InputError(f"{atlas.path} holds no images of {', '.join(chosen)} yet: expected at least one")
        finally:
            if table is not None:
                table.close()
        check_output_folder(folder, names)  # that nothing is replaced where one of them is a folder
    return [folder / name for name in names]


def figure_rows(contents: LayerContents, starts: int) -> Iterator[list[Any]]:
    """A row for each map and start of a layer, under the headings of the table; what is undefined is empty."""
    oips, quality, noise = contents.oips, contents.quality, contents.noise
    place = {(one.map, one.start): row for row, one in enumerate(oips)}
    lost = set(oips.provenance.not_finite)
    flags = {} if noise is None else dict(zip(noise.maps.tolist(), noise.noise.tolist(), strict=True))
    name = _harmless(contents.layer.name)
    for number in range(contents.layer.maps):
        for start in range(starts):
            row = place.get((number, start))
            if row is None:
                status = "not_finite" if (number, start) in lost else "not_made"
                yield [name, number, start, "", status, *[""] * (len(_COLUMNS) - 5)]
                continue
            figures = [] if quality is None else [getattr(quality, of)[row] for of in ("scores", *_OF_QUALITY)]
            told = [_told(value) for value in figures] or [""] * (1 + len(_OF_QUALITY))
            step = int(oips.converged_at[row])
            flag = flags.get(number)
            yield [
                *(name, number, start, _told(oips.scores[row]), str(oips.status[row]), "" if step < 0 else step),
                *(*told, "" if flag is None else int(flag)),
            ]


def _write(
    folder: Path,
    contents: LayerContents,
    kinds: Iterable[str],
    maps: int | Iterable[int] | None,
    width: int | None,
    scale: int,
    fps: float,
) -> list[str]:
    """A layer's files; returns their names."""
    layer, names = file_name(contents.layer.name), []
    for kind in kinds:
        if kind == "sheets":
            names.append(f"{layer}.png")
            _write_sheet(folder / names[-1], contents, width)
        elif kind in _ARRAYS:
            names.append(f"{layer}.{kind}")
            _ARRAYS[kind](folder / names[-1], contents)
        elif kind in ("gif", "mp4"):
            best = contents.oips.best()
            chosen = best if maps is None else best.select(maps=maps)
            for one in chosen:
                names.append(f"{layer}_{one.map:03d}_{one.start:02d}.{kind}")
                chosen.save_animation(folder / names[-1], one.map, one.start, scale=scale, fps=fps)
    return names


def _write_sheet(path: Path, contents: LayerContents, width: int | None) -> None:
    from oip_torch import plots

    figure = plots.sheet(contents.oips.best(), control=contents.noise)
    dpi = _DPI if width is None else width / figure.get_figwidth()
    if (height := math.ceil(figure.get_figheight() * dpi)) > _MOST_PIXELS * 3:  # matplotlib's most is 2¹⁶
        raise InputError(
            f"the sheet of {contents.layer.name!r} would be {height} pixels high: expected a smaller width"
        )
    figure.savefig(path, dpi=dpi)


def _arrays_of(contents: LayerContents) -> dict[str, Array]:
    """By name: all of the layer's images, and the figures; the statuses as codes, the places in `STATUSES`."""
    held = {name: values for name, (_, values) in variables_of(contents.oips).items()}
    held["status"] = np.array([STATUSES.index(status) for status in contents.oips.status.tolist()], np.int8)
    if contents.quality is not None:
        own = variables_of(contents.quality)
        held |= {f"quality_{name}": values for name, (_, values) in own.items() if name not in ("map", "start")}
    if contents.noise is not None:
        held["noise"] = np.isin(contents.oips.maps, contents.noise.maps[contents.noise.noise])
    return {name: np.ascontiguousarray(values) for name, values in held.items()}


def _write_npz(path: Path, contents: LayerContents) -> None:
    words = {"layer": np.array(contents.layer.name), "status_meanings": np.array(STATUSES)}
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **_arrays_of(contents), **words)


def _write_safetensors(path: Path, contents: LayerContents) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    oips = contents.oips
    words = {
        "layer": contents.layer.name,
        "status_meanings": json.dumps(STATUSES),
        "settings": json.dumps(oips.settings.to_dict()),
        "provenance": json.dumps(oips.provenance.to_dict()),
    }
    try:
        save_file(_arrays_of(contents), path, metadata=words)
    except SafetensorError as error:  # the disk is full
        raise OSError(str(error)) from error


_ARRAYS: Mapping[str, Callable[[Path, LayerContents], None]] = {"npz": _write_npz, "safetensors": _write_safetensors}


def _kinds(what: str | Iterable[str]) -> list[str]:
    if not isinstance(what, (str, Iterable)):
        raise InputError(f"what is {shown(what)}: expected some of {', '.join(KINDS)}")
    kinds = [kind.strip() for kind in (what.split(",") if isinstance(what, str) else map(str, what))]
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"what has {kind!r}: expected some of {', '.join(KINDS)}")
    if not kinds:
        raise InputError(f"what is empty: expected some of {', '.join(KINDS)}")
    return [kind for kind in KINDS if kind in kinds]


def _layers(atlas: Atlas, layers: str | Iterable[str] | None) -> list[str]:
    if layers is None:
        return list(atlas.layers)
    if not isinstance(layers, (str, Iterable)):
        raise InputError(f"layers is {shown(layers)}: expected names of layers of the atlas, or None")
    chosen = [layers] if isinstance(layers, str) else [str(layer) for layer in layers]
    for layer in chosen:
        if layer not in atlas.layers:
            raise unknown_name("layer of the atlas", layer, atlas.layers)
    if not chosen:
        raise InputError("layers is empty: expected names of layers of the atlas, or None")
    return list(dict.fromkeys(chosen))


def _is_one_of(name: str, layers: set[str], kinds: Iterable[str]) -> bool:
    """Whether it may be the name of a file that is to be written."""
    if name == _TABLE:
        return "csv" in kinds
    stem, _, ending = name.rpartition(".")
    if ending in ("gif", "mp4"):
        stem = stem.rpartition("_")[0].rpartition("_")[0]
    return stem in layers and ("sheets" if ending == "png" else ending) in kinds


def _harmless(text: str) -> str:
    """A name as a spreadsheet shows it, and does not work it out: with an apostrophe where it begins as a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _told(value: Any) -> str | float:
    """The number with all of its digits, or nothing where it is undefined."""
    return "" if math.isnan(value) else float(value)
