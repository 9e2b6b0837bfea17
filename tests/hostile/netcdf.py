"""Results and calibrations: NetCDF files whose HDF5 is sound, and whose contents are not what we wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from hostile import Cases, Place

CASES = Cases("nc")
OIPS, CALIBRATION = (["Oips.load", "oips.nc"], ["Calibration.load", "calibration.nc"])


def _changed(words: list[str], name: str, change: Callable[[h5py.File], object], match: str = "") -> None:
    def make(place: Place) -> list[str]:
        path = place.write(words[1], (place.sound / words[1]).read_bytes())
        with h5py.File(path, "a") as file:
            change(file)
        return words

    CASES.add(f"{words[0].split('.')[0].lower()}_{name}", make, match=match)


def _attribute(name: str, value: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.attrs.__setitem__(name, value)


def _json(name: str, change: Callable[[Any], Any]) -> Callable[[h5py.File], object]:
    return lambda file: file.attrs.__setitem__(name, json.dumps(change(json.loads(file.attrs[name]))))


def _values(name: str, change: Callable[[Any], Any]) -> Callable[[h5py.File], object]:
    def spoil(file: h5py.File) -> None:
        values = change(file[name][()])
        file[name][...] = values

    return spoil


for missing in ("oip_torch_format", "layer", "settings", "provenance"):
    _changed(OIPS, f"no_{missing}", lambda f, missing=missing: f.attrs.__delitem__(missing))
for name, value in {
    "format_text": "2",
    "format_huge": 10**9,
    "format_array": np.arange(3),
    "format_nan": float("nan"),
}.items():
    _changed(OIPS, name, _attribute("oip_torch_format", value))
for name in ("settings", "provenance"):
    _changed(OIPS, f"{name}_no_json", _attribute(name, "{"))
    _changed(OIPS, f"{name}_deep", _attribute(name, "[" * 30_000))
    _changed(OIPS, f"{name}_list", _attribute(name, "[1]"))
    _changed(OIPS, f"{name}_number", _attribute(name, 3.5))
    if name == "settings":  # provenance passes over what it does not know
        _changed(OIPS, "settings_unknown_key", _json(name, lambda own: own | {"__class__": "os.system"}))
    _changed(OIPS, f"{name}_infinite", _json(name, lambda own: {key: float("inf") for key in own}))
_changed(OIPS, "steps_negative", _json("settings", lambda s: s | {"schedule": s["schedule"] | {"steps": -1}}))
_changed(OIPS, "steps_huge", _json("settings", lambda s: s | {"schedule": s["schedule"] | {"steps": 1e999}}))
_changed(OIPS, "epsilon_nan", _json("settings", lambda s: s | {"schedule": s["schedule"] | {"epsilon": float("nan")}}))
_changed(OIPS, "kind_of_start", _json("settings", lambda s: s | {"start": {"kind": "canary_module.Start"}}))
_changed(OIPS, "status_unknown", lambda f: _text(f, "status"))
_changed(OIPS, "maps_negative", _values("map", lambda v: v * 0 - 5))
_changed(OIPS, "images_nan", _values("images", lambda v: v * np.nan))
_changed(OIPS, "scores_nan", _values("scores", lambda v: v * np.nan))
_changed(OIPS, "images_of_text", lambda f: _text(f, "images"))
_changed(OIPS, "no_images", lambda f: f.__delitem__("images"))
_changed(OIPS, "layer_number", _attribute("layer", np.arange(3)))


def _text(file: h5py.File, name: str) -> None:
    shape = file[name].shape
    dimensions = [list(axis) for axis in file[name].attrs["DIMENSION_LIST"]]
    del file[name]
    made = file.create_dataset(name, shape, h5py.string_dtype(), fillvalue="cured")
    kind = h5py.vlen_dtype(h5py.ref_dtype)
    made.attrs.create(
        "DIMENSION_LIST",
        np.array([np.array(axis, h5py.ref_dtype) for axis in dimensions] + [None], object)[:-1],
        dtype=kind,
    )


for missing in ("oip_torch_calibration_format", "layers", "count", "graph_sha256"):
    _changed(CALIBRATION, f"no_{missing}", lambda f, missing=missing: f.attrs.__delitem__(missing))
for name, value in {
    "deep": "[" * 30_000,
    "object": "{}",
    "numbers": "[1, 2]",
    "negative": '[["wide", -8]]',
    "huge": '[["wide", 1e999]]',
    "other": '[["wide", 9]]',
    "twice": '[["wide", 4], ["wide", 4]]',
    "nan": "NaN",
}.items():
    _changed(CALIBRATION, f"layers_{name}", _attribute("layers", value))
_changed(CALIBRATION, "domain_deep", _attribute("domain", "[" * 30_000))
_changed(CALIBRATION, "domain_text", _attribute("domain", '{"mean": "x"}'))
_changed(CALIBRATION, "domain_std_zero", _json("domain", lambda d: d | {"std": [0.0]}))
_changed(CALIBRATION, "format_huge", _attribute("oip_torch_calibration_format", 10**9))
_changed(CALIBRATION, "no_pictures", lambda f: f.__delitem__("pictures"))
_changed(CALIBRATION, "count_text", _attribute("count", "many"))
