"""What came out of an ascent? `Oips`: the images with all that is needed to judge and to repeat them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oip_torch.base.checks import whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.files import read_netcdf, write_netcdf

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MARKS", "STATUSES", "WOKEN", "Oips", "plural", "short"]

STATUSES = ("finished", "converged", "woken", "dead")
MARKS = {"woken": "*"}
WOKEN = "* woken: it slept in all trials, and fired by way of its peak."
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Oips:
    """OIPs of one layer: N images, in the order map by map, start by start.

    Attributes:
        layer: its name.
        maps: (N,) int, the map (channel) that each image was made for.
        starts: (N,) int, the number of its start.
        images: (N, height, width, channels) float, the last images; each has mean 0 and standard deviation 1.
        scores: (N,) float, the objective of `images`: for maps, the mean over the map of its activation, or of what
            goes into the activation (see `before_activation`).
        largest_before: (N,) float, the largest value that goes into the layer's activation, over the map, on `images`;
            of a dead map the evidence how far it is from firing.
        traces: (N, steps) float, the score of the image that each step found, on the whole way from the start to the
            result: the first `trial_steps` of them are the trial's. NaN after an image has stopped.
        snapshots: (N, S, height, width, channels) float, the images that the steps `snapshot_steps` found.
        snapshot_steps: (S,) int.
        status: (N,) str: "dead" (the map was 0 all over at every step: without a leak the ascent could not begin,
            with one it has led nowhere; said only where the objective grows with the map), "woken" (it slept after all
            trials, and fires on the image, which was ascended by its peak), "converged" (the article's criterion was
            met), else "finished".
        converged_at: (N,) int, the step of the way at which the criterion was first met, or -1.
        settings: of the ascent (`AscentSettings.to_dict`).
        info: seed; objective; digests of the source and of graph and weights in use (`FeatureModel.fingerprint`);
            versions, device, image-steps, seconds; `not_finite`, the [map, start] that were lost; and more.
    """

    layer: str
    maps: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    images: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]
    largest_before: npt.NDArray[np.floating]
    traces: npt.NDArray[np.floating]
    snapshots: npt.NDArray[np.floating]
    snapshot_steps: npt.NDArray[np.int64]
    status: npt.NDArray[np.str_]
    converged_at: npt.NDArray[np.int64]
    settings: dict[str, Any]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def before_activation(self) -> bool:
        """Whether the scores are of what goes into the layer's activation."""
        return bool(self.info.get("before_activation", False))

    @property
    def place(self) -> str:
        """Of what layer, in words: "Conv2D_3", or "Dense_2 before its softmax"."""
        return f"{self.layer} before its {self.info.get('activation')}" if self.before_activation else self.layer

    @property
    def noun(self) -> str:
        """What a channel of the layer is called: "map", "unit" or "class"."""
        return str(self.info.get("noun", "map"))

    @property
    def trial_steps(self) -> int:
        """How many of the first steps are the trial's that came before the ascent; 0 where there was none."""
        steps = self.traces.shape[1]
        return max(0, int(steps - self.settings.get("steps", steps)))

    @property
    def way(self) -> str:
        """By which settings the images came about, in a sentence; "" for files of before this was kept."""
        way = self.info.get("way")
        return f"Settings: {way}." if way else ""

    @property
    def title(self) -> str:
        """Of a picture of all: "Conv2D_3: 128 of 128 OIPs alive"."""
        numbers = set(self.maps.tolist())
        whose = f"{self.place}, {self.noun} {self.maps[0]}" if len(numbers) == 1 else self.place
        several = "" if len(numbers) in (1, len(self)) else f", of {len(numbers)} {plural(self.noun)}"
        dead = self.counts()["dead"]
        of_activation = self.info.get("objective", "map_mean") in ("map_mean", "map_peak")
        if self.before_activation or not (of_activation or dead):  # where "dead" is never said, "alive" says nothing
            return f"{whose}: {len(self)} OIP{'s' if len(self) > 1 else ''}{several}"
        return f"{whose}: {len(self) - dead} of {len(self)} OIPs alive{several}"

    @property
    def labels(self) -> list[str]:
        """Of each picture: "17: 2.34", "17: dead", with a mark for woken ones, and with several starts "17·0: 2.34"."""
        several = len(set(self.starts.tolist())) > 1
        found = []
        for number, start, score, status in zip(self.maps, self.starts, self.scores, self.status, strict=True):
            told = "dead" if status == "dead" else short(float(score)) + MARKS.get(str(status), "")
            found.append(f"{number}{f'·{start}' if several else ''}: {told}")
        return found

    @property
    def legend(self) -> str:
        """What the labels mean, how the pictures are scaled, and the settings."""
        head = f"{self.noun.capitalize()}{'·start' if len(set(self.starts.tolist())) > 1 else ''}: score."
        woken = f" {WOKEN}" if (self.status == "woken").any() else ""
        return f"{head}{woken} Scale: each picture from its own 0.5 % to its 99.5 % quantile.\n{self.way}"

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
        names = (
            "maps",
            "starts",
            "images",
            "scores",
            "largest_before",
            "traces",
            "snapshots",
            "status",
            "converged_at",
        )
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def counts(self) -> dict[str, int]:
        """How many images have which status."""
        return {status: int((self.status == status).sum()) for status in STATUSES}

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self.counts().items() if n)
        maps = _ranges(sorted({int(n) for n in self.maps}))
        before = f" before its {self.info.get('activation')}" if self.before_activation else ""
        return f"<Oips of {self.layer!r}{before}: {len(self)} images of {plural(self.noun)} {maps}; {counts or 'none'}>"

    def _repr_html_(self) -> str:
        """The pictures, for a notebook: at most 64 of the best."""
        import base64
        import io
        from html import escape

        from oip_torch.base.drawing import contact_sheet

        shown = self.best()
        shown = shown.take(range(min(len(shown), 64)))
        if not len(shown):
            return f"<p>{escape(repr(self))}</p>"
        buffer = io.BytesIO()
        figure = contact_sheet(
            shown.images, shown.labels, shown.status.tolist(), title=shown.title, legend=shown.legend
        )
        figure.savefig(buffer, format="png", dpi=80)
        picture = base64.b64encode(buffer.getvalue()).decode()
        return f'<p>{escape(repr(self))}</p><img src="data:image/png;base64,{picture}">'

    def to_xarray(self) -> xr.Dataset:
        """As an xarray Dataset with the dimensions image, step, snapshot, y, x, channel."""
        import xarray as xr

        pixels = ("y", "x", "channel")
        return xr.Dataset(
            {
                "images": (("image", *pixels), self.images),
                "scores": ("image", self.scores),
                "largest_before": ("image", self.largest_before),
                "traces": (("image", "step"), self.traces),
                "snapshots": (("image", "snapshot", *pixels), self.snapshots),
                "status": ("image", self.status.astype(object)),
                "converged_at": ("image", self.converged_at),
            },
            coords={
                "map": ("image", self.maps),
                "start": ("image", self.starts),
                "snapshot_step": ("snapshot", self.snapshot_steps),
            },
            attrs={
                "oip_torch_format": _FORMAT,
                "layer": self.layer,
                "settings": json.dumps(self.settings),
                "info": json.dumps(self.info),
            },
        )

    @classmethod
    def from_xarray(cls, dataset: xr.Dataset) -> Oips:
        """The inverse of `to_xarray`."""
        if dataset.attrs.get("oip_torch_format") != _FORMAT:
            raise InputError(f"no OIPs of format {_FORMAT} in this dataset: expected one that Oips.save wrote")
        try:
            return cls(
                layer=str(dataset.attrs["layer"]),
                maps=dataset["map"].to_numpy().astype(np.int64),
                starts=dataset["start"].to_numpy().astype(np.int64),
                images=dataset["images"].to_numpy(),
                scores=dataset["scores"].to_numpy(),
                largest_before=dataset["largest_before"].to_numpy(),
                traces=dataset["traces"].to_numpy(),
                snapshots=dataset["snapshots"].to_numpy(),
                snapshot_steps=dataset["snapshot_step"].to_numpy().astype(np.int64),
                status=dataset["status"].to_numpy().astype(np.str_),
                converged_at=dataset["converged_at"].to_numpy().astype(np.int64),
                settings=json.loads(dataset.attrs["settings"]),
                info=json.loads(dataset.attrs["info"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"this dataset is no complete set of OIPs: {error} is missing or damaged") from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all of it to one NetCDF file, whole or not at all; returns the path.

        Raises:
            InputError: an ending other than .nc, or the file cannot be written.
        """
        return write_netcdf(self.to_xarray(), path, compressed=["images", "traces", "snapshots"])

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
