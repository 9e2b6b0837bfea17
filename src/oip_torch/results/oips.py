"""What came out of an ascent? `Oips`: the images with all that is needed to judge and to repeat them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oip_torch.base.checks import whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.files import read_netcdf, write_netcdf
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.fields import Array, array, arrays_of, large_of, rows_of, variables_of
from oip_torch.results.provenance import Provenance

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MARKS", "NOTES", "STATUSES", "Oips", "plural", "short"]

STATUSES = ("finished", "converged", "recovered", "fallback", "dead")
MARKS = {"recovered": "*", "fallback": "†"}
NOTES = {
    "recovered": "* recovered: inactive after the screening, it fires by way of its peak.",
    "fallback": "† made another way, by the fallback's settings: hardly active after the screening.",
}
_FORMAT = 2
_OF_FORMAT_1 = {"max_preactivation": "largest_before"}


@dataclass(frozen=True, kw_only=True)
class Oips:
    """OIPs of one layer: N images, in the order map by map, start by start.

    Attributes:
        layer: its name.
        maps: (N,) int, the map (channel) that each image was made for.
        starts: (N,) int, the number of its start.
        images: (N, height, width, channels) float, the last images; each has mean 0 and standard deviation 1.
        scores: (N,) float, the objective of `images`: for maps, the mean over the map of its activation, or of what
            goes into the activation (see `pre_activation`).
        max_preactivation: (N,) float, the largest value that goes into the layer's activation, over the map, on
            `images`; of a dead map the evidence how far it is from firing.
        traces: (N, steps) float, the score of the image that each step found, on the whole way from the start to the
            result: the first `screening_steps` of them are the screening's. NaN after an image has stopped.
        snapshots: (N, S, height, width, channels) float, the images that the steps `snapshot_steps` found.
        snapshot_steps: (S,) int.
        status: (N,) str: "dead" (the map was 0 all over at every step: without a leak the ascent could not begin,
            with one it has led nowhere; said only where the objective grows with the map), "recovered" (it was
            inactive after the screening, and fires on the image, which was made by way of its peak), "fallback" (it was
            hardly active after the screening, and the image was made by the settings `settings.fallback`), "converged"
            (the article's criterion was met), else "finished".
        converged_at: (N,) int, the step of the way at which the criterion was first met, or -1.
        settings: of the ascent.
        provenance: what else made them: network, seed, objective, versions, device, cost.
    """

    layer: str
    maps: Array = array("image", stored="map", kind=np.int64)
    starts: Array = array("image", stored="start", kind=np.int64)
    images: Array = array("image", "y", "x", "channel", large=True)
    scores: Array = array("image")
    max_preactivation: Array = array("image")
    traces: Array = array("image", "step", large=True)
    snapshots: Array = array("image", "snapshot", "y", "x", "channel", large=True)
    snapshot_steps: Array = array("snapshot", stored="snapshot_step", kind=np.int64)
    status: Array = array("image", kind=np.str_)
    converged_at: Array = array("image", kind=np.int64)
    settings: AscentSettings
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pre_activation(self) -> bool:
        """Whether the scores are of what goes into the layer's activation."""
        return self.provenance.pre_activation

    @property
    def place(self) -> str:
        """Of what layer, in words: "Conv2D_3", or "Dense_2 before its softmax"."""
        return f"{self.layer} before its {self.provenance.activation}" if self.pre_activation else self.layer

    @property
    def ends(self) -> tuple[Array, Array] | None:
        """Black and white of the data, in the units of `images`, one number or one per channel; None: not known."""
        return None if self.provenance.domain is None else self.provenance.domain.ends

    @property
    def noun(self) -> str:
        """What a channel of the layer is called: "map", "unit" or "class"."""
        return self.provenance.noun

    @property
    def screening_steps(self) -> int:
        """How many of the first steps are the screening's; 0 where there was none, or where its steps were not kept."""
        return max(0, int(self.traces.shape[1]) - self.settings.schedule.steps)

    @property
    def way(self) -> str:
        """By which settings the images came about, in a sentence."""
        return f"Settings: {self.settings.summary}."

    @property
    def title(self) -> str:
        """Of a picture of all: "Conv2D_3: 128 of 128 OIPs alive"."""
        numbers = set(self.maps.tolist())
        whose = f"{self.place}, {self.noun} {self.maps[0]}" if len(numbers) == 1 else self.place
        several = "" if len(numbers) in (1, len(self)) else f", of {len(numbers)} {plural(self.noun)}"
        dead = self.counts()["dead"]
        of_activation = self.provenance.objective in ("map_mean", "map_peak")
        if self.pre_activation or not (of_activation or dead):  # where "dead" is never said, "alive" says nothing
            return f"{whose}: {len(self)} OIP{'s' if len(self) > 1 else ''}{several}"
        return f"{whose}: {len(self) - dead} of {len(self)} OIPs alive{several}"

    @property
    def labels(self) -> list[str]:
        """Of each picture: "17: 2.34", "17: dead", with several starts "17·0: 2.34"; marked if made another way."""
        several = len(set(self.starts.tolist())) > 1
        found = []
        for number, start, score, status in zip(self.maps, self.starts, self.scores, self.status, strict=True):
            told = "dead" if status == "dead" else short(float(score)) + MARKS.get(str(status), "")
            found.append(f"{number}{f'·{start}' if several else ''}: {told}")
        return found

    @property
    def legend(self) -> str:
        """What the labels mean, and the settings."""
        head = f"{self.noun.capitalize()}{'·start' if len(set(self.starts.tolist())) > 1 else ''}: score."
        return f"{' '.join([head, *self.notes])}\n{self.way}"

    @property
    def notes(self) -> list[str]:
        """What the marks of `labels` mean, those that are there."""
        return [note for status, note in NOTES.items() if (self.status == status).any()]

    def select(self, maps: int | Iterable[int] | None = None, starts: int | Iterable[int] | None = None) -> Oips:
        """The images of these maps (in the order given) and starts; None for all of them.

        Raises:
            InputError: a map or start that is not among the results.
        """
        chosen = np.arange(len(self))
        for what, wanted, own in ((self.noun, maps, self.maps), ("start", starts, self.starts)):
            if wanted is None:
                continue
            numbers = whole_numbers(f"{what} numbers", wanted)
            if missing := [number for number in numbers if number not in own]:
                there = sorted({int(n) for n in own})
                raise InputError(
                    f"no {what} {missing[0]} among these OIPs of {self.layer!r}: there are {_ranges(there)}"
                )
            chosen = np.array([i for number in numbers for i in chosen if own[i] == number], int)
        return self.take(chosen.tolist())

    def best(self) -> Oips:
        """The image with the highest score of each map."""
        order: dict[int, int] = {}
        for index in np.argsort(-self.scores, kind="stable"):
            order.setdefault(int(self.maps[index]), int(index))
        return self.take([order[number] for number in dict.fromkeys(self.maps.tolist())])

    def take(self, rows: int | Iterable[int]) -> Oips:
        """The images at these positions (0 to N - 1), in this order; or where a mask of N booleans is True.

        Raises:
            InputError: a position that is not there, or a mask of another length.
        """
        chosen = np.array(whole_numbers("positions of images", rows, len(self)), int)
        if wrong := [int(row) for row in chosen if not 0 <= row < len(self)]:
            raise InputError(f"no image at position {wrong[0]}: expected 0 to {len(self) - 1}")
        return dataclasses.replace(self, **rows_of(self, "image", chosen))

    def counts(self) -> dict[str, int]:
        """How many images have which status."""
        return {status: int((self.status == status).sum()) for status in STATUSES}

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self.counts().items() if n)
        maps = _ranges(sorted({int(n) for n in self.maps}))
        before = f" before its {self.provenance.activation}" if self.pre_activation else ""
        return f"<Oips of {self.layer!r}{before}: {len(self)} images of {plural(self.noun)} {maps}; {counts or 'none'}>"

    def _repr_html_(self) -> str:
        """The pictures, for a notebook: at most 64 of the best."""
        import base64
        import io
        from html import escape

        from oip_torch.base.drawing import contact_sheet, shade, shade_note

        shown = self.best()
        shown = shown.take(range(min(len(shown), 64)))
        if not len(shown):
            return f"<p>{escape(repr(self))}</p>"
        buffer = io.BytesIO()
        figure = contact_sheet(
            shade(shown.images, shown.ends),
            shown.labels,
            shown.status.tolist(),
            title=shown.title,
            legend=f"{shown.legend} {shade_note(shown.ends)}",
        )
        figure.savefig(buffer, format="png", dpi=80)
        picture = base64.b64encode(buffer.getvalue()).decode()
        return f'<p>{escape(repr(self))}</p><img src="data:image/png;base64,{picture}">'

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset with the dimensions image, step, snapshot, y, x, channel."""
        import xarray as xr

        dataset = xr.Dataset(
            variables_of(self),
            attrs={
                "oip_torch_format": _FORMAT,
                "layer": self.layer,
                "settings": json.dumps(self.settings.to_dict()),
                "provenance": json.dumps(self.provenance.to_dict()),
            },
        )
        return dataset.set_coords(["map", "start", "snapshot_step"])

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Oips:
        """The inverse of `to_xarray`; it reads files of format 1 as well."""
        form = dataset.attrs.get("oip_torch_format")
        if form not in (1, _FORMAT):
            raise InputError(f"no OIPs of format 1 or {_FORMAT} in this dataset: expected one that Oips.save wrote")
        try:
            arrays = arrays_of(cls, dataset, _OF_FORMAT_1)
            if form == 1:
                arrays["status"] = np.where(arrays["status"] == "woken", "recovered", arrays["status"])
            if unknown := set(arrays["status"].tolist()) - set(STATUSES):
                raise ValueError(f"the status {unknown.pop()!r}")
            return cls(
                layer=str(dataset.attrs["layer"]),
                settings=AscentSettings.from_dict(json.loads(dataset.attrs["settings"])),
                provenance=Provenance.from_dict(json.loads(dataset.attrs["info" if form == 1 else "provenance"])),
                **arrays,
            )
        except (KeyError, ValueError, TypeError, AttributeError, StopIteration) as error:
            raise InputError(f"this dataset is no complete set of OIPs: {error} is missing or damaged") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it to one NetCDF file, whole or not at all; returns the path.

        Raises:
            InputError: an ending other than .nc, or the file cannot be written.
        """
        return write_netcdf(self.to_xarray(), path, compressed=large_of(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Oips:
        """Read what `save` wrote. NetCDF holds numbers and text only, no pickles.

        Raises:
            InputError: missing or damaged file, or other contents.
        """
        return cls.from_xarray(read_netcdf(path, "Oips.save"))


def short(score: float, decimals: int = 2) -> str:
    """So many decimals, or as many as a small score needs to differ from 0."""
    return f"{score:.{decimals}f}" if score == 0 or abs(score) >= 0.5 * 10**-decimals else f"{score:.1g}"


def plural(noun: str) -> str:
    """ "map" → "maps", "class" → "classes"."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] → "0–2, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
