"""Bytes of a protobuf message, counted before they are parsed: as protobuf itself finds them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oip_torch.network.wire import tally

MODEL = onnx.ModelProto.DESCRIPTOR


def test_counts_are_those_of_the_parsed_message(mnist_onnx: Path) -> None:
    content = mnist_onnx.read_bytes()
    proto, found = onnx.ModelProto.FromString(content), tally(content, MODEL, 10_000)
    assert found.counts["GraphProto.node"] == len(proto.graph.node)
    assert found.counts["GraphProto.initializer"] == len(proto.graph.initializer)
    assert found.bytes["TensorProto.raw_data"] == sum(len(each.raw_data) for each in proto.graph.initializer)
    assert found.longest["NodeProto.name"] == max(len(each.name) for each in proto.graph.node)
    assert found.unknown == 0
    with pytest.raises(ValueError, match="more than 300 fields"):
        tally(content, MODEL, 300)


def test_fields_that_nobody_knows_are_counted(mnist_onnx: Path) -> None:
    content = mnist_onnx.read_bytes()
    assert tally(content + b"\xf8\x7d\x05", MODEL, 10_000).unknown == 3
    assert tally(content + b"\x0a\x03abc", MODEL, 10_000).unknown == 5  # the version, which is a number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x08", "does not end"),
        (b"\x3a\x05\x0a", "ends behind its message"),
        (b"\x08" + b"\xff" * 11, "does not end"),
        (b"\x0b\x0c", "of the kind 3"),
        (b"\x3d\x00", "ends behind its message"),
    ],
)
def test_what_is_cut_is_told(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tally(content, MODEL, 100)


def test_messages_inside_each_other() -> None:
    graph = b"\x0a\x02\x0a\x00"
    for _ in range(8):  # a graph in an attribute of a node of a graph
        for number in (6, 5, 1):
            graph = bytes([number << 3 | 2, len(graph)]) + graph
    with pytest.raises(ValueError, match="deeper than 16"):
        tally(b"\x3a" + bytes([len(graph)]) + graph, MODEL, 1000)


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(content: bytes) -> None:
    """And what protobuf reads is never refused for being cut."""
    try:
        found = tally(content, MODEL, 1000)
    except ValueError:
        return
    assert found.unknown <= len(content)
