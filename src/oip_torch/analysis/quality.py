"""How good is an OIP?

A high score alone can be a trick that works on one pixel grid only, or a pattern that excites every map alike. Each
figure here asks one question of an image; none of them alone is a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from oip_torch.analysis.calibration import Calibration
from oip_torch.analysis.image_statistics import cross_correlations, spectrum_distance
from oip_torch.analysis.legibility import Readers, legibility
from oip_torch.analysis.scores import LayerOutputs, check_made_by, map_means
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import rms, standardize, to_array, to_tensor, with_rms_of
from oip_torch.network.model import FeatureModel
from oip_torch.optim.starts import random_stream
from oip_torch.results.fields import Array, array, variables_of
from oip_torch.results.oips import Oips

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NOISE_STD", "Quality", "assess"]

NOISE_STD = 0.1
"""Of the image's RMS, its standard deviation where it is standardised: plainly visible, far from hiding a pattern."""

_DRAWS = 4  # of noise for each image
_SHIFTS = [(y, x) for y in (0, 1, 2) for x in (0, 1, 2) if (y, x) != (1, 1)]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of N OIPs of one layer, in their order. NaN: undefined for this image.

    All of them are about the mean activation of the map, `scores`, whatever objective the OIPs were made with; or about
    the mean of what goes into the activation, where the OIPs were made for that (`Oips.pre_activation`). Images with
    a score of 0 or less have no ratios to it: NaN.

    Every figure compares images of the same contrast. Where a constraint leaves the OIPs' mean or contrast free
    (`Oips.standardized` is False), a changed image gets the RMS of its own original instead of being standardised
    again, `over_data` is undefined, and spectrum and legibility are those of the standardised picture.

    Attributes:
        layer: its name.
        maps, starts: (N,) int, as in `Oips`.
        scores: (N,) the mean activation of the map on the image.
        over_data: score over the largest score that the data draws from the map. Above 1 the image holds
            more of what the map looks for than any image of the data, at the same contrast. inf where the map fires
            here and the data does not excite it (`LayerCalibration.excited`). NaN without calibration, and where the
            images have another contrast than the data's, which are standardised one by one.
        selectivity_rank: 1 if the map itself is the one that its own OIP excites most, among the layer's maps, each
            divided by its maximum over the data; 2 if one map is ahead of it; and so on. Undivided, the loudest maps of
            a layer would lead on every image. Maps that the data does not excite have no scale and are left out;
            NaN for those, and without calibration.
        shift_robustness: mean of score(shifted) / score over the eight shifts by one pixel, horizontally, vertically
            and diagonally, edges repeated, at the same contrast. A convolution moves its map along with the image, so
            what is lost is what hung on the border or on the pooling grid. Jitter of this kind is what feature
            visualisation uses against such patterns: Olah et al., "Feature Visualization", Distill 2017.
        noise_robustness: mean of score(image + noise) / score over four draws of normal noise of 0.1 times the image's
            RMS, at the same contrast. A real pattern barely changes; one made of fine-tuned pixels, as adversarial
            images are (Szegedy et al., 2013), falls.
        consistency: mean over the other starts of the same map of `cross_correlation` with their images: 1 if the same
            pattern, wherever it lies, came from every noise. Unrelated images do not have 0, since the best of all
            shifts counts: between maps of Conv2D_3 of the shipped network it is 0.18 in the median. NaN with one start.
        score_spread: standard deviation over mean of the scores of all starts of the map, dead ones included (as 0).
            NaN with one start.
        spectrum_distance: root mean square, over the rings of `radial_power_spectrum`, of log10 of the image's
            power over the data's mean power: 1 means off by a factor of 10; a single MNIST digit has about 0.26. OIPs
            of unregularised ascents have too much of the short wavelengths (Olah et al., 2017, again). NaN without
            calibration.
        tells: does the picture tell the real images that its map fires for from those of other maps (`Readers.tells`)?
            1 always, 0 by chance. NaN without readers, and where no real image fires the map.
        looks: how much of the picture is made of pieces of real images (`Readers.looks`), 1 at most. NaN without
            readers.
        legibility: max(tells, 0) · max(looks, 0); 0 where the map is dead. NaN where `tells` is. None of the three is
            a verdict: docs/legibility.md says where they mislead.
    """

    layer: str
    maps: Array = array("image", stored="map")
    starts: Array = array("image", stored="start")
    scores: Floats = array("image")
    over_data: Floats = array("image")
    selectivity_rank: Floats = array("image")
    shift_robustness: Floats = array("image")
    noise_robustness: Floats = array("image")
    consistency: Floats = array("image")
    score_spread: Floats = array("image")
    spectrum_distance: Floats = array("image")
    tells: Floats = array("image")
    looks: Floats = array("image")
    legibility: Floats = array("image")

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def legibility_summary(self) -> str:
        """Legibility in a sentence: median, lower quartile, of the weak maps, and of how many it is undefined.

        Strength stands beside it, since a picture is easily read where nothing is asked of it. Weak are the images in
        the lower quarter of the scores.
        """
        known = np.isfinite(self.legibility)
        if not known.any():
            return "Legibility is undefined: no real image fires these maps, or `assess` was given no readers."
        values, scores = self.legibility[known], self.scores[known]
        weak = values[scores <= np.quantile(scores, 0.25)]
        silent = int((~known).sum())
        rest = f" Undefined for {silent} of {len(self)}, whose maps no real image fires." if silent else ""
        return (
            f"Legibility {np.median(values):.2f} in the median, {np.quantile(values, 0.25):.2f} in the lower quartile, "
            f"{np.median(weak):.2f} for the weak maps (median), at a median score of {np.median(scores):.3g}.{rest}"
        )

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset along the dimension image; `.to_dataframe()` makes a table of it."""
        import xarray as xr

        return xr.Dataset(variables_of(self), attrs={"layer": self.layer}).set_coords(["map", "start"])


def assess(
    model: FeatureModel,
    oips: Oips,
    calibration: Calibration | None = None,
    *,
    readers: Readers | None = None,
    seed: int = 0,
) -> Quality:
    """The figures of `Quality` for every image.

    Args:
        model: the one that made the OIPs.
        oips: of any layer and status. Several starts of a map are compared with each other.
        calibration: of this model, with the OIPs' layer.
        readers: of this model and the OIPs' layer, for the figures of legibility.
        seed: of the noise, which depends on it and on the layer, map and start of the image alone.

    Raises:
        InputError: another model's OIPs, calibration or readers; a layer that was not calibrated.
    """
    if not isinstance(model, FeatureModel) or not isinstance(oips, Oips):
        raise InputError(
            f"model is {shown(model)}, oips is {shown(oips)}: expected what oip_torch.load and oip_torch.ascend return"
        )
    seed = whole("seed", seed, 0)
    if not len(oips):
        raise InputError("there are no OIPs to assess: expected at least one")
    check_made_by(model, oips)
    if calibration is not None:
        if not isinstance(calibration, Calibration):
            raise InputError(f"calibration is {shown(calibration)}: expected what oip_torch.calibrate returns, or None")
        calibration.check(model)
        calibration.check(oips)
    if readers is not None:
        if not isinstance(readers, Readers):
            raise InputError(f"readers is {shown(readers)}: expected what oip_torch.Readers.of returns, or None")
        readers.check(model, oips)
    images = to_tensor(oips.images, model.device, model.dtype)
    outputs = LayerOutputs(model, [oips.layer], [oips.layer] if oips.pre_activation else [])
    at_once = outputs.at_once

    def scores_of(changed: Callable[[slice], Tensor]) -> Floats:
        """(N, maps of the layer): every map's score on the images that `changed` gives, batch by batch."""
        parts = []
        with torch.no_grad(), matmul_precision():
            for first in range(0, len(images), at_once):
                images_ = changed(slice(first, first + at_once))
                parts.append(map_means(outputs(images_)[oips.layer]).double().cpu())
        return torch.cat(parts).numpy()

    def own(scores: Floats) -> Floats:
        return scores[np.arange(len(oips)), oips.maps]

    def robustness(changes: list[Callable[[slice], Tensor]]) -> Floats:
        ratios = [_ratio(own(scores_of(change)), score) for change in changes]
        return np.asarray(np.mean(ratios, axis=0))

    def same_contrast(changed: Tensor, rows: slice) -> Tensor:
        return standardize(changed) if oips.standardized else with_rms_of(changed, images[rows])

    def shifted(y: int, x: int) -> Callable[[slice], Tensor]:
        height, width = images.shape[2:]
        return lambda rows: same_contrast(
            F.pad(images[rows], (1, 1, 1, 1), mode="replicate")[:, :, y : y + height, x : x + width], rows
        )

    noise = _noise(oips, seed)

    def noisy(draw: int) -> Callable[[slice], Tensor]:
        def add(rows: slice) -> Tensor:
            drawn = torch.from_numpy(noise[draw, rows]).to(images)
            size = 1.0 if oips.standardized else rms(images[rows])
            return same_contrast(images[rows] + size * drawn, rows)

        return add

    layer_scores = scores_of(lambda rows: images[rows])
    score = own(layer_scores)
    pictures = oips.images if oips.standardized else to_array(standardize(images))
    over_data, rank, distance = (np.full(len(oips), np.nan) for _ in range(3))
    if calibration is not None:
        data = calibration[oips.layer]
        maximum = np.where(data.excited, data.maximum, 0.0)
        if oips.standardized:
            over_data = _over_data(score, maximum[oips.maps])
        rank = _ranks(layer_scores, oips.maps, maximum)
        distance = spectrum_distance(pictures, calibration.spectrum)
    tells, looks = (np.full(len(oips), np.nan) for _ in range(2))
    if readers is not None:
        tells, looks = readers.tells(pictures, oips.maps), readers.looks(pictures)
    consistency, spread = _agreement(oips, score)
    return Quality(
        layer=oips.layer,
        maps=oips.maps,
        starts=oips.starts,
        scores=score,
        over_data=over_data,
        selectivity_rank=np.where(score > 0, rank, np.nan),
        shift_robustness=robustness([shifted(y, x) for y, x in _SHIFTS]),
        noise_robustness=robustness([noisy(draw) for draw in range(_DRAWS)]),
        consistency=np.where(score > 0, consistency, np.nan),
        score_spread=np.where(score > 0, spread, np.nan),
        spectrum_distance=distance,
        tells=tells,
        looks=looks,
        legibility=legibility(tells, looks, (oips.status == "dead") | (score == 0)),
    )


def _ratio(over: Floats, under: Floats) -> Floats:
    """The quotient where `under` is above 0, else NaN."""
    return np.asarray(np.where(under > 0, over / np.where(under > 0, under, 1.0), np.nan))


def _over_data(score: Floats, maximum: Floats) -> Floats:
    beyond = np.where(maximum > 0, _ratio(score, maximum), np.inf)
    return np.asarray(np.where(score > 0, beyond, np.nan))


def _ranks(layer_scores: Floats, maps: npt.NDArray[np.int64], maximum: Floats) -> Floats:
    """(N, maps) scores → (N,) the rank of each image's own map, 1 for the first."""
    known = maximum > 0
    scaled = np.where(known, layer_scores / np.where(known, maximum, 1.0), -np.inf)
    own = scaled[np.arange(len(maps)), maps]
    return np.asarray(np.where(known[maps], 1.0 + (scaled > own[:, None]).sum(1), np.nan))


def _noise(oips: Oips, seed: int) -> npt.NDArray[np.float32]:
    """(draws, N, channels, height, width), of standard deviation 0.1."""
    _, height, width, channels = oips.images.shape
    keys = zip(oips.maps.tolist(), oips.starts.tolist(), strict=True)
    # Another name than the layer's: an OIP's start was made with the stream of that one.
    streams = [random_stream(seed, f"noise on {oips.layer}", key) for key in keys]
    shape = (_DRAWS, channels, height, width)
    drawn = [NOISE_STD * stream.standard_normal(shape, dtype=np.float32) for stream in streams]
    return np.stack(drawn, axis=1)


def _agreement(oips: Oips, score: Floats) -> tuple[Floats, Floats]:
    """Consistency and score spread of each image among the starts of its map."""
    consistency, spread = np.full(len(oips), np.nan), np.full(len(oips), np.nan)
    for number in np.unique(oips.maps):
        rows = np.flatnonzero(oips.maps == number)
        if len(rows) < 2:
            continue
        correlations = cross_correlations(oips.images[rows])
        consistency[rows] = (correlations.sum(1) - np.diag(correlations)) / (len(rows) - 1)
        alive = np.maximum(score[rows], 0.0)
        if alive.mean() > 0:
            spread[rows] = alive.std() / alive.mean()
    return consistency, spread
