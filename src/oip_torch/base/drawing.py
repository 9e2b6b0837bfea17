"""How are pictures drawn? What all plots share: figures that are nobody's but the caller's, shades, contact sheets."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure as _Figure

from oip_torch.base.checks import number, plain, shown
from oip_torch.base.errors import InputError

__all__ = [
    "INK",
    "SCREENING",
    "STATUS_COLORS",
    "Canvas",
    "Ends",
    "Figure",
    "Size",
    "add_note",
    "checked_figsize",
    "contact_sheet",
    "draw_sheet",
    "limits",
    "shade",
    "shade_note",
    "show_picture",
    "to_shades",
]

Shades = npt.NDArray[np.floating]
Ends = tuple[npt.ArrayLike, npt.ArrayLike]
Size = tuple[float, float]

INK = "#333333"
SCREENING = "#7a6a9a"
STATUS_COLORS = {"finished": INK, "converged": INK, "recovered": "#8a5a00", "fallback": "#8a5a00", "dead": "#b03030"}
_NOTE: dict[str, Any] = {"fontsize": 7, "color": "#777777", "parse_math": False}  # names in it may hold a $
_MOST_INCHES = 500.0  # of a figure's side; matplotlib draws at most 65,536 pixels


class Figure(_Figure):
    """A matplotlib Figure that a notebook shows as it is, without pyplot and without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()


class Canvas:
    """One Axes to draw in: the caller's, or that of a figure of its own.

    Of a caller's Axes nothing but itself is touched: not its figure's title, size or layout.

    Attributes:
        axes: where to draw.
        inches: (width, height) that there are.
        scale: how large text is, at most 1: less where there is less room than in a figure of the default size.
    """

    def __init__(
        self,
        size: Size,
        *,
        ax: Axes | None = None,
        figsize: Size | None = None,
        around: float = 0.95,
        least: float = 0.0,
    ) -> None:
        """Raise an `InputError` where `ax` is no Axes, `figsize` is not two lengths, or both are given.

        Args:
            size: inches, of the drawing itself by default.
            ax: the caller's; None: an Axes of a new figure.
            figsize: inches, of the new figure with all that is around the drawing.
            around: inches that title and note of the new figure take.
            least: the least width of the new figure by default.
        """
        self.own: Figure | None = None
        if ax is None:
            figsize = checked_figsize(figsize) or (max(least, size[0]), size[1] + around)
            self.own = Figure(figsize=figsize, layout="constrained")
            self.axes = self.own.subplots()
            self.inches = figsize[0], max(0.1, figsize[1] - around)
        else:
            if not isinstance(ax, Axes) or ax.name != "rectilinear":
                raise InputError(f"ax is {shown(ax)}: expected one Axes of matplotlib, such as plt.subplots()[1]")
            if figsize is not None:
                raise InputError("figsize and ax are both given: expected one of them, since ax has a figure already")
            self.axes = ax
            box, dpi = ax.get_window_extent(), ax.get_figure(root=True).dpi  # type: ignore[union-attr]
            self.inches = box.width / dpi, box.height / dpi
        self.scale = min(1.0, self.inches[0] / size[0], self.inches[1] / size[1])

    def finish(self, title: str, note: str) -> Figure | Axes:
        """The title above and the note below; returns the new figure, or the caller's Axes."""
        if self.own is not None:
            self.own.suptitle(title, fontsize=11, color=INK, parse_math=False)
            add_note(self.own, note)
            return self.own
        most = max(12, round(self.inches[0] / 0.085))  # letters in a line, at this size
        self.axes.set_title("\n".join(textwrap.wrap(title, most)), fontsize=11, color=INK, parse_math=False)
        self.axes.annotate(
            *(_wrapped(note, self.inches[0]), (0.5, 0.0)),
            xycoords=("axes fraction", self.axes.xaxis.label), xytext=(0, -5), textcoords="offset points",
            ha="center", va="top", annotation_clip=False, **_NOTE,
        )  # fmt: skip
        return self.axes


def checked_figsize(figsize: Any) -> Size | None:
    """Two lengths in inches as floats, or None; an `InputError` for anything else."""
    expected = f"(width, height) in inches, each above 0 and at most {_MOST_INCHES:.0f}"
    if figsize is None:
        return None
    sides = plain(figsize)
    if not isinstance(sides, tuple) or len(sides) != 2:
        raise InputError(f"figsize is {shown(figsize)}: expected {expected}")
    width, height = (float(number("figsize", side, expected)) for side in sides)
    if not (0 < width <= _MOST_INCHES and 0 < height <= _MOST_INCHES):
        raise InputError(f"figsize is {shown(figsize)}: expected {expected}")
    return width, height


def contact_sheet(
    shades: npt.NDArray[np.floating],
    labels: Sequence[str],
    statuses: Sequence[str],
    *,
    title: str,
    legend: str,
    columns: int | None = None,
) -> Figure:
    """What `draw_sheet` draws, as a new figure with a title above and a legend below."""
    canvas = draw_sheet(shades, labels, statuses, columns=columns)
    canvas.finish(title, legend)
    assert canvas.own is not None
    return canvas.own


def draw_sheet(
    shades: npt.NDArray[np.floating],
    labels: Sequence[str],
    statuses: Sequence[str],
    *,
    columns: int | None = None,
    ax: Axes | None = None,
    figsize: Size | None = None,
) -> Canvas:
    """Pictures in rows, each below its label; those of the status "dead" are faded.

    Args:
        shades: (N, height, width, 3), N ≥ 1, as `shade` gives them.
        labels: one for each.
        statuses: one of `STATUS_COLORS` for each.
        columns: pictures per row; by default 16, or fewer for few pictures; where the size is given, as many as make
            the pictures largest.
        ax: the caller's Axes, see `Canvas`.
        figsize: of the new figure.
    """
    count, height, width = shades.shape[:3]
    gap_x, gap_y = max(1, round(0.1 * width)), max(2, round(0.3 * height))
    inch = 0.85 / width  # of a pixel

    def size(columns: int) -> Size:
        return columns * inch * (width + gap_x), math.ceil(count / columns) * inch * (height + gap_y)

    if columns is None:
        columns = min(16, max(4, math.ceil(math.sqrt(2 * count))), count)
        if ax is not None or figsize is not None:
            there = Canvas(size(columns), ax=ax, figsize=figsize, least=4.5).inches
            columns = max(range(1, count + 1), key=lambda each: min(np.divide(there, size(each))))
    canvas = Canvas(size(columns), ax=ax, figsize=figsize, least=4.5)
    axes = canvas.axes
    # One mosaic with text, not an Axes for each picture: a hundred times faster for a layer of many maps.
    rows = math.ceil(count / columns)
    mosaic = np.ones((rows * (height + gap_y), columns * (width + gap_x) - gap_x, 3))
    longest = max(len(label) for label in labels)
    letters = 7 * canvas.scale * min(1.0, 17 / max(1, longest))  # 17 letters of this size are as wide as a picture
    for index, (shaded, label, status) in enumerate(zip(shades, labels, statuses, strict=True)):
        row, column = divmod(index, columns)
        top, left = row * (height + gap_y) + gap_y, column * (width + gap_x)
        mosaic[top : top + height, left : left + width] = 0.25 * shaded + 0.75 if status == "dead" else shaded
        x, y = left + width / 2 - 0.5, top - 0.6 - 0.03 * height
        color = STATUS_COLORS[status]
        axes.text(x, y, label, fontsize=letters, color=color, ha="center", va="bottom", parse_math=False)
    show_picture(axes, mosaic)
    return canvas


def shade(
    images: npt.NDArray[np.floating], ends: Ends | None, cmap: str | Colormap = "data", together: bool = False
) -> Shades:
    """Standardised images as pictures.

    Args:
        images: (N, height, width, channels).
        ends: black and white of the data in the images' units, one number or one per channel; None: not known.
        cmap: "data": from the data's black to its white, or grey where these are not known; "grey": each from its own
            0.5 % to its 99.5 % quantile, as the article shows them; or a matplotlib colormap or the name of one, such
            as "viridis", over the same range.
        together: whether the quantiles are those of all images together.

    Returns:
        (N, height, width, 3), 0 to 1.

    Raises:
        InputError: no such colours.
    """
    own = isinstance(cmap, str) and cmap in ("data", "grey")
    if cmap == "data" and ends is not None:
        return to_shades(images, *ends)
    if not (own or isinstance(cmap, Colormap) or (isinstance(cmap, str) and cmap in colormaps)):
        raise InputError(f"cmap is {shown(cmap)}: expected 'data', 'grey', or a matplotlib colormap, as 'viridis'")
    same = limits(images) if together else None
    grey = np.stack([to_shades(image, *(same or limits(image))) for image in images])
    if own:
        return grey
    chosen = colormaps[cmap] if isinstance(cmap, str) else cmap
    return np.asarray(chosen(grey.mean(-1))[..., :3])


def shade_note(ends: Ends | None, cmap: str | Colormap = "data", together: str = "each picture") -> str:
    """What `shade` does, in a sentence below a picture."""
    if cmap == "data" and ends is not None:
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
    figure.supxlabel(_wrapped(text, figure.get_figwidth()), **_NOTE)


def _wrapped(text: str, inches: float) -> str:
    """A note's lines, broken to be no wider than that."""
    most = max(12, round(inches / 0.055))  # letters in a line, at this size
    return "\n".join(part for line in text.splitlines() for part in textwrap.wrap(line, most))
