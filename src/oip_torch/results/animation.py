"""How is it shown in motion how an OIP came about: a GIF, or a video?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oip_torch.base.checks import number, shown, whole
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.files import as_path, replacing
from oip_torch.base.messages import one_line
from oip_torch.results.fields import Array
from oip_torch.results.pictures import pictures, way_frames, way_steps

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

    from oip_torch.results.oips import Oips

__all__ = ["check_video", "save_animation"]

_MOST_FPS = 50.0  # browsers show a picture of less than 0.02 s for 0.1 s
_HELD = 2.0  # seconds that the result stays after its own time
_DPI = 100


def save_animation(
    oips: Oips,
    path: str | os.PathLike[str],
    map: int,
    start: int,
    scale: int,
    cmap: str | Colormap,
    fps: float,
) -> Path:
    """See `Oips.save_animation`."""
    expected_path = "a file with the ending .gif or .mp4"
    path = as_path(path, expected_path)
    if path.suffix not in (".gif", ".mp4"):
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}: expected {expected_path}")
    expected = f"pictures a second, above 0 and at most {_MOST_FPS:.0f}"
    if not 0 < (fps := float(number("fps", fps, expected))) <= _MOST_FPS:
        raise InputError(f"fps is {shown(fps)}: expected {expected}")
    if path.suffix == ".mp4":
        check_video()
    one = oips.select(maps=whole(f"the {oips.noun}", map, 0), starts=whole("the start", start, 0))
    if not way_steps(one):
        raise InputError(
            f"these OIPs of {oips.layer!r} hold no snapshots of the way: expected some; ascend without snapshots=()"
        )
    frames = pictures(way_frames(one, 0), one.ends, scale, cmap, together=True)
    held = [*frames, *[frames[-1]] * max(1, round(_HELD * fps))]
    with replacing(path) as temporary:
        (_write_mp4 if path.suffix == ".mp4" else _write_gif)(temporary, held, fps)
    return path


def check_video() -> None:
    """Raise an `InputError` where what writes MP4 is not installed."""
    try:
        import imageio.plugins.ffmpeg  # noqa: F401
        from imageio_ffmpeg import get_ffmpeg_exe

        get_ffmpeg_exe()
    except (ImportError, RuntimeError):  # the latter: no ffmpeg for this system in the package
        raise InputError(
            'imageio and imageio-ffmpeg are not installed, but needed for .mp4: run `pip install ".[video]"` in the '
            "folder of oip_torch; a .gif needs neither"
        ) from None


def _write_gif(path: Path, frames: Sequence[Array], fps: float) -> None:
    from matplotlib.animation import PillowWriter

    from oip_torch.base.drawing import Figure

    height, width = frames[0].shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    shown_image = figure.figimage(frames[0])
    writer = PillowWriter(fps=fps)  # type: ignore[arg-type]  # which takes fractions, whatever it says
    with writer.saving(figure, str(path), _DPI):
        for frame in frames:
            shown_image.set_data(frame)
            writer.grab_frame()


def _write_mp4(path: Path, frames: Sequence[Array], fps: float) -> None:
    from imageio.v2 import get_writer

    # H.264 in the way that every player takes it halves the colours' resolution, and needs even sides.
    odd = [*((0, side % 2) for side in frames[0].shape[:2]), (0, 0)]
    options: dict[str, Any] = {"fps": fps, "codec": "libx264", "quality": 9, "macro_block_size": 1}
    try:
        writer: Any = get_writer(path, format="FFMPEG", **options)  # type: ignore[arg-type]  # which takes names
        with writer:
            for frame in frames:
                writer.append_data(np.pad(frame, odd, mode="edge"))
    except RuntimeError as error:  # of a process that has ended
        raise OipError(f"{path.name} was not made: {one_line(error)}") from None
