"""What came out of an ascent? `Oips`: the images with all that is needed to judge and to repeat them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from oip_torch.base.checks import is_whole, plain, shown, whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.files import read_netcdf, write_netcdf
from oip_torch.base.messages import one_line
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.fields import Array, array, arrays_of, large_of, rows_of, variables_of
from oip_torch.results.provenance import Provenance
from oip_torch.results.words import Names, channel_names, plural, ranges, short, title

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.colors import Colormap

__all__ = ["MARKS", "NOTES", "STATUSES", "Names", "Oip", "Oips", "plural", "short"]

STATUSES = ("finished", "converged", "recovered", "fallback", "dead")
MARKS = {"recovered": "*", "fallback": "†"}
NOTES = {
    "recovered": "* recovered: inactive after the screening, it fires by way of its peak.",
    "fallback": "† made another way, by the fallback's settings: hardly active after the screening.",
}
_FORMAT = 2
_OF_FORMAT_1 = {"max_preactivation": "largest_before"}


class Oip(NamedTuple):
    """One image of `Oips`: what a loop over them gives.

    Attributes:
        map: the number of the map (unit, class) that it was made for.
        start: the number of its start.
        image: (height, width, channels) float, mean 0 and standard deviation 1.
        score: the objective of the image.
        status: see `Oips`.
    """

    map: int
    start: int
    image: Array
    score: float
    status: str


@dataclass(frozen=True, kw_only=True)
class Oips:
    """OIPs of one layer: N images, in the order map by map, start by start.

        oips[56]                                        # all of map 56, as `oips.select(maps=56)`
        for map, start, image, score, status in oips:   # an `Oip` for each image

    Attributes:
        layer: its name.
        maps: (N,) int, the map (channel) that each image was made for; a mere number where `of_maps` is False.
        starts: (N,) int, the number of its start.
        images: (N, height, width, channels) float, the last images, in units of the data's standard deviation around
            its mean; each has mean 0 and standard deviation 1, if the settings' constraint leaves it no other
            (`standardized`).
        scores: (N,) float, the objective of `images`, without its regularisers (see `scored_by`): by default the mean
            over the map of its activation, or of what goes into the activation (see `pre_activation`).
        max_preactivation: (N,) float, the largest value that goes into the layer's activation, over the map, on
            `images`; of a dead map the evidence how far it is from firing. Over all maps where they are of none.
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

    def __iter__(self) -> Iterator[Oip]:
        for number, start, image, score, status in zip(
            self.maps, self.starts, self.images, self.scores, self.status, strict=True
        ):
            yield Oip(int(number), int(start), image, float(score), str(status))

    def __getitem__(self, map: int) -> Oips:
        number = plain(map)
        if not is_whole(number):
            raise InputError(
                f"oips[…] was given {shown(map)}: expected one {self.noun}'s number, as in oips[3]; "
                f"several {plural(self.noun)} are oips.select([3, 5]), images by position oips.take([0, 1])"
            )
        return self.select(maps=number)

    def __contains__(self, map: object) -> bool:
        return is_whole(number := plain(map)) and number in self.maps

    @property
    def pre_activation(self) -> bool:
        """Whether the scores are of what goes into the layer's activation."""
        return self.provenance.pre_activation

    @property
    def scored_by(self) -> str:
        """What the scores are of: the objective without its regularisers, "map_mean" for "map_mean - 0.1 l1"."""
        return self.provenance.scored_by or self.provenance.objective

    @property
    def of_maps(self) -> bool:
        """Whether the images are of maps of the layer, and not of all of it or of a class; then `maps` are numbers."""
        return not self.provenance.subject

    def check_of_maps(self) -> None:
        """Raise an `InputError` where the images are of no map, for what looks at each image's map."""
        if not self.of_maps:
            raise InputError(
                f"these images are of {self.provenance.subject}, and of no map: expected OIPs of maps, such as an "
                "objective with map_mean makes"
            )

    @property
    def place(self) -> str:
        """Of what, in words: "Conv2D_3", "Dense_2 before its softmax", "class_logit(3)", "whole_layer of Conv2D_3"."""
        if not self.of_maps:
            return self.provenance.subject
        return f"{self.layer} before its {self.provenance.activation}" if self.pre_activation else self.layer

    @property
    def ends(self) -> tuple[Array, Array] | None:
        """Black and white of the data, in the units of `images`, one number or one per channel; None: not known."""
        return None if self.provenance.domain is None else self.provenance.domain.ends

    @property
    def standardized(self) -> bool:
        """Whether each image has mean 0 and standard deviation 1, as the real images of a calibration have.

        Where a constraint leaves mean or contrast free, scores are not of the contrast that the data was scored at.
        """
        return self.settings.constraint.fixes_mean and self.settings.constraint.fixes_contrast

    @property
    def noun(self) -> str:
        """What a channel of the layer is called: "map", "unit" or "class"; "image" where they are of no map."""
        return self.provenance.noun

    @property
    def screening_steps(self) -> int:
        """How many of the first steps are the screening's; 0 where there was none, or where its steps were not kept."""
        return max(0, int(self.traces.shape[1]) - self.settings.schedule.steps)

    @property
    def way(self) -> str:
        """How the images came about: the settings in a sentence, and before it the objective if it is another one."""
        objective = self.provenance.objective
        made_for = "" if objective == "map_mean" else f"Maximised: {objective}. "
        given = ", begun with given images" if self.provenance.start_sha256 else ""
        return f"{made_for}Settings: {self.settings.summary}{given}."

    @property
    def title(self) -> str:
        """Of a picture of all: "Conv2D_3: 128 of 128 OIPs alive"."""
        return title(self)

    @property
    def labels(self) -> list[str]:
        """Of each picture: "17: 2.34", "17: dead", with several starts "17·0: 2.34"; marked if made another way."""
        return self.label()

    def label(self, names: Names | None = None) -> list[str]:
        """`labels`, with the names of the classes in the place of their numbers: see `channel_names`."""
        several = len(set(self.starts.tolist())) > 1
        found = []
        for name, (_, start, _, score, status) in zip(self.channel_names(names), self, strict=True):
            told = "dead" if status == "dead" else short(score) + MARKS.get(status, "")
            found.append(f"{name}{f'·{start}' if several else ''}: {told}")
        return found

    def channel_names(self, names: Names | None = None) -> list[str]:
        """Of each image what its channel is called: its number, or one of these names.

        Args:
            names: of all classes of the layer, in their order; None: numbers.

        Raises:
            InputError: another number of names than the layer has classes, something else than text, or a layer whose
                channels are no classes.
        """
        return channel_names(self, names)

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
                    f"no {what} {missing[0]} among these OIPs of {self.layer!r}: there are {ranges(there)}"
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
        maps = ranges(sorted({int(n) for n in self.maps}))
        if not self.of_maps:
            return f"<Oips of {self.place}: {len(self)} images, numbers {maps}; {counts or 'none'}>"
        before = f" before its {self.provenance.activation}" if self.pre_activation else ""
        return f"<Oips of {self.layer!r}{before}: {len(self)} images of {plural(self.noun)} {maps}; {counts or 'none'}>"

    def _repr_html_(self) -> str:
        """The pictures, for a notebook: at most 64 of the best."""
        from oip_torch.results import pictures

        return pictures.html(self)

    def pictures(self, scale: int = 1, *, cmap: str | Colormap = "data") -> Array:
        """The images as they are shown: uint8, (N, height · scale, width · scale, 3), red, green, blue, 0 to 255.

        Args:
            scale: how many times as high and wide; each pixel becomes a square.
            cmap: as in `oip_torch.plots.sheet`.

        Raises:
            InputError: no whole number from 1 on, a side of more than 16,384 pixels, or no such colormap.
        """
        from oip_torch.results import pictures

        return pictures.pictures(self.images, self.ends, scale, cmap)

    def save_pictures(
        self, folder: str | os.PathLike[str], scale: int = 8, *, cmap: str | Colormap = "data"
    ) -> list[Path]:
        """Write each image to a PNG file of its own, all of them or none; returns their paths.

        Their names are those of layer, map and start, "Conv2D_3_056_00.png". What a layer's name has besides letters,
        digits, dot, hyphen and underscore does not get into a file's name, which then ends its first part with a digest
        of the layer's. Files of these names are replaced.

        Args:
            folder: where to; it is made if it is missing.
            scale: as in `pictures`.
            cmap: as in `pictures`.

        Raises:
            InputError: as `pictures`; no images, two of the same map and start; or the folder cannot be written to.
        """
        from oip_torch.results import pictures

        return pictures.save_pictures(self, folder, scale, cmap)

    def save_animation(
        self, path: str | os.PathLike[str], map: int, start: int = 0, *, scale: int = 8, cmap: str | Colormap = "data",
        fps: float = 2.0,
    ) -> Path:  # fmt: skip
        """Write how one OIP came about as an animation, whole or not at all; returns the path.

        Its pictures are those of `oip_torch.plots.evolution`: the snapshots, the screening's first, and then the
        result, which stays for two seconds more. A GIF begins anew without end.

        Args:
            path: with the ending .gif or .mp4 (which needs the extra `video`); missing folders are made.
            map: which map.
            start: which of its starts.
            scale: as in `pictures`.
            cmap: as in `pictures`; quantiles are those of all pictures together.
            fps: pictures a second, above 0 and at most 50.

        Raises:
            InputError: another ending, no such map or start, no snapshots, a number out of range, or no place to write.
        """
        from oip_torch.results import animation

        return animation.save_animation(self, path, map, start, scale, cmap, fps)

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
            if not all(np.isfinite(arrays[name]).all() for name in ("images", "scores")):  # those are never saved
                raise ValueError("an image or score that is no finite number")
            if not isinstance(layer := dataset.attrs["layer"], str) or (arrays["maps"] < 0).any():
                raise ValueError("the layer's name, or a map's number")
            return cls(
                layer=layer,
                settings=AscentSettings.from_dict(json.loads(dataset.attrs["settings"])),
                provenance=Provenance.from_dict(json.loads(dataset.attrs["info" if form == 1 else "provenance"])),
                **arrays,
            )
        except RecursionError:
            raise InputError("this dataset is no set of OIPs: what it says of itself is nested too deeply") from None
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError, StopIteration) as error:
            reason = one_line(error)
            raise InputError(f"this dataset is no complete set of OIPs: {reason} is missing or damaged") from None

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
