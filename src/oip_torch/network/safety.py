"""Is the ONNX graph of an untrusted file safe to parse, to work on and to run?

Bytes are counted before they are parsed (`network.wire`), C++ reads the graph in a child process (`network.shapes`),
and what one image costs is worked out before anything runs (`network.costs`).
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line
from oip_torch.network.costs import check_costs
from oip_torch.network.shapes import Shapes, find_shapes, try_conversion
from oip_torch.network.wire import Tally, tally

__all__ = ["HOW_TO_MAKE_ONE", "MOST_METADATA_BYTES", "check_conversion", "check_sizes", "check_static", "parse"]

HOW_TO_MAKE_ONE = "make one with `oip convert MODEL.keras`"
_MOST_ELEMENTS = 1 << 28  # of one tensor of weights, and of an image: 1 GiB in float32
MOST_METADATA_BYTES = 8 << 20
_MOST_FILE_BYTES = 2 << 30  # protobuf's own limit
_MOST_FIELDS = 1 << 20  # a node with its attributes has 10 to 30
_MOST_UNKNOWN_BYTES = 1 << 16  # of a later version of ONNX
_MOST_NODES = 20_000  # of deep networks a few thousand
_MOST_WEIGHTS = 20_000
_MOST_NAME_BYTES = 4096
_MOST_OTHER_BYTES = 128 << 20  # than those of weights
_MOST_DIMENSIONS = 16

_BYTES = {  # of fields, all together
    "the model's metadata": (16 << 20, ("ModelProto.metadata_props",)),
    "remarks": (
        64 << 20,
        tuple(
            f"{kind}.{name}"
            for kind in ("NodeProto", "GraphProto", "TensorProto", "ValueInfoProto", "AttributeProto", "ModelProto")
            for name in ("doc_string", *(["metadata_props"] if kind not in ("ModelProto", "AttributeProto") else []))
        ),
    ),
    # Their numbers may be of one byte each here, and take eight in memory.
    "weights that are not stored raw": (
        64 << 20,
        ("TensorProto.int32_data", "TensorProto.int64_data", "TensorProto.uint64_data"),
    ),
    "numbers and text in attributes": (
        16 << 20,
        tuple(f"AttributeProto.{name}" for name in ("s", "floats", "ints", "strings", "type_protos", "tp")),
    ),
}
_NAMES = (
    *("NodeProto.name", "NodeProto.input", "NodeProto.output", "NodeProto.op_type", "NodeProto.domain"),
    *("TensorProto.name", "ValueInfoProto.name", "AttributeProto.name", "AttributeProto.ref_attr_name"),
    *("GraphProto.name", "Dimension.dim_param", "StringStringEntryProto.key"),
)
_COUNTS = {
    "nodes": (_MOST_NODES, "GraphProto.node"),
    "weights": (_MOST_WEIGHTS, "GraphProto.initializer"),
}
_TYPES = {  # of numbers, and the field that holds them where they are not stored raw
    **dict.fromkeys(("FLOAT",), "float_data"),
    **dict.fromkeys(("INT8", "UINT8", "INT16", "UINT16", "INT32", "BOOL", "FLOAT16"), "int32_data"),
    "INT64": "int64_data",
    "DOUBLE": "double_data",
    **dict.fromkeys(("UINT32", "UINT64"), "uint64_data"),
}


def parse(path: Path) -> onnx.ModelProto:
    """The graph in an existing file, none of whose bytes were parsed before they were counted.

    Raises:
        InputError: it is no ONNX file, or holds too much of something.
    """
    if (size := path.stat().st_size) > _MOST_FILE_BYTES:
        raise InputError(f"{path} has {size} bytes: expected at most {_MOST_FILE_BYTES}")
    wrong, expected = f"{path} is not readable as ONNX", f"damaged or of another kind; {HOW_TO_MAKE_ONE}"
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_tally(tally(data, onnx.ModelProto.DESCRIPTOR, _MOST_FIELDS), len(data), path)
            proto = onnx.ModelProto.FromString(data[:])
    except InputError:
        raise
    except DecodeError as error:
        raise InputError(f"{wrong}: {expected}") from error
    except ValueError as error:
        raise InputError(f"{wrong} ({error}): {expected}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check the file") from error
    if not proto.graph.node:
        raise InputError(f"{path} is not readable as ONNX: it holds no graph; {HOW_TO_MAKE_ONE}")
    return proto


def _refused(path: Path, what: str) -> InputError:
    return InputError(f"{path} is refused: it has {what}; {HOW_TO_MAKE_ONE}")


def _check_tally(found: Tally, size: int, path: Path) -> None:
    others = size - sum(found.bytes[f"TensorProto.{name}"] for name in {"raw_data", *_TYPES.values()})
    for what, (most, name) in _COUNTS.items():
        if found.counts[name] > most:
            raise _refused(path, f"{found.counts[name]} {what}; expected at most {most}")
    for what, (most, names) in _BYTES.items():
        if (held := sum(found.bytes[name] for name in names)) > most:
            raise _refused(path, f"{held} bytes of {what}; expected at most {most}")
    for name in _NAMES:
        if (longest := found.longest.get(name, 0)) > _MOST_NAME_BYTES:
            raise _refused(path, f"a name of {longest} bytes ({name}); expected at most {_MOST_NAME_BYTES}")
    if found.unknown > _MOST_UNKNOWN_BYTES:
        raise _refused(
            path, f"{found.unknown} bytes in fields that ONNX does not have; expected at most {_MOST_UNKNOWN_BYTES}"
        )
    if others > _MOST_OTHER_BYTES:
        raise _refused(path, f"{others} bytes besides its weights; expected at most {_MOST_OTHER_BYTES}")


def check_static(proto: onnx.ModelProto, path: Path) -> None:
    """Raise an `InputError` where a graph is more than operations of ONNX on weights that are in the file."""
    graph = proto.graph
    if foreign := {node.domain for node in graph.node} - {"", "ai.onnx"}:
        raise _refused(path, f"operations of the domain {sorted(foreign)[0]!r}; expected ONNX's own operations")
    if proto.functions:
        raise _refused(path, "functions of its own; expected a plain graph")
    if graph.sparse_initializer:
        raise _refused(path, "sparse weights; expected dense ones")
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise _refused(path, f"control flow ({node.op_type}); expected a plain graph")
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                raise _refused(path, f"sparse weights ({node.op_type}); expected dense ones")
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            tensors.extend(attribute.tensors)
    for tensor in tensors:
        _check_tensor(tensor, path)


def _check_tensor(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise InputError(
            f"{path} is refused: it has the weights {tensor.name!r} in another file; expected all data inside, as "
            f"torch.onnx.export(…, external_data=False) or onnx.save(onnx.load({path.name!r}), 'whole.onnx') writes "
            f"it; or {HOW_TO_MAKE_ONE}"
        )
    if tensor.data_type == onnx.TensorProto.STRING:
        raise _refused(path, f"text among its weights ({tensor.name!r}); expected numbers")
    known = tensor.data_type in onnx.TensorProto.DataType.values()
    kind = onnx.TensorProto.DataType.Name(tensor.data_type) if known else str(tensor.data_type)
    if kind not in _TYPES:
        raise _refused(path, f"the weights {tensor.name!r} of the type {kind}; expected ordinary numbers")
    shape = list(tensor.dims)
    count = math.prod(shape)
    if len(shape) > _MOST_DIMENSIONS or min(shape, default=0) < 0 or count > _MOST_ELEMENTS:
        raise _refused(path, f"the weights {tensor.name!r} of shape {shape[:_MOST_DIMENSIONS]}; expected a CNN's")
    held = len(getattr(tensor, _TYPES[kind]))
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) // np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    if held != count:
        raise _refused(path, f"the weights {tensor.name!r} of shape {shape}, with {held} numbers; expected {count}")


def check_sizes(proto: onnx.ModelProto, path: Path) -> Shapes:
    """The shapes of all tensors, where one image takes no more memory and time than the limits say.

    Raises:
        InputError: the graph is not valid, or takes more.
    """
    with _valid(path):
        shapes = find_shapes(proto)
    try:
        check_costs(proto.graph, {name: one for name, (one, _) in shapes.items()})
    except InputError:  # of the limits themselves
        raise
    except ValueError as error:
        raise _refused(path, str(error)) from error
    except (IndexError, KeyError) as error:
        raise _refused(path, "an operation without its inputs or attributes; expected a valid one") from error
    return shapes


def check_conversion(proto: onnx.ModelProto, path: Path) -> None:
    """Raise an `InputError` where the graph is not valid, or where onnx cannot get through with converting it."""
    with _valid(path):
        try_conversion(proto)


@contextlib.contextmanager
def _valid(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InputError(f"{path} is no valid ONNX graph ({one_line(error)[:200]}); {HOW_TO_MAKE_ONE}") from error
