"""What does the report of a comparison say, for the page? (report.json, which is untrusted)"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oip_torch.base.checks import number, shown, whole
from oip_torch.base.errors import InputError
from oip_torch.base.files import as_path, existing_file
from oip_torch.base.strict_json import strict_json

__all__ = ["read_report"]

_MOST_BYTES = 16 << 20


def read_report(folder: str | os.PathLike[str], layers: Iterable[str]) -> dict[str, Any]:
    """What the page shows of report.json, every value checked.

    Args:
        folder: that `oip compare … -o` wrote, or the file in it.
        layers: names of the network's layers.

    Raises:
        InputError: missing or damaged file, or a report of a network with other layers.
    """
    path = as_path(folder, "a folder that `oip compare -o` wrote")
    if os.path.isdir(path):
        path = path / "report.json"
        if path.is_symlink():  # a folder of a stranger may lead anywhere
            raise InputError(f"{path} is a link: expected the file that `oip compare -o` writes")
    path = existing_file(path, "the report.json that `oip compare -o` writes")
    if path.stat().st_size > _MOST_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes: expected at most {_MOST_BYTES}")
    try:
        report = strict_json(path.read_bytes())
        found: dict[str, Any] = {
            "onnx": Path(str(report["onnx"])).name,
            "agree": _truth(report["agree"]),
            "reference": _text(report["reference"]),
            "layer": _text(report["layer"]),
            "maps": [whole("maps", channel, 0) for channel in report["maps"]],
            "steps": whole("steps", report["steps"], 1),
            "runtimes": {name: _runtime(entry) for name, entry in report["runtimes"].items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise InputError(
            f"{path} is no report of a comparison ({type(error).__name__}: {error}): expected what `oip compare -o` "
            "writes; run it again"
        ) from error
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
        "counted": _truth(entry["counted"]),
        "layers": {name: _number(value) for name, value in entry["layers"].items()},
        "trace_max_relative_error": _number(entry["trace_max_relative_error"]),
        "image_correlation": _number(entry["image_correlation"]),
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(number("a figure", value))


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{shown(value)} stands where true or false is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} stands where text is expected")
    return value
