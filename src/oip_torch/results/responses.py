"""What does a network say to pictures? `Responses`: what came out for each, and how it is told in words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oip_torch.base.checks import whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.results.fields import Array, array, rows_of, variables_of
from oip_torch.results.oips import plural

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Responses"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Responses:
    """What the network says to N pictures, in their order.

    Attributes:
        images: (N, height, width, channels) the pictures, standardised one by one.
        outputs: (N, classes) what the network gives for each, its last layer's output. None where that has maps.
        output: the name of that layer.
        output_activation: its activation, such as "softmax"; None where it has none.
        output_noun: what one of its channels is called: "class" or "unit".
        layer: whose activations there are. None: none were asked for, and all that follows is None.
        noun: what a channel of that layer is called: "map", "unit" or "class".
        pre_activation: whether it is what goes into the layer's activation.
        maps: (N,) int, which map of the layer, for each picture.
        starts: (N,) int, as in `Oips`; None for other pictures.
        activations: (N, rows, columns) the map on the picture; (N, 1, 1) of a flat layer.
        scores: (N,) their mean over the map.
        places: (N, 2) int, row and column of the unit whose field is told: where the map is largest (of equal ones the
            first), or the place that was asked for. -1 where the map is the same all over, so that no unit is ahead,
            and for flat layers.
        fields: (N, 4) int, top, bottom, left and right of what this unit sees (`ReceptiveField`); -1 where there is no
            such unit; of a flat layer that of all its units.
        at_peak: whether `places` are those of the largest activations, and not one that was asked for.
        unclipped_fields: (N, 4) int, the same with the padding that the unit sees.
        extent: top, bottom, left and right of the whole map, in pixels: with its units drawn between them, each is
            where the middle of its unclipped field is. None where the fields have no such order, as where each unit
            sees everything.
        ends: black and white of the data in the images' units.
        likeness: (N,) the largest `cross_correlation` of the picture with the map's own top real images: 1 for the same
            pattern, wherever it lies. Contrast does not count. NaN where the data does not excite the map. None without
            calibration.
        nearest: (N,) int, the number in the data of the one that it is most like; -1 where undefined.
        likeness_to_others: (N,) the same with the top images of another map, as many of them: the mean over up to 16
            other maps, spread evenly. `likeness` says something of the map as far as it lies above that.
    """

    images: Array = array("image", "y", "x", "channel", large=True)
    outputs: Array | None = array("image", "class", default=None)
    output: str
    output_activation: str | None = None
    output_noun: str = "class"
    layer: str | None = None
    noun: str = "map"
    pre_activation: bool = False
    maps: Array | None = array("image", stored="map", kind=np.int64, default=None)
    starts: Array | None = array("image", stored="start", kind=np.int64, default=None)
    activations: Array | None = array("image", "row", "column", default=None)
    scores: Floats | None = array("image", default=None)
    places: Array | None = array("image", "axis", kind=np.int64, default=None)
    fields: Array | None = array("image", "end", kind=np.int64, default=None)
    at_peak: bool = True
    unclipped_fields: Array | None = array("image", "end", kind=np.int64, default=None)
    extent: tuple[float, float, float, float] | None = None
    ends: tuple[Array, Array]
    likeness: Floats | None = array("image", default=None)
    nearest: Array | None = array("image", kind=np.int64, default=None)
    likeness_to_others: Floats | None = array("image", default=None)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"<Responses to {len(self)} pictures: {self.summary}>"

    @property
    def are_probabilities(self) -> bool:
        """Whether the outputs are one probability for each class: whether a softmax made them."""
        return self.outputs is not None and self.output_activation == "softmax" and self.outputs.shape[1] > 1

    @property
    def predicted(self) -> Array | None:
        """(N,) int, the class (or unit) of the largest output; None where there are fewer than two."""
        if self.outputs is None or self.outputs.shape[1] < 2:
            return None
        return np.asarray(self.outputs.argmax(1))

    @property
    def shares(self) -> Array | None:
        """(N,) the probability of the predicted class; None where the outputs are no probabilities."""
        return np.asarray(self.outputs.max(1)) if self.outputs is not None and self.are_probabilities else None

    @property
    def place(self) -> str:
        """Whose activations, in words: "Conv2D_3", or "Dense_2 before its activation"."""
        return f"{self.layer}{' before its activation' if self.pre_activation else ''}"

    @property
    def summary(self) -> str:
        """In words: what the pictures are taken for, what a unit sees of them, and how like real images they are."""
        told = [self._choice]
        if self.activations is not None and self.fields is not None and self.unclipped_fields is not None:
            silent = int((self.activations.max((1, 2)) <= 0).sum())
            if silent and not self.pre_activation:
                told.append(f"On {silent} of {len(self)} the {self.noun} of {self.layer} is nowhere above 0.")
            told.append(self._sight)
        if self.likeness is not None and self.likeness_to_others is not None:
            known = np.isfinite(self.likeness)
            rest = (
                f" Undefined for {(~known).sum()}, whose {self.noun} the data does not excite."
                if not known.all()
                else ""
            )
            told.append(
                f"Likeness to the {self.noun}'s own top real images (largest correlation over all shifts): "
                f"{np.median(self.likeness[known]):.2f} in the median; to those of other {plural(self.noun)}: "
                f"{np.nanmedian(self.likeness_to_others[known]):.2f}.{rest}"
                if known.any()
                else f"Likeness is undefined: the data excites none of these {plural(self.noun)}."
            )
        return " ".join(told)

    @property
    def _choice(self) -> str:
        """What the pictures are taken for, in words."""
        predicted, shares, noun = self.predicted, self.shares, self.output_noun
        if predicted is None or self.outputs is None:
            return f"{self.output}, the network's last layer, has no two {plural(noun)} to choose from."
        count = f"{len(self)} picture{'' if len(self) == 1 else 's'}"
        common = Counter(predicted.tolist()).most_common()
        head = f"The largest output of {self.output} on {count} is that of"
        if len(common) == 1:
            told = f"{head} {noun} {common[0][0]}"
        else:
            told = f"{head} {len(common)} of its {self.outputs.shape[1]} {plural(noun)}"
            if common[0][1] > common[1][1]:
                told += f", most often of {noun} {common[0][0]} ({common[0][1]} of {len(self)})"
        if shares is None:
            return f"{told}."
        return f"{told}; its probability is {np.median(shares):.2f}{' in the median' if len(self) > 1 else ''}."

    @property
    def _sight(self) -> str:
        """How much of a picture one unit sees, in a sentence."""
        assert self.fields is not None
        assert self.places is not None
        known = self.fields[(self.fields >= 0).all(1)]
        height, width = self.images.shape[1:3]
        if not len(known):
            return f"Each {self.noun} is the same all over, so that no unit of it is ahead of the others."
        sizes = sorted({(int(bottom - top), int(right - left)) for top, bottom, left, right in known})
        told = " or ".join(f"{rows}×{columns}" for rows, columns in sizes[:3]) + (" or other" if len(sizes) > 3 else "")
        unit = "with the largest activation" if self.at_peak else f"at {tuple(self.places[0].tolist())}"
        whose = f"The unit {unit} sees" if self.noun == "map" else f"The {plural(self.noun)} of {self.layer} see"
        if sizes == [(height, width)]:
            return f"{whose} the whole image."
        return f"{whose} {told} of {height}×{width} pixels."

    def take(self, rows: int | Iterable[int]) -> Responses:
        """Those of the pictures at these positions (0 to N - 1), in this order; or where a mask of N is True.

        Raises:
            InputError: a position that is not there, or a mask of another length.
        """
        chosen = np.array(whole_numbers("positions of pictures", rows, len(self)), int)
        if wrong := [int(row) for row in chosen if not 0 <= row < len(self)]:
            raise InputError(f"no picture at position {wrong[0]}: expected 0 to {len(self) - 1}")
        return dataclasses.replace(self, **rows_of(self, "image", chosen))

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset with the dimensions image, y, x, channel, class, row, column; without what is None."""
        import xarray as xr

        attributes = {"output": self.output, "layer": self.layer or "", "summary": self.summary}
        dataset = xr.Dataset(variables_of(self), attrs=attributes)
        dataset = dataset.assign_coords(axis=["row", "column"], end=["top", "bottom", "left", "right"])
        return dataset.set_coords([name for name in ("map", "start") if name in dataset])
