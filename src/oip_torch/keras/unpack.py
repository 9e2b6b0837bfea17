"""What does a Keras file hold, as plain data? (in a child: `base.bounded`)

Zip and HDF5 are unpacked here and nowhere else before Keras itself does; what comes back is the configuration's text,
and the weights' names, shapes and types.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

from oip_torch.base import hdf5
from oip_torch.base.errors import InputError
from oip_torch.base.limits import MOST_UNPACKED, most_unpacked
from oip_torch.base.messages import one_line
from oip_torch.base.plain_json import MOST_BYTES

__all__ = ["of_hdf5", "of_zip"]

_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_WEIGHTS = "model.weights.h5"


def of_hdf5(path: str) -> tuple[Any, dict[str, Any]]:
    """Of an HDF5 file: {"config": the text, or None where it holds weights alone, "weights": see `hdf5.contents`}."""
    told = _hdf5(path, path, os.path.getsize(path))
    attributes = told["attributes"]
    config = attributes.pop("model_config", None)
    if config is not None and not isinstance(config, str):
        raise InputError(f"{path} has an unreadable model_config: expected text in JSON; save the model again")
    return {"config": config, "weights": told["groups"].get("model_weights", told)}, {}


def _hdf5(source: str | IO[bytes], path: str, size: int) -> dict[str, Any]:
    try:
        return hdf5.contents(source, path, size)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py lets through whatever the damage leads to
        raise InputError(
            f"{path} is not readable as HDF5 ({one_line(error)}): expected a model that Keras saved; fetch or save it "
            "again"
        ) from None


def of_zip(path: str, folder: str = ".") -> tuple[Any, dict[str, Any]]:
    """Of a .keras file, likewise.

    Args:
        path: of the file.
        folder: where packed weights are unpacked to: the child's own.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        if missing := {"config.json", _WEIGHTS} - names:
            raise InputError(f"{path} is a zip file, but no Keras model: it lacks {', '.join(sorted(missing))}")
        if foreign := names - _MEMBERS:
            raise InputError(
                f"{path} holds {sorted(foreign)[0][:100]!r}: expected {', '.join(sorted(_MEMBERS))} alone; "
                "models with assets cannot be converted"
            )
        if len(entries) > len(names):
            raise InputError(f"{path} holds {len(entries)} files of {len(names)} names: expected one of each")
        size = os.path.getsize(path)
        if sum(entry.file_size for entry in entries) > (most := most_unpacked(size)):
            raise InputError(
                f"{path} unpacks to more than {most / 2**30:.3g} GiB, too much for a file of its size: expected a "
                f"CNN's weights; set {MOST_UNPACKED} if it is sound"
            )
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
            raise InputError(f"{path} is packed in a way that Keras does not use: expected what model.save writes")
        for name in names - {_WEIGHTS}:
            if (taken := archive.getinfo(name).file_size) > MOST_BYTES:
                raise InputError(
                    f"{path} has a {name} of {taken >> 20} MiB: expected a network's, at most {MOST_BYTES >> 20}"
                )
        if (damaged := archive.testzip()) is not None:
            raise InputError(f"{path} is damaged: its part {damaged} fails its checksum; fetch or save it again")
        if archive.getinfo(_WEIGHTS).compress_type == zipfile.ZIP_STORED:  # as Keras writes it
            with archive.open(_WEIGHTS) as weights:
                told = _hdf5(weights, path, size)
        else:
            with archive.open(_WEIGHTS) as source, Path(folder, _WEIGHTS).open("wb") as target:
                shutil.copyfileobj(source, target)
            told = _hdf5(os.path.join(folder, _WEIGHTS), path, size)
        return {"config": archive.read("config.json").decode("utf-8"), "weights": told}, {}
