"""What does the report of a comparison say, for the page? (report.json, which is untrusted)"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.base.files import as_path, existing_file

__all__ = ["read_report"]

_MOST_BYTES = 64 << 20


def read_report(folder: str | os.PathLike[str], layers: Iterable[str]) -> dict[str, Any]:
    """What the page shows of report.json, every value checked.

    Args:
        folder: that `oip compare … -o` wrote, or the file in it.
        layers: names of the network's layers.

    Raises:
        InputError: missing or damaged file, or a report of a network with other layers.
    """
    path = as_path(folder, "a folder that `oip compare -o` wrote")
    path = path / "report.json" if os.path.isdir(path) else path
    path = existing_file(path, "the report.json that `oip compare -o` writes")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes: expected at most {_MOST_BYTES}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = {
            "onnx": Path(str(report["onnx"])).name,
            "agree": bool(report["agree"]),
            "reference": str(report["reference"]),
            "layer": str(report["layer"]),
            "maps": [int(number) for number in report["maps"]],
            "steps": int(report["steps"]),
            "runtimes": {str(name): _runtime(entry) for name, entry in report["runtimes"].items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{path} is no report of a comparison ({type(error).__name__}: {error}): expected what `oip compare -o` "
            "writes; run it again"
        ) from None
    known, named = (
        set(layers),
        {found["layer"], *(name for each in found["runtimes"].values() for name in each["layers"])},
    )
    if unknown := sorted(named - known):
        raise InputError(
            f"{path} is of another network: it has a layer {unknown[0]!r}; expected the report of this one, see "
            "`oip compare`"
        )
    return found


def _runtime(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "counted": bool(entry["counted"]),
        "layers": {str(name): _number(value) for name, value in entry["layers"].items()},
        "trace_max_relative_error": _number(entry["trace_max_relative_error"]),
        "image_correlation": _number(entry["image_correlation"]),
    }


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
