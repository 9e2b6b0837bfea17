"""Which arrays does an untrusted .npz file hold? (in a child: `base.bounded`)

Names, types and sizes are read first, from the heads of what lies in the zip file; then what is wanted is unpacked.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy

from oip_torch.base.errors import InputError
from oip_torch.base.limits import MOST_UNPACKED, most_unpacked

__all__ = ["images"]

_MOST_ENTRIES = 1000
_LARGEST = {"f": 8, "c": 16}  # bytes: a long double is another number on each kind of machine
_MOST_TEXT = 10_000  # bytes of an array's head; what is longer NumPy does not read either


def images(path: str, wanted: str, besides: Sequence[str], expected: str) -> tuple[Any, Iterator[tuple[str, Any]]]:
    """The array of that name, or else the only one under that name, and of the others those that are there.

    Args:
        path: of the file.
        wanted: "x_test".
        besides: other names.
        expected: for the messages.

    Raises:
        InputError: no such array, or more, others or larger ones than may be.
    """
    archive = zipfile.ZipFile(path)  # is closed with the process
    entries = archive.infolist()
    by_name = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    if len(entries) > _MOST_ENTRIES or len(by_name) < len(entries):
        raise InputError(f"{path} holds {len(entries)} arrays of {len(by_name)} names: {expected}")
    if wanted not in by_name and len(by_name) != 1:
        there = ", ".join(repr(name)[1:-1][:60] for name in list(by_name)[:8]) or "none"
        raise InputError(f"{path} has no array {wanted}, and not one array only (there are: {there}): {expected}")
    chosen = {name: by_name[name] for name in besides if name in by_name}
    chosen[wanted] = by_name.get(wanted) or entries[0]
    most, total = most_unpacked(os.path.getsize(path)), 0
    for name, entry in chosen.items():
        shape, dtype = _head(archive, entry)
        if dtype.hasobject or dtype.kind not in "biufcSU" or dtype.itemsize > _LARGEST.get(dtype.kind, 1 << 20):
            raise ValueError(f"{name} is of type {str(dtype)[:60]}")
        size = math.prod(shape) * dtype.itemsize
        total += size
        if size > entry.file_size:
            raise InputError(f"{path}: {name} has the shape {shape} and only {entry.file_size} bytes: {expected}")
    if total > most:
        raise InputError(
            f"{path} unpacks to {total / 2**30:.3g} GiB, and for a file of its size at most {most / 2**30:.3g} is "
            f"taken: {expected}; set {MOST_UNPACKED} if it is sound"
        )
    return None, ((name, _values(archive, entry)) for name, entry in chosen.items())


def _head(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("packed in a way that NumPy does not use")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"an array in format {version}")
        shape, _, dtype = readers[version](file, max_header_size=_MOST_TEXT)
    return shape, dtype


def _values(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    with archive.open(entry) as file:
        values: np.ndarray[Any, Any] = npy.read_array(file, allow_pickle=False, max_header_size=_MOST_TEXT)
        file.read()  # to the end, where the checksum is compared
        return values
