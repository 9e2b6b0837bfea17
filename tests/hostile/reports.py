"""Folders of reports: report.json of a comparison, which `oip gallery --report` takes into its page."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from hostile import Cases, Place

CASES = Cases("report")
Json = dict[str, Any]
ENTRY = {"counted": True, "layers": {"wide": 1e-6}, "trace_max_relative_error": 1e-6, "image_correlation": 1.0}
SOUND: Json = {
    "onnx": "net.onnx", "agree": True, "reference": "tensorflow", "layer": "wide", "maps": [0, 1], "steps": 3,
    "runtimes": {"torch": ENTRY},
}  # fmt: skip


def _report(name: str, write: Callable[[Place], object], *, code: int = 2) -> None:
    def make(place: Place) -> list[str]:
        shutil.copytree(place.sound / "atlas.zarr", place.folder / "atlas.zarr")
        (place.folder / "report").mkdir()
        write(place)
        return ["gallery", "atlas.zarr", "--report", "report"]

    CASES.add(name, make, code=code)


def _json(name: str, value: Any, code: int = 2) -> None:
    _report(name, lambda p: (p.folder / "report" / "report.json").write_text(json.dumps(value)), code=code)


def _bytes(name: str, content: bytes) -> None:
    _report(name, lambda p: (p.folder / "report" / "report.json").write_bytes(content))


def _pipe(place: Place) -> None:
    os.mkfifo(place.folder / "report" / "report.json")


def _huge(place: Place) -> None:
    with (place.folder / "report" / "report.json").open("wb") as file:
        file.truncate(3 << 30)


_json("sound", SOUND, code=0)
for key in SOUND:
    _json(f"no_{key}", {name: value for name, value in SOUND.items() if name != key})
for name, changes in {
    "maps_text": {"maps": "many"},
    "maps_infinite": {"maps": [float("inf")]},
    "steps_infinite": {"steps": 1e999},
    "steps_list": {"steps": [1]},
    "runtimes_list": {"runtimes": [1]},
    "runtimes_null": {"runtimes": {"torch": None}},
    "layer_other": {"layer": "nowhere"},
    "layers_other": {"runtimes": {"torch": ENTRY | {"layers": {"<script>alert(1)</script>": 1}}}},
    "error_text": {"runtimes": {"torch": ENTRY | {"image_correlation": "high"}}},
}.items():
    _json(name, SOUND | changes)
_bytes("empty", b"")
_bytes("no_json", b"{")
_bytes("deep", b"[" * 30_000)
_bytes("no_utf8", b"\xff\xfe{}")
_bytes("digits", json.dumps(SOUND).replace('"steps": 3', f'"steps": {"9" * 20_000}').encode())
_bytes("brackets_of_60_MB", b"[" + b"[]," * 20_000_000 + b"0]")
_report("is_a_pipe", _pipe)
_report("is_a_folder", lambda p: (p.folder / "report" / "report.json").mkdir())
_report("missing", lambda p: None)
_report("of_3_GB", _huge)
