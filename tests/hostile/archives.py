"""Zip archives that no library writes: compressed data by hand, so that a bomb of gigabytes is made in a moment."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Entry", "bomb", "write_zip"]


@dataclass(frozen=True)
class Entry:
    """A member as the archive tells of it, true or not."""

    name: bytes
    data: bytes
    size: int
    crc: int
    method: int = 8
    flags: int = 0
    attributes: int = 0

    @staticmethod
    def stored(name: str, content: bytes, **told: int) -> Entry:
        """A member that is not compressed; `told` replaces what the archive says of it."""
        facts = {"size": len(content), "crc": zlib.crc32(content), "method": 0} | told
        return Entry(name.encode(), content, **facts)


def bomb(unit: bytes, size: int, before: bytes = b"", after: bytes = b"") -> tuple[bytes, int, int]:
    """`before`, `unit` again and again for about `size` bytes, `after`, deflated: (data, size, CRC)."""
    block = unit * max(1, (1 << 20) // len(unit))
    count = max(1, size // len(block))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = compressor.compress(before) + compressor.flush(zlib.Z_FULL_FLUSH)
    one = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    last = compressor.compress(after) + compressor.flush(zlib.Z_FINISH)
    crc = zlib.crc32(before)
    for _ in range(count):
        crc = zlib.crc32(block, crc)
    return first + one * count + last, len(before) + len(block) * count + len(after), zlib.crc32(after, crc)


def write_zip(path: Path, entries: list[Entry], *, directory: list[Entry] | None = None, offset: int = 0) -> Path:
    """Write an archive.

    Args:
        path: of the file.
        entries: in their order.
        directory: what the central directory tells, where that differs; of the same members.
        offset: added to where the directory says that members are.
    """
    content, central = bytearray(), bytearray()
    for entry, told in zip(entries, directory or entries, strict=True):
        place = len(content) + offset
        content += struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, entry.flags, entry.method, 0, 33, entry.crc & 0xFFFFFFFF,
                               len(entry.data), entry.size & 0xFFFFFFFF, len(entry.name), 0)  # fmt: skip
        content += entry.name + entry.data
        central += struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 0x0314, 20, told.flags, told.method, 0, 33,
                               told.crc & 0xFFFFFFFF, len(told.data), told.size & 0xFFFFFFFF, len(told.name), 0, 0,
                               0, 0, told.attributes, place & 0xFFFFFFFF) + told.name  # fmt: skip
    count = min(len(entries), 0xFFFF)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(central), len(content), 0)
    path.write_bytes(bytes(content) + bytes(central) + end)
    return path
