"""How are pictures drawn? What all plots share: figures that are nobody's but the caller's, shades, contact sheets."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure

__all__ = [
    "INK",
    "SCREENING",
    "STATUS_COLORS",
    "Figure",
    "add_note",
    "contact_sheet",
    "limits",
    "show_picture",
    "to_shades",
]

INK = "#333333"
SCREENING = "#7a6a9a"
STATUS_COLORS = {"finished": INK, "converged": INK, "recovered": "#8a5a00", "dead": "#b03030"}


class Figure(_Figure):
    """A matplotlib Figure that a notebook shows as it is, without pyplot and without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def contact_sheet(
    images: npt.NDArray[np.floating],
    labels: Sequence[str],
    statuses: Sequence[str],
    *,
    columns: int | None = None,
    title: str,
    legend: str,
) -> Figure:
    """Pictures in rows, each below its label; those of the status "dead" are faded.

    Args:
        images: (N, height, width, channels), N ≥ 1.
        labels: one for each.
        statuses: one of `STATUS_COLORS` for each.
        columns: pictures per row; by default 16, or fewer for few pictures.
        title: above all.
        legend: below all.
    """
    count, height, width = images.shape[:3]
    columns = columns or min(16, max(4, math.ceil(math.sqrt(2 * count))), count)
    rows = math.ceil(count / columns)
    # One mosaic with text, not an Axes for each picture: a hundred times faster for a layer of many maps.
    gap_x, gap_y = max(1, round(0.1 * width)), max(2, round(0.3 * height))
    mosaic = np.ones((rows * (height + gap_y), columns * (width + gap_x) - gap_x, 3))
    inches = 0.85
    figure = Figure(
        figsize=(max(4.5, columns * inches * (1 + gap_x / width)), rows * inches * (height + gap_y) / width + 0.95),
        layout="constrained",
    )
    axes = figure.subplots()
    for index, (image, label, status) in enumerate(zip(images, labels, statuses, strict=True)):
        row, column = divmod(index, columns)
        top, left = row * (height + gap_y) + gap_y, column * (width + gap_x)
        shaded = to_shades(image, *limits(image))
        mosaic[top : top + height, left : left + width] = 0.25 * shaded + 0.75 if status == "dead" else shaded
        x, y = left + width / 2 - 0.5, top - 0.6 - 0.03 * height
        axes.text(x, y, label, fontsize=7, color=STATUS_COLORS[status], ha="center", va="bottom")
    show_picture(axes, mosaic)
    figure.suptitle(title, fontsize=11, color=INK)
    add_note(figure, legend)
    return figure


def limits(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Black and white: quantiles, so that a few extreme pixels do not make the rest grey."""
    low, high = np.quantile(pixels, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def to_shades(image: npt.NDArray[np.floating], low: float, high: float) -> npt.NDArray[np.floating]:
    """(height, width, channels) → (height, width, 3), 0 to 1; other than three channels become their mean in grey."""
    scaled = np.clip((image - low) / (high - low), 0.0, 1.0)
    return scaled if image.shape[-1] == 3 else np.repeat(scaled.mean(-1, keepdims=True), 3, axis=-1)


def show_picture(axes: Axes, shades: npt.NDArray[np.floating]) -> None:
    """(height, width, 3), 0 to 1, without ticks and frame."""
    axes.imshow(shades, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def add_note(figure: Figure, text: str) -> None:
    """Small text below all, its lines broken to fit the figure."""
    most = round(figure.get_figwidth() / 0.055)  # letters in a line, at this size
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, most)]
    figure.supxlabel("\n".join(lines), fontsize=7, color="#777777")
