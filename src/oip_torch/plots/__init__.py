"""How does it look? Every function returns a matplotlib Figure and neither shows nor saves it.

    oip.plots.sheet(oips).savefig("sheet.png")

The figures do not belong to pyplot: nothing has to be closed, and a notebook shows what a cell returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.base.checks import shown, whole
from oip_torch.base.drawing import (
    INK,
    SCREENING,
    STATUS_COLORS,
    Figure,
    add_note,
    contact_sheet,
    shade,
    shade_note,
    show_picture,
)
from oip_torch.base.errors import InputError
from oip_torch.plots.comparison import agreement, cross_scores, divergence, side_by_side
from oip_torch.results.oips import MARKS, Oips, short

if TYPE_CHECKING:
    from oip_torch.analysis.calibration import Calibration

__all__ = [
    "Figure",
    "agreement",
    "beside_data",
    "consistency",
    "cross_scores",
    "divergence",
    "evolution",
    "sheet",
    "side_by_side",
    "trace",
]


def evolution(oips: Oips, map: int, starts: int | Iterable[int] | None = None, *, colors: str = "data") -> Figure:
    """A row of pictures per start: how the OIP of one map came about, step by step; on the right the score's trace.

    The way is the whole one: where candidates were screened, it begins with the start and the screening of the one that
    went on, and a line shows where the screening ends.

    Args:
        oips: with snapshots.
        map: which map.
        starts: which starts; None: all of them.
        colors: see `sheet`.

    Raises:
        InputError: a map or start that is not among the results.
    """
    _check_some(oips)
    number = whole(f"the {oips.noun}", map, 0)  # of several ones the title would name the first
    rows = oips.select(maps=number, starts=starts)
    _check_some(rows)
    screening = rows.screening_steps
    steps = [int(step) for step in rows.snapshot_steps]
    if steps and steps[-1] == rows.traces.shape[1] - 1:
        steps.pop()  # one step before the result, and not to be told from it
    columns = len(steps) + 1
    figure = Figure(figsize=(1.25 * columns + 2.4, 1.55 * len(rows) + 0.95), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.7])
    for row in range(len(rows)):
        frames = [*rows.snapshots[row, : len(steps)], rows.images[row]]
        shades = shade(np.stack(frames), oips.ends, colors, together=True)
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
    figure.suptitle(f"{rows.place}, {rows.noun} {number}: from {begins} to the OIP", fontsize=11, color=INK)
    notes = [f"Below each picture its score. {shade_note(oips.ends, colors, 'each row')}"]
    if screening:
        notes.append(
            f"Steps 0 to {screening - 1} are the screening of the start that went on; the dotted line is its end."
        )
    add_note(figure, "\n".join([*notes, rows.way]))
    return figure


def sheet(oips: Oips, columns: int | None = None, title: str | None = None, *, colors: str = "data") -> Figure:
    """A contact sheet: every image with its map's number and its score; dead ones are marked, not hidden.

    Args:
        oips: one or more images; with several starts the start's number is shown too.
        columns: pictures per row; by default 16, or fewer for few pictures.
        title: instead of the default one.
        colors: "data": the data's own, black is black; "grey": each picture from its own 0.5 % to its 99.5 % quantile,
            as in the article; or a matplotlib colormap over the same range, such as "viridis".
    """
    _check_some(oips)
    columns = None if columns is None else whole("columns", columns, 1)
    return contact_sheet(
        *(shade(oips.images, oips.ends, colors), oips.labels, oips.status.tolist()),
        columns=columns,
        title=title or oips.title,
        legend=f"{oips.legend} {shade_note(oips.ends, colors)}",
    )


def trace(oips: Oips) -> Figure:
    """The score of every image by step, one line each; converged ones end with a dot where the criterion was met."""
    _check_some(oips)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _trace_lines(axes, oips, labels=len(oips) <= 8)
    axes.set_xlabel("step")
    axes.set_ylabel(_score_name(oips))
    axes.set_title(f"{oips.place}: scores of {len(oips)} ascents", fontsize=11, color=INK)
    if len(oips) <= 8:
        axes.legend(fontsize=8, frameon=False)
    left = "\nLeft of the dotted line: the screening of the start that went on." if oips.screening_steps else ""
    add_note(figure, f"{oips.way}{left}")
    return figure


def beside_data(
    oips: Oips,
    calibration: Calibration,
    maps: int | Iterable[int] | None = None,
    count: int = 5,
    *,
    colors: str = "data",
) -> Figure:
    """A row per map: its best OIP, and beside it the real images that excite the map most.

    Above the OIP stands its score, and how many times the largest score of the data that is, or that no image of the
    data excites the map; above each real image its number in the data and its score, with = where others score exactly
    as much. All are standardised in the same way, so that their scores compare.

    Args:
        oips: of a layer that was calibrated.
        calibration: of the model that made the OIPs.
        maps: which maps, in this order; None: all of them.
        count: how many real images, 1 or more; at most as many as the calibration holds.
        colors: see `sheet`.

    Raises:
        InputError: OIPs or a calibration of another model, a map that is not among the results, no image asked for.
    """
    _check_some(oips)
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
    compared = best.provenance.objective == "map_mean"  # which is what the data was scored by
    equals = (data.top_scores[:, :, None] == data.top_scores[:, None, :]).sum(2) > 1
    if data.tied is not None:
        equals |= (data.top_scores == data.top_scores[:, -1:]) & (data.tied > 0)[:, None]
    # As in `sheet`: one mosaic with text. Its columns: the map's number, the OIP, a gap, the real images.
    gap_x, gap_y, apart = max(1, round(0.14 * width)), max(2, round(0.3 * height)), max(2, round(0.4 * width))
    lefts = [apart] + [2 * apart + width + column * (width + gap_x) for column in range(count)]
    mosaic = np.ones((len(best) * (height + gap_y) + gap_y, lefts[-1] + width, 3))
    inches = 1.05 / width
    figure = Figure(figsize=(max(4.5, inches * mosaic.shape[1]), inches * mosaic.shape[0] + 0.75), layout="constrained")
    axes = figure.subplots()

    def put(image: npt.NDArray[np.floating], row: int, column: int, label: str, color: str, faded: bool) -> None:
        top, left = row * (height + gap_y) + 2 * gap_y, lefts[column]
        (shades,) = shade(image[None], best.ends, colors)
        mosaic[top : top + height, left : left + width] = 0.25 * shades + 0.75 if faded else shades
        axes.text(left + width / 2 - 0.5, top - 1, label, fontsize=7.5, color=color, ha="center", va="bottom")

    for row in range(len(best)):
        number, score, status = int(best.maps[row]), float(best.scores[row]), str(best.status[row])
        excited = bool(data.excited[number])
        label = "dead" if status == "dead" else short(score) + MARKS.get(status, "")
        if not excited:
            hardly = "the data hardly excites" if data.maximum[number] > 0 else "no image of the data excites"
            label += f"\n{hardly} this {best.noun}"
        elif status != "dead" and compared:
            label += f" ({short(score / float(data.maximum[number]), 1)} × data)"
        put(best.images[row], row, 0, label, STATUS_COLORS[status], status == "dead")
        middle = row * (height + gap_y) + 2 * gap_y + height / 2
        axes.text(lefts[0] - 2, middle, f"{best.noun}\n{number}", fontsize=9, color=INK, ha="right", va="center")
        for place, picture in enumerate(data.top_of(number)[:count]):
            value = float(data.top_scores[number, place])
            tied = excited and equals[number, place]
            label = f"#{data.top_indices[number, place]}: {short(value)}{' =' if tied else ''}"
            put(picture, row, place + 1, label, INK if excited else "#999999", not excited)
    show_picture(axes, mosaic)
    heads = ((lefts[0] + width / 2, "OIP"), ((lefts[1] + mosaic.shape[1]) / 2, "real images, the most exciting first"))
    for x, text in heads:
        axes.text(x - 0.5, 0.5 * gap_y, text, fontsize=9, color=INK, ha="center", va="center")
    figure.suptitle(f"{best.place}: OIPs beside the data ({calibration.count} images)", fontsize=11, color=INK)
    what = "mean of what goes into it" if best.pre_activation else "mean activation"
    notes = [f"Above the real images: number in the data, score ({what}); faded: they do not excite the {best.noun}."]
    if not compared:
        notes.append(f"The OIPs' scores are of another objective ({best.provenance.objective}), and do not compare.")
    if (equals & data.excited[:, None])[best.maps, :count].any():
        notes.append("= others score exactly as much: such images have no order.")
    notes += best.notes
    add_note(figure, "\n".join([*notes, shade_note(oips.ends, colors), best.way]))
    return figure


def consistency(oips: Oips, map: int, *, colors: str = "data") -> Figure:
    """One row per start of a map: the image, its score, and how well it agrees with the image of every other start.

    The agreement is the best normalised cross-correlation over all shifts (`image_statistics.cross_correlation`).

    Args:
        oips: with two starts of this map or more.
        map: which map.
        colors: see `sheet`.

    Raises:
        InputError: a map that is not among the results, or one start only.
    """
    _check_some(oips)
    rows = oips.select(maps=whole(f"the {oips.noun}", map, 0))
    count = len(rows)
    if count < 2:
        raise InputError(
            f"{rows.noun} {rows.maps[0]} has one start only: expected two or more to compare; ascend with starts=8"
        )
    correlations = cross_correlations(rows.images)
    means = (correlations.sum(1) - np.diag(correlations)) / (count - 1)
    height, width = rows.images.shape[1:3]
    # One Axes in units of a row's height, so that the pictures and the rows of the table stay side by side.
    side = 0.92
    picture_width = side * width / height
    text_at = picture_width + 0.25
    table_at = text_at + 2.1
    cell = 0.75
    inches = 0.85
    figure = Figure(
        figsize=(inches * (table_at + cell * count + 1.1), inches * (count + 0.8) + 0.75), layout="constrained"
    )
    axes = figure.subplots()
    for row in range(count):
        dead = str(rows.status[row]) == "dead"
        (shades,) = shade(rows.images[[row]], rows.ends, colors)
        top, bottom = row - side / 2, row + side / 2
        axes.imshow(
            0.25 * shades + 0.75 if dead else shades, extent=(0, picture_width, bottom, top), interpolation="nearest"
        )
        color = STATUS_COLORS[str(rows.status[row])]
        axes.text(-0.12, row, f"start {rows.starts[row]}", fontsize=8, color=INK, ha="right", va="center")
        score = "dead" if dead else short(float(rows.scores[row]))
        for column, text in enumerate((score, f"{means[row]:.2f}")):
            axes.text(text_at + 0.45 + column, row, text, fontsize=8, color=color, ha="center", va="center")
    table = np.where(np.eye(count, dtype=bool), np.nan, np.clip(correlations, 0, 1))
    axes.imshow(
        table, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
        extent=(table_at, table_at + cell * count, count - 0.5, -0.5),
    )  # fmt: skip
    for row in range(count):
        at = table_at + cell * (row + 0.5)
        axes.text(at, -0.62, f"{rows.starts[row]}", fontsize=8, color=INK, ha="center", va="bottom")
        for column in range(count):
            if column != row:
                value = correlations[row, column]
                x = table_at + cell * (column + 0.5)
                color = "white" if value > 0.6 else INK
                axes.text(x, row, f"{value:.2f}", fontsize=7, color=color, ha="center", va="center")
    heads = ((text_at + 0.45, "score"), (text_at + 1.45, "mean\nagreement"))
    for x, text in heads:
        axes.text(x, -0.62, text, fontsize=8, color=INK, ha="center", va="bottom")
    axes.text(
        *(table_at + cell * count / 2, -0.95, "agreement with start"), fontsize=8, color=INK, ha="center", va="bottom"
    )
    axes.set(xlim=(-1.0, table_at + cell * count + 0.1), ylim=(count - 0.45, -1.25), aspect="equal")
    axes.axis("off")
    figure.suptitle(
        f"{rows.place}, {rows.noun} {rows.maps[0]}: {count} starts, mean agreement {means.mean():.2f}",
        fontsize=11,
        color=INK,
    )
    add_note(
        figure,
        "Agreement: the best correlation over all shifts, white 0, dark blue 1.\n"
        f"{shade_note(oips.ends, colors)}\n{rows.way}",
    )
    return figure


def _trace_lines(axes: Axes, oips: Oips, labels: bool = False) -> None:
    faint = 0.9 if len(oips) <= 8 else 0.35
    for row in range(len(oips)):
        label = f"{oips.noun} {oips.maps[row]}, start {oips.starts[row]}" if labels else None
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


def _check_some(oips: Oips) -> None:
    if not isinstance(oips, Oips):
        raise InputError(f"oips is {shown(oips)}: expected what oip_torch.ascend or Oips.load returns")
    if not len(oips):
        raise InputError("there are no OIPs to show: expected at least one")


def _score_name(oips: Oips) -> str:
    objective = oips.provenance.objective
    if objective != "map_mean":
        return f"score ({objective})"
    mean = "mean " if oips.noun == "map" else ""
    if oips.pre_activation:
        return f"score ({mean}pre-activation of the {oips.noun})"
    return f"score ({mean}activation of the {oips.noun})"
