"""Which figures does the page show of an image, what do they mean, and why is one undefined?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from oip_torch.analysis.contents import LayerContents
from oip_torch.analysis.noise_control import NoiseControl
from oip_torch.analysis.quality import NOISE_STD, Quality

__all__ = ["FIGURES", "REASONS", "Figure", "compares_with_data", "figures_of", "noise_of", "rounded"]


@dataclass(frozen=True)
class Figure:
    """A figure of an image: a field of `Quality`.

    Attributes:
        key: the field's name.
        label: what it is called.
        meaning: one sentence.
        unit: what stands behind the number.
    """

    key: str
    label: str
    meaning: str
    unit: str = ""


FIGURES = (
    Figure(
        "over_data",
        "Score over data",
        "The score over the largest score of any real image at the same contrast: above 1 the image holds more of what "
        "the map looks for than any image of the data.",
        "×",
    ),
    Figure(
        "selectivity_rank",
        "Selectivity",
        "The map's place among the layer's maps by how much this image excites each, over what the data draws from it: "
        "1 is the first.",
    ),
    Figure(
        "legibility",
        "Legibility",
        "Tells times looks, 0 for a dead map: how far a person may read from the picture what the map looks for.",
    ),
    Figure(
        "tells",
        "Tells",
        "Whether the picture tells the real images that the map fires for from those of other maps: 1 always, 0 by "
        "chance.",
    ),
    Figure("looks", "Looks", "How much of the picture is made of pieces of real images: 1 is all of it."),
    Figure(
        "consistency",
        "Likeness to the other starts",
        "The mean, over the map's other starts, of the largest correlation over all shifts: 1 if the same pattern came "
        "of every start.",
    ),
    Figure(
        "score_spread",
        "Spread of the scores",
        "The standard deviation of the scores of all starts, over their mean: 0 if all starts end equally strong.",
    ),
    Figure(
        "shift_robustness",
        "Kept after a shift",
        "The share of the score that is left when the image moves by one pixel, as the mean over eight directions.",
    ),
    Figure(
        "noise_robustness",
        "Kept under noise",
        f"The share of the score that is left under noise of {NOISE_STD:g} times the image's contrast: a pattern of "
        "fine-tuned pixels falls.",
    ),
    Figure(
        "spectrum_distance",
        "Distance of spectra",
        "How far the image's wavelengths are from the data's, in powers of ten: a single real image has a few tenths.",
    ),
)

REASONS = {
    "unfinished": "undefined: the layer is not finished, and figures are made when it is",
    "no_data": "undefined: the atlas was made without real images",
    "other_contrast": "undefined: the images have another contrast or mean than the real ones, or other scores",
    "not_excited": "undefined: the data does not excite this map, so that a ratio would mean nothing",
    "silent": "undefined: the map does not fire on this image",
    "one_start": "undefined: the map has one start",
    "no_readers": "undefined: legibility was not asked for",
    "no_real": "undefined: no real image fires the map",
    "few_maps": "undefined: the layer has fewer than 20 maps to compare with",
    "not_asked": "undefined: it was not asked for",
}
"""Why a figure is undefined, in words."""

_OF_DATA = ("over_data", "selectivity_rank", "spectrum_distance")
_OF_READERS = ("legibility", "tells", "looks")
_OF_STARTS = ("consistency", "score_spread")


def compares_with_data(contents: LayerContents) -> bool:
    """Whether a score over that of the data says something: the same measure, on images of the same contrast."""
    oips, data = contents.oips, contents.data
    return (
        data is not None
        and oips.scored_by == "map_mean"
        and oips.standardized
        and data.calibration.pre_activation == oips.pre_activation
    )


def figures_of(contents: LayerContents, row: int, starts: int) -> list[float | str]:
    """Of one image each of `FIGURES`: a number, or a key of `REASONS`.

    Args:
        contents: of its layer.
        row: its position among the layer's images.
        starts: how many images the map has.
    """
    quality, oips = contents.quality, contents.oips
    if quality is None:
        finished = len(oips) + len(oips.provenance.not_finite) >= contents.planned
        return ["not_asked" if finished else "unfinished"] * len(FIGURES)
    return [_figure(contents, quality, row, starts, figure.key) for figure in FIGURES]


def _figure(contents: LayerContents, quality: Quality, row: int, starts: int, key: str) -> float | str:
    value = float(getattr(quality, key)[row])
    data, number = contents.data, int(quality.maps[row])
    if key in (*_OF_DATA, *_OF_READERS) and data is None and not math.isfinite(value):
        return "no_data"
    if key in ("over_data", "selectivity_rank") and data is not None and not data.calibration.excited[number]:
        return "not_excited"
    if key == "over_data" and not compares_with_data(contents):
        return "other_contrast"
    if math.isfinite(value):
        return rounded(value)
    if key in _OF_READERS:
        return "no_readers" if not math.isfinite(quality.looks[row]) else "no_real"
    if key in _OF_STARTS and starts < 2:
        return "one_start"
    return "silent" if quality.scores[row] <= 0 else "not_asked"


def noise_of(noise: NoiseControl | None, number: int) -> dict[str, Any] | None:
    """What the noise control says of one map, each number or a key of `REASONS`; None where it was not made."""
    if noise is None or number not in noise.maps:
        return None
    row = noise.maps.tolist().index(number)

    def value(values: Any, reason: str) -> float | str:
        return rounded(float(values[row])) if math.isfinite(values[row]) else reason

    asked = bool(noise.asked[row])
    few = "few_maps" if asked else "one_start"
    found = {
        "agreement": value(noise.agreement, "one_start"),
        "unrelated": value(noise.most_unrelated_agreement, few),
        "scrambled": value(noise.most_scrambled_agreement, "one_start"),
        "score": value(noise.score, "not_asked"),
        "scrambledScore": value(noise.scrambled_score, "not_asked"),
        "noiseScore": value(noise.noise_score, "not_asked"),
        "unrelatedScore": value(noise.unrelated_score, "few_maps"),
        "images": noise.noise_images,
        "noise": bool(noise.noise[row]),
    }
    return found | {"why": _why_noise(noise, row)}


def _why_noise(noise: NoiseControl, row: int) -> list[str]:
    """Which of the questions the map fails, in words; the same comparisons as those of `NoiseControl.noise`."""
    agreement, score = noise.agreement[row], noise.score[row]
    starts_alike, scores = "its starts agree no better than", "scores as high as its best image"
    asked = [
        (agreement <= noise.most_unrelated_agreement[row], f"{starts_alike} images of other maps do"),
        (agreement <= noise.most_scrambled_agreement[row], f"{starts_alike} scrambled copies of them do"),
        (score <= max(noise.scrambled_score[row], noise.noise_score[row]), f"noise {scores}"),
        (score <= noise.unrelated_score[row], f"an image of another map {scores}"),
    ]
    return [text for failed, text in asked if failed]


def rounded(value: float) -> float:
    """Four significant digits: more than any text of the page shows."""
    return float(f"{value:.4g}")
