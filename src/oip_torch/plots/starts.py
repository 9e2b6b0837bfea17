"""How alike are the OIPs that several starts lead to?"""

from __future__ import annotations

from typing import overload

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.base.checks import whole
from oip_torch.base.drawing import INK, STATUS_COLORS, Canvas, Figure, Size, shade, shade_note
from oip_torch.base.errors import InputError
from oip_torch.plots.common import called, check_some
from oip_torch.results.oips import Names, Oips, short

__all__ = ["consistency"]


@overload
def consistency(
    oips: Oips,
    map: int,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: None = None,
    figsize: Size | None = None,
) -> Figure: ...
@overload
def consistency(
    oips: Oips, map: int, *, cmap: str | Colormap = "data", names: Names | None = None, ax: Axes
) -> Axes: ...
def consistency(
    oips: Oips,
    map: int,
    *,
    cmap: str | Colormap = "data",
    names: Names | None = None,
    ax: Axes | None = None,
    figsize: Size | None = None,
) -> Figure | Axes:
    """One row per start of a map: the image, its score, and how well it agrees with the image of every other start.

    The agreement is the best normalised cross-correlation over all shifts (`image_statistics.cross_correlation`).

    Args:
        oips: with two starts of this map or more.
        map: which map.
        cmap: see `sheet`.
        names: see `sheet`.
        ax: see `sheet`.
        figsize: see `sheet`.

    Raises:
        InputError: a map that is not among the results, one start only, or what `sheet` refuses.
    """
    check_some(oips)
    rows = oips.select(maps=whole(f"the {oips.noun}", map, 0))
    count = len(rows)
    if count < 2:
        raise InputError(
            f"{rows.noun} {rows.maps[0]} has one start only: expected two or more to compare; ascend with starts=8"
        )
    (whose, *_), every = called(rows, names), shade(rows.images, rows.ends, cmap)
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
    size = inches * (table_at + cell * count + 1.1), inches * (count + 0.8)
    canvas = Canvas(size, ax=ax, figsize=figsize, around=0.75)
    axes, small, tiny = canvas.axes, 8 * canvas.scale, 7 * canvas.scale
    for row in range(count):
        dead = str(rows.status[row]) == "dead"
        shades = every[row]
        top, bottom = row - side / 2, row + side / 2
        axes.imshow(
            0.25 * shades + 0.75 if dead else shades, extent=(0, picture_width, bottom, top), interpolation="nearest"
        )
        color = STATUS_COLORS[str(rows.status[row])]
        axes.text(-0.12, row, f"start {rows.starts[row]}", fontsize=small, color=INK, ha="right", va="center")
        score = "dead" if dead else short(float(rows.scores[row]))
        for column, text in enumerate((score, f"{means[row]:.2f}")):
            axes.text(text_at + 0.45 + column, row, text, fontsize=small, color=color, ha="center", va="center")
    table = np.where(np.eye(count, dtype=bool), np.nan, np.clip(correlations, 0, 1))
    axes.imshow(
        table, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest",
        extent=(table_at, table_at + cell * count, count - 0.5, -0.5),
    )  # fmt: skip
    for row in range(count):
        at = table_at + cell * (row + 0.5)
        axes.text(at, -0.62, f"{rows.starts[row]}", fontsize=small, color=INK, ha="center", va="bottom")
        for column in range(count):
            if column != row:
                value = correlations[row, column]
                x = table_at + cell * (column + 0.5)
                color = "white" if value > 0.6 else INK
                axes.text(x, row, f"{value:.2f}", fontsize=tiny, color=color, ha="center", va="center")
    heads = ((text_at + 0.45, "score"), (text_at + 1.45, "mean\nagreement"))
    for x, text in heads:
        axes.text(x, -0.62, text, fontsize=small, color=INK, ha="center", va="bottom")
    axes.text(
        *(table_at + cell * count / 2, -0.95, "agreement with start"),
        fontsize=small,
        color=INK,
        ha="center",
        va="bottom",
    )
    axes.set(xlim=(-1.0, table_at + cell * count + 0.1), ylim=(count - 0.45, -1.25), aspect="equal")
    axes.set(xticks=[], yticks=[])  # and not axis("off"), which would take the note with it
    for spine in axes.spines.values():
        spine.set_visible(False)
    return canvas.finish(
        f"{rows.place}, {whose}: {count} starts, mean agreement {means.mean():.2f}",
        "Agreement: the best correlation over all shifts, white 0, dark blue 1.\n"
        f"{shade_note(oips.ends, cmap)}\n{rows.way}",
    )
