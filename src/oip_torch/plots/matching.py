"""How do the maps of two networks look that say the same of the same images?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import Colormap

from oip_torch.analysis.matching import Match
from oip_torch.base.checks import shown, whole
from oip_torch.base.drawing import Figure, Size, draw_sheet, shade, shade_note
from oip_torch.base.errors import InputError

__all__ = ["match"]

_PAIR_INCHES = 1.7


def match(
    found: Match,
    layer: str,
    count: int = 32,
    *,
    columns: int | None = None,
    cmap: str | Colormap = "data",
    figsize: Size | None = None,
) -> Figure:
    """The pairs of a layer, the most alike first: on the left the OIP of one network's map, on the right the other's.

    Above each pair stand the numbers of both maps and the correlation of their scores over the images; a star marks
    those whose first map counts as found in the other network (`LayerMatch.found`).

    Args:
        found: from `match`, of two atlases.
        layer: name of the layer in the first of them.
        count: how many pairs, 1 or more; those whose maps are both alive.
        columns: pairs per row; by default 6.
        cmap: see `sheet`; colours are those of the first network's data.
        figsize: see `sheet`.

    Raises:
        InputError: no match, none of this layer, no pair of OIPs of one size, or what `sheet` refuses.
    """
    if not isinstance(found, Match):
        raise InputError(f"found is {shown(found)}: expected what oip_torch.match returns")
    own, count = found[layer], whole("count", count, 1)
    columns = None if columns is None else whole("columns", columns, 1)
    rows = np.flatnonzero(np.isfinite(own.image_correlation))
    if own.pictures is None or own.other_pictures is None or not len(rows):
        raise InputError(
            f"the pairs of {layer!r} have no OIPs of one size to show: expected those of two atlases; "
            "oip_torch.match takes networks as well, which have none"
        )
    shown_rows = rows[:count]
    left, right = (shade(images[shown_rows], found.ends, cmap) for images in (own.pictures, own.other_pictures))
    gap = np.ones((len(left), left.shape[1], max(1, left.shape[2] // 14), 3))
    labels = []
    for row in shown_rows.tolist():
        mark = " *" if own.found[own.maps[row]] else ""
        labels.append(f"{own.maps[row]} and {own.other_maps[row]}: {own.correlation[row]:.2f}{mark}")
    pairs = np.concatenate([left, gap, right], axis=2)
    if figsize is None:  # a pair is twice as wide as a picture of a sheet
        columns = min(6, len(pairs)) if columns is None else columns
        high = math.ceil(len(pairs) / columns) * 1.3 * pairs.shape[1] / pairs.shape[2]
        figsize = max(4.5, _PAIR_INCHES * columns), _PAIR_INCHES * high + 1.1
    canvas = draw_sheet(pairs, labels, ["finished"] * len(pairs), columns=columns, figsize=figsize)
    canvas.finish(
        f"{found.name} and {found.other_name}: {len(shown_rows)} of {len(own.maps)} pairs",
        f"{own.summary}\nAbove each pair its maps and the correlation of their scores. * found. "
        f"{shade_note(found.ends, cmap)}",
    )
    assert canvas.own is not None
    return canvas.own
