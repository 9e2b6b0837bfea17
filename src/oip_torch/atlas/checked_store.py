"""Which bytes of a zarr store may be read, and where may be written? Nothing outside its folder, and nothing too large.

An atlas may come from a stranger: a link in its folder leads anywhere, and a chunk of a few bytes may unpack to as much
as it likes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore, WrapperStore

from oip_torch.atlas.layout import MOST_CHUNK_BYTES
from oip_torch.base.errors import InputError

__all__ = ["CheckedStore"]

_MOST_METADATA_BYTES = 16 << 20  # what describes all arrays of 400 layers is 6 MB
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
_ZSTD = 0xFD2FB528


class CheckedStore(WrapperStore[Any]):
    """A store whose files are checked before zarr reads or writes them; what is wrong is an `InputError`."""

    def with_read_only(self, read_only: bool = False) -> CheckedStore:
        """The same, for reading alone or for writing too; zarr 3.1.0's own wrapper lacks this."""
        return type(self)(self._store.with_read_only(read_only))

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """A file's bytes, or None."""
        is_metadata = key.endswith(_METADATA)
        most = _MOST_METADATA_BYTES if is_metadata else MOST_CHUNK_BYTES
        self._check_place(key, most)
        found = await self._store.get(key, prototype, byte_range)
        if found is not None:
            size = len(found)
            if not is_metadata and byte_range is None:
                size = max(size, _unpacked_bytes(bytes(found.as_numpy_array()[:18])))
            if size > most:
                raise InputError(f"{self._store}: {key} has {size} bytes: expected at most {most}")
        return found

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Parts of files."""
        ranges = list(key_ranges)
        for key, _ in ranges:
            self._check_place(key, MOST_CHUNK_BYTES)
        return await self._store.get_partial_values(prototype, ranges)

    async def set(self, key: str, value: Any) -> None:
        """Write a file."""
        self._check_place(key)
        await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write a file that is not there."""
        self._check_place(key)
        await self._store.set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        """Remove a file."""
        self._check_place(key)
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove a folder."""
        self._check_place(prefix)
        await self._store.delete_dir(prefix)

    def _check_place(self, key: str, most: int | None = None) -> None:
        """Of a folder: that the key leads to a file or folder in it, through no link, and to no larger file."""
        parts = Path(key).parts
        if not isinstance(self._store, LocalStore) or not parts:
            return
        if os.path.isabs(key) or ".." in parts:
            raise InputError(f"{self._store}: the name {key!r} leads out of the folder")
        place = self._store.root
        for part in parts:
            place = place / part
            try:
                found = os.lstat(place)
            except (FileNotFoundError, NotADirectoryError):
                return
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise InputError(
                    f"{place} is a link, or no regular file: expected files and folders of the atlas alone"
                )
        if most is not None and stat.S_ISREG(found.st_mode) and found.st_size > most:
            raise InputError(f"{place} has {found.st_size} bytes: expected at most {most}")


def _unpacked_bytes(start: bytes) -> int:
    """What a frame of Zstandard says that it unpacks to; 0 where the bytes are none (RFC 8878, section 3.1.1)."""
    if len(start) < 6 or int.from_bytes(start[:4], "little") != _ZSTD:
        return 0
    descriptor = start[4]
    single, size_code, dictionary = descriptor >> 5 & 1, descriptor >> 6, (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[size_code]
    if width == 0:  # it does not say
        return MOST_CHUNK_BYTES + 1
    at = 5 + (1 - single) + dictionary
    return int.from_bytes(start[at : at + width], "little") + (256 if width == 2 else 0)
