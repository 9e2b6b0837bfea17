"""How do OIPs become pictures outside of figures: arrays of pixels, PNG files?"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oip_torch.base.checks import whole
from oip_torch.base.errors import InputError
from oip_torch.base.files import as_path, replacing_in
from oip_torch.results.fields import Array

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from oip_torch.base.drawing import Ends
    from oip_torch.results.oips import Oips

__all__ = ["file_name", "html", "pictures", "save_pictures", "way_frames", "way_steps"]

_MOST_PIXELS = 16_384  # of a side


def pictures(images: Array, ends: Ends | None, scale: int, cmap: str | Colormap, together: bool = False) -> Array:
    """See `Oips.pictures`; `together`: whether quantiles are those of all images together."""
    from oip_torch.base.drawing import shade  # and matplotlib with it

    scale = whole("scale", scale, 1)
    if (side := max(images.shape[1:3])) * scale > _MOST_PIXELS:
        raise InputError(
            f"scale is {scale}: expected {max(1, _MOST_PIXELS // side)} or less for images of {side} pixels, so that "
            f"no side has more than {_MOST_PIXELS}"
        )
    if not len(images):
        return np.empty((0, images.shape[1] * scale, images.shape[2] * scale, 3), np.uint8)
    pixels = np.rint(255 * shade(images, ends, cmap, together)).astype(np.uint8)
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def html(oips: Oips) -> str:
    """What a notebook shows of OIPs: their `repr`, and a contact sheet of at most 64 of the best."""
    import base64
    import io
    from html import escape

    from oip_torch.base.drawing import contact_sheet, shade, shade_note

    best = oips.best()
    best = best.take(range(min(len(best), 64)))
    if not len(best):
        return f"<p>{escape(repr(oips))}</p>"
    buffer = io.BytesIO()
    figure = contact_sheet(
        shade(best.images, best.ends),
        best.labels,
        best.status.tolist(),
        title=best.title,
        legend=f"{best.legend} {shade_note(best.ends)}",
    )
    figure.savefig(buffer, format="png", dpi=80)
    picture = base64.b64encode(buffer.getvalue()).decode()
    return f'<p>{escape(repr(oips))}</p><img src="data:image/png;base64,{picture}">'


def save_pictures(oips: Oips, folder: str | os.PathLike[str], scale: int, cmap: str | Colormap) -> list[Path]:
    """See `Oips.save_pictures`."""
    from matplotlib.image import imsave

    folder = as_path(folder, "a folder")
    if not len(oips):
        raise InputError("there are no OIPs to save: expected at least one")
    keys = list(zip(oips.maps.tolist(), oips.starts.tolist(), strict=True))
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        raise InputError(
            f"{oips.noun} {twice[0][0]}, start {twice[0][1]} is among these OIPs more than once: expected each once, "
            "since the files' names are made of them"
        )
    layer = file_name(oips.layer)
    names = [f"{layer}_{number:03d}_{start:02d}.png" for number, start in keys]
    made = pictures(oips.images, oips.ends, scale, cmap)
    with replacing_in(folder, names) as temporary:
        for name, picture in zip(names, made, strict=True):
            imsave(temporary / name, picture)
    return [folder / name for name in names]


def way_steps(oips: Oips) -> list[int]:
    """The steps whose snapshots are shown: all but that of the last step, which is not to be told from the result."""
    steps: list[int] = oips.snapshot_steps.tolist()
    return steps[:-1] if steps and steps[-1] == oips.traces.shape[1] - 1 else steps


def way_frames(oips: Oips, row: int) -> Array:
    """(S + 1, height, width, channels): how the image of this row came about, the snapshots of `way_steps` and it."""
    return np.stack([*oips.snapshots[row, : len(way_steps(oips))], oips.images[row]])


def file_name(layer: str) -> str:
    """A layer's name as part of a file's: as it is, or without what is not safe, and with a digest of all of it.

    The name may come from an untrusted file. The digest keeps the files of "a/b" and "a_b" apart.
    """
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", layer).lstrip(".-")[:80]
    return safe if safe == layer else f"{safe or 'layer'}-{hashlib.sha256(layer.encode()).hexdigest()[:8]}"
