"""Is an OIP more than noise with the same spectrum?

"Alive" says that a map fires on an image, which it may do on noise. So each image is laid beside copies of itself that
keep its amplitudes and lose its phases, where edges and strokes are (Oppenheim and Lim, "The importance of phase in
signals", 1981).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.analysis.scores import check_made_by, layer_outputs, map_means
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

_BATCH = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NoiseControl:
    """The OIPs of M maps beside copies of scrambled phases.

    Attributes:
        layer: its name.
        noun: what a channel of it is called.
        draws: how many copies each image had.
        maps: (M,) int, in the order of the OIPs.
        agreement: (M,) the mean `cross_correlation` between the starts of the map. NaN with one start.
        scrambled_agreement: (M,) the same of copies, one of each start: the mean over the draws.
        most_scrambled_agreement: (M,) the largest of the draws.
        score: (M,) the mean activation of the map on the best of its images; before the activation, where the OIPs were
            made for that.
        scrambled_score: (M,) on the best of all copies.
        noise: (M,) bool: not distinguishable from noise, since the starts agree no better than the copies do in any
            draw, or since a copy scores as high as the best image; with one start the score alone is asked. With 19
            draws one map in 20 whose starts do not agree passes the first question by chance.
    """

    layer: str
    noun: str
    draws: int
    maps: Array = array("map", stored="map")
    agreement: Floats = array("map")
    scrambled_agreement: Floats = array("map")
    most_scrambled_agreement: Floats = array("map")
    score: Floats = array("map")
    scrambled_score: Floats = array("map")
    noise: npt.NDArray[np.bool_] = array("map")

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        return f"<NoiseControl of {self.layer!r}: {self.summary}>"

    @property
    def summary(self) -> str:
        """In a sentence: "2 of 128 maps are not distinguishable from noise: 3, 17"."""
        told = self.maps[self.noise].tolist()
        which = f": {', '.join(map(str, told))}" if told else ""
        beside = "" if np.isfinite(self.agreement).any() else " (by their scores alone: with one start none can agree)"
        return f"{len(told)} of {len(self)} {plural(self.noun)} are not distinguishable from noise{beside}{which}"

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset along the dimension map."""
        import xarray as xr

        return xr.Dataset(variables_of(self), attrs={"layer": self.layer, "draws": self.draws})


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

    Args:
        model: the one that made the OIPs.
        oips: of any layer and status; with two or more starts of a map their agreement is asked, too.
        draws: scrambled copies of each image, 1 or more; 19 make a test at 5 %.
        seed: of the phases, which depend on it, the layer and the map alone.

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
    before = [oips.layer] if oips.pre_activation else []

    def best(images: npt.NDArray[np.floating], number: int) -> float:
        scores = []
        for first in range(0, len(images), _BATCH):
            x = to_tensor(images[first : first + _BATCH], model.device, model.dtype)
            with torch.no_grad(), matmul_precision():
                scores.append(map_means(layer_outputs(model, x, [oips.layer], before)[oips.layer])[:, number].max())
        return float(torch.stack(scores).max())

    maps = list(dict.fromkeys(oips.maps.tolist()))
    found = np.full((5, len(maps)), np.nan)
    for column, number in enumerate(maps):
        own = oips.images[oips.maps == number]
        stream = random_stream(seed, f"scrambled {oips.layer}", (number, 0))
        copies = [phase_scrambled(own, stream, standardized=oips.standardized) for _ in range(draws)]
        if len(own) > 1:
            theirs = [_agreement(images) for images in copies]
            found[:3, column] = _agreement(own), np.mean(theirs), np.max(theirs)
        found[3:, column] = best(own, number), best(np.concatenate(copies), number)
    agreement, usual, most, score, scrambled = found
    return NoiseControl(
        layer=oips.layer,
        noun=oips.noun,
        draws=draws,
        maps=np.array(maps),
        agreement=agreement,
        scrambled_agreement=usual,
        most_scrambled_agreement=most,
        score=score,
        scrambled_score=scrambled,
        noise=(agreement <= most) | (score <= scrambled),
    )


def _agreement(images: npt.NDArray[np.floating]) -> float:
    """The mean cross-correlation over the pairs of images."""
    return float(cross_correlations(images)[np.triu_indices(len(images), 1)].mean())
