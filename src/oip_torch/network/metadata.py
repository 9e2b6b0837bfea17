"""Has what an ONNX file says of itself the right form, and does it say what its graph says?

Of each field the type and the range; values are as JSON has them. What is wrong is a `ValueError` or a `KeyError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oip_torch.base.checks import is_whole, number, shown, whole
from oip_torch.network.domain import Domain

if TYPE_CHECKING:
    import onnx

    from oip_torch.network.shapes import Shape, Shapes

__all__ = ["check_against_graph", "check_description", "check_layer", "check_scale"]

_MOST_CHARACTERS = 4000
_LONGEST_SIDE = 1 << 28
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROUNDING = 1e-3  # of a layer's RMS: the four numbers of a fingerprint are of float32 numbers
_FINGERPRINT = 4  # numbers, see `probes.fingerprint`


def check_description(data: Mapping[str, Any]) -> None:
    """Check all of a file's metadata, of the present format."""
    _check_mapping("the metadata", data)
    for key in ("output", "source"):
        _check_text(key, data[key])
    for key in ("source_sha256", "graph_sha256"):
        if not isinstance(data[key], str) or not _DIGEST.fullmatch(data[key]):
            raise ValueError(f"{key} is {shown(data[key])}: expected 64 hexadecimal digits")
    _check_list("input_shape", data["input_shape"])
    if len(data["input_shape"]) != 3:
        raise ValueError(f"input_shape is {shown(data['input_shape'])}: expected height, width and channels")
    for length in data["input_shape"]:
        _check_length("input_shape", length)
    _check_list("layers", data["layers"])
    for layer in data["layers"]:
        check_layer(layer)
    names = [layer["name"] for layer in data["layers"]]
    if len(set(names)) < len(names):
        raise ValueError("two layers of one name")
    if data["output"] not in names:
        raise ValueError("no output layer")
    for name, values in _check_mapping("domain", data["domain"]).items():
        if name == "source":
            _check_text("source of the domain", values)
        elif name in Domain.__dataclass_fields__:
            _check_numbers(f"{name} of the domain", values)
    for name, version in _check_mapping("versions", data["versions"]).items():
        _check_text(f"the version of {shown(name)}", version)
    if not isinstance(data["probes_in_domain"], bool):
        raise ValueError(f"probes_in_domain is {shown(data['probes_in_domain'])}: expected true or false")
    _check_verification(_check_mapping("verification", data["verification"]))
    _check_rewritten(_check_mapping("rewritten", data.get("rewritten", {})))


def check_layer(entry: Any) -> None:
    """Check one layer's entry, as `dataclasses.asdict` makes it of `onnx_file.Layer`."""
    _check_mapping("a layer", entry)
    for key in ("name", "kind", "tensor", "tensor_before"):
        _check_text(f"{key} of a layer", entry[key])
    where = f"of layer {shown(entry['name'])}"
    if entry["activation"] is not None:
        _check_text(f"activation {where}", entry["activation"])
    _check_length(f"maps {where}", entry["maps"])
    for key in ("height", "width"):
        if entry[key] is not None:
            _check_length(f"{key} {where}", entry[key])
    for key in ("max_error", "error_float64"):
        if entry.get(key) is not None:
            _check_error(f"{key} {where}", entry[key])
    if entry["fingerprint"] not in ([], ()):  # of a wrapped module: it has none
        _check_fingerprint(f"fingerprint {where}", entry)


def check_scale(data: Mapping[str, Any]) -> None:
    """Check what the metadata of formats 1 and 2 say in the place of a domain."""
    for key in ("mean", "std"):
        if data[key] is not None:
            _check_numbers(key, data[key])


def check_against_graph(data: Mapping[str, Any], proto: onnx.ModelProto, shapes: Shapes) -> None:
    """Each layer is an output of the graph, and of the shape that it says; any number of images goes in.

    Args:
        data: checked metadata.
        proto: the graph.
        shapes: of its tensors, from `shapes.find_shapes`.
    """
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    for layer in data["layers"]:
        for tensor in (layer["tensor"], layer["tensor_before"]):
            if tensor not in makers:
                raise ValueError(f"no tensor {shown(tensor)} for layer {shown(layer['name'])}")
            if len(makers[tensor].output) > 1:
                raise ValueError(
                    f"layer {shown(layer['name'])} is one of several outputs of a {makers[tensor].op_type}: expected "
                    "the only one"
                )
    if sorted(value.name for value in graph.output) != sorted(layer["tensor"] for layer in data["layers"]):
        raise ValueError("its layers are not the graph's outputs")
    if [value.name for value in graph.input] != ["image"] or "image" in {each.name for each in graph.initializer}:
        raise ValueError("the graph does not take one input 'image', that is none of its weights")
    height, width, channels = data["input_shape"]
    one, two = shapes.get("image", (None, None))
    if one is None or two is None or one[1:] != (channels, height, width):
        raise ValueError(
            f"input {shown((height, width, channels))}, where the graph takes {shown(None if one is None else one[1:])}"
        )
    if (one[0], two[0]) != (1, 2):
        raise ValueError(f"the graph takes {one[0]} images at once: expected an open batch")
    declared = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.output}
    for layer in data["layers"]:
        _check_shape(layer, layer["tensor"], shapes)
        if declared[layer["tensor"]] != len(shapes[layer["tensor"]][0] or ()):
            raise ValueError(f"the output {shown(layer['tensor'])} is not of the rank that the graph declares")
        _check_shape(layer, layer["tensor_before"], shapes)


def _check_shape(layer: Mapping[str, Any], tensor: str, shapes: Shapes) -> None:
    one, two = shapes.get(tensor, (None, None))
    if one is None or two is None or (one[:1], two[:1]) != ((1,), (2,)) or one[1:] != two[1:] or len(one) < 2:
        raise ValueError(
            f"{shown(tensor)} of layer {shown(layer['name'])} is of shape {shown(one)} for one image, and "
            f"{shown(two)} for two: expected a row for each image"
        )
    maps, size = _maps_and_size(one[1:])
    if maps != layer["maps"]:
        raise ValueError(f"layer {shown(layer['name'])} with {layer['maps']} maps, where the graph gives {maps}")
    if size != (layer["height"], layer["width"]):
        raise ValueError(
            f"layer {shown(layer['name'])} of size {layer['height']}×{layer['width']}, where the graph gives "
            f"{size[0]}×{size[1]}"
        )


def _maps_and_size(shape: Shape) -> tuple[int, tuple[int, int | None]]:
    """As the layer has them; maps stand first, channels of other ranks last."""
    if len(shape) == 3:
        return shape[0], (shape[1], shape[2])
    return shape[-1], (1, 1) if len(shape) == 1 else (shape[0], None)


def _check_verification(data: Mapping[str, Any]) -> None:
    for key, of_each in (("probes", None), ("batch_sizes", None), ("in_float64", str)):
        values = data.get(key, [])
        for value in values.values() if key == "probes" and isinstance(values, dict) else _check_list(key, values):
            whole(key, value, 0) if of_each is None else _check_text(key, value)
    if "reference" in data:
        _check_text("reference", data["reference"])
    if "max_error" in data:
        _check_error("max_error", data["max_error"])
    gradient = _check_mapping("gradient", data.get("gradient", {}))
    for key in ("cosine", "cosine_float64"):
        if key in gradient and not abs(number(key, gradient[key])) <= 1 + _ROUNDING:
            raise ValueError(f"{key} is {shown(gradient[key])}: expected a number from -1 to 1")


def _check_rewritten(data: Mapping[str, Any]) -> None:
    for key in ("configuration", "weights"):
        for words in _check_list("rewritten", data.get(key, [])):
            _check_text("rewritten", words)
    for times in _check_mapping("rewritten", data.get("graph", {})).values():
        whole("rewritten", times, 0)


def _check_fingerprint(what: str, entry: Mapping[str, Any]) -> None:
    """Mean, RMS, maximum and a projection, as some numbers have them, of which there are as many as in the layer."""
    values = _check_list(what, entry["fingerprint"])
    if len(values) != _FINGERPRINT:
        raise ValueError(f"{what} is {shown(values)}: expected {_FINGERPRINT} numbers")
    mean, rms, largest, projection = (number(what, value) for value in values)
    count = entry["maps"] * (entry["height"] or 1) * (entry["width"] or 1)
    some = _ROUNDING * abs(rms)
    ends = math.sqrt(count) * rms + some
    # With an open width there are more numbers than are counted here.
    is_bounded = entry["width"] is None or (abs(projection) <= ends and abs(largest) <= ends)
    if rms < 0 or abs(mean) > rms + some or mean > largest + some or not is_bounded:
        raise ValueError(f"{what} is {shown(values)}: no {count} numbers have this mean, RMS, maximum and projection")


def _check_error(what: str, value: Any) -> None:
    if not number(what, value) >= 0:
        raise ValueError(f"{what} is {shown(value)}: expected 0 or more")


def _check_length(what: str, value: Any) -> None:
    if not is_whole(value) or not 1 <= value <= _LONGEST_SIDE:
        raise ValueError(f"{what} is {shown(value)}: expected a whole number from 1 to {_LONGEST_SIDE}")


def _check_numbers(what: str, values: Any) -> None:
    for value in _check_list(what, values):
        number(what, value)


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_CHARACTERS:
        raise ValueError(f"{what} is {shown(value)}: expected text of 1 to {_MOST_CHARACTERS} characters")


def _check_list(what: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{what} is {shown(value)}: expected a list")
    return value


def _check_mapping(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {shown(value)}: expected names with values")
    return value
