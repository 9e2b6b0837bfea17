"""Can a person read it? Whether a picture tells which real images a map fires for, and looks like one of them.

docs/legibility.md says what the figures mean, where they mislead, and how they were checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from oip_torch.analysis.readers import Grain, drawn_windows, nearest, similarities, windows
from oip_torch.analysis.scores import LayerOutputs, map_means, standardized_batches
from oip_torch.analysis.top import Top
from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.image_files import check_pixels
from oip_torch.base.platform import matmul_precision
from oip_torch.base.progress import bar
from oip_torch.base.tensors import to_tensor
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.results.oips import Oips

__all__ = ["Readers", "legibility"]

_SHARE = 0.01  # of the real images: those that a map fires for most
_WINDOWS = 120_000
_BATCH = 256

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Readers:
    """What the figures of legibility are read off: the real images of each map of a layer, and pieces of others.

        readers = oip.Readers.of(model, "Conv2D_3", x_test, x_train)
        oip.assess(model, oips, calibration, readers=readers).legibility

    Attributes:
        layer: its name.
        pre_activation: whether the images were ranked by what goes into the layer's activation.
        fingerprint: of the model that ranked them.
        images: (U, channels, height, width), standardised one by one and reduced (`Grain`): the top 1 % of all maps.
        members: (maps, top) int: which of `images` are a map's top 1 %; -1 where fewer images fire it.
        bank: (windows, size): windows of training images.
        input_shape: (channels, height, width) of a picture.
    """

    layer: str
    pre_activation: bool
    fingerprint: str
    images: Tensor
    members: npt.NDArray[np.int64]
    bank: Tensor
    input_shape: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        model: FeatureModel,
        layer: str | Layer,
        images: npt.ArrayLike,
        training: npt.ArrayLike,
        *,
        pre_activation: bool | None = None,
        count: int = _WINDOWS,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Readers:
        """Rank the images for each map of a layer, and draw some 120,000 windows of the training images.

        Images are standardised as for `calibrate`. Memory: 4 bytes for each number of the images kept and of the
        windows: 40 MB for the latter with grey images of 28x28, at most 470 MB for larger ones in colour.

        Args:
            model: from `load` or `convert`.
            layer: its name, or an entry of `model.layers`.
            images: (N, height, width) or (N, height, width, channels), pixel values 0–255: those to be told apart.
            training: likewise, other images of the same kind: those whose pieces a picture may be made of.
            pre_activation: as in `calibrate`.
            count: of windows; figures compare at the same count alone, since with more windows L is higher.
            seed: of the choice of windows.
            progress: show a bar on stderr; None: only on a terminal or in a notebook.

        Raises:
            InputError: an argument of a wrong kind, unknown layer, images of a wrong shape or range.
        """
        if not isinstance(model, FeatureModel):
            raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
        model.check_dtype()
        name, seed = model.layer(layer).name, whole("seed", seed, 0)
        count = whole("count", count, 1)
        before = model.wants_pre_activation(name, pre_activation)
        real, others = check_pixels(images, "the images"), check_pixels(training, "the training images")
        others = others[:: max(1, len(others) // (2 * count))]
        grain = Grain.of(*model.input_shape[1:])
        outputs = LayerOutputs(model, [name], [name] if before else [])
        with bar("ranking images", len(real) + len(others), progress) as advance, torch.no_grad(), matmul_precision():
            top = None
            for first, x in standardized_batches(model, real, outputs.at_once):
                scores = map_means(outputs(x)[name])
                top = top or Top(max(1, round(_SHARE * len(real))), scores)
                top.add(scores, first)
                advance(len(x))
            assert top is not None
            chosen, places = np.unique(top.indices.T, return_inverse=True)
            kept = [grain.reduce(x) for _, x in standardized_batches(model, real[chosen], _BATCH)]
            bank = _bank(model, others, grain, count, seed, advance)
        return cls(
            layer=name,
            pre_activation=before,
            fingerprint=model.fingerprint,
            images=torch.cat(kept).float(),
            members=np.where(top.scores.T > 0, places.reshape(top.indices.T.shape), -1),
            bank=bank,
            input_shape=model.input_shape,
        )

    @property
    def defined(self) -> npt.NDArray[np.bool_]:
        """(maps,): whether any real image fires the map, and any another one; else nothing can be told of it."""
        fired = (self.members >= 0).any(1)
        return np.asarray(fired & (fired.sum() - fired > 0))

    def tells(self, pictures: npt.NDArray[np.floating], maps: npt.ArrayLike) -> Floats:
        """T: whether a picture tells the images that its map fires for from those that other maps fire for.

            T = mean over the readers of  2 P(sim(picture, d) > sim(picture, d')) - 1

        with d any of the map's own top images and d' any top image of any other map; equal ones count half. 1: each of
        its own images is more like the picture than each of the others'; 0: chance; below 0: the picture misleads.

        Args:
            pictures: (N, height, width, channels), standardised one by one.
            maps: (N,) int, the map of each.

        Returns:
            (N,), NaN where no real image fires the map.
        """
        numbers, images = np.asarray(maps), self._tensor(pictures)
        if numbers.shape != (len(images),) or numbers.dtype.kind not in "iu":
            raise InputError(f"maps are {shown(maps)}: expected {len(images)} whole numbers, the map of each picture")
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(self.members):
            raise InputError(f"maps are {shown(maps)}: expected numbers from 0 to {len(self.members) - 1}")
        grain = Grain.of(*self.input_shape[1:])
        known = self.defined
        counts = np.bincount(self.members[self.members >= 0], minlength=len(self.images)).astype(float)
        found = np.full(len(images), np.nan)
        for first in range(0, len(images), _BATCH):
            part = slice(first, first + _BATCH)
            with torch.no_grad(), matmul_precision():
                alike = similarities(grain.reduce(images[part]), self.images, grain).cpu().numpy()
            for row, number in enumerate(numbers[part]):
                if known[number]:
                    own = self.members[number][self.members[number] >= 0]
                    others = counts.copy()
                    others[own] -= 1
                    found[first + row] = np.mean([2 * _share_above(sims, own, others) - 1 for sims in alike[:, row]])
        return found

    def looks(self, pictures: npt.NDArray[np.floating]) -> Floats:
        """L: how much of a picture is made of pieces of real images, 1 for all of it.

            L = 1 - Σ min over q of ‖w - q‖² / Σ ‖w‖²

        over the windows w of the picture, and q of the training images as they are, no gain, no offset. What reducing
        a large picture takes away counts as not found.

        Args:
            pictures: (N, height, width, channels), standardised one by one.

        Returns:
            (N,), 1 at most; 0 for a picture without energy.
        """
        images = self._tensor(pictures)
        grain, found = Grain.of(*self.input_shape[1:]), np.zeros(len(images))
        for first in range(0, len(images), _BATCH):
            some = images[first : first + _BATCH]
            with torch.no_grad(), matmul_precision():
                pieces = windows(grain.reduce(some), grain)
                missed = nearest(pieces.flatten(0, 1), self.bank).view(len(some), -1).double().sum(1)
                energy = pieces.double().square().sum((1, 2))
                share = torch.where(energy > 0, 1 - missed / energy.clamp_min(1e-30), 0.0)
                left = grain.reduced_share(some)
            found[first : first + len(some)] = (left * share).cpu().numpy()
        return found

    def check(self, model: FeatureModel, oips: Oips) -> None:
        """Raise an `InputError` if the images were ranked by another model, for another layer or another score."""
        if self.fingerprint != model.fingerprint:
            raise InputError(
                "these readers have images that another network ranked: make them again with this model, by Readers.of"
            )
        if self.layer != oips.layer or self.pre_activation != oips.pre_activation:
            before = " before its activation" if self.pre_activation else ""
            raise InputError(
                f"these readers are of {self.layer}{before}, the OIPs of {oips.place}: expected the same; make them by "
                f"Readers.of with {oips.layer!r} and pre_activation={oips.pre_activation}"
            )

    def __repr__(self) -> str:
        silent = int((~self.defined).sum())
        return (
            f"<Readers of {self.layer!r}: {len(self.images)} images for {len(self.members)} maps, {silent} of them "
            f"undefined since no image fires them; {len(self.bank)} windows>"
        )

    def _tensor(self, pictures: npt.NDArray[np.floating]) -> Tensor:
        channels, height, width = self.input_shape
        array = np.asarray(pictures)
        if array.ndim != 4 or array.shape[1:] != (height, width, channels) or array.dtype.kind != "f":
            raise InputError(
                f"pictures are an array of shape {array.shape} and type {array.dtype}: expected standardised images, "
                f"(N, {height}, {width}, {channels})"
            )
        return to_tensor(array, self.images.device, torch.float32)


def legibility(tells: Floats, looks: Floats, dead: npt.NDArray[np.bool_]) -> Floats:
    """max(T, 0) · max(L, 0), 0 for a dead map, NaN where T is undefined."""
    product = np.where(dead, 0.0, np.maximum(tells, 0.0) * np.maximum(looks, 0.0))
    return np.asarray(np.where(np.isnan(tells), np.nan, product))


def _share_above(sims: npt.NDArray[np.floating], own: npt.NDArray[np.int64], others: Floats) -> float:
    """P(sims of `own` > sims of the others), equal ones half, the others with their weights."""
    order = np.argsort(sims)
    below = np.concatenate([[0.0], np.cumsum(others[order])])
    ordered = sims[order]
    less = below[np.searchsorted(ordered, sims[own], "left")]
    not_more = below[np.searchsorted(ordered, sims[own], "right")]
    return float(np.mean((less + not_more) / 2) / below[-1])


def _bank(model: FeatureModel, images: npt.NDArray[Any], grain: Grain, count: int, seed: int, advance: Any) -> Tensor:
    """(windows, size): so many at most, as many of each image."""
    generator = torch.Generator().manual_seed(seed)
    each = math.ceil(2 * count / len(images))  # twice as many as are wanted, since flat ones are left out
    parts = []
    for _, x in standardized_batches(model, images, _BATCH):
        parts.append(drawn_windows(grain.reduce(x).float(), grain, each, generator))
        advance(len(x))
    bank = torch.cat(parts)
    return bank[torch.randperm(len(bank), generator=generator)[:count].to(bank.device)]
