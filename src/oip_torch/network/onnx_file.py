"""Is this ONNX file safe and sound, and what do its layers say of themselves?

An ONNX file is data, yet an untrusted file can still point to other files, ask for absurd amounts of memory or hide a
program in control flow. `read` admits a single self-contained graph of plain operations and nothing else
(`network.safety`). What the torch side needs to know of the Keras network travels as JSON in the file's
`metadata_props`, under the key `oip_torch`, and has to agree with the graph (`network.metadata`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import onnx

from oip_torch.base.checks import is_whole, shown
from oip_torch.base.errors import InputError, unknown_name
from oip_torch.base.files import existing_file, replacing
from oip_torch.base.messages import one_line, whole_line
from oip_torch.base.strict_json import strict_json
from oip_torch.network.domain import Domain, check_domain, find_domain
from oip_torch.network.external import pieces_of, read_pieces
from oip_torch.network.metadata import check_against_graph, check_description, check_layer, check_scale
from oip_torch.network.safety import HOW_TO_MAKE_ONE, MOST_METADATA_BYTES, check_sizes, check_static, parse

__all__ = ["Layer", "Layers", "Network", "graph_sha256", "is_ours", "layer_from_dict", "read", "read_graph", "write"]

_KEY = "oip_torch"
_FORMAT = 3


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
    cosine was. `rewritten` says what of the Keras file's configuration, of its weights and of the graph had to be
    written in another way ({"configuration": [IN WORDS, …], "weights": [IN WORDS, …], "graph": {REWRITE: HOW OFTEN}}).

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
    with _damage_told(path):
        data = _metadata(proto, path)
        network = _description(data)
    if check_digest and graph_sha256(proto) != network.graph_sha256:
        raise InputError(
            f"{path} was changed or damaged after its conversion: its graph and weights do not match the digest "
            f"stored in it; {HOW_TO_MAKE_ONE}"
        )
    shapes = check_sizes(proto, path)
    with _damage_told(path):
        check_against_graph(data, proto, shapes)
    return proto, network


def read_graph(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Path]:
    """The graph of any ONNX file, ours or another program's, if it is plain; and the file's path.

    What it costs to run is not known yet: see `safety.check_sizes`.

    Raises:
        InputError: missing, damaged or unsafe file.
    """
    path = existing_file(path, "an ONNX file")
    proto = parse(path)
    check_static(proto, path)
    return proto, path


def is_ours(proto: onnx.ModelProto) -> bool:
    """Whether the file says of itself what `read` needs."""
    return any(entry.key == _KEY for entry in proto.metadata_props)


def write(proto: onnx.ModelProto, network: Network, path: Path, weights: Path | None = None) -> None:
    """Write the graph with its description to `path`, whole or not at all; `weights`: as of `graph_sha256`."""
    data = dataclasses.asdict(network)
    if not data["rewritten"]:
        del data["rewritten"]
    for layer in data["layers"]:
        if layer["error_float64"] is None:  # as of most layers
            del layer["error_float64"]
    text = json.dumps({"format": _FORMAT, **data}, allow_nan=False)
    onnx.helper.set_model_props(proto, {_KEY: text})
    with replacing(path) as temporary:
        if weights is None:
            temporary.write_bytes(proto.SerializeToString())
            return
        with temporary.open("wb") as file:
            file.writelines(read_pieces(pieces_of(proto), weights))


def graph_sha256(proto: onnx.ModelProto, weights: Path | None = None) -> str:
    """SHA-256 of graph and weights (not of the metadata): the identity of the network.

    Args:
        proto: the model.
        weights: the file with those of its weights that lie outside of it; None: there are none.
    """
    if weights is None:
        return hashlib.sha256(proto.graph.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256()
    for part in read_pieces(pieces_of(proto.graph), weights):
        digest.update(part)
    return digest.hexdigest()


def _metadata(proto: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Every field checked, under the keys of today."""
    text = next((entry.value for entry in proto.metadata_props if entry.key == _KEY), None)
    if text is None:
        raise _OtherFileError(
            f"{path} was not made by oip_torch: the metadata {_KEY!r} that names its layers is missing; take it in "
            "with `oip import FILE.onnx`, or make one of a Keras file with `oip convert MODEL.keras`"
        )
    if len(text) > MOST_METADATA_BYTES:
        raise ValueError(f"{len(text)} characters: expected at most {MOST_METADATA_BYTES}")
    data = strict_json(text)
    if not is_whole(data["format"]) or data["format"] not in range(1, _FORMAT + 1):
        raise _OtherFileError(
            f"{path} has metadata of format {shown(data['format'])}: this version reads formats 1 to {_FORMAT}; "
            f"{HOW_TO_MAKE_ONE}"
        )
    data = _of_today(data)
    check_description(data)
    return data


def _description(data: Mapping[str, Any]) -> Network:
    layers = tuple(layer_from_dict(entry) for entry in data["layers"])
    if any(layer.max_error is None for layer in layers):  # only modules of the user's own have none
        raise ValueError("a layer without max_error")
    height, width, channels = data["input_shape"]
    network = Network(
        layers=layers,
        input_shape=(height, width, channels),
        domain=Domain.from_dict(data["domain"]),
        **{key: data[key] for key in ("output", "source", "source_sha256", "graph_sha256", "versions")},
        verification=data["verification"],
        rewritten=data.get("rewritten", {}),
        probes_in_domain=data["probes_in_domain"],
    )
    check_domain(network.domain, channels)
    return network


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    try:
        yield
    except _OtherFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise InputError(f"{path} has damaged metadata ({one_line(reason)}); {HOW_TO_MAKE_ONE}") from error


class _OtherFileError(InputError):
    """Another program or version wrote the file."""


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """Metadata of an earlier format under the keys of today."""
    if data["format"] == 1:
        layers = [{**entry, "fingerprint": entry["figures"]} for entry in data["layers"]]
        data = {**data, "verification": data["proof"], "layers": layers}
    if data["format"] < 3:  # mean and std alone, or nothing, said what was done to the pixels
        check_scale(data)
        scale = None if data["mean"] is None or data["std"] is None else (data["mean"], data["std"])
        height, width, channels = (int(n) for n in data["input_shape"])
        domain = find_domain((height, width, channels), scale=scale)
        data = {**data, "domain": domain.to_dict(), "probes_in_domain": domain.is_standard}
    return data


def layer_from_dict(entry: Any) -> Layer:
    """The layer that `dataclasses.asdict` gave, also after a way through JSON.

    Raises:
        ValueError, KeyError: a field is missing, or of another type or range (see `metadata.check_layer`).
    """
    check_layer(entry)
    return Layer(
        **{key: entry[key] for key in ("name", "kind", "maps", "height", "width", "activation")},
        **{key: entry[key] for key in ("tensor", "tensor_before", "max_error")},
        error_float64=entry.get("error_float64"),
        fingerprint=tuple(map(float, entry["fingerprint"])),
    )
