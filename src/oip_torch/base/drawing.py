"""How are pictures drawn? What all plots share: figures that are nobody's but the caller's, shades, contact sheets."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as _Figure

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError

__all__ = [
    "INK",
    "SCREENING",
    "STATUS_COLORS",
    "Figure",
    "add_note",
    "contact_sheet",
    "limits",
    "shade",
    "shade_note",
    "show_picture",
    "to_shades",
]

Shades = npt.NDArray[np.floating]
Ends = tuple[npt.ArrayLike, npt.ArrayLike]

INK = "#333333"
SCREENING = "#7a6a9a"
STATUS_COLORS = {"finished": INK, "converged": INK, "recovered": "#8a5a00", "fallback": "#8a5a00", "dead": "#b03030"}


class Figure(_Figure):
    """A matplotlib Figure that a notebook shows as it is, without pyplot and without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


def contact_sheet(
    shades: npt.NDArray[np.floating],
    labels: Sequence[str],
    statuses: Sequence[str],
    *,
    columns: int | None = None,
    title: str,
    legend: str,
) -> Figure:
    """Pictures in rows, each below its label; those of the status "dead" are faded.

    Args:
        shades: (N, height, width, 3), N ≥ 1, as `shade` gives them.
        labels: one for each.
        statuses: one of `STATUS_COLORS` for each.
        columns: pictures per row; by default 16, or fewer for few pictures.
        title: above all.
        legend: below all.
    """
    count, height, width = shades.shape[:3]
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
    for index, (shaded, label, status) in enumerate(zip(shades, labels, statuses, strict=True)):
        row, column = divmod(index, columns)
        top, left = row * (height + gap_y) + gap_y, column * (width + gap_x)
        mosaic[top : top + height, left : left + width] = 0.25 * shaded + 0.75 if status == "dead" else shaded
        x, y = left + width / 2 - 0.5, top - 0.6 - 0.03 * height
        axes.text(x, y, label, fontsize=7, color=STATUS_COLORS[status], ha="center", va="bottom")
    show_picture(axes, mosaic)
    figure.suptitle(title, fontsize=11, color=INK)
    add_note(figure, legend)
    return figure


def shade(images: npt.NDArray[np.floating], ends: Ends | None, colors: str = "data", together: bool = False) -> Shades:
    """Standardised images as pictures.

    Args:
        images: (N, height, width, channels).
        ends: black and white of the data in the images' units, one number or one per channel; None: not known.
        colors: "data": from the data's black to its white, or grey where these are not known; "grey": each from its
            own 0.5 % to its 99.5 % quantile, as the article shows them; or the name of a matplotlib colormap, such as
            "viridis", over the same range.
        together: whether the quantiles are those of all images together.

    Returns:
        (N, height, width, 3), 0 to 1.

    Raises:
        InputError: no such colours.
    """
    if colors == "data" and ends is not None:
        return to_shades(images, *ends)
    if colors not in ("data", "grey") and colors not in colormaps:
        raise InputError(f"colors is {shown(colors)}: expected 'data', 'grey', or a matplotlib colormap, as 'viridis'")
    same = limits(images) if together else None
    grey = np.stack([to_shades(image, *(same or limits(image))) for image in images])
    return grey if colors in ("data", "grey") else np.asarray(colormaps[colors](grey.mean(-1))[..., :3])


def shade_note(ends: Ends | None, colors: str = "data", together: str = "each picture") -> str:
    """What `shade` does, in a sentence below a picture."""
    if colors == "data" and ends is not None:
        return "Colours: the data's own, what is darker than black or lighter than white clipped."
    return f"Scale: {together} from its own 0.5 % to its 99.5 % quantile."


def limits(pixels: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Black and white: quantiles, so that a few extreme pixels do not make the rest grey."""
    low, high = np.quantile(pixels, [0.005, 0.995])
    return (float(low), float(high)) if high > low else (float(low) - 1.0, float(low) + 1.0)


def to_shades(image: npt.NDArray[np.floating], low: npt.ArrayLike, high: npt.ArrayLike) -> Shades:
    """(…, channels) → (…, 3), 0 at `low` to 1 at `high`; other than three channels become their mean in grey."""
    low, high = np.asarray(low), np.asarray(high)
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
