"""Which part of a picture did a unit see: outlined, or cut out?"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.patches import Rectangle

from oip_torch.analysis.calibration import Calibration
from oip_torch.analysis.responses import respond
from oip_torch.base.checks import shown, whole, whole_numbers
from oip_torch.base.drawing import (
    INK,
    STATUS_COLORS,
    Figure,
    Size,
    add_note,
    checked_figsize,
    shade,
    shade_note,
    show_picture,
)
from oip_torch.base.errors import InputError
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.results.oips import Oips, plural, short
from oip_torch.results.responses import Responses

__all__ = [
    "OUTLINE",
    "add_title",
    "check_responses",
    "label_of",
    "outline_field",
    "seen",
    "sight_note",
    "title_of",
    "top_images",
]

OUTLINE = "#ff8c1a"
"""The colour of an outline, seen on black, white and grey."""
_OUTSIDE = (0.80, 0.84, 0.93)  # no grey: it cannot be taken for a pixel
_FAINT = "#999999"


def seen(
    responses: Responses,
    *,
    crop: bool = False,
    columns: int | None = None,
    cmap: str | Colormap = "data",
    figsize: Size | None = None,
) -> Figure:
    """A contact sheet in which the part of each picture that one unit of its map sees is outlined, or cut out.

    The unit is that with the largest activation, or the one that `respond` was asked for with `place=`: of an OIP that
    was made for one unit (`objectives.neuron`), the rest of the picture says nothing.

    Args:
        responses: from `respond`, with a layer.
        crop: show the unit's field alone, at one scale for all; what of it lies beyond the image is blue-grey.
        columns: pictures per row; by default 12 at most.
        cmap: colours of the pictures, see `sheet`.
        figsize: (width, height) in inches.

    Raises:
        InputError: no responses, or without a layer.
    """
    check_responses(responses, with_layer=True)
    count = len(responses)
    columns = (
        min(12, max(4, math.ceil(math.sqrt(2 * count))), count) if columns is None else whole("columns", columns, 1)
    )
    cells = _cells(
        responses,
        cmap,
        crop,
        [f"{label_of(responses, row, flat=True)}: {_activation(responses, row)}" for row in range(count)],
    )
    rows = [cells[first : first + columns] for first in range(0, count, columns)]
    figure = _draw(rows, [""] * len(rows), [], figsize)
    what = f"{responses.place}: what a unit sees of {title_of(responses)}{', cut out' if crop else ''}"
    add_title(figure, what)
    above = "Above each picture: its map's largest activation." if responses.at_peak else (
        "Above each picture: the activation of the unit."
    )  # fmt: skip
    if responses.noun != "map":
        above = f"Above each picture: the activation of its {responses.noun}."
    add_note(figure, "\n".join([*sight_note(responses, crop), above, shade_note(responses.ends, cmap)]))
    return figure


def top_images(
    model: FeatureModel,
    calibration: Calibration,
    layer: str | Layer,
    maps: int | Iterable[int] | None = None,
    count: int = 5,
    *,
    oips: Oips | None = None,
    crop: bool = False,
    cmap: str | Colormap = "data",
    figsize: Size | None = None,
) -> Figure:
    """A row per map: the real images that excite it most, with what the map saw of them outlined, or cut out.

    On each image the outline is the receptive field of the unit at which the map is largest.

    Args:
        model: the one that was calibrated.
        calibration: with the layer.
        layer: its name, or an entry of `model.layers`.
        maps: which maps, in this order; None: those of the OIPs, or all.
        count: how many real images, 1 or more; at most as many as the calibration holds.
        oips: of this layer: the best one of each map stands in front, outlined likewise.
        crop: show the fields alone, at one scale; what of them lies beyond the image is blue-grey.
        cmap: colours of the pictures, see `sheet`.
        figsize: (width, height) in inches.

    Raises:
        InputError: a calibration or OIPs of another model or layer, a map that is not there, no image asked for.
    """
    if not isinstance(model, FeatureModel) or not isinstance(calibration, Calibration):
        raise InputError(
            f"model is {shown(model)}, calibration is {shown(calibration)}: expected what oip_torch.load and "
            "oip_torch.calibrate return"
        )
    calibration.check(model)
    name = model.layer(layer).name
    data, noun = calibration[name], model.noun(name)
    count = min(whole("count", count, 1), data.top_indices.shape[1])
    if oips is not None:
        if not isinstance(oips, Oips) or not len(oips) or oips.layer != name:
            raise InputError(f"oips is {shown(oips)}: expected OIPs of {name!r}, or None for the real images alone")
        calibration.check(oips)
        oips = oips.select(maps=maps).best()
        numbers = oips.maps.tolist()
    else:
        numbers = list(range(len(data.maximum))) if maps is None else whole_numbers(f"{noun} numbers", maps)
    if not numbers:
        raise InputError(f"there are no {noun} numbers: expected at least one, or None for all")
    if wrong := [number for number in numbers if not 0 <= number < len(data.maximum)]:
        raise InputError(f"no {noun} {wrong[0]} in {name}: expected 0 to {len(data.maximum) - 1}")
    real = np.concatenate([data.top_of(number)[:count] for number in numbers])
    own = np.repeat(numbers, count)
    said = respond(model, real, name, own, pre_activation=data.pre_activation)
    labels = [
        f"#{data.top_indices[number, place]}: {short(float(data.top_scores[number, place]))}"
        for number in numbers
        for place in range(count)
    ]
    cells = _cells(said, cmap, crop, labels)
    excited: npt.NDArray[np.bool_] = data.excited
    for cell, of_map in zip(cells, own.tolist(), strict=True):
        if not excited[of_map]:
            cell.faded, cell.color = True, _FAINT
    rows = [cells[first : first + count] for first in range(0, len(cells), count)]
    heads = [(0, count, "real images, the most exciting first")]
    if oips is not None:
        made = respond(model, oips)
        in_front = _cells(made, cmap, crop, [label.partition(": ")[2] for label in oips.labels])
        for cell, status in zip(in_front, oips.status.tolist(), strict=True):
            cell.faded, cell.color = status == "dead", STATUS_COLORS[status]
        rows = [[cell, *row] for cell, row in zip(in_front, rows, strict=True)]
        heads = [(0, 1, "OIP"), (1, count + 1, heads[0][2])]
    figure = _draw(rows, [f"{noun}\n{number}" for number in numbers], heads, figsize, apart=oips is not None)
    what = f"the real images that excite each {noun} most"
    saw = ", and what a unit saw of them" if noun == "map" else ""
    add_title(figure, f"{said.place}: {what}{saw} ({calibration.count} images)")
    mean = "mean of what goes into it" if data.pre_activation else "mean activation"
    order = f"Above the real images: number in the data, score ({mean}), of equal ones the first in the data."
    faded = "" if excited[numbers].all() else f" Faded: they do not excite the {noun}."
    add_note(figure, "\n".join([*sight_note(said, crop), order + faded, shade_note(said.ends, cmap)]))
    return figure


@dataclass
class _Cell:
    """One picture of a sheet."""

    picture: npt.NDArray[np.floating]
    label: str
    outline: tuple[int, int, int, int] | None  # top, bottom, left, right in the picture's pixels
    color: str = INK
    faded: bool = False


def _cells(responses: Responses, cmap: str | Colormap, crop: bool, labels: Sequence[str]) -> list[_Cell]:
    shades = shade(responses.images, responses.ends, cmap)
    if not crop:
        return [
            _Cell(picture, label, _field(responses, row))
            for row, (picture, label) in enumerate(zip(shades, labels, strict=True))
        ]
    assert responses.fields is not None
    assert responses.unclipped_fields is not None
    height, width = shades.shape[1:3]
    windows = responses.unclipped_fields.copy()
    for first, most in ((0, height), (2, width)):  # of a field that is larger than the image only what is in it
        large = windows[:, first + 1] - windows[:, first] > most
        windows[large, first : first + 2] = responses.fields[large, first : first + 2]
    known = np.asarray((responses.fields >= 0).all(1))
    sizes = np.stack([windows[:, 1] - windows[:, 0], windows[:, 3] - windows[:, 2]], 1)
    rows, columns = sizes[known].max(0) if known.any() else (height, width)
    cells = []
    for row, label in enumerate(labels):
        cut = np.full((rows, columns, 3), _OUTSIDE)
        if known[row]:
            top, bottom, left, right = responses.fields[row]
            y, x = top - windows[row, 0], left - windows[row, 2]
            cut[y : y + bottom - top, x : x + right - left] = shades[row, top:bottom, left:right]
        cells.append(_Cell(cut, label, None))
    return cells


def _draw(
    rows: Sequence[Sequence[_Cell]],
    sides: Sequence[str],
    heads: Sequence[tuple[int, int, str]],
    figsize: Any,
    *,
    apart: bool = False,
) -> Figure:
    """Rows of pictures with their labels above; `heads` are over columns from, to; `apart` sets off the first one.

    The pictures of the first column and the others may differ in size.
    """
    height = max(cell.picture.shape[0] for row in rows for cell in row)
    width = max(cell.picture.shape[1] for row in rows for cell in row)
    gap_x, gap_y, set_off = max(1, round(0.14 * width)), max(2, round(0.3 * height)), max(2, round(0.4 * width))
    most = max(len(row) for row in rows)
    begin = set_off if any(sides) else 0
    lefts = [begin + column * (width + gap_x) + (set_off if apart and column else 0) for column in range(most)]
    mosaic = np.ones((len(rows) * (height + gap_y) + gap_y, lefts[-1] + width, 3))
    inches = 1.05 / width
    size = checked_figsize(figsize) or (max(4.5, inches * mosaic.shape[1]), inches * mosaic.shape[0] + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        top = index * (height + gap_y) + 2 * gap_y - (0 if heads else gap_y)
        if sides[index]:
            axes.text(
                lefts[0] - 0.1 * width,
                top + height / 2,
                sides[index],
                fontsize=9,
                color=INK,
                ha="right",
                va="center",
                parse_math=False,
            )
        for cell, left in zip(row, lefts, strict=False):
            tall, wide = cell.picture.shape[:2]
            y, x = top + (height - tall) // 2, left + (width - wide) // 2
            mosaic[y : y + tall, x : x + wide] = 0.25 * cell.picture + 0.75 if cell.faded else cell.picture
            where = (left + width / 2 - 0.5, top - 0.5 - 0.03 * height)
            axes.text(*where, cell.label, fontsize=7, color=cell.color, ha="center", va="bottom", parse_math=False)
            if cell.outline is not None:
                _rectangle(axes, cell.outline, y, x)
    if not heads:
        mosaic = mosaic[: len(rows) * (height + gap_y)]
    show_picture(axes, mosaic)
    for first, end, text in heads:
        middle = (lefts[first] + lefts[end - 1] + width) / 2 - 0.5
        axes.text(middle, 0.5 * gap_y, text, fontsize=9, color=INK, ha="center", va="center", parse_math=False)
    return figure


def _rectangle(axes: Axes, field: tuple[int, int, int, int], y: float = 0, x: float = 0) -> None:
    top, bottom, left, right = field
    axes.add_patch(
        Rectangle(
            (x + left - 0.5, y + top - 0.5), right - left, bottom - top,
            fill=False, edgecolor=OUTLINE, linewidth=1.2, clip_on=False,
        )
    )  # fmt: skip


def outline_field(axes: Axes, responses: Responses, row: int) -> None:
    """Draw what the unit sees of one picture, if it is a part of it."""
    field = _field(responses, row)
    if field is not None:
        _rectangle(axes, field)


def _field(responses: Responses, row: int) -> tuple[int, int, int, int] | None:
    """What is outlined: the field, if there is one and it is not the whole image."""
    if responses.fields is None or (responses.fields[row] < 0).any():
        return None
    top, bottom, left, right = (int(end) for end in responses.fields[row])
    nothing, all_ = top == bottom or left == right, (bottom - top, right - left) == responses.images.shape[1:3]
    return None if nothing or all_ else (top, bottom, left, right)


def sight_note(responses: Responses, crop: bool = False) -> list[str]:
    """What the outline is, in a sentence; nothing where there is no layer."""
    if responses.fields is None or responses.places is None:
        return []
    height, width = responses.images.shape[1:3]
    known = responses.fields[(responses.fields >= 0).all(1)]
    if not len(known):
        return [f"No outline: each {responses.noun} is the same all over, no unit is ahead."]
    place = "at which the map is largest" if responses.at_peak else f"at {tuple(responses.places[0].tolist())}"
    of_maps = responses.noun == "map"
    unit = f"the unit {place} sees" if of_maps else f"the {plural(responses.noun)} of {responses.layer} see"
    sizes = {(int(bottom - top), int(right - left)) for top, bottom, left, right in known}
    if sizes == {(height, width)}:
        return [f"{unit[0].upper()}{unit[1:]} the whole image, so that nothing is outlined."]
    rows, columns = max(sizes)
    what = "Shown is" if crop else "Outlined is"
    rim = " (less at the rim)" if len(sizes) > 1 else ""
    silent = " None where the map is the same all over." if len(known) < len(responses) else ""
    beyond = (
        " Blue-grey lies beyond the image." if crop and (responses.fields != responses.unclipped_fields).any() else ""
    )
    return [f"{what} what {unit}: {rows}×{columns} of {height}×{width} pixels{rim}.{silent}{beyond}"]


def add_title(figure: Figure, text: str) -> None:
    """Above all, its lines broken to fit the figure."""
    most = max(12, round(figure.get_figwidth() / 0.1))  # letters in a line, at this size
    figure.suptitle("\n".join(textwrap.wrap(text, most)), fontsize=11, color=INK, parse_math=False)


def title_of(responses: Responses) -> str:
    """How many of what there are: "4 OIPs"."""
    return (
        f"{len(responses)} {'OIP' if responses.starts is not None else 'picture'}{'' if len(responses) == 1 else 's'}"
    )


def label_of(responses: Responses, row: int, flat: bool = False) -> str:
    """What one picture is called; `flat`: in one short line."""
    if responses.maps is None:
        return f"picture {row}"
    number = f"{responses.noun} {responses.maps[row]}"
    if responses.starts is None:
        return number if flat else f"picture {row}\n{number}"
    if len(set(responses.starts.tolist())) == 1:
        return number
    return f"{number}·{responses.starts[row]}" if flat else f"{number}, start {responses.starts[row]}"


def _activation(responses: Responses, row: int) -> str:
    """Of the unit that is told of."""
    assert responses.activations is not None
    assert responses.places is not None
    y, x = responses.places[row]
    values = responses.activations[row]
    return short(float(values[y, x] if y >= 0 else values.max()) + 0.0)  # no -0


def check_responses(responses: Responses, with_layer: bool = False) -> None:
    """Raise an `InputError` where there are none, or none of a layer where one is needed."""
    if not isinstance(responses, Responses):
        raise InputError(f"responses is {shown(responses)}: expected what oip_torch.respond returns")
    if not len(responses):
        raise InputError("there are no responses to show: expected at least one")
    if with_layer and responses.fields is None:
        raise InputError("these responses have no layer: expected respond(model, images, layer=…, maps=…)")
