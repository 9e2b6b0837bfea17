"""How does it look? Every function returns a matplotlib Figure and neither shows nor saves it.

    oip.plots.sheet(oips).savefig("sheet.png")

The figures do not belong to pyplot: nothing has to be closed, and a notebook shows what a cell returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oip_torch.errors import InputError
from oip_torch.oips import Oips

__all__ = ["evolution", "sheet", "trace"]

_INK = "#333333"
_STATUS_COLORS = {"finished": _INK, "converged": _INK, "dead": "#b03030"}


def evolution(oips: Oips, map: int, starts: int | Iterable[int] | None = None) -> Figure:
    """A row of pictures per start: how the OIP of one map came about, step by step; on the right the score's trace.

    Args:
        oips: with snapshots.
        map: which map.
        starts: which starts; None: all of them.

    Raises:
        InputError: a map or start that is not among the results.
    """
    rows = oips.select(maps=map, starts=starts)
    steps = rows.snapshot_steps
    columns = len(steps) + 1
    figure = Figure(figsize=(1.25 * columns + 2.2, 1.55 * len(rows) + 0.75), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.7])
    for row in range(len(rows)):
        frames = [*rows.snapshots[row], rows.images[row]]
        low, high = _limits(np.stack(frames))
        titles = [f"step {step}" for step in steps] + ["result"]
        scores = [*(_score_at(rows, row, int(step)) for step in steps), float(rows.scores[row])]
        for column, (frame, title, score) in enumerate(zip(frames, titles, scores, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _picture(axes, frame, low, high)
            axes.set_title(title if row == 0 else "", fontsize=9, color=_INK)
            axes.set_xlabel("" if math.isnan(score) else f"{score:.2f}", fontsize=8, color=_INK, labelpad=2)
            if column == 0:
                axes.set_ylabel(f"start {rows.starts[row]}\\n{rows.status[row]}", fontsize=8, color=_INK)
        axes = figure.add_subplot(grid[row, columns])
        _trace_lines(axes, rows._take(np.array([row])))
        axes.set_title("score by step" if row == 0 else "", fontsize=9, color=_INK)
    figure.suptitle(f"{oips.layer}, map {map}: from the start to the OIP", fontsize=11, color=_INK)
    _note(
        figure,
        "Below each picture its score. Grey scale: the same within a row, from its 0.5 % to its 99.5 % quantile.",
    )
    return figure


def sheet(oips: Oips, columns: int | None = None, title: str | None = None) -> Figure:
    """A contact sheet: every image with its map's number and its score; dead ones are marked, not hidden.

    Args:
        oips: one or more images; with several starts the start's number is shown too.
        columns: pictures per row; by default 16, or fewer for few pictures.
        title: instead of the default one.
    """
    if not len(oips):
        raise InputError("there are no OIPs to show: expected at least one")
    columns = columns or min(16, max(4, math.ceil(math.sqrt(2 * len(oips)))), max(1, len(oips)))
    rows = math.ceil(len(oips) / columns)
    several = len(set(oips.starts.tolist())) > 1
    figure = Figure(figsize=(max(4.0, 0.95 * columns), 1.17 * rows + 0.75), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for index, axes in enumerate(all_axes):
        if index >= len(oips):
            axes.set_axis_off()
            continue
        image, status = oips.images[index], str(oips.status[index])
        _picture(axes, image, *_limits(image))
        start = f"·{oips.starts[index]}" if several else ""
        score = "dead" if status == "dead" else f"{oips.scores[index]:.2f}"
        axes.set_title(f"{oips.maps[index]}{start}: {score}", fontsize=7, color=_STATUS_COLORS[status], pad=2)
        if status == "dead":
            axes.images[0].set_alpha(0.25)
    counts = oips.counts()
    alive = len(oips) - counts["dead"]
    figure.suptitle(title or f"{oips.layer}: {alive} of {len(oips)} OIPs alive", fontsize=11, color=_INK)
    _note(
        figure,
        f"Map{'·start' if several else ''}: score. Grey scale: each picture from its own 0.5 % to its 99.5 % quantile.",
    )
    return figure


def trace(oips: Oips) -> Figure:
    """The score of every image by step, one line each; converged ones end with a dot where the criterion was met."""
    if not len(oips):
        raise InputError("there are no OIPs to show: expected at least one")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    _trace_lines(axes, oips, labels=len(oips) <= 8)
    axes.set_xlabel("step")
    axes.set_ylabel("score (mean activation of the map)")
    axes.set_title(f"{oips.layer}: scores of {len(oips)} ascents", fontsize=11, color=_INK)
    if len(oips) <= 8:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _trace_lines(axes: Axes, oips: Oips, labels: bool = False) -> None:
    faint = 0.9 if len(oips) <= 8 else 0.35
    for row in range(len(oips)):
        label = f"map {oips.maps[row]}, start {oips.starts[row]}" if labels else None
        (line,) = axes.plot(oips.traces[row], linewidth=1, alpha=faint, label=label)
        step = int(oips.converged_at[row])
        if step >= 0:
            axes.plot([step], [oips.traces[row, step]], "o", markersize=3, color=line.get_color(), alpha=faint)
    axes.tick_params(labelsize=7)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _score_at(oips: Oips, row: int, step: int) -> float:
    return float(oips.traces[row, step])


def _limits(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Black and white: quantiles, so that a few extreme pixels do not make the rest grey."""
    low, high = np.quantile(pixels, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def _picture(axes: Axes, image: npt.NDArray[np.floating], low: float, high: float) -> None:
    """One image (height, width, channels): grey for one channel, colours for three."""
    scaled = np.clip((image - low) / (high - low), 0.0, 1.0)
    options: dict[str, Any] = {"interpolation": "nearest"}
    if image.shape[-1] == 3:
        axes.imshow(scaled, **options)
    else:
        axes.imshow(scaled.mean(-1), cmap="gray", vmin=0.0, vmax=1.0, **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color="#777777")
