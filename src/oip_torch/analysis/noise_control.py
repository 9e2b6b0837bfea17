"""Is an OIP more than noise?

"Alive" says that a map fires on an image, which it may do on noise. Two questions are asked of a map. Do its starts
agree, as those of a map with a pattern of its own do? They are laid beside copies of themselves that keep the
amplitudes and lose the phases, where edges and strokes are (Oppenheim and Lim, "The importance of phase in signals",
1981), and beside the OIPs of other maps, which are as much like pictures and have nothing to do with the map. And does
the map respond to its image more than to the best of as many noise images as the search has looked at, and more than to
any of those other maps' OIPs?
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.analysis.scores import LayerOutputs, check_made_by, map_means
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import standardize, to_array, to_tensor, with_rms_of
from oip_torch.network.model import FeatureModel
from oip_torch.optim.starts import random_stream
from oip_torch.results.fields import Array, array, variables_of
from oip_torch.results.oips import Oips, plural

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["NoiseControl", "noise_control", "phase_scrambled"]

_DRAWN = 256  # noise images that are made at once
_SCRAMBLED_BYTES = 256 << 20  # that a batch of noise images may take while it is made, at
_BYTES_OF_NUMBER = 64  # for each number of an image
_LEVEL = 0.05  # of each question by rank: so many of the maps that are noise pass it
_ENOUGH = 20  # maps: among fewer the one with the highest score would say nothing at that level
_MOST_STARTS = 8  # that are drawn of different maps; more change the mean of their pairs little
_PAIRS = 2997  # of unrelated images, at least: enough for a quantile of 5 %, and seconds of work

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NoiseControl:
    """The OIPs of M maps beside noise, and beside the OIPs of other maps. NaN: not asked, for the reason given.

    Attributes:
        layer: its name.
        noun: what a channel of it is called.
        fingerprint: of the network.
        draws: how many copies of scrambled phases each image had.
        noise_images: how many noise images all maps were shown: as many as the search has looked at for one map, its
            image-steps times the starts. They are scrambled copies of OIPs of the layer, drawn by chance.
        maps: (M,) int, in the order of the OIPs.
        agreement: (M,) the mean `cross_correlation` between the starts of the map. NaN with one start.
        scrambled_agreement: (M,) the same of copies, one of each start: the mean over the draws.
        most_scrambled_agreement: (M,) what one draw in 20 exceeds, by rank; of fewer than 19 the largest.
        unrelated_agreement: (M,) the same of as many images (8 at most) of as many different maps, all drawn by chance:
            the mean over the draws, of which there are 199 or more. NaN with one start, and with fewer than 20 maps.
        most_unrelated_agreement: (M,) what one of these draws in 20 exceeds, by rank.
        score: (M,) the mean activation of the map on the best of its images; before the activation, where the OIPs were
            made for that. NaN where they were made for another objective than `map_mean`, as all scores then.
        scrambled_score: (M,) on the best of all copies of its images.
        noise_score: (M,) on the best of the noise images.
        unrelated_score: (M,) on the best of the other maps' OIPs. NaN with fewer than 20 maps.
        noise: (M,) bool: not distinguishable from noise, since the starts agree no better than scrambled copies or
            unrelated images do (`most_…`), or since noise or another map's OIP scores as high as the best image. Of
            maps whose starts do not agree each of the first two questions lets one in 20 pass. False where nothing
            could be asked: see `asked`.
    """

    layer: str
    noun: str
    fingerprint: str
    draws: int
    noise_images: int
    maps: Array = array("map", stored="map")
    agreement: Floats = array("map")
    scrambled_agreement: Floats = array("map")
    most_scrambled_agreement: Floats = array("map")
    unrelated_agreement: Floats = array("map")
    most_unrelated_agreement: Floats = array("map")
    score: Floats = array("map")
    scrambled_score: Floats = array("map")
    noise_score: Floats = array("map")
    unrelated_score: Floats = array("map")
    noise: npt.NDArray[np.bool_] = array("map")

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        return f"<NoiseControl of {self.layer!r}: {self.summary}>"

    @property
    def asked(self) -> npt.NDArray[np.bool_]:
        """(M,) whether the starts' agreement was asked, without which no map is told from noise for sure."""
        return np.isfinite(self.agreement)

    @property
    def outscores(self) -> npt.NDArray[np.bool_]:
        """(M,) whether the best image scores above all noise images, so that the starts' agreement alone can tell."""
        return np.asarray(self.score > np.fmax(self.scrambled_score, self.noise_score), bool)

    @property
    def beside_others(self) -> bool:
        """Whether there were enough maps to lay each beside the OIPs of others, the question that finds weak ones."""
        return len(self) >= _ENOUGH

    @property
    def summary(self) -> str:
        """In a sentence: "2 of 128 maps are not distinguishable from noise: 3, 17"; silent maps are told apart."""
        silent = self.score == 0
        told = self.maps[self.noise & ~silent].tolist()
        which = f": {', '.join(map(str, told))}" if told else ""
        which += f"; {silent.sum()} respond to none of their images" if silent.any() else ""
        of_all = f"{len(told)} of {len(self)} {plural(self.noun)}"
        if self.asked.all():
            alone = "" if self.beside_others else f"; beside scrambled copies alone, with fewer than {_ENOUGH} maps"
            above = int((self.noise & self.outscores).sum())
            by_starts = (
                f"; {above} of these score above all noise images, and their starts do not agree" if above else ""
            )
            return f"{of_all} are not distinguishable from noise{which}{by_starts}{alone}"
        scored = int((~self.asked & np.isfinite(self.score)).sum())
        unknown = int((~self.asked & ~self.noise).sum())
        if scored == len(self):
            rest = f"of the other {unknown} it is not known, with one start each" if unknown else "with one start each"
            return f"{of_all} score no higher than noise does{which}; {rest}"
        return f"{of_all} are not distinguishable from noise{which}; of {unknown} it is not known, with one start each"

    def check(self, oips: Oips) -> None:
        """Raise an `InputError` if OIPs are of another network, layer or map than was looked at here."""
        if (oips.provenance.fingerprint, oips.layer) != (self.fingerprint, self.layer):
            raise InputError(
                f"the noise control is of {self.layer!r}, the OIPs are of {oips.layer!r} or of another network: "
                "expected what oip_torch.noise_control returns for them"
            )
        if missing := sorted(set(oips.maps.tolist()) - set(self.maps.tolist())):
            raise InputError(
                f"{self.noun} {missing[0]} of {self.layer!r} is not in the noise control: expected one of all "
                "these OIPs"
            )

    def marks(self, oips: Oips) -> npt.NDArray[np.bool_]:
        """(N,) which images are of maps that are not distinguishable from noise; the dead ones are called dead."""
        self.check(oips)
        noise = dict(zip(self.maps.tolist(), self.noise.tolist(), strict=True))
        of_each = np.array([noise[number] for number in oips.maps.tolist()], bool)
        return np.asarray(of_each & (oips.status != "dead"), bool)

    def note(self, oips: Oips) -> str:
        """What a picture of these OIPs has to say of noise, in sentences; "" where nothing is known and none marked."""
        marked = self.marks(oips)
        several = self.asked[np.isin(self.maps, oips.maps)]
        told = "~ not distinguishable from noise: " if marked.any() else ""
        if several.all():
            why = "the starts agree no better than unrelated images do, or noise scores as high."
            none = "None of these is indistinguishable from noise." if self.beside_others else ""
            shown = set(oips.maps[marked].tolist())
            above = sum(number in shown for number in self.maps[self.outscores].tolist())
            by_starts = (
                f" {above} of the {len(shown)} score above all noise images: there the starts tell." if above else ""
            )
            return f"{told}{why}{by_starts}" if told else none
        return f"{told}noise scores as high. With one start more is not known." if told else ""

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset along the dimension map."""
        import xarray as xr

        attributes = {"layer": self.layer, "draws": self.draws, "noise_images": self.noise_images}
        return xr.Dataset(variables_of(self), attrs=attributes)


def phase_scrambled(
    images: npt.NDArray[np.floating], generator: np.random.Generator, *, standardized: bool = True
) -> npt.NDArray[np.floating]:
    """Images of the same amplitude spectra with phases drawn by chance, and so of the same mean and contrast.

    The phases are those of white noise, and so symmetric as a real image's are; all channels of an image turn by the
    same ones, and keep their colours' correlation.

    Args:
        images: (N, height, width, channels).
        generator: of the noise.
        standardized: whether the images are standardised one by one; the copies then are, too, to the last digit.

    Returns:
        (N, height, width, channels).
    """
    noise = np.fft.fft2(generator.standard_normal((*images.shape[:3], 1)), axes=(1, 2))
    noise[:, 0, 0] = 1.0
    turned = np.fft.fft2(images, axes=(1, 2)) * (noise / np.maximum(np.abs(noise), 1e-30))
    scrambled = np.fft.ifft2(turned, axes=(1, 2)).real
    copies = to_tensor(scrambled)
    copies = standardize(copies) if standardized else with_rms_of(copies, to_tensor(images))
    return np.asarray(to_array(copies), images.dtype)


def noise_control(model: FeatureModel, oips: Oips, *, draws: int = 19, seed: int = 0) -> NoiseControl:
    """The figures of `NoiseControl` for every map.

        control = oip.noise_control(model, oip.ascend(model, "Conv2D_3", starts=3))
        control.summary
        oip.plots.sheet(oips.best(), control=control)

    Give it all the OIPs of a layer at once: from 20 maps on, each map's are laid beside the others'.

    Args:
        model: the one that made the OIPs.
        oips: of any layer and status; with two or more starts of a map their agreement is asked, too.
        draws: scrambled copies of each image, 1 or more; 19 make a test at 5 %.
        seed: of the phases. Those of a map's copies depend on it, the layer and the map alone.

    Raises:
        InputError: another model's OIPs, or none.
    """
    if not isinstance(model, FeatureModel) or not isinstance(oips, Oips):
        raise InputError(
            f"model is {shown(model)}, oips is {shown(oips)}: expected what oip_torch.load and oip_torch.ascend return"
        )
    draws, seed = whole("draws", draws, 1), whole("seed", seed, 0)
    if not len(oips):
        raise InputError("there are no OIPs to lay beside noise: expected at least one")
    check_made_by(model, oips)
    outputs = LayerOutputs(model, [oips.layer], [oips.layer] if oips.pre_activation else [])
    at_once = outputs.at_once

    def scores_of(images: npt.NDArray[np.floating]) -> Floats:
        """(N, maps of the layer)."""
        parts = []
        for first in range(0, len(images), at_once):
            x = to_tensor(images[first : first + at_once], model.device, model.dtype)
            with torch.no_grad(), matmul_precision():
                parts.append(map_means(outputs(x)[oips.layer]).double().cpu())
        return torch.cat(parts).numpy()

    maps = list(dict.fromkeys(oips.maps.tolist()))
    compared = oips.scored_by == "map_mean"
    starts = max(int((oips.maps == number).sum()) for number in maps)
    noise_images = starts * oips.settings.image_steps
    noise_scores = np.full(max(maps) + 1, np.nan)
    if compared:
        stream = random_stream(seed, f"noise images of {oips.layer}", (0, 0))
        noise_scores = np.full(model.layers[oips.layer].maps, -np.inf)
        # Not as many as the network takes at once: which images are drawn would depend on that.
        drawn = max(1, min(_DRAWN, _SCRAMBLED_BYTES // (_BYTES_OF_NUMBER * math.prod(model.input_shape))))
        for first in range(0, noise_images, drawn):
            rows = stream.integers(len(oips), size=min(drawn, noise_images - first))
            noise_scores = np.maximum(
                noise_scores,
                scores_of(phase_scrambled(oips.images[rows], stream, standardized=oips.standardized)).max(0),
            )
    # Of each image its own map's score, and of each map the best one on images of others: all of them would be many.
    own_scores, other_scores = np.empty(len(oips)), np.full(model.layers[oips.layer].maps, -np.inf)
    for first in range(0, len(oips), at_once):
        batch = slice(first, first + at_once)
        scores = scores_of(oips.images[batch])
        own_cells = np.arange(len(scores)), oips.maps[batch]
        own_scores[batch] = scores[own_cells]
        scores[own_cells] = -np.inf
        other_scores = np.maximum(other_scores, scores.max(0))
    unrelated: dict[int, Floats] = {}
    found = np.full((9, len(maps)), np.nan)
    for column, number in enumerate(maps):
        rows = oips.maps == number
        own, count = oips.images[rows], min(int(rows.sum()), _MOST_STARTS)
        stream = random_stream(seed, f"scrambled {oips.layer}", (number, 0))
        agreements: list[float] = []
        copy_scores: list[float] = []
        together = max(1, _DRAWN // len(own))  # draws
        for first in range(0, draws, together):
            copies = [
                phase_scrambled(own, stream, standardized=oips.standardized)
                for _ in range(min(together, draws - first))
            ]
            agreements += [_agreement(images) for images in copies if count > 1]
            if compared:
                copy_scores.append(scores_of(np.concatenate(copies))[:, number].max())
        theirs = np.array(agreements)
        if count > 1:
            found[:3, column] = _agreement(own), theirs.mean(), _exceeded(theirs)
            if len(maps) >= _ENOUGH:
                if count not in unrelated:
                    unrelated[count] = _unrelated(oips, maps, count, seed)
                found[3:5, column] = unrelated[count].mean(), _exceeded(unrelated[count])
        if compared:
            found[5:8, column] = own_scores[rows].max(), max(copy_scores), noise_scores[number]
            if len(maps) >= _ENOUGH:
                found[8, column] = other_scores[number]
    agreement, scrambled, most_scrambled, usual, most_unrelated, score, copy_score, noise_score, other_score = found
    return NoiseControl(
        layer=oips.layer,
        noun=oips.noun,
        fingerprint=oips.provenance.fingerprint,
        draws=draws,
        noise_images=noise_images,
        maps=np.array(maps),
        agreement=agreement,
        scrambled_agreement=scrambled,
        most_scrambled_agreement=most_scrambled,
        unrelated_agreement=usual,
        most_unrelated_agreement=most_unrelated,
        score=score,
        scrambled_score=copy_score,
        noise_score=noise_score,
        unrelated_score=other_score,
        # What was not asked is NaN, and no comparison with it is true.
        noise=(agreement <= most_scrambled)
        | (agreement <= most_unrelated)
        | (score <= np.maximum(copy_score, noise_score))
        | (score <= other_score),
    )


def _unrelated(oips: Oips, maps: list[int], count: int, seed: int) -> Floats:
    """(draws,) the agreement of so many images, each of a map of its own."""
    stream = random_stream(seed, f"unrelated {oips.layer}", (count, 0))
    rows = {number: np.flatnonzero(oips.maps == number) for number in maps}
    draws = max(199, 2 * _PAIRS // (count * (count - 1)))
    drawn = [[stream.choice(rows[n]) for n in stream.choice(maps, count, replace=False)] for _ in range(draws)]
    return np.array([_agreement(oips.images[chosen]) for chosen in drawn])


def _exceeded(values: Floats) -> float:
    """What is to be exceeded at the level of the test, by rank: the largest of 19, the second largest of 39."""
    return float(np.sort(values)[-max(1, int(_LEVEL * (len(values) + 1)))])


def _agreement(images: npt.NDArray[np.floating]) -> float:
    """The mean cross-correlation over the pairs of images."""
    return float(cross_correlations(images)[np.triu_indices(len(images), 1)].mean())
