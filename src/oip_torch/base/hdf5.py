"""What does an untrusted HDF5 file hold, as plain values? (in a child: `base.bounded`)

The HDF5 library is the one that crashes, spins and fills the memory where a file is damaged or made to do so; a file
can also name other files on the disk. So it is opened in a child alone, and nothing in it is read before its sizes are
known and bounded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, Any

import h5py
import numpy as np

from oip_torch.base.errors import InputError
from oip_torch.base.limits import MOST_UNPACKED, most_unpacked

__all__ = ["contents", "netcdf"]


_MOST_OBJECTS = 20_000  # networks of a thousand layers have some 4,000 groups and data
_MOST_DEPTH = 32
_MOST_ATTRIBUTES = 200  # of one object: Keras cuts lists of names into pieces of 64 kB
_MOST_TEXT = 64 << 20  # bytes of all attributes
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_DEFLATE = 1100  # gzip packs no more than 1032 to 1
_HIDDEN = frozenset(  # attributes by which NetCDF says which dimensions there are
    "CLASS NAME DIMENSION_LIST DIMENSION_LABELS REFERENCE_LIST _Netcdf4Dimid _Netcdf4Coordinates _NCProperties "
    "_nc3_strict".split()
)
_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable"


class _Bounds:
    """What has been seen of a file so far, and how much there may be of it."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.most = path, most_unpacked(size)
        self.seen: set[Any] = set()
        self.bytes = self.text = 0

    def refuse(self, what: str) -> InputError:
        return InputError(f"{self.path} {what}")

    def visit(self, place: str, thing: Any) -> None:
        """Of a group or data, once each."""
        key = h5py.h5o.get_info(thing.id).addr
        if key in self.seen:
            raise self.refuse(f"holds {_short(place)} a second time: expected each group and weight in one place")
        self.seen.add(key)

    def count(self, group: h5py.Group, depth: int) -> None:
        """Before a group is gone through."""
        if len(self.seen) + len(group) > _MOST_OBJECTS:
            raise self.refuse(
                f"holds more than {_MOST_OBJECTS} groups and arrays: expected a file that we or Keras wrote"
            )
        if depth > _MOST_DEPTH:
            raise self.refuse(f"is nested more than {_MOST_DEPTH} groups deep: expected a file that we or Keras wrote")

    def measure(self, place: str, data: h5py.Dataset, *, written: bool) -> None:
        """Of data, before it is read; what is not `written` is not read either."""
        made = data.id.get_create_plist()
        if made.get_external_count() or made.get_layout() == h5py.h5d.VIRTUAL:
            raise self.outside(place)
        for index in range(made.get_nfilters()):
            if made.get_filter(index)[0] not in _FILTERS:
                raise self.refuse(
                    f"packs {_short(place)} with the filter {made.get_filter(index)[0]}: expected gzip or none"
                )
        if not written:
            return
        taken, stored = data.size * data.dtype.itemsize if data.shape is not None else 0, data.id.get_storage_size()
        if taken > _DEFLATE * stored:
            raise self.refuse(
                f"stores {stored} bytes of {_short(place)}, an array {data.shape} of {taken} bytes: expected data that "
                "were written, not filled in"
            )
        self.bytes += taken
        if self.bytes > self.most:
            raise self.refuse(
                f"unpacks to more than {self.most / 2**30:.3g} GiB, too much for a file of its size: expected images "
                f"or weights; set {MOST_UNPACKED} if it is sound"
            )

    def outside(self, place: str) -> InputError:
        return self.refuse(
            f"links its data {_short(place.rpartition('/')[2])} to another place: expected all weights inside the file"
        )

    def attributes(self, thing: Any) -> dict[str, Any]:
        """Of an object, as plain values; None in the place of what has none."""
        found = {}
        if len(thing.attrs) > _MOST_ATTRIBUTES:
            raise self.refuse(
                f"has more than {_MOST_ATTRIBUTES} attributes in one place: expected a file that we or Keras wrote"
            )
        for name in thing.attrs:
            found_here = h5py.h5a.open(thing.id, name.encode("utf-8", "surrogateescape"))
            self.text += found_here.get_space().get_simple_extent_npoints() * found_here.get_type().get_size()
            if self.text <= _MOST_TEXT:
                found[name] = _plain(thing.attrs[name])
                self.text += len(found[name]) if isinstance(found[name], (str, list)) else 0
            if self.text > _MOST_TEXT:
                raise self.refuse(
                    f"has attributes of more than {_MOST_TEXT >> 20} MiB: expected a file that we or Keras wrote"
                )
        return found


def contents(source: str | IO[bytes], path: str, size: int) -> dict[str, Any]:
    """All groups, arrays and attributes of a file, without the arrays' values.

    What is packed is unpacked once, array by array, so that damage shows here.

    Args:
        source: path or open file.
        path: of the file, for the messages.
        size: bytes of the file on the disk.

    Returns:
        Of the file, and so of each group: {"attributes": {NAME: VALUE}, "groups": {NAME: …}, "arrays": {NAME:
        {"shape": [...], "kind": of a NumPy type or None, "bytes": n, "attributes": {…}}}}.

    Raises:
        InputError: links, other files, foreign filters; more, deeper or larger than a file of ours or Keras' is.
        Exception: h5py's own, of damage.
    """
    bounds = _Bounds(path, size)

    def of_group(group: h5py.Group, place: str, depth: int) -> dict[str, Any]:
        bounds.visit(place, group)
        bounds.count(group, depth)
        told: dict[str, Any] = {"attributes": bounds.attributes(group), "groups": {}, "arrays": {}}
        for name in group:
            inner = f"{place}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise bounds.outside(inner)
            child = group[name]
            if isinstance(child, h5py.Group):
                told["groups"][name] = of_group(child, inner, depth + 1)
            elif isinstance(child, h5py.Dataset):
                bounds.visit(inner, child)
                bounds.measure(inner, child, written=not _is_mere_dimension(child))
                told["arrays"][name] = {
                    "shape": None if child.shape is None else list(child.shape),
                    "kind": child.dtype.str if child.dtype.kind in "biufcSUV" else None,
                    "bytes": child.size * child.dtype.itemsize if child.shape is not None else 0,
                    "attributes": bounds.attributes(child),
                }
                if child.chunks is not None and not _is_mere_dimension(child):
                    child[()]
        return told

    with h5py.File(source, "r") as file:
        return of_group(file["/"], "", 0)


def netcdf(path: str) -> tuple[Any, Iterator[tuple[str, Any]]]:
    """The variables of a NetCDF file's root, as `base.files.read_netcdf` puts them together; runs in a child.

    Returns:
        {"attributes": {NAME: VALUE}, "variables": {NAME: {"dimensions": [NAME], "attributes": {…}, "shape": [n],
        "text": [the values, where it is of text; else None]}}}, and the values of all others.
    """
    size = os.path.getsize(path)
    contents(path, path, size)  # refuses
    bounds = _Bounds(path, size)
    file = h5py.File(path, "r")  # is closed with the process
    told: dict[str, Any] = {"attributes": _shown(bounds.attributes(file)), "variables": {}}
    for name, data in file.items():
        if not isinstance(data, h5py.Dataset) or _is_mere_dimension(data):
            continue
        text = h5py.check_string_dtype(data.dtype) is not None
        if not text and data.dtype.kind not in "biuf":
            raise InputError(f"{path}: the variable {_short(name)} holds {data.dtype}: expected numbers or text")
        told["variables"][name] = {
            "dimensions": _dimensions(file, name, data),
            "attributes": _shown(bounds.attributes(data)),
            "shape": list(data.shape),
            "text": np.asarray(data.asstr()[()], object).ravel().tolist() if text else None,
        }
    names = [name for name, variable in told["variables"].items() if variable["text"] is None]
    return told, ((name, np.asarray(file[name][()])) for name in names)


def _is_mere_dimension(data: h5py.Dataset) -> bool:
    name = data.attrs.get("NAME", b"")
    return (
        data.attrs.get("CLASS") == b"DIMENSION_SCALE"
        and isinstance(name, bytes)
        and name.startswith(_NO_VARIABLE.encode())
    )


def _dimensions(file: h5py.File, name: str, data: h5py.Dataset) -> list[str]:
    if "DIMENSION_LIST" in data.attrs:
        return [str(file[references[0]].name).lstrip("/") for references in data.attrs["DIMENSION_LIST"]]
    return [name] if len(data.shape) == 1 else []


def _shown(attributes: dict[str, Any]) -> dict[str, Any]:
    """As h5netcdf shows them: a list of one is its value."""
    return {
        name: value[0] if isinstance(value, list) and len(value) == 1 else value
        for name, value in attributes.items()
        if name not in _HIDDEN and value is not None
    }


def _plain(value: Any) -> Any:
    """An attribute's value: text, a number, or a list of these; None: something else."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufSUO":
        items = [
            _plain(item) if isinstance(item, (bytes, str)) else item for item in np.asarray(value).ravel().tolist()
        ]
        if all(isinstance(item, (str, int, float, bool)) for item in items):
            return items[0] if len(items) == 1 and np.ndim(value) == 0 else items
    return None


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:60]}…{name[-30:]}")
