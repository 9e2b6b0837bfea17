"""How much of what does a protobuf message hold? Counted before it is parsed, without memory for it.

Parsing takes many times a message's bytes where these are chosen for that: empty messages, numbers of one byte each,
and fields that the schema does not know, which are kept. So the tags of the wire format are walked over first
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Tally", "tally"]

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_DEEPEST = 16  # messages inside each other; weights in a node of ours are five deep
_LONGEST_VARINT = 10


@dataclass
class Tally:
    """What a message holds, with all messages in it; a field goes by its message and name, as in "NodeProto.name".

    Attributes:
        fields: how many there are in all.
        counts: how often each occurs.
        bytes: that each holds in all.
        longest: bytes of the longest of each.
        unknown: bytes of fields that the schema does not know.
    """

    fields: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    longest: dict[str, int] = field(default_factory=dict)
    unknown: int = 0


def tally(data: Any, descriptor: Any, most: int) -> Tally:
    """Count what a message holds.

    Args:
        data: its bytes, or a memory map of its file, of which only the tags are read.
        descriptor: of the message's type, as protobuf has it.
        most: fields.

    Raises:
        ValueError: it is cut, has more fields than `most`, or messages too deep inside each other.
    """
    found = Tally()
    open_messages = [(0, len(data), _fields(descriptor), 1)]
    while open_messages:
        at, end, known, depth = open_messages.pop()
        if depth > _DEEPEST:
            raise ValueError(f"messages inside each other, deeper than {_DEEPEST}")
        while at < end:
            found.fields += 1
            if found.fields > most:
                raise ValueError(f"more than {most} fields")
            start = at
            tag, at = _varint(data, at, end)
            kind = tag & 7
            begin = at
            if kind == _VARINT:
                _, at = _varint(data, at, end)
            elif kind == _LENGTH:
                length, begin = _varint(data, at, end)
                at = begin + length
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                raise ValueError(f"a field of the kind {kind}")
            if at > end:
                raise ValueError("a field that ends behind its message")
            name, kinds, inner = known.get(tag >> 3, ("", (), None))
            if kind not in kinds:
                found.unknown += at - start
                continue
            size = at - begin
            found.counts[name] += 1
            found.bytes[name] += size
            found.longest[name] = max(size, found.longest.get(name, 0))
            if inner is not None and size:
                open_messages.append((begin, at, _fields(inner), depth + 1))
    return found


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """A number in groups of seven bits, the last of them first, and where it ends."""
    value = shift = 0
    while at < end and shift < 7 * _LONGEST_VARINT:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number that does not end")


@functools.cache
def _fields(descriptor: Any) -> Mapping[int, tuple[str, tuple[int, ...], Any]]:
    """Number of a field → its name, the kinds that it may have on the wire, and the message's type in it, or None."""
    kinds = {
        **dict.fromkeys(_types("DOUBLE FIXED64 SFIXED64"), _FIXED64),
        **dict.fromkeys(_types("FLOAT FIXED32 SFIXED32"), _FIXED32),
        **dict.fromkeys(_types("STRING BYTES MESSAGE"), _LENGTH),
    }
    return {
        each.number: (
            f"{descriptor.name}.{each.name}",
            # Repeated numbers may be packed to one field.
            (kinds.get(each.type, _VARINT), *([_LENGTH] if _is_repeated(each) else [])),
            each.message_type,
        )
        for each in descriptor.fields
    }


def _is_repeated(field: Any) -> bool:
    # Earlier versions of protobuf have a label alone, which later ones warn of.
    return bool(field.is_repeated) if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _types(names: str) -> list[int]:
    from google.protobuf.descriptor import FieldDescriptor

    return [getattr(FieldDescriptor, f"TYPE_{name}") for name in names.split()]
