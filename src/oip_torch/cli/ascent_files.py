"""Which files does `oip ascend` leave, and how are its results summed up?"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oip_torch.base.files import is_our_picture, write_picture
from oip_torch.results.oips import plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oip_torch.analysis.calibration import Calibration
    from oip_torch.analysis.noise_control import NoiseControl
    from oip_torch.results.oips import Oips

__all__ = ["summarize", "write_results"]

_MOST_STARTS = 16  # in one evolution picture
_MOST_IMAGES = 1024  # in the picture of the starts
_PICTURES = re.compile(r"(sheet|starts|trace|beside_data|evolution_[0-9]{3,})\.png")
"""The names of the pictures that `oip ascend` writes."""


def write_results(
    oips: Oips, calibration: Calibration | None, control: NoiseControl | None, folder: Path, files: list[Path]
) -> None:
    """oips.nc, and then the pictures; appends to `files` the path of each that is written.

    Raises:
        OipError: one of them cannot be written or drawn; it says whether the results are safe.
    """
    results = oips.save(folder / "oips.nc")
    files.append(results)
    if calibration is not None:
        files.append(calibration.save(folder / "calibration.nc"))
    pictures = _pictures(oips, calibration, control)
    _remove_earlier(folder, set(pictures))
    for name, draw in pictures.items():
        write_picture(draw, folder / name, results)
        files.append(folder / name)


def _pictures(
    oips: Oips, calibration: Calibration | None, control: NoiseControl | None
) -> dict[str, Callable[[], Figure]]:
    """What draws each picture, by file name: the best image of each map and, where there are several, all starts."""
    import oip_torch  # which imports plots late, where a failure of matplotlib is a picture's failure

    best = oips.best()
    ranked = best.maps[np.argsort(-best.scores, kind="stable")].tolist()
    starts = len(oips) // len(best)
    pictures: dict[str, Callable[[], Figure]] = {"sheet.png": lambda: oip_torch.plots.sheet(best, control=control)}
    if starts > 1:
        strongest = set(ranked[: max(1, _MOST_IMAGES // starts)])
        shown = [number for number in best.maps.tolist() if number in strongest]
        of_all = f"{len(best)} {plural(oips.noun)}"
        title = f"{oips.place}: all {starts} starts of " + (
            of_all if len(shown) == len(best) else f"the {len(shown)} strongest of {of_all}"
        )
        # The starts of a map stand side by side, unless they are so many that the picture would be too wide.
        columns = min(starts, 32) * min(len(shown), max(1, 16 // starts))
        pictures["starts.png"] = lambda: oip_torch.plots.sheet(oips.select(maps=shown), columns, title)
    pictures["trace.png"] = lambda: oip_torch.plots.trace(oips)
    if calibration is not None:
        pictures["beside_data.png"] = lambda: oip_torch.plots.beside_data(best, calibration, best.maps[:16].tolist())

    def evolution(number: int) -> Callable[[], Figure]:
        own = oips.select(maps=number)
        kept = own.starts[np.argsort(-own.scores, kind="stable")[:_MOST_STARTS]]
        return lambda: oip_torch.plots.evolution(oips, number, sorted(kept.tolist()))

    for number in ranked[:3]:
        pictures[f"evolution_{number:03d}.png"] = evolution(number)
    return pictures


def _remove_earlier(folder: Path, written: set[str]) -> None:
    """Remove what an earlier run has drawn: it does not show what oips.nc holds now. What is not ours stays."""
    removed: list[str] = []
    left: list[str] = []
    for path in sorted(folder.glob("*.png")):
        if _PICTURES.fullmatch(path.name) and not path.is_dir():
            if ours := is_our_picture(path):
                path.unlink()
            if path.name not in written:
                (removed if ours else left).append(path.name)
    if removed:
        print(f"note: removed from {folder}, as an earlier run drew them: {', '.join(removed)}", file=sys.stderr)
    if left:
        print(f"note: left in {folder}, though not of this run: {', '.join(left)}", file=sys.stderr)


def summarize(oips: Oips, calibration: Calibration | None, control: NoiseControl | None) -> dict[str, Any]:
    """Of one layer, each map by its best image; of dead maps the evidence, of noise the maps' numbers if known."""
    best = oips.best()
    above = None
    if calibration is not None and best.standardized:  # otherwise the data was scored at another contrast
        above = int((best.scores > calibration[oips.layer].maximum[best.maps]).sum())
    tries = oips.settings.screening.candidates
    dead = []
    for number in best.maps[best.status == "dead"].tolist():
        every = oips.select(maps=number)
        dead.append(
            {"map": number, "tries": len(every) * tries, "max_preactivation": float(every.max_preactivation.max())}
        )
    return {
        "maps": len(best),
        "alive": int((best.scores > 0).sum()),
        "above_data": above,
        "median_score": float(np.median(best.scores)),
        "before_activation": oips.pre_activation,
        "dead": dead,
        "noise": None if control is None else best.maps[control.marks(best)].tolist(),
    }
