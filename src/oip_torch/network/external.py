"""How is a graph whose weights lie in a file beside it written, or digested, with no copy of them in memory?

protobuf's own serialisation holds a whole message twice. Here it is put together of pieces: bytes, and stretches of the
file with the weights. The result is the same, byte for byte, as of the graph with its weights inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx

__all__ = ["Piece", "pieces_of", "read_pieces"]

Piece = bytes | tuple[int, int]
"""Bytes as they are, or (offset, length) of the file with the weights."""
_CHUNK = 1 << 20  # bytes that are read at once
_LENGTH = 2  # how protobuf marks a field that says its length
_HOLDERS = ("graph", "initializer")  # fields with weights in them


def pieces_of(message: Any) -> list[Piece]:
    """What `SerializeToString(deterministic=True)` gives of a model, or of a graph, once its weights are inside."""
    pieces: list[Piece] = []
    for field, value in message.ListFields():  # by their numbers, as protobuf writes them
        if field.name in _HOLDERS:
            for inner in [value] if field.name == "graph" else value:
                pieces += _with_length(field.number, _of_tensor(inner) if field.name != "graph" else pieces_of(inner))
        else:
            alone = type(message)()
            if isinstance(value, (int, float, str, bytes)):
                setattr(alone, field.name, value)
            else:
                getattr(alone, field.name).MergeFrom(value)
            pieces.append(alone.SerializeToString(deterministic=True))
    return pieces


def _of_tensor(tensor: onnx.TensorProto) -> list[Piece]:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return [tensor.SerializeToString(deterministic=True)]
    told = {entry.key: entry.value for entry in tensor.external_data}
    before = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    after = onnx.TensorProto(data_location=onnx.TensorProto.DEFAULT)  # as onnx leaves it that loads the weights
    weights = _with_length(
        tensor.DESCRIPTOR.fields_by_name["raw_data"].number, [(int(told["offset"]), int(told["length"]))]
    )
    return [before.SerializeToString(deterministic=True), *weights, after.SerializeToString()]


def _with_length(number: int, pieces: Sequence[Piece]) -> list[Piece]:
    """A field of a message: its tag, how long it is, and what it holds."""
    length = sum(len(piece) if isinstance(piece, bytes) else piece[1] for piece in pieces)
    return [_varint(number << 3 | _LENGTH) + _varint(length), *pieces]


def _varint(value: int) -> bytes:
    """A number in groups of seven bits, the last of them first."""
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def read_pieces(pieces: Sequence[Piece], weights: Path) -> Iterator[bytes]:
    """The bytes of all pieces, some at a time; `weights`: the file that holds the stretches."""
    with weights.open("rb") as file:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield piece
                continue
            offset, length = piece
            file.seek(offset)
            for size in itertools.chain(itertools.repeat(_CHUNK, length // _CHUNK), [length % _CHUNK]):
                yield file.read(size)
