"""How does an atlas lie in a zarr store: groups, arrays, markers? And is what lies there what we would have written?

A store is a folder, or whatever fsspec reaches by a URL. What is read may come from a stranger: arrays of numbers alone
are taken, of the sizes that are expected, in codecs that are a zip at most, so that nothing in a store is ever run.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oip_torch.atlas.layout import MOST_CHUNK_BYTES, Layout, digest, flags
from oip_torch.atlas.lock import locked
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.messages import one_line
from oip_torch.base.platform import free_memory, in_words
from oip_torch.base.strict_json import check_plain
from oip_torch.results.fields import Array

if TYPE_CHECKING:
    import xarray as xr
    import zarr

__all__ = ["Store"]

_MOST_CELLS = 1 << 17  # of a layer; of 4,096 maps with 32 starts there are at most as many
_CODECS = frozenset({"BytesCodec", "ZstdCodec"})
_REMOTE = "://"


class Store:
    """An atlas's groups and arrays, by name. Everything that goes wrong with the store itself is an `InputError`."""

    def __init__(self, path: str | os.PathLike[str], *, writable: bool) -> None:
        import zarr

        from oip_torch.atlas.checked_store import CheckedStore

        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise InputError(f"the atlas is given as {shown(path)}: expected a folder, or a URL such as s3://…")
        self.name, self.writable = str(path), writable
        with self._told("opened"):
            if self.is_remote:
                self.store: Any = zarr.storage.FsspecStore.from_url(self.name, read_only=not writable)
            else:
                if os.path.exists(path) and not os.path.isdir(path):
                    raise InputError(f"{path} is a file: expected the folder of an atlas, such as atlas.zarr")
                self.store = zarr.storage.LocalStore(Path(path), read_only=not writable)
        self.store = CheckedStore(self.store)

    @property
    def is_remote(self) -> bool:
        """Whether it is given by a URL; such stores have no locks."""
        return _REMOTE in self.name

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """For the time of a block this process alone writes to a folder; an `InputError` where another one does."""
        return contextlib.nullcontext() if self.is_remote else locked(self.name)

    @property
    def is_atlas(self) -> bool:
        """Whether there is an atlas, whole or not."""
        return self.has("")

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there, or nothing but what a writer leaves that was killed at once."""
        if self.is_remote:
            return not self.is_atlas
        path = Path(self.name)
        return not path.exists() or all(entry.name.endswith(".partial") for entry in path.iterdir())

    def attributes(self, group: str = "") -> dict[str, Any]:
        """What a group says of itself.

        Raises:
            InputError: there is no such group.
        """
        with self._told("read"):
            try:
                found = dict(self._group(group).attrs)
                check_plain(found)
                return found
            except FileNotFoundError:
                what = f"has no group {group!r}" if group else "is no atlas: no zarr group is there"
                raise InputError(f"{self.name} {what}; expected what `oip atlas` has made") from None

    def has(self, group: str) -> bool:
        """Whether there is such a group."""
        with self._told("read"):
            try:
                self._group(group)
            except FileNotFoundError:
                return False
        return True

    def groups(self, parent: str = "") -> list[str]:
        """The names of the groups in a group."""
        with self._told("read"):
            return sorted(self._group(parent).group_keys())

    def say(self, attributes: Mapping[str, Any], group: str = "") -> None:
        """Add to what a group says of itself; where there is none yet, it is made, with all of this at once."""
        import zarr

        with self._told("written"):
            try:
                self._group(group, "r+").attrs.update(attributes)
            except FileNotFoundError:
                zarr.create_group(self.store, path=group, zarr_format=3, attributes=dict(attributes))

    def remove(self, group: str) -> None:
        """A group goes, with all that is in it, if it is there."""
        parent, _, name = group.rpartition("/")
        with self._told("written"), contextlib.suppress(KeyError, FileNotFoundError):
            del self._group(parent, "r+")[name]

    # The arrays of a layer

    def prepare(self, group: str, layout: Layout, coordinates: Mapping[str, Array]) -> bool:
        """Make what is missing of a layer's arrays, and enlarge what is too small; what is there stays.

        Returns whether anything was enlarged.
        """
        enlarged = False
        with self._told("written"):
            own = self._group(group, "r+")
            for name, variable in layout.variables.items():
                try:
                    array = self._array(own, name)
                except OipError:
                    raise
                except Exception:  # it is not there, or what describes it was cut
                    own.create_array(
                        name,
                        shape=layout.shape(name),
                        chunks=layout.chunks(name),
                        dtype=variable.dtype,
                        fill_value=variable.fill,
                        dimension_names=variable.dimensions,
                        attributes=flags() if name == "status" else {},
                        compressors=None if name == "cell_sha256" else "auto",
                        overwrite=True,
                    )
                    continue
                self._check(array, name, layout, least=True)
                if array.shape != layout.shape(name):
                    array.resize(layout.shape(name))
                    enlarged = True
            for name, values in coordinates.items():
                own.create_array(name, data=np.asarray(values), dimension_names=(name.split("_")[0],), overwrite=True)
        return enlarged

    def write_cells(
        self, group: str, layout: Layout, first: tuple[int, int], arrays: Mapping[str, Array], seconds: Array
    ) -> None:
        """Write a block of cells, and when all of it lies there its markers.

        Args:
            group: of the layer.
            layout: of its arrays.
            first: number of the block's first cell, and its first start.
            arrays: of all images and cells, (maps, starts, …) or (cells, starts, …).
            seconds: (cells, starts) that each cell has taken.
        """
        import xarray as xr

        cells, starts = seconds.shape
        cell, start = first
        region = {
            "map": slice(cell * layout.cell, min(layout.maps, (cell + cells) * layout.cell)),
            "start": slice(start, start + starts),
            "cell": slice(cell, cell + cells),
        }
        dimensions = {name: variable.dimensions for name, variable in layout.variables.items()}
        marks = np.zeros((cells, starts, 32), np.uint8)
        for row in range(cells):
            for column in range(starts):
                own = _cell_of(arrays, layout, row, column)
                marks[row, column] = np.frombuffer(digest(own), np.uint8)
        held = {name: (dimensions[name], values) for name, values in arrays.items()}
        held["cell_seconds"] = dimensions["cell_seconds"], seconds
        marker = xr.Dataset({"cell_sha256": (dimensions["cell_sha256"], marks)})
        of_cells = {name: region[name] for name in ("cell", "start")}
        more: dict[str, Any] = {"mode": "r+", "consolidated": False, "zarr_format": 3}
        with self._told("written"):
            xr.Dataset(held).to_zarr(self.store, group=group, region=region, **more)
            marker.to_zarr(self.store, group=group, region=of_cells, **more)

    def unmark(self, group: str, cells: Array) -> None:
        """Take the markers of these cells away, (cells, starts) bool, before they are written anew."""
        with self._told("written"):
            marks = self._array(self._group(group, "r+"), "cell_sha256")
            for cell, start in np.argwhere(cells).tolist():
                marks[cell, start] = np.zeros(32, np.uint8)

    def read_cells(
        self, group: str, layout: Layout, kept: Collection[str]
    ) -> tuple[dict[str, Array], Array, Array, bytes]:
        """What is whole of a layer. All of it is read, a cell at a time, and compared with its digest.

        Args:
            group: of the layer.
            layout: of its arrays.
            kept: the names of the arrays that are wanted; memory is needed for these alone.

        Returns:
            The arrays; (cells, starts) bool, which cells are whole; likewise, which have a marker and are not; and a
            digest of all that is whole.

        Raises:
            InputError: other arrays than the layout says, or more than there is memory for.
        """
        if layout.cells * layout.starts > _MOST_CELLS:
            raise InputError(
                f"{self.name}: group {group!r} has {layout.cells * layout.starts} cells: expected at most {_MOST_CELLS}"
            )
        of_cells = [name for name, variable in layout.variables.items() if variable.dimensions[0] == "cell"]
        needed = layout.bytes_of({*kept, *of_cells}) + layout.cell_bytes
        if needed > (most := free_memory() // 2):
            raise InputError(
                f"{self.name}: group {group!r} holds {in_words(needed)}, and {in_words(most)} may be used: expected an "
                "atlas whose layers fit in memory; read parts of it with xarray.open_zarr"
            )
        names = [name for name in layout.variables if name != "cell_sha256"]
        with self._told("read"):
            own = self._group(group)
            stored = {name: self._array(own, name) for name in layout.variables}
            for name, array in stored.items():
                self._check(array, name, layout)
            marks = self._marks(stored["cell_sha256"], layout)
            found = {
                name: np.full(layout.shape(name), layout.variables[name].fill, layout.variables[name].dtype)
                for name in kept
            }
            made, torn = np.zeros((2, layout.cells, layout.starts), bool)
            for cell, start in np.argwhere(marks.any(2)).tolist():
                places = {name: layout.place(name, cell, start) for name in names}
                try:
                    part = {name: np.asarray(stored[name][places[name]]) for name in names}
                except OipError:
                    raise
                except Exception:  # a chunk that is cut or changed: whatever zarr and its codecs raise
                    part = {}
                hashed = {name: values for name, values in part.items() if name != "cell_seconds"}
                whole = digest(hashed) == marks[cell, start].tobytes()
                (made if whole else torn)[cell, start] = True
                for name in kept if whole else ():
                    found[name][places[name]] = part[name]
        return found, made, torn, digest({"cells": np.where(made[..., None], marks, 0)})

    def _marks(self, array: zarr.Array[Any], layout: Layout) -> Array:
        """(cells, starts, 32): all markers; what cannot be read is none."""
        try:
            return np.asarray(array[...])
        except OipError:
            raise
        except Exception:
            marks = np.zeros(layout.shape("cell_sha256"), np.uint8)
            for cell, start in np.ndindex(marks.shape[:2]):
                with contextlib.suppress(Exception):
                    marks[cell, start] = array[cell, start]
            return marks

    # Tables that are written as a whole

    def write_table(self, group: str, dataset: xr.Dataset, of: str) -> None:
        """Write a group as a whole, and then its marker; `of`: the digest of what it was worked out from."""
        self.remove(group)
        with self._told("written"):
            dataset.to_zarr(self.store, group=group, mode="w", consolidated=False, zarr_format=3)
        held = {str(name): np.asarray(values) for name, values in dataset.variables.items()}
        self.say({"of": of, "sha256": digest(held, dataset.attrs).hex()}, group)

    def read_table(self, group: str, of: str | None = None) -> xr.Dataset | None:
        """A group as a whole; None where it is not there, not whole, or worked out from something else."""
        import xarray as xr

        with self._told("read"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: of what is no array, since it was cut
            try:
                own = self._group(group)
                attributes = dict(own.attrs)
                if of is not None and attributes.get("of") != of:
                    return None
                arrays = [self._array(own, name) for name in sorted(own.array_keys())]
                for array in arrays:
                    self._check_kind(array)
                if (total := sum(array.nbytes for array in arrays)) > (most := free_memory() // 2):
                    raise InputError(
                        f"{self.name}: group {group!r} holds {in_words(total)}, and {in_words(most)} may be used: "
                        "expected one that fits in memory"
                    )
                held = {array.basename: (_dimensions(array), array[...]) for array in arrays}
                own_words = {name: value for name, value in attributes.items() if name not in ("of", "sha256")}
                dataset = xr.Dataset(held, attrs=own_words)
            except OipError:
                raise
            except Exception:  # nothing is there, or a part of it: whatever zarr and its codecs raise
                return None
        found = {name: np.asarray(values) for name, (_, values) in held.items()}
        return dataset if digest(found, own_words).hex() == attributes.get("sha256") else None

    def consolidate(self) -> None:
        """Gather what all groups say of themselves, so that others open them without a warning and at once."""
        import zarr

        with self._told("written"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: that its format 3 does not name this yet
            for layer in self.groups():
                for inner in self.groups(layer):
                    zarr.consolidate_metadata(self.store, path=f"{layer}/{inner}")
                zarr.consolidate_metadata(self.store, path=layer)
            zarr.consolidate_metadata(self.store)

    # Inside

    def _group(self, name: str, mode: Any = "r") -> zarr.Group:
        import zarr

        return zarr.open_group(self.store, path=name, mode=mode, zarr_format=3, use_consolidated=False)

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        import zarr

        array = group[name]
        if not isinstance(array, zarr.Array):
            raise InputError(f"{self.name}: {group.path}/{name} is no array; expected what `oip atlas` has made")
        return array

    def _check_kind(self, array: zarr.Array[Any]) -> None:
        """Numbers alone, and codecs that only make them smaller."""
        codecs = {type(codec).__name__ for codec in (*array.filters, array.serializer, *array.compressors)}
        if array.dtype.kind not in "fiub" or codecs - _CODECS:
            raise InputError(
                f"{self.name}: {array.path} holds {array.dtype} in {', '.join(sorted(codecs))}: expected numbers, as "
                "`oip atlas` writes them"
            )
        if (size := math.prod(array.chunks) * array.dtype.itemsize) > MOST_CHUNK_BYTES:
            raise InputError(
                f"{self.name}: {array.path} is in chunks of {size} bytes: expected at most {MOST_CHUNK_BYTES}"
            )
        if array.nchunks > _MOST_CELLS:
            raise InputError(f"{self.name}: {array.path} has {array.nchunks} chunks: expected at most {_MOST_CELLS}")

    def _check(self, array: zarr.Array[Any], name: str, layout: Layout, *, least: bool = False) -> None:
        """As the layout says; `least`: or with fewer starts."""
        self._check_kind(array)
        variable, shape = layout.variables[name], layout.shape(name)
        got = _dimensions(array), array.dtype.str, array.chunks
        expected = variable.dimensions, np.dtype(variable.dtype).str, layout.chunks(name)
        fewer = least and array.shape[1] <= shape[1] and array.shape[::2] == shape[::2]
        same = array.shape == shape or (fewer and array.shape[2:] == shape[2:])
        if got != expected or not same:
            raise InputError(
                f"{self.name}: {array.path} is {array.dtype} {array.shape} in chunks {array.chunks}: expected "
                f"{variable.dtype} {shape} in chunks {layout.chunks(name)}, as its attributes say; the atlas is damaged"
            )

    @contextlib.contextmanager
    def _told(self, done: str) -> Iterator[None]:
        try:
            yield
        except OipError:
            raise
        except MemoryError:
            raise InputError(f"{self.name} cannot be {done}: it needs more memory than there is") from None
        except Exception as error:  # of the operating system, of zarr, of whatever fsspec has behind it
            raise InputError(f"{self.name} cannot be {done}: {one_line(error)}; expected an atlas of ours") from error


def _dimensions(array: zarr.Array[Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in getattr(array.metadata, "dimension_names", None) or ())


def _cell_of(arrays: Mapping[str, Array], layout: Layout, row: int, column: int) -> dict[str, Array]:
    """Of a block's arrays those of one cell."""
    maps, one = slice(row * layout.cell, (row + 1) * layout.cell), slice(column, column + 1)
    of_maps = {name for name, variable in layout.variables.items() if variable.dimensions[0] == "map"}
    return {name: values[maps if name in of_maps else slice(row, row + 1), one] for name, values in arrays.items()}
