"""What is an atlas made of, as its root says it? And in what do two of these differ?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from oip_torch.analysis.contents import NetworkContents
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError
from oip_torch.base.image_files import check_pixels, images_sha256
from oip_torch.network.domain import Domain
from oip_torch.network.onnx_file import layer_from_dict
from oip_torch.optim.settings import AscentSettings
from oip_torch.results.fields import Array

__all__ = ["Data", "Recipe"]

_FORMAT = 1
_MOST_MAPS = 1 << 20  # of a layer, and of starts
_MOST_NUMBERS = 1 << 28  # of an image


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Real images, and what is known of them.

    Attributes:
        images: (N, height, width) or (N, height, width, channels), pixel values 0–255.
        labels: (N,) int, the class of each; None: not known.
        class_names: of the classes 0, 1, 2 …; None: their numbers.
        training: other images of the same kind, whose pieces a picture may be made of; None: every second of `images`
            is taken for that, and the rest is to be told apart.
        sha256: over all of this.
    """

    images: Array
    labels: Array | None
    class_names: tuple[str, ...] | None
    training: Array | None
    sha256: str

    @classmethod
    def of(cls, images: Any, labels: Any, training: Any, class_names: Any = None) -> Data:
        """Checked; an `InputError` says what is expected."""
        array = check_pixels(images, "data")
        others = None if training is None else check_pixels(training, "training")
        digest = images_sha256(array) + ("" if others is None else images_sha256(others))
        numbers = None
        if labels is not None:
            numbers = np.asarray(labels)
            if numbers.shape != (len(array),) or numbers.dtype.kind not in "iu":
                raise InputError(
                    f"labels are an array of shape {numbers.shape} and type {numbers.dtype}: expected {len(array)} "
                    "whole numbers, the class of each image"
                )
            numbers = numbers.astype(np.int64)
            digest += images_sha256(numbers)
        names = None if class_names is None else _names(class_names, numbers)
        digest += "" if names is None else json.dumps(names)
        sha256 = hashlib.sha256(digest.encode()).hexdigest()
        return cls(images=array, labels=numbers, class_names=names, training=others, sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides what is in an atlas.

    Attributes:
        network: the network's part of it.
        settings: of the ascents.
        objective: its name.
        pre_activation: as of `ascend`.
        starts: of each map.
        data: digest of the real images that all was laid beside; None: there were none.
        own_settings: of the layers that were made anew with others, by name.
        versions: how many times a layer was made anew, by name, which tells its group from the one before.
    """

    network: NetworkContents
    settings: AscentSettings
    objective: str
    pre_activation: bool | None
    starts: int
    data: str | None
    own_settings: Mapping[str, AscentSettings] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)

    def settings_of(self, layer: str) -> AscentSettings:
        """Of the ascents of one layer."""
        return self.own_settings.get(layer, self.settings)

    def group(self, layer: str, version: int | None = None) -> str:
        """Name of a layer's group: its number in the network's table, since a layer's name may hold anything."""
        number = [entry.name for entry in self.network.layers].index(layer)
        version = self.versions.get(layer, 0) if version is None else version
        return f"layer_{number:03d}" + (f"_v{version}" if version else "")

    def replacing(self, layers: Collection[str], settings: AscentSettings) -> Recipe:
        """The same with these layers made anew."""
        of_each = {name: settings if name in layers else self.settings_of(name) for name in self.network.of_layers}
        common = settings if all(each == settings for each in of_each.values()) else self.settings
        return replace(
            self,
            network=replace(self.network, settings=common.to_dict()),
            settings=common,
            own_settings={name: each for name, each in of_each.items() if each != common},
            versions=dict(self.versions) | {name: self.versions.get(name, 0) + 1 for name in layers},
        )

    def differences(self, other: Recipe) -> list[str]:
        """In words, from this one to the other: "seed 0 → 1"; in what cannot be changed of an atlas that is there."""
        return [
            f"{name} {_told(old)} → {_told(new)}"
            for (name, old), (_, new) in zip(self._fixed(other), other._fixed(self), strict=True)
            if old != new and not (name == "data" and old is None)
        ]

    def _fixed(self, other: Recipe) -> Iterator[tuple[str, Any]]:
        own, theirs = (_flat(_plain(recipe.settings.to_dict())) for recipe in (self, other))
        yield "network", self.network.fingerprint
        domain = _flat({"domain": None if self.network.domain is None else _plain(self.network.domain.to_dict())})
        for name in ("domain.mean", "domain.std", "domain.black", "domain.white"):
            yield name, domain.get(name)
        for name in dict.fromkeys([*own, *theirs]):
            yield name, own.get(name)
        yield "seed", self.network.seed
        yield "objective", self.objective
        yield "pre_activation", self.pre_activation
        yield "data", self.data

    def to_attributes(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON."""
        network = {
            field.name: getattr(self.network, field.name)
            for field in dataclasses.fields(self.network)
            if field.name not in ("settings", "seed", "of_layers")
        }
        network["domain"] = None if self.network.domain is None else self.network.domain.to_dict()
        network["layers"] = [dataclasses.asdict(layer) for layer in self.network.layers]
        made: dict[str, Any] = _plain(
            {
                "oip_torch_atlas_format": _FORMAT,
                "network": network,
                "settings": self.settings.to_dict(),
                "seed": self.network.seed,
                "objective": self.objective,
                "pre_activation": self.pre_activation,
                "starts": self.starts,
                "layers": list(self.network.of_layers),
                "data_sha256": self.data,
            }
            | ({"own_settings": {n: s.to_dict() for n, s in self.own_settings.items()}} if self.own_settings else {})
            | ({"layer_versions": dict(self.versions)} if self.versions else {})
        )
        return made

    @classmethod
    def from_attributes(cls, data: Mapping[str, Any], where: str) -> Recipe:
        """What `to_attributes` gave; an `InputError` where it is something else."""
        form = data.get("oip_torch_atlas_format")
        if form != _FORMAT:
            got = "no format" if form is None else f"format {str(form)[:20]}"
            raise InputError(f"{where} is no atlas of ours, or of another version ({got}): expected format {_FORMAT}")
        try:
            network = data["network"]
            layers = tuple(layer_from_dict(entry) for entry in network["layers"])
            channels, height, width = (int(size) for size in network["input_shape"])
            if min(channels, height, width) < 1 or math.prod((channels, height, width)) > _MOST_NUMBERS:
                raise ValueError(f"images of {channels}×{height}×{width} numbers")
            names = [layer.name for layer in layers]
            chosen = tuple(str(name) for name in data["layers"])
            if len(set(names)) < len(names) or len(set(chosen)) < len(chosen) or not set(chosen) <= set(names):
                raise ValueError("the names of its layers")
            starts = int(data["starts"])
            if not 1 <= starts <= _MOST_MAPS or not all(1 <= layer.maps <= _MOST_MAPS for layer in layers):
                raise ValueError("numbers of maps or starts")
            settings = AscentSettings.from_dict(data["settings"])
            own_settings = {
                str(name): AscentSettings.from_dict(own) for name, own in data.get("own_settings", {}).items()
            }
            versions = {str(name): int(number) for name, number in data.get("layer_versions", {}).items()}
            if not {*own_settings, *versions} <= set(names) or not all(
                0 <= each <= _MOST_MAPS for each in versions.values()
            ):
                raise ValueError("the layers that were made anew")
            before, digest = data["pre_activation"], data["data_sha256"]
            return cls(
                network=NetworkContents(
                    name=str(network["name"]),
                    fingerprint=str(network["fingerprint"]),
                    source_sha256=str(network["source_sha256"]),
                    input_shape=(channels, height, width),
                    domain=None if network["domain"] is None else Domain.from_dict(network["domain"]),
                    layers=layers,
                    settings=settings.to_dict(),
                    seed=int(data["seed"]),
                    versions={str(name): str(value) for name, value in network["versions"].items()},
                    of_layers=tuple(name for name in names if name in chosen),
                ),
                settings=settings,
                objective=str(data["objective"]),
                pre_activation=None if before is None else bool(before),
                starts=starts,
                data=None if digest is None else str(digest),
                own_settings=own_settings,
                versions=versions,
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{where}: what the atlas says of itself is damaged ({error})") from None


def _names(given: Any, labels: Array | None) -> tuple[str, ...]:
    """One for each class that the labels name."""
    names = given if isinstance(given, np.ndarray) else np.array(list(given) if isinstance(given, Iterable) else [])
    if labels is None or names.ndim != 1 or names.dtype.kind != "U" or len(set(names.tolist())) < len(names):
        raise InputError(
            f"class_names is {shown(given)}: expected labels, and a name of its own for each class 0, 1, 2 …"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise InputError(
            f"labels are {labels.min()} to {labels.max()}, and class_names has {len(names)}: expected labels from 0 to "
            f"{len(names) - 1}"
        )
    return tuple(names.tolist())


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(data))
    return found


def _flat(data: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """{"schedule": {"steps": 3}} → {"schedule.steps": 3}."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _told(value: Any) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
