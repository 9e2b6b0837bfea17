"""ONNX graphs: other files, other programs, sizes and loops; as files of ours and as those of another program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hostile import Cases, Place

CASES = Cases("onnx")
Proto = onnx.ModelProto
Spoil = Callable[[Proto, Place], object]


def metadata(proto: Proto) -> dict[str, Any]:
    """What a file of ours says of itself."""
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "oip_torch")
    return json.loads(entry.value)


def written(path: Path, proto: Proto, text: str | None = None, **changes: Any) -> Path:
    """The file with a digest that fits, so that nothing is refused for that alone."""
    from oip_torch.network.onnx_file import graph_sha256

    if proto.metadata_props:
        data = metadata(proto) | {"graph_sha256": graph_sha256(proto)} | changes
        helper.set_model_props(proto, {"oip_torch": json.dumps(data) if text is None else text})
    path.write_bytes(proto.SerializeToString())
    return path


def _spoiled(name: str, spoil: Spoil, *, ways: str = "layers import", match: str = "", code: int = 2) -> None:
    for way in ways.split():

        def make(place: Place, way: str = way) -> list[str]:
            proto = onnx.load(place.sound / ("foreign.onnx" if way == "import" else "net.onnx"))
            spoil(proto, place)
            written(place.folder / "x.onnx", proto)
            return [way, "x.onnx", *(["wide", "0", "--steps", "2"] if way == "ascend" else [])]

        CASES.add(f"{name}.{way}", make, match=match, code=code)


def _node(proto: Proto, *arguments: Any, **attributes: Any) -> onnx.NodeProto:
    proto.graph.node.append(helper.make_node(*arguments, **attributes))
    return proto.graph.node[-1]


def _constant(proto: Proto, name: str, value: Any) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


_spoiled("sound", lambda m, p: _node(m, "Relu", ["wide"], ["unused"]), ways="layers ascend import", code=0)


# Data in other files: CVE-2022-25882, CVE-2024-27318, CVE-2026-27489, CVE-2026-34446 and -34447
def _external(location: Callable[[Place], str]) -> Spoil:
    def spoil(proto: Proto, place: Place) -> None:
        tensor = proto.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location(place))
        tensor.ClearField("raw_data")

    return spoil


def _link(place: Place, hard: bool) -> str:
    target = place.folder / "weights.bin"
    if hard:
        target.hardlink_to(place.secret)
    else:
        target.symlink_to(place.secret)
    return "weights.bin"


def _linked_folder(place: Place) -> str:
    (place.folder / "sub").symlink_to(place.secret.parent)
    return f"sub/{place.secret.name}"


for name, location in {
    "absolute": lambda p: str(p.secret),
    "parent": lambda p: "../../secret",
    "through_a_folder": lambda p: "x/../../../secret",
    "dots": lambda p: "....//secret",
    "backslash": lambda p: "..\\..\\secret",
    "zero": lambda p: "weights\0/../secret",
    "empty": lambda p: "",
    "symlink": lambda p: _link(p, False),
    "hardlink": lambda p: _link(p, True),
    "linked_folder": _linked_folder,
    "proc": lambda p: "/proc/self/environ",
    "long": lambda p: "a/" * 4000,
    "itself": lambda p: "x.onnx",
}.items():
    _spoiled(
        f"external_{name}",
        _external(location),
        match="another file|external",
        ways="layers import" if name in ("absolute", "parent", "symlink") else "layers",
    )


def _external_without_place(proto: Proto, place: Place) -> None:
    proto.graph.initializer[0].external_data.add(key="location", value=str(place.secret))


def _external_in_a_node(proto: Proto, place: Place) -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "t")
    tensor.external_data.add(key="location", value="../secret")
    _node(proto, "Constant", [], ["c"], value=tensor)


def _external_in_a_branch(proto: Proto, place: Place) -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "t")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, [2])], [tensor]
    )
    _constant(proto, "yes", True)
    _node(proto, "If", ["yes"], ["c"], then_branch=graph, else_branch=graph)


_spoiled("external_without_place", _external_without_place)
_spoiled("external_in_a_node", _external_in_a_node)
_spoiled("external_in_a_branch", _external_in_a_branch)


# Other programs
def _domain(proto: Proto, place: Place) -> None:
    _node(proto, "Relu", ["wide"], ["c"], domain="com.microsoft")
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def _branch(proto: Proto, place: Place) -> None:
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value_float=1.0)], "b", [], [helper.make_tensor_value_info("b", 1, [])]
    )
    _constant(proto, "yes", True)
    _node(proto, "If", ["yes"], ["c"], then_branch=graph, else_branch=graph)


def _endless(proto: Proto, place: Place) -> None:
    """A loop of 2⁶² rounds."""
    true = helper.make_node("Constant", [], ["go"], value=numpy_helper.from_array(np.array(True)))
    again = helper.make_node("Identity", ["v_in"], ["v_out"])
    ins = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("v_in", 1, []),
    ]
    outs = [helper.make_tensor_value_info("go", TensorProto.BOOL, []), helper.make_tensor_value_info("v_out", 1, [])]
    body = helper.make_graph([true, again], "body", ins, outs)
    _constant(proto, "many", 1 << 62)
    _constant(proto, "yes", True)
    _constant(proto, "v", np.float32(0))
    _node(proto, "Loop", ["many", "yes", "v"], ["c"], body=body)


def _function(proto: Proto, place: Place) -> None:
    proto.functions.append(
        helper.make_function(
            "own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 15)]
        )
    )
    proto.opset_import.append(helper.make_opsetid("own", 1))


def _recursive_function(proto: Proto, place: Place) -> None:
    own = helper.make_opsetid("own", 1)
    proto.functions.append(
        helper.make_function("own", "F", ["x"], ["y"], [helper.make_node("F", ["x"], ["y"], domain="own")], [own])
    )
    _node(proto, "F", ["wide"], ["c"], domain="own")
    proto.opset_import.append(own)


def _shadowing_function(proto: Proto, place: Place) -> None:
    """A function of ONNX's own domain, in the place of Relu."""
    proto.functions.append(
        helper.make_function(
            "", "Relu", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], [helper.make_opsetid("", 15)]
        )
    )


def _sparse(proto: Proto, place: Place) -> None:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.array([5]), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def _sparse_constant(proto: Proto, place: Place) -> None:
    values, indices = numpy_helper.from_array(np.ones(1, np.float32), "s"), numpy_helper.from_array(np.array([5]), "i")
    _node(proto, "Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, indices, [1 << 40]))


def _training(proto: Proto, place: Place) -> None:
    proto.training_info.add().algorithm.CopyFrom(proto.graph)


def _text(proto: Proto, place: Place) -> None:
    proto.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], [b"x"]))
    _node(proto, "Identity", ["words"], ["c"])


def _optional(proto: Proto, place: Place) -> None:
    _node(proto, "SequenceConstruct", ["wide", "wide"], ["c"])


for one in (_domain, _branch, _endless, _function, _recursive_function, _shadowing_function, _sparse, _sparse_constant,
            _training, _text, _optional):  # fmt: skip
    _spoiled(
        one.__name__.strip("_"),
        one,
        ways="layers" if one in (_training, _optional, _shadowing_function) else "layers import",
        code=0 if one is _training else 2,  # nothing reads it
    )
_spoiled("unknown_operation", lambda m, p: _node(m, "Exec", ["wide"], ["c"]))
_spoiled("loose_end", lambda m, p: _node(m, "Relu", ["nowhere"], ["c"]))
_spoiled("cycle", lambda m, p: (_node(m, "Relu", ["b"], ["a"]), _node(m, "Relu", ["a"], ["b"])))
_spoiled("own_input", lambda m, p: _node(m, "Relu", ["a"], ["a"]))
_spoiled("two_makers", lambda m, p: _node(m, "Relu", ["image"], ["wide"]))
_spoiled("random", lambda m, p: _node(m, "RandomNormalLike", ["wide"], ["narrow_"]), ways="")
_spoiled("two_inputs", lambda m, p: m.graph.input.append(helper.make_tensor_value_info("more", 1, [1])))
_spoiled("no_nodes", lambda m, p: m.graph.ClearField("node"))
_spoiled("no_outputs", lambda m, p: m.graph.ClearField("output"))
_spoiled("no_inputs", lambda m, p: m.graph.ClearField("input"))
_spoiled("no_weights", lambda m, p: m.graph.ClearField("initializer"))
_spoiled("no_opset", lambda m, p: m.ClearField("opset_import"))
_spoiled("opset_999", lambda m, p: setattr(m.opset_import[0], "version", 999))
_spoiled("opset_negative", lambda m, p: setattr(m.opset_import[0], "version", -1))
_spoiled("opset_twice", lambda m, p: m.opset_import.append(helper.make_opsetid("", 9)))
_spoiled("ir_999", lambda m, p: setattr(m, "ir_version", 999))
_spoiled("weights_twice", lambda m, p: m.graph.initializer.append(m.graph.initializer[0]))
_spoiled("weights_cut", lambda m, p: setattr(m.graph.initializer[0], "raw_data", m.graph.initializer[0].raw_data[:8]))
_spoiled("weights_in_both_fields", lambda m, p: m.graph.initializer[0].float_data.extend([1.0, 2.0]))
_spoiled("weights_of_no_type", lambda m, p: setattr(m.graph.initializer[0], "data_type", 99))
_spoiled(
    "weights_of_nan",
    lambda m, p: m.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(
            numpy_helper.to_array(m.graph.initializer[0]) * np.float32("nan"), m.graph.initializer[0].name
        )
    ),
    ways="ascend import",
)
_spoiled("dims_negative", lambda m, p: m.graph.initializer[0].dims.__setitem__(0, -8))
_spoiled("dims_huge", lambda m, p: m.graph.initializer[0].dims.__setitem__(0, 1 << 40))
_spoiled("dims_overflow", lambda m, p: m.graph.initializer[0].dims.extend([1 << 32, 1 << 32]))
_spoiled("dims_zero_and_huge", lambda m, p: m.graph.initializer[0].dims.extend([0, 1 << 60]))
_spoiled("image_is_a_weight", lambda m, p: _constant(m, "image", np.zeros((1, 3, 20, 32), np.float32)))
_spoiled("image_of_text", lambda m, p: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING))
_spoiled("image_without_shape", lambda m, p: m.graph.input[0].type.tensor_type.ClearField("shape"))
_spoiled("image_huge", lambda m, p: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 1 << 40))
_spoiled("image_negative", lambda m, p: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -5))
_spoiled("name_with_escape", lambda m, p: _node(m, "Exec", ["wide"], ["\x1b[31mred\n\nerror: x"], name="\x1b]0;x\x07"))
_spoiled("name_of_3_MB", lambda m, p: _node(m, "E" * 3_000_000, ["wide"], ["n" * 3_000_000]))
_spoiled("domain_of_3_MB", lambda m, p: _node(m, "Relu", ["wide"], ["c"], domain="d" * 3_000_000))


# Sizes that only running tells
def _expanded(proto: Proto, place: Place) -> None:
    _constant(proto, "shape", np.array([1e5, 1e5], np.float32))
    _constant(proto, "one", np.float32(1))
    _node(proto, "Cast", ["shape"], ["whole"], to=TensorProto.INT64)
    _used(proto, _node(proto, "Expand", ["one", "whole"], ["grown"]))


def _used(proto: Proto, node: onnx.NodeProto) -> None:
    """So that it is no dead code: the mean of it goes into the last layer."""
    _node(proto, "ReduceMean", [node.output[0]], ["grown_mean"], keepdims=0)
    last = next(one for one in proto.graph.node if one.output[0] == "logits")
    last.output[0] = "logits_before"
    _node(proto, "Add", ["logits_before", "grown_mean"], ["logits"])


def _ranged(proto: Proto, place: Place) -> None:
    _constant(proto, "ends", np.array([0.0, 4e9, 1.0], np.float32))
    _node(proto, "Split", ["ends"], ["a", "b", "c"], axis=0)
    _constant(proto, "axis", np.array([0]))
    for name in "abc":
        _node(proto, "Squeeze", [name, "axis"], [name * 2])
    _used(proto, _node(proto, "Range", ["aa", "bb", "cc"], ["grown"]))


def _tiled(proto: Proto, place: Place) -> None:
    _constant(proto, "times", np.array([1, 1e5, 1e5, 1], np.float32))
    _node(proto, "Cast", ["times"], ["whole"], to=TensorProto.INT64)
    _used(proto, _node(proto, "Tile", ["image", "whole"], ["grown"]))


def _padded(proto: Proto, place: Place) -> None:
    _constant(proto, "pads", np.array([0, 0, 5e4, 5e4, 0, 0, 5e4, 5e4], np.float32))
    _node(proto, "Cast", ["pads"], ["whole"], to=TensorProto.INT64)
    _used(proto, _node(proto, "Pad", ["image", "whole"], ["grown"]))


def _filled(proto: Proto, place: Place) -> None:
    _constant(proto, "shape", np.array([1e5, 1e5], np.float32))
    _node(proto, "Cast", ["shape"], ["whole"], to=TensorProto.INT64)
    _used(proto, _node(proto, "ConstantOfShape", ["whole"], ["grown"]))


def _filled_at_once(proto: Proto, place: Place) -> None:
    _constant(proto, "shape", np.array([10**6, 10**6]))
    _used(proto, _node(proto, "ConstantOfShape", ["shape"], ["grown"]))


def _resized(proto: Proto, place: Place) -> None:
    _constant(proto, "roi", np.zeros(0, np.float32))
    _constant(proto, "scales", np.array([1, 1, 4000, 4000], np.float32))
    _used(proto, _node(proto, "Resize", ["image", "roi", "scales"], ["grown"]))


def _one_hot(proto: Proto, place: Place) -> None:
    _constant(proto, "indices", np.zeros(60_000, np.int64))
    _constant(proto, "depth", np.array(60_000))
    _constant(proto, "on_off", np.array([0, 1], np.float32))
    _used(proto, _node(proto, "OneHot", ["indices", "depth", "on_off"], ["grown"]))


def _outer(proto: Proto, place: Place) -> None:
    _constant(proto, "column", np.ones((100_000, 1), np.float32))
    _constant(proto, "row", np.ones((1, 100_000), np.float32))
    _used(proto, _node(proto, "MatMul", ["column", "row"], ["grown"]))


def _sum_of_outputs(proto: Proto, place: Place) -> None:
    """Each tensor is within the bound, all of them together are not."""
    _constant(proto, "column", np.ones((10_000, 1), np.float32))
    _constant(proto, "row", np.ones((1, 10_000), np.float32))
    _node(proto, "MatMul", ["column", "row"], ["g0"])
    for number in range(60):
        _node(proto, "Relu", [f"g{number}"], [f"g{number + 1}"])
    _used(proto, proto.graph.node[-1])


def _slow(proto: Proto, place: Place) -> None:
    """20 convolutions of 201×201 over 2,048²: hours on one core."""
    _constant(proto, "side", np.ones((1, 1, 2048, 2048), np.float32))
    _constant(proto, "kernel", np.ones((1, 1, 201, 201), np.float32))
    _node(proto, "Identity", ["side"], ["g0"])
    for number in range(20):
        _node(proto, "Conv", [f"g{number}", "kernel"], [f"g{number + 1}"], pads=[100] * 4)
    _used(proto, proto.graph.node[-1])


for one in (
    _expanded,
    _ranged,
    _tiled,
    _padded,
    _filled,
    _filled_at_once,
    _resized,
    _one_hot,
    _outer,
    _sum_of_outputs,
    _slow,
):
    _spoiled(
        f"size_{one.__name__.strip('_')}",
        one,
        ways="ascend import" if one in (_expanded, _tiled, _slow, _sum_of_outputs) else "ascend",
    )


# Other things of the graph
def _batch_of_one(proto: Proto, place: Place) -> None:
    """It passes a probe of one image, and nothing else."""
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    for name in ("tap_4/shape",):
        for tensor in proto.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.array([1, 70]), name))


def _split(proto: Proto, place: Place) -> None:
    """The tuple of a Split is what the next layer takes."""
    first = proto.graph.node[0]
    _node(proto, "Split", ["image"], ["s1", "s2", "s3"], axis=1)
    proto.graph.node.insert(0, proto.graph.node[-1])
    del proto.graph.node[-1]
    first.input[0] = "s1"


_spoiled("batch_of_one", _batch_of_one, ways="ascend")
_spoiled("split", _split, ways="ascend import")
_spoiled(
    "many_nodes",
    lambda m, p: m.graph.node.extend(helper.make_node("Relu", ["wide"], [f"o{n}"]) for n in range(120_000)),
    ways="layers",
)
_spoiled(
    "many_weights",
    lambda m, p: m.graph.initializer.extend(TensorProto(name=f"w{n}", data_type=1, dims=[0]) for n in range(200_000)),
    ways="layers",
)
_spoiled(
    "many_attributes",
    lambda m, p: m.graph.node[0].attribute.extend(helper.make_attribute(f"a{n}", n) for n in range(200_000)),
    ways="layers",
)
_spoiled("many_inputs", lambda m, p: _node(m, "Concat", ["wide"] * 300_000, ["c"], axis=1), ways="layers")


# Bytes
def _raw(name: str, change: Callable[[bytes, Place], bytes], ways: str = "layers import") -> None:
    for way in ways.split():

        def make(place: Place, way: str = way) -> list[str]:
            data = (place.sound / ("foreign.onnx" if way == "import" else "net.onnx")).read_bytes()
            place.write("x.onnx", change(data, place))
            return [way, "x.onnx"]

        CASES.add(f"{name}.{way}", make)


def _varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def _unknown_field(place: Place, size: int) -> list[str]:
    data = (place.sound / "net.onnx").read_bytes() + _varint(999 << 3 | 2) + _varint(size)
    with (place.folder / "x.onnx").open("wb") as file:
        file.write(data)
        file.truncate(len(data) + size)  # zeros that take no place
    return ["layers", "x.onnx"]


for share in (1, 50, 99):
    _raw(f"cut_{share}", lambda d, p, share=share: d[: len(d) * share // 100])
for name, content in {
    "empty": b"",
    "text": b"hello\n",
    "zeros": bytes(9999),
    "random": np.random.default_rng(0).bytes(9999),
    "zip": b"PK\3\4" + bytes(99),
    "groups": b"\x0b" * 200_000,
    "nested": b"",
}.items():
    if name != "nested":
        _raw(f"is_{name}", lambda d, p, content=content: content, ways="layers")
_raw("length_huge", lambda d, p: b"\x3a" + b"\xff" * 9 + b"\x01" + d)
_raw("no_utf8_operation", lambda d, p: d.replace(b"AveragePool", b"\xff\xfeeragePool"))
_raw("no_utf8_name", lambda d, p: d.replace(b"mean_pool", b"\xff\xfean_pool"))
CASES.add("unknown_field_of_1900_MB", lambda p: _unknown_field(p, 1_900_000_000))
CASES.add("file_of_3_GB", lambda p: _unknown_field(p, 3 << 30))

# Names that torch.fx would write into Python: taken, and run by nobody
CODE = """training"), exec("open('{}', 'w')" + chr(46) + "close()"), (\""""


def _named_code(proto: Proto, place: Place) -> None:
    for number, node in enumerate(proto.graph.node):  # names are told apart by what follows the code
        node.name = f"{CODE.format(str(place.canary).replace('.', ''))}{number}"


_spoiled("names_are_code", _named_code, ways="ascend import", code=0)
