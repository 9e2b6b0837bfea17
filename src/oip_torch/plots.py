"""How does it look? Every function returns a matplotlib Figure and neither shows nor saves it.

    oip.plots.sheet(oips).savefig("sheet.png")

The figures do not belong to pyplot: nothing has to be closed, and a notebook shows what a cell returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
    steps = [int(step) for step in rows.snapshot_steps]
    if steps and steps[-1] == rows.traces.shape[1] - 1:
        steps.pop()  # one step before the result, and not to be told from it
    columns = len(steps) + 1
    figure = Figure(figsize=(1.25 * columns + 2.4, 1.55 * len(rows) + 0.75), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.0] * columns + [1.7])
    for row in range(len(rows)):
        frames = [*rows.snapshots[row, : len(steps)], rows.images[row]]
        low, high = _limits(np.stack(frames))
        titles = [f"step {step}" for step in steps] + ["result"]
        scores = [*(float(rows.traces[row, step]) for step in steps), float(rows.scores[row])]
        for column, (frame, title, score) in enumerate(zip(frames, titles, scores, strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _picture(axes, _shades(frame, low, high))
            axes.set_title(title if row == 0 else "", fontsize=9, color=_INK)
            axes.set_xlabel("" if math.isnan(score) else f"{score:.2f}", fontsize=8, color=_INK, labelpad=2)
            if column == 0:
                axes.set_ylabel(f"start {rows.starts[row]}\n{rows.status[row]}", fontsize=8, color=_INK)
        axes = figure.add_subplot(grid[row, columns])
        _trace_lines(axes, rows.take([row]))
        axes.set_title("score by step" if row == 0 else "", fontsize=9, color=_INK)
    figure.suptitle(f"{oips.layer}, map {map}: from the start to the OIP", fontsize=11, color=_INK)
    _note(figure, "Below each picture its score. Scale: the same within a row, from its 0.5 % to its 99.5 % quantile.")
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
    height, width = oips.images.shape[1:3]
    # One mosaic with text, not an Axes for each picture: a hundred times faster for a layer of many maps.
    gap_x, gap_y = max(1, round(0.1 * width)), max(2, round(0.3 * height))
    mosaic = np.ones((rows * (height + gap_y), columns * (width + gap_x) - gap_x, 3))
    inches = 0.85
    figure = Figure(
        figsize=(max(4.5, columns * inches * (1 + gap_x / width)), rows * inches * (height + gap_y) / width + 0.75),
        layout="constrained",
    )
    axes = figure.subplots()
    for index in range(len(oips)):
        image, status = oips.images[index], str(oips.status[index])
        row, column = divmod(index, columns)
        top, left = row * (height + gap_y) + gap_y, column * (width + gap_x)
        shades = _shades(image, *_limits(image))
        faded = 0.25 * shades + 0.75 if status == "dead" else shades
        mosaic[top : top + height, left : left + width] = faded
        start = f"·{oips.starts[index]}" if several else ""
        score = "dead" if status == "dead" else f"{oips.scores[index]:.2f}"
        label = f"{oips.maps[index]}{start}: {score}"
        x, y = left + width / 2 - 0.5, top - 0.6 - 0.03 * height
        axes.text(x, y, label, fontsize=7, color=_STATUS_COLORS[status], ha="center", va="bottom")
    _picture(axes, mosaic)
    counts = oips.counts()
    alive = len(oips) - counts["dead"]
    figure.suptitle(title or f"{oips.layer}: {alive} of {len(oips)} OIPs alive", fontsize=11, color=_INK)
    _note(
        figure,
        f"Map{'·start' if several else ''}: score. Scale: each picture from its own 0.5 % to its 99.5 % quantile.",
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


def _limits(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Black and white: quantiles, so that a few extreme pixels do not make the rest grey."""
    low, high = np.quantile(pixels, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def _shades(image: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.floating]:
    """(height, width, channels) → (height, width, 3), 0 to 1; other than three channels become their mean in grey."""
    scaled = np.clip((image - low) / (high - low), 0.0, 1.0)
    return scaled if image.shape[-1] == 3 else np.repeat(scaled.mean(-1, keepdims=True), 3, axis=-1)


def _picture(axes: Axes, shades: npt.NDArray[np.floating]) -> None:
    axes.imshow(shades, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _note(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=7, color="#777777")
