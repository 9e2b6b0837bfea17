"""Is this ONNX file safe and sound, and what do its layers say of themselves?

An ONNX file is data, yet an untrusted file can still point to other files, ask for absurd amounts of memory or hide a
program in control flow. `read` admits a single self-contained graph of plain operations and nothing else. What the
torch side needs to know of the Keras network travels as JSON in the file's `metadata_props`, under the key `oip_torch`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import onnx
from google.protobuf.message import DecodeError

from oip_torch.base.errors import InputError, unknown_name
from oip_torch.base.files import existing_file, replacing
from oip_torch.base.messages import whole_line
from oip_torch.network.domain import Domain, check_domain, find_domain

__all__ = ["Layer", "Layers", "Network", "graph_sha256", "is_ours", "layer_from_dict", "read", "read_graph", "write"]

_KEY = "oip_torch"
_FORMAT = 3
_MOST_FILE_BYTES = 2 << 30  # protobuf's own limit
_MOST_NODES = 100_000
_MOST_ELEMENTS = 1 << 28  # of one tensor for one image: 1 GiB in float32
_HOW_TO_MAKE_ONE = "make one with `oip convert MODEL.keras`"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer, as the ONNX file describes it, or as a wrapped module has it.

    `maps` is the number of feature maps (channels), or of units where the output is flat; then height and width are 1.
    Tensors of other ranks have no width. `tensor` and `tensor_before` are the ONNX tensors after and before the
    activation (the same one where the layer has none). `max_error` is what the verification found: the largest
    |torch - Keras| over the largest |Keras|, before and after the activation, over all probes; `error_float64` is the
    same in float64, where that decided, since float32 was too coarse. `fingerprint` is that of Keras' own output on one
    probe (see `probes.fingerprint`), which `load` compares torch's with. Of a wrapped module the tensors are nodes of
    its graph, and there is neither error nor fingerprint: it is the user's own.
    """

    name: str
    kind: str
    maps: int
    height: int | None
    width: int | None
    activation: str | None
    tensor: str
    tensor_before: str
    max_error: float | None = None
    error_float64: float | None = None
    fingerprint: tuple[float, ...] = ()

    @property
    def size(self) -> str:
        """ "26×26", or "" where the output is flat."""
        return "" if self.height == self.width == 1 else f"{self.height}×{self.width}"

    def row(self) -> dict[str, Any]:
        """The layer as the command line's JSON shows it."""
        keys = ("name", "kind", "maps", "height", "width", "activation", "max_error")
        row = {key: getattr(self, key) for key in keys}
        return row if self.error_float64 is None else row | {"error_float64": self.error_float64}


class Layers(Sequence[Layer]):
    """The layers of a network in the order in which it runs; by index or by name; shows itself as a table."""

    def __init__(self, layers: Sequence[Layer], refused: Mapping[str, str] | None = None) -> None:
        self._layers = tuple(layers)
        self._by_name = {layer.name: layer for layer in layers}
        self._refused = dict(refused or {})

    @overload
    def __getitem__(self, key: str | int) -> Layer: ...
    @overload
    def __getitem__(self, key: slice) -> Layers: ...
    def __getitem__(self, key: str | int | slice) -> Layer | Layers:
        if isinstance(key, slice):
            return Layers(self._layers[key])
        if isinstance(key, int):
            return self._layers[key]
        if key in self._refused:
            raise InputError(f"layer {key!r} cannot be looked at: {self._refused[key]}")
        if key not in self._by_name:
            raise unknown_name("layer", key, self._by_name)
        return self._by_name[key]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    def __contains__(self, key: object) -> bool:
        return key in self._by_name or key in self._layers

    @property
    def names(self) -> list[str]:
        """The layers' names, in order."""
        return [layer.name for layer in self]

    def _cells(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("name", "kind", "maps", "size", "activation", "max error")]
        for layer in self:
            error = "" if layer.max_error is None else f"{layer.max_error:.1e}"
            error += "" if layer.error_float64 is None else f" ({layer.error_float64:.1e} in float64)"
            cells = layer.name, layer.kind, str(layer.maps), layer.size, layer.activation or "", error
            rows.append(tuple(map(whole_line, cells)))  # a file may name them as it likes
        if all(layer.max_error is None for layer in self):  # nothing was verified against another framework
            rows = [row[:-1] for row in rows]
        return rows

    def __repr__(self) -> str:
        rows = self._cells()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)

    def _repr_html_(self) -> str:
        from html import escape

        head, *rows = self._cells()
        cells = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
        cells += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        return f"<table>{''.join(cells)}</table>"


@dataclass(frozen=True, kw_only=True)
class Network:
    """What an ONNX file that we made says of itself, or what is known of a wrapped module.

    `input_shape` is (height, width, channels), as in Keras. `domain` says how pixels become inputs, and what the data
    look like there. `verification` says how the conversion was verified, on which probes, and what the gradient's
    cosine was. `rewritten` says what of the Keras file's configuration and of the graph had to be written in another
    way ({"configuration": [IN WORDS, …], "graph": {REWRITE: HOW OFTEN}}).

    The layers' fingerprints are of a probe in the domain; in files of before format 3, which said nothing of one
    (`probes_in_domain` False), of one with mean 0 and standard deviation 1.
    """

    layers: tuple[Layer, ...]
    output: str
    input_shape: tuple[int, int, int]
    domain: Domain
    source: str
    source_sha256: str
    graph_sha256: str
    versions: dict[str, str]
    verification: dict[str, Any]
    rewritten: dict[str, Any] = dataclasses.field(default_factory=dict)
    probes_in_domain: bool = True

    @property
    def is_wrapped(self) -> bool:
        """Whether it is a module of the user's own, which comes from no file."""
        return not self.source_sha256


def read(path: str | os.PathLike[str], *, check_digest: bool = True) -> tuple[onnx.ModelProto, Network]:
    """The graph and its description, both checked.

    Args:
        path: an ONNX file made by `oip_torch.convert`.
        check_digest: False admits a graph that was changed after its conversion (to compare it with the original).

    Raises:
        InputError: missing, damaged, unsafe or foreign file.
    """
    proto, path = read_graph(path)
    network = _description(proto, path)
    if check_digest and graph_sha256(proto) != network.graph_sha256:
        raise InputError(
            f"{path} was changed or damaged after its conversion: its graph and weights do not match the digest "
            f"stored in it; {_HOW_TO_MAKE_ONE}"
        )
    return proto, network


def read_graph(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Path]:
    """The graph of any ONNX file, ours or another program's, if it is safe; and the file's path.

    Raises:
        InputError: missing, damaged or unsafe file.
    """
    path = existing_file(path, "an ONNX file")
    if path.stat().st_size > _MOST_FILE_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes: expected at most {_MOST_FILE_BYTES}")
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        raise InputError(f"{path} is not readable as ONNX: damaged or of another kind; {_HOW_TO_MAKE_ONE}") from None
    if not proto.graph.node:
        raise InputError(f"{path} is not readable as ONNX: it holds no graph; {_HOW_TO_MAKE_ONE}")
    _check_safe(proto, path)
    return proto, path


def is_ours(proto: onnx.ModelProto) -> bool:
    """Whether the file says of itself what `read` needs."""
    return any(entry.key == _KEY for entry in proto.metadata_props)


def write(proto: onnx.ModelProto, network: Network, path: Path) -> None:
    """Write the graph with its description to `path`, whole or not at all."""
    data = dataclasses.asdict(network)
    if not data["rewritten"]:
        del data["rewritten"]
    for layer in data["layers"]:
        if layer["error_float64"] is None:  # as of most layers
            del layer["error_float64"]
    text = json.dumps({"format": _FORMAT, **data}, allow_nan=False)
    onnx.helper.set_model_props(proto, {_KEY: text})
    with replacing(path) as temporary:
        temporary.write_bytes(proto.SerializeToString())


def graph_sha256(proto: onnx.ModelProto) -> str:
    """SHA-256 of graph and weights (not of the metadata): the identity of the network."""
    return hashlib.sha256(proto.graph.SerializeToString(deterministic=True)).hexdigest()


def _check_safe(proto: onnx.ModelProto, path: Path) -> None:
    def refuse(what: str, expected: str) -> InputError:
        return InputError(f"{path} is refused: it has {what}; expected {expected}; {_HOW_TO_MAKE_ONE}")

    graph = proto.graph
    if foreign := {node.domain for node in graph.node} - {"", "ai.onnx"}:
        raise refuse(f"operations of the domain {sorted(foreign)[0]!r}", "ONNX's own operations")
    if proto.functions:
        raise refuse("functions of its own", "a plain graph")
    if len(graph.node) > _MOST_NODES:
        raise refuse(f"{len(graph.node)} nodes", f"at most {_MOST_NODES}")
    if graph.sparse_initializer:
        raise refuse("sparse weights", "dense ones")
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                raise refuse(f"control flow ({node.op_type})", "a plain graph")
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            tensors.extend(attribute.tensors)
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise refuse(f"the weights {tensor.name!r} in another file", "all data inside")
        if tensor.data_type == onnx.TensorProto.STRING:
            raise refuse(f"text among its weights ({tensor.name!r})", "numbers")
        if math.prod(tensor.dims) > _MOST_ELEMENTS:
            raise refuse(f"the weights {tensor.name!r} of shape {list(tensor.dims)}", "a CNN's")
    try:
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # the checker raises its own, and what its C++ side throws
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no valid ONNX graph ({reason}); {_HOW_TO_MAKE_ONE}") from None
    for value in inferred.graph.value_info:
        size = math.prod(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        if size > _MOST_ELEMENTS:
            raise refuse(f"a tensor of {size} elements per image ({value.name!r})", f"at most {_MOST_ELEMENTS}")


def _description(proto: onnx.ModelProto, path: Path) -> Network:
    """The metadata, every field checked: the file is untrusted."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == _KEY), None)
    if text is None:
        raise InputError(
            f"{path} was not made by oip_torch: the metadata {_KEY!r} that names its layers is missing; take it in "
            "with `oip import FILE.onnx`, or make one of a Keras file with `oip convert MODEL.keras`"
        )
    try:
        data = json.loads(text)
        if data["format"] not in range(1, _FORMAT + 1):
            raise _FormatError(
                f"{path} has metadata of format {data['format']}: this version reads formats 1 to {_FORMAT}; "
                f"{_HOW_TO_MAKE_ONE}"
            )
        data = _of_today(data)
        layers = tuple(layer_from_dict(entry) for entry in data["layers"])
        if any(layer.max_error is None for layer in layers):  # only modules of the user's own have none
            raise ValueError("a layer without max_error")
        height, width, channels = (int(n) for n in data["input_shape"])
        network = Network(
            layers=layers,
            output=str(data["output"]),
            input_shape=(height, width, channels),
            domain=Domain.from_dict(data["domain"]),
            source=str(data["source"]),
            source_sha256=str(data["source_sha256"]),
            graph_sha256=str(data["graph_sha256"]),
            versions={str(key): str(value) for key, value in data["versions"].items()},
            verification=dict(data["verification"]),
            rewritten=dict(data.get("rewritten", {})),
            probes_in_domain=bool(data["probes_in_domain"]),
        )
        check_domain(network.domain, channels)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        if isinstance(error, _FormatError):
            raise
        raise InputError(f"{path} has damaged metadata ({type(error).__name__}: {error}); {_HOW_TO_MAKE_ONE}") from None
    tensors = {name for node in proto.graph.node for name in node.output}
    for layer in layers:
        if missing := {layer.tensor, layer.tensor_before} - tensors:
            raise InputError(f"{path} has no tensor {missing.pop()!r} for layer {layer.name!r}; {_HOW_TO_MAKE_ONE}")
    _check_layers(proto, network, path)
    if not layers or network.output not in {layer.name for layer in layers}:
        raise InputError(f"{path} has damaged metadata (no output layer); {_HOW_TO_MAKE_ONE}")
    if [entry.name for entry in proto.graph.input] != ["image"]:
        raise InputError(f"{path} does not take one input 'image'; {_HOW_TO_MAKE_ONE}")
    if min(network.input_shape) < 1 or math.prod(network.input_shape) > _MOST_ELEMENTS:
        raise InputError(f"{path} has an input of shape {network.input_shape}; {_HOW_TO_MAKE_ONE}")
    if _sizes(proto.graph.input[0]) != [channels, height, width]:
        raise InputError(
            f"{path} has damaged metadata (input {network.input_shape}, where the graph takes "
            f"{_sizes(proto.graph.input[0])}); {_HOW_TO_MAKE_ONE}"
        )
    return network


class _FormatError(InputError):
    """Another version wrote the file."""


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """Metadata of an earlier format under the keys of today."""
    if data["format"] == 1:
        layers = [{**entry, "fingerprint": entry["figures"]} for entry in data["layers"]]
        data = {**data, "verification": data["proof"], "layers": layers}
    if data["format"] < 3:  # mean and std alone, or nothing, said what was done to the pixels
        scale = None if data["mean"] is None or data["std"] is None else (data["mean"], data["std"])
        height, width, channels = (int(n) for n in data["input_shape"])
        domain = find_domain((height, width, channels), scale=scale)
        data = {**data, "domain": domain.to_dict(), "probes_in_domain": domain.is_standard}
    return data


def _check_layers(proto: onnx.ModelProto, network: Network, path: Path) -> None:
    """What runs the network relies on each layer being an output of the graph, with as many maps as it says."""
    sizes = {value.name: _sizes(value) for value in proto.graph.output}
    if sorted(sizes) != sorted(layer.tensor for layer in network.layers):
        raise InputError(f"{path} has damaged metadata (its layers are not the graph's outputs); {_HOW_TO_MAKE_ONE}")
    if len({layer.name for layer in network.layers}) != len(network.layers):
        raise InputError(f"{path} has damaged metadata (two layers of one name); {_HOW_TO_MAKE_ONE}")
    for layer in network.layers:
        size = sizes[layer.tensor]
        maps = 0 if not size else size[0] if len(size) == 3 else size[-1]
        if layer.maps < 1 or maps not in (0, layer.maps):
            raise InputError(
                f"{path} has damaged metadata (layer {layer.name!r} with {layer.maps} maps, where the graph gives "
                f"{maps}); {_HOW_TO_MAKE_ONE}"
            )


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """A tensor's size without the batch, channels first; 0 where it is open."""
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]


def layer_from_dict(entry: dict[str, Any]) -> Layer:
    """The layer that `dataclasses.asdict` gave, also after a way through JSON."""

    def size(value: Any) -> int | None:
        return None if value is None else int(value)

    return Layer(
        name=str(entry["name"]),
        kind=str(entry["kind"]),
        maps=int(entry["maps"]),
        height=size(entry["height"]),
        width=size(entry["width"]),
        activation=None if entry["activation"] is None else str(entry["activation"]),
        tensor=str(entry["tensor"]),
        tensor_before=str(entry["tensor_before"]),
        max_error=None if entry["max_error"] is None else float(entry["max_error"]),
        error_float64=None if entry.get("error_float64") is None else float(entry["error_float64"]),
        fingerprint=_floats(entry["fingerprint"]) or (),
    )


def _floats(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)
