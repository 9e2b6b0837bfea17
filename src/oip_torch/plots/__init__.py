"""How does it look? Every function returns a matplotlib Figure and neither shows nor saves it.

    oip.plots.sheet(oips).savefig("sheet.png")

The figures do not belong to pyplot: nothing has to be closed, and a notebook shows what a cell returns. `figsize` is
the figure's size in inches. What is one Axes can be drawn into one of the caller's, which is then returned:

    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained")
    oip.plots.sheet(oips, ax=left)
    oip.plots.trace(oips, ax=right)

The title is then that of the Axes, the note stands below it, and the figure around it is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from oip_torch.base.checks import shown, whole
from oip_torch.base.drawing import (
    INK,
    SCREENING,
    STATUS_COLORS,
    Canvas,
    Figure,
    Size,
    add_note,
    checked_figsize,
    draw_sheet,
    shade,
    shade_note,
    show_picture,
)
from oip_torch.base.errors import InputError
from oip_torch.plots.common import called, check_some
from oip_torch.plots.comparison import agreement, cross_scores, divergence, side_by_side
from oip_torch.plots.fields import seen, top_images
from oip_torch.plots.matching import match
from oip_torch.plots.responses import response
from oip_torch.plots.starts import consistency
from oip_torch.results.oips import MARKS, Names, Oips, short
from oip_torch.results.pictures import way_frames, way_steps

if TYPE_CHECKING:
    from oip_torch.analysis.calibration import Calibration
    from oip_torch.analysis.noise_control import NoiseControl

__all__ = [
    "Figure",
    "agreement",
    "beside_data",
    "consistency",
    "cross_scores",
    "divergence",
    "evolution",
    "match",
    "response",
    "seen",
    "sheet",
    "side_by_side",
    "top_images",
    "trace",
]


def evolution(
    oips: Oips,
    map: int,
    starts: int | Iterable[int] | None = None,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    figsize: Size | None = None,
) -> Figure:
    """A row of pictures per start: how the OIP of one map came about, step by step; on the right the score's trace.

    The way is the whole one: where candidates were screened, it begins with the start and the screening of the one that
    went on, and a line shows where the screening ends.

    Args:
        oips: with snapshots.
        map: which map.
        starts: which starts; None: all of them.
        cmap: see `sheet`.
        names: see `sheet`.
        figsize: see `sheet`.

    Raises:
        InputError: a map or start that is not among the results, or what `sheet` refuses.
    """
    check_some(oips)
    number = whole(f"the {oips.noun}", map, 0)  # of several ones the title would name the first
    rows = oips.select(maps=number, starts=starts)
    check_some(rows)
    (whose, *_), screening, steps = called(rows, names), rows.screening_steps, way_steps(rows)
    columns = len(steps) + 1
    size = checked_figsize(figsize) or (1.25 * columns + 2.4, 1.55 * len(rows) + 0.95)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.7])
    for row in range(len(rows)):
        shades = shade(way_frames(rows, row), oips.ends, cmap, together=True)
        titles = [f"screening\nstep {step}" if step < screening else f"step {step}" for step in steps] + ["result"]
        scores = [*(float(rows.traces[row, step]) for step in steps), float(rows.scores[row])]
        for column, (picture, title, score) in enumerate(zip(shades, titles, scores, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            show_picture(axes, picture)
            axes.set_title(
                title if row == 0 else "", fontsize=9, color=SCREENING if title.startswith("screening") else INK
            )
            axes.set_xlabel("" if math.isnan(score) else short(score), fontsize=8, color=INK, labelpad=2)
            if column == 0:
                axes.set_ylabel(f"start {rows.starts[row]}\n{rows.status[row]}", fontsize=8, color=INK)
        axes = figure.add_subplot(grid[row, columns])
        _trace_lines(axes, rows.take([row]))
        axes.set_title("score by step" if row == 0 else "", fontsize=9, color=INK)
    begins = "the start"
    if rows.settings.screening.candidates > 1 and not screening:  # a file saved before its steps were kept
        begins = "the end of its screening"
    title = f"{rows.place}, {whose}: from {begins} to the OIP"
    figure.suptitle(title, fontsize=11, color=INK, parse_math=False)
    notes = [f"Below each picture its score. {shade_note(oips.ends, cmap, 'each row')}"]
    if screening:
        notes.append(
            f"Steps 0 to {screening - 1} are the screening of the start that went on; the dotted line is its end."
        )
    add_note(figure, "\n".join([*notes, rows.way]))
    return figure


@overload
def sheet(
    oips: Oips,
    columns: int | None = None,
    title: str | None = None,
    *,
    control: NoiseControl | None = None,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: None = None,
    figsize: Size | None = None,
) -> Figure: ...
@overload
def sheet(
    oips: Oips,
    columns: int | None = None,
    title: str | None = None,
    *,
    control: NoiseControl | None = None,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: Axes,
) -> Axes: ...
def sheet(
    oips: Oips,
    columns: int | None = None,
    title: str | None = None,
    *,
    control: NoiseControl | None = None,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: Axes | None = None,
    figsize: Size | None = None,
) -> Figure | Axes:
    """A contact sheet: every image with its map's number and its score; dead ones are marked, not hidden.

    Args:
        oips: one or more images; with several starts the start's number is shown too.
        columns: pictures per row; by default 16, or fewer for few pictures; with `ax` or `figsize` as many as make the
            pictures largest.
        title: instead of the default one.
        control: what `noise_control` says of the starts of these maps: those that are not distinguishable from noise
            are marked with ~, and counted in the default title.
        cmap: "data": the data's own, black is black; "grey": each picture from its own 0.5 % to its 99.5 % quantile,
            as in the article; or a matplotlib colormap or the name of one, such as "viridis", over the same range.
        names: of all classes of the layer, in their order, where its channels are classes: "cat: 2.34" instead of
            "3: 2.34".
        ax: draw into this Axes of matplotlib and return it; None: into a new figure.
        figsize: (width, height) of the new figure, in inches; None: as large as its contents need.

    Raises:
        InputError: nothing to show, a control of another network, layer or map, no such colormap, another number of
            names than the layer has classes, names for maps or units, no Axes, no size, or both of them.
    """
    check_some(oips)
    columns = None if columns is None else whole("columns", columns, 1)
    labels, heading, notes = oips.label(names), oips.title, [oips.legend]
    if control is not None:
        if not hasattr(control, "marks"):
            raise InputError(f"control is {shown(control)}: expected what oip_torch.noise_control returns, or None")
        marked = control.marks(oips)
        labels = [f"{label} ~" if mark else label for label, mark in zip(labels, marked, strict=True)]
        heading += f", {marked.sum()} not distinguishable from noise" if marked.any() else ""
        notes.append(control.note(oips))
    notes.append(shade_note(oips.ends, cmap))
    shades = shade(oips.images, oips.ends, cmap)
    canvas = draw_sheet(shades, labels, oips.status.tolist(), columns=columns, ax=ax, figsize=figsize)
    return canvas.finish(title or heading, " ".join(note for note in notes if note))


@overload
def trace(oips: Oips, *, names: Names | None = None, ax: None = None, figsize: Size | None = None) -> Figure: ...
@overload
def trace(oips: Oips, *, names: Names | None = None, ax: Axes) -> Axes: ...
def trace(
    oips: Oips, *, names: Names | None = None, ax: Axes | None = None, figsize: Size | None = None
) -> Figure | Axes:
    """The score of every image by step, one line each; converged ones end with a dot where the criterion was met.

    Args:
        oips: one or more images.
        names: see `sheet`.
        ax: see `sheet`.
        figsize: see `sheet`.

    Raises:
        InputError: nothing to show, or what `sheet` refuses.
    """
    check_some(oips)
    whose = called(oips, names)
    canvas = Canvas((7.0, 3.2), ax=ax, figsize=figsize, around=0.8)
    axes, named = canvas.axes, len(oips) <= 8
    _trace_lines(axes, oips, whose if named else None)
    axes.set_xlabel("step")
    axes.set_ylabel(_score_name(oips), parse_math=False)
    if named:
        for text in axes.legend(fontsize=8, frameon=False).get_texts():
            text.set_parse_math(False)  # of a name with a $
    left = "\nLeft of the dotted line: the screening of the start that went on." if oips.screening_steps else ""
    return canvas.finish(f"{oips.place}: scores of {len(oips)} ascents", f"{oips.way}{left}")


@overload
def beside_data(
    oips: Oips,
    calibration: Calibration,
    maps: int | Iterable[int] | None = None,
    count: int = 5,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: None = None,
    figsize: Size | None = None,
) -> Figure: ...
@overload
def beside_data(
    oips: Oips,
    calibration: Calibration,
    maps: int | Iterable[int] | None = None,
    count: int = 5,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: Axes,
) -> Axes: ...
def beside_data(
    oips: Oips,
    calibration: Calibration,
    maps: int | Iterable[int] | None = None,
    count: int = 5,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: Axes | None = None,
    figsize: Size | None = None,
) -> Figure | Axes:
    """A row per map: its best OIP, and beside it the real images that excite the map most.

    Above the OIP stands its score, and how many times the largest score of the data that is, or that no image of the
    data excites the map; above each real image its number in the data and its score, with = where others score exactly
    as much. All are standardised in the same way, so that their scores compare; where a constraint leaves the OIPs'
    mean or contrast free, no ratio is shown, and that is said.

    Args:
        oips: of a layer that was calibrated.
        calibration: of the model that made the OIPs.
        maps: which maps, in this order; None: all of them.
        count: how many real images, 1 or more; at most as many as the calibration holds.
        cmap: see `sheet`.
        names: see `sheet`.
        ax: see `sheet`.
        figsize: see `sheet`.

    Raises:
        InputError: OIPs or a calibration of another model, OIPs of no map (`Oips.of_maps`), a map that is not among the
            results, no image asked for, or what `sheet` refuses.
    """
    check_some(oips)
    if not hasattr(calibration, "check"):
        raise InputError(f"calibration is {shown(calibration)}: expected what oip_torch.calibrate returns")
    calibration.check(oips)
    count = whole("count", count, 0)
    data = calibration[oips.layer]
    best = oips.select(maps=maps).best()
    if not len(best) or count < 1:
        raise InputError(f"{len(best)} OIPs and {count} real images to show: expected at least one of each")
    count = min(count, data.top_indices.shape[1])
    height, width = best.images.shape[1:3]
    of_mean = best.scored_by == "map_mean"  # which is what the data was scored by,
    compared = of_mean and best.standardized  # at this contrast
    equals = (data.top_scores[:, :, None] == data.top_scores[:, None, :]).sum(2) > 1
    if data.tied is not None:
        equals |= (data.top_scores == data.top_scores[:, -1:]) & (data.tied > 0)[:, None]
    # As in `sheet`: one mosaic with text. Its columns: the map's number, the OIP, a gap, the real images.
    gap_x, gap_y, apart = max(1, round(0.14 * width)), max(2, round(0.3 * height)), max(2, round(0.4 * width))
    lefts = [apart] + [2 * apart + width + column * (width + gap_x) for column in range(count)]
    mosaic = np.ones((len(best) * (height + gap_y) + gap_y, lefts[-1] + width, 3))
    inches = 1.05 / width
    ours, shades_of_ours = best.channel_names(names), shade(best.images, best.ends, cmap)
    size = inches * mosaic.shape[1], inches * mosaic.shape[0]
    canvas = Canvas(size, ax=ax, figsize=figsize, around=0.75, least=4.5)
    axes, small, large = canvas.axes, 7.5 * canvas.scale, 9 * canvas.scale

    def put(shades: npt.NDArray[np.floating], row: int, column: int, label: str, color: str, faded: bool) -> None:
        top, left = row * (height + gap_y) + 2 * gap_y, lefts[column]
        mosaic[top : top + height, left : left + width] = 0.25 * shades + 0.75 if faded else shades
        axes.text(left + width / 2 - 0.5, top - 1, label, fontsize=small, color=color, ha="center", va="bottom")

    for row in range(len(best)):
        number, score, status = int(best.maps[row]), float(best.scores[row]), str(best.status[row])
        excited = bool(data.excited[number])
        label = "dead" if status == "dead" else short(score) + MARKS.get(status, "")
        if not excited:
            hardly = "the data hardly excites" if data.maximum[number] > 0 else "no image of the data excites"
            label += f"\n{hardly} this {best.noun}"
        elif status != "dead" and compared:
            label += f" ({short(score / float(data.maximum[number]), 1)} × data)"
        put(shades_of_ours[row], row, 0, label, STATUS_COLORS[status], status == "dead")
        middle = row * (height + gap_y) + 2 * gap_y + height / 2
        axes.text(
            *(lefts[0] - 2, middle, f"{best.noun}\n{ours[row]}"),
            fontsize=large, color=INK, ha="right", va="center", parse_math=False,
        )  # fmt: skip
        for place, picture in enumerate(shade(data.top_of(number)[:count], best.ends, cmap)):
            value = float(data.top_scores[number, place])
            tied = excited and equals[number, place]
            label = f"#{data.top_indices[number, place]}: {short(value)}{' =' if tied else ''}"
            put(picture, row, place + 1, label, INK if excited else "#999999", not excited)
    show_picture(axes, mosaic)
    heads = ((lefts[0] + width / 2, "OIP"), ((lefts[1] + mosaic.shape[1]) / 2, "real images, the most exciting first"))
    for x, text in heads:
        axes.text(x - 0.5, 0.5 * gap_y, text, fontsize=large, color=INK, ha="center", va="center")
    what = "mean of what goes into it" if best.pre_activation else "mean activation"
    notes = [f"Above the real images: number in the data, score ({what}); faded: they do not excite the {best.noun}."]
    if not of_mean:
        notes.append(f"The OIPs' scores are of another objective ({best.scored_by}), and do not compare.")
    elif not compared:
        notes.append("The real images are standardised, the OIPs are of another mean or contrast: no ratio is shown.")
    if (equals & data.excited[:, None])[best.maps, :count].any():
        notes.append("= others score exactly as much: such images have no order.")
    title = f"{best.place}: OIPs beside the data ({calibration.count} images)"
    return canvas.finish(title, "\n".join([*notes, *best.notes, shade_note(oips.ends, cmap), best.way]))


def _trace_lines(axes: Axes, oips: Oips, whose: list[str] | None = None) -> None:
    faint = 0.9 if len(oips) <= 8 else 0.35
    for row in range(len(oips)):
        label = f"{whose[row]}, start {oips.starts[row]}" if whose else None
        (line,) = axes.plot(oips.traces[row], linewidth=1, alpha=faint, label=label)
        step = int(oips.converged_at[row])
        if step >= 0:
            axes.plot([step], [oips.traces[row, step]], "o", markersize=3, color=line.get_color(), alpha=faint)
    if oips.screening_steps:
        axes.axvline(oips.screening_steps, linestyle=":", linewidth=1, color=SCREENING)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _score_name(oips: Oips) -> str:
    if oips.scored_by != "map_mean":
        return f"score ({oips.scored_by})"
    mean = "mean " if oips.noun == "map" else ""
    if oips.pre_activation:
        return f"score ({mean}pre-activation of the {oips.noun})"
    return f"score ({mean}activation of the {oips.noun})"
