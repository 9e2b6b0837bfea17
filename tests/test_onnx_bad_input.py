"""ONNX files of strangers: what is too large, known only at run time, or not what it says is refused before it runs.

test_bad_input.py has what is damaged, and what a command prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import oip_torch
from oip_torch import InputError
from oip_torch.keras import importing
from oip_torch.network import safety
from oip_torch.network.onnx_file import graph_sha256, read

Proto = onnx.ModelProto
Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture
def proto(mnist_onnx: Path) -> Proto:
    return onnx.load(mnist_onnx)


def metadata(proto: Proto) -> dict[str, Any]:
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "oip_torch")
    found: dict[str, Any] = json.loads(entry.value)
    return found


def written(path: Path, proto: Proto, text: str | None = None, **changes: Any) -> Path:
    """With a digest that fits, so that nothing is refused for that reason alone."""
    data = metadata(proto) | {"graph_sha256": graph_sha256(proto)} | changes
    helper.set_model_props(proto, {"oip_torch": json.dumps(data) if text is None else text})
    path.write_bytes(proto.SerializeToString())
    return path


def small(
    path: Path, like: Proto, nodes: list[Any], shape: tuple[int, ...], layers: dict[str, tuple[int, ...]]
) -> Path:
    """A file of ours with these nodes, whose layers say what the graph gives; `shape` is (channels, height, width)."""
    outputs = [helper.make_tensor_value_info(name, FLOAT, ["n", *size]) for name, size in layers.items()]
    weights = [node for node in nodes if isinstance(node, onnx.TensorProto)]
    graph = helper.make_graph(
        [node for node in nodes if isinstance(node, onnx.NodeProto)],
        "g",
        [helper.make_tensor_value_info("image", FLOAT, ["n", *shape])],
        outputs,
        weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    helper.set_model_props(made, {"oip_torch": json.dumps(metadata(like))})
    entries = [
        {
            "name": name,
            "kind": "Conv2D",
            "activation": None,
            "tensor": name,
            "tensor_before": name,
            "maps": size[0],
            "height": (*size, 1, 1)[1],
            "width": (*size, 1, 1)[2],
            "max_error": 0.0,
            "fingerprint": [0.0] * 4,
        }
        for name, size in layers.items()
    ]
    output = list(layers)[-1]
    return written(path, made, layers=entries, output=output, input_shape=[*shape[1:], shape[0]], verification={})


def foreign(path: Path, like: Proto, nodes: list[Any], layers: dict[str, tuple[int, ...]]) -> None:
    """Of another program: two maps of weights w, images of two channels."""
    made = onnx.load(
        small(path, like, [*nodes, weights("w", *np.ones((2, 2, 1, 1)), kind=np.float32)], (2, 300, 300), layers)
    )
    del made.metadata_props[:]
    path.write_bytes(made.SerializeToString())


def node(kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, **attributes)


def weights(name: str, *values: Any, kind: Any = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


# Sizes and times

SIZED: dict[str, tuple[list[Any], str]] = {
    "cast_then_expand": (
        [
            weights("side", 1, 1, 60_000, 60_000, kind=np.float32),
            weights("one", 1, kind=np.float32),
            node("Cast", ["side"], ["whole"], to=onnx.TensorProto.INT64),
            node("Expand", ["one", "whole"], ["c"]),
        ],
        r"a tensor of 3600000000 elements per image \('c'\); expected at most 268435456.*OIP_MAX_ACTIVATIONS",
    ),
    "shape_then_fill": (
        [
            weights("times", 1, 1, 1000, 1000),
            node("Shape", ["image"], ["s"]),
            node("Mul", ["s", "times"], ["wide"]),
            node("ConstantOfShape", ["wide"], ["c"]),
        ],
        r"a tensor of 784000000 elements per image \('c'\)",
    ),
    "tile": ([weights("times", 1, 1, 1000, 1000), node("Tile", ["image", "times"], ["c"])], r"784000000 elements"),
    "pad": (
        [weights("pads", 0, 0, 30_000, 30_000, 0, 0, 30_000, 30_000), node("Pad", ["image", "pads"], ["c"])],
        r"a tensor of 3603360784 elements",
    ),
    "range_of_values": (
        [
            *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("z", 0), ("d", 1))),
            node("ReduceMax", ["Dense_2"], ["most"], keepdims=0),
            node("Range", ["z", "most", "d"], ["c"]),
        ],
        r"size is known only at run time \('c', at the operation Range\); expected sizes that follow from the image's",
    ),
    "as_many_as_are_not_zero": (
        [node("NonZero", ["image"], ["c"])],
        r"only at run time \('c', at the operation NonZero",
    ),
    "padding_inside_a_convolution": (
        [
            weights("w", [[[1, 1], [1, 1]]], kind=np.float32),
            node("Conv", ["image", "w"], ["c"], pads=[16_000] * 4, dilations=[32_000, 32_000]),
        ],
        r"a tensor of 1025792784 elements",
    ),
    "kernel_of_a_pooling": (
        [node("AveragePool", ["image"], ["c"], kernel_shape=[15_000, 15_000], pads=[7500] * 4)],
        r"more than \d+ multiply-adds per image, up to 'c'; expected at most 100000000000.*OIP_MAX_MULTIPLY_ADDS",
    ),
    "unbounded_operation": (
        [
            weights("w", *np.ones((1, 8, 28)), kind=np.float32),
            weights("r", *np.ones((1, 8, 2)), kind=np.float32),
            weights("to", 1, -1, 28),
            node("Reshape", ["image", "to"], ["rows"]),
            node("LSTM", ["rows", "w", "r"], ["c"], hidden_size=2),
        ],
        r"operations of the kind LSTM; expected those of convolutional networks",
    ),
    "no_stride": (
        [node("MaxPool", ["image"], ["c"], kernel_shape=[2, 2], strides=[0, 0])],
        r"no valid ONNX graph \((.*strides must only contain positive|the library .* crashed \(SIGFPE)",  # onnx 1.19
    ),
}


@pytest.mark.parametrize("kind", SIZED)
def test_what_one_image_costs_is_known_before_it_runs(kind: str, proto: Proto, tmp_path: Path) -> None:
    added, message = SIZED[kind]
    proto.graph.initializer.extend(each for each in added if isinstance(each, onnx.TensorProto))
    proto.graph.node.extend(each for each in added if isinstance(each, onnx.NodeProto))
    with pytest.raises(InputError, match=message) as raised:
        read(written(tmp_path / "x.onnx", proto))
    assert raised.value.__cause__ is not None


def test_sums_and_times_of_many_layers(proto: Proto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them alone would do; and who wants more can say so."""
    chain = [node("Relu", ["image" if i == 0 else f"c{i - 1}"], [f"c{i}"]) for i in range(40)]
    names = {f"c{i}": (1, 8192, 4096) for i in range(40)}
    path = small(tmp_path / "sum.onnx", proto, chain, (1, 8192, 4096), names)
    with pytest.raises(InputError, match=r"more than 1107296256 elements per image in all, up to 'c32'"):
        read(path)
    monkeypatch.setenv("OIP_MAX_ACTIVATIONS", "2e9")
    assert len(read(path)[1].layers) == 40
    monkeypatch.setenv("OIP_MAX_ACTIVATIONS", "many")
    with pytest.raises(InputError, match=r"OIP_MAX_ACTIVATIONS is 'many': expected a whole number above 0"):
        read(path)
    monkeypatch.delenv("OIP_MAX_ACTIVATIONS")
    chain = [node("Conv", ["image" if i == 0 else f"c{i - 1}", "w"], [f"c{i}"], pads=[100] * 4) for i in range(20)]
    wide = numpy_helper.from_array(np.ones((1, 1, 201, 201), np.float32), "w")
    names = {f"c{i}": (1, 1024, 1024) for i in range(20)}
    with pytest.raises(InputError, match=r"more than \d+ multiply-adds per image, up to 'c2'"):
        read(small(tmp_path / "time.onnx", proto, [*chain, wide], (1, 1024, 1024), names))


# Bytes


def varint(value: int) -> bytes:
    return (bytes([value & 127 | 128]) + varint(value >> 7)) if value > 127 else bytes([value])


def inside(number: int, content: bytes) -> bytes:
    """A field that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def many_nodes(proto: Proto) -> bytes:
    for index in range(20_001):
        proto.graph.node.add(op_type="Relu", input=["image"], output=[f"x{index}"])
    return proto.SerializeToString()


def much_metadata(proto: Proto) -> bytes:
    helper.set_model_props(proto, {"other": " " * (16 << 20)})
    return proto.SerializeToString()


def much_of_ours(proto: Proto) -> bytes:
    helper.set_model_props(proto, {"oip_torch": "[" + "[]," * (3 << 20) + "[]]"})
    return proto.SerializeToString()


def long_name(proto: Proto) -> bytes:
    proto.graph.node[0].name = "n" * 5000
    return proto.SerializeToString()


BYTES: dict[Callable[[Proto], bytes], str] = {
    lambda proto: proto.SerializeToString() + inside(999, bytes(1 << 20)): r"bytes in fields that ONNX does not have",
    # The version is a number; as bytes it is kept as a field that nobody knows.
    lambda proto: proto.SerializeToString() + inside(1, bytes(1 << 20)): r"bytes in fields that ONNX does not have",
    lambda proto: inside(7, b"\x2a\x00" * 600_000 + b"\x0a\x00" * 600_000): r"more than 1048576 fields",
    lambda proto: inside(7, inside(5, inside(7, b"\1" * (65 << 20)))): r"bytes of weights that are not stored raw",
    lambda proto: inside(
        7, inside(1, inside(5, inside(6, inside(1, inside(5, inside(6, b"\0" * 9))))))
    ): "not readable",
    many_nodes: r"it has 20018 nodes; expected at most 20000",
    much_metadata: r"it has \d+ bytes of the model's metadata; expected at most 16777216",
    much_of_ours: r"damaged metadata \(\d+ characters: expected at most 8388608\)",
    long_name: r"a name of 5000 bytes \(NodeProto\.name\); expected at most 4096",
}


@pytest.mark.parametrize("make", BYTES)
def test_bytes_are_counted_before_they_are_parsed(make: Callable[[Proto], bytes], proto: Proto, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(make(proto))
    with pytest.raises(InputError, match=BYTES[make]):
        read(path)


def test_what_is_no_weight_is_small(proto: Proto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies: here in the name of the program that wrote the file."""
    monkeypatch.setattr(safety, "_MOST_OTHER_BYTES", 1 << 20)
    proto.producer_name = "x" * (1 << 20)
    with pytest.raises(InputError, match=r"it has \d+ bytes besides its weights; expected at most 1048576"):
        read(written(tmp_path / "x.onnx", proto))


def test_weights_of_another_length_than_they_say(proto: Proto, tmp_path: Path) -> None:
    tensor = proto.graph.initializer[0]
    kind, shape, content = tensor.data_type, list(tensor.dims), tensor.raw_data
    changes: list[tuple[dict[str, Any], str]] = [
        ({"raw_data": content + b"1234"}, r"with \d+ numbers; expected \d+"),
        ({"raw_data": b""}, r"with 0 numbers; expected \d+"),
        ({"dims": [-1, *shape[1:]]}, r"of shape \[-1"),
        ({"dims": [1 << 40]}, r"of shape \[1099511627776\]"),
        ({"data_type": 99}, r"of the type 99"),
        ({"data_type": onnx.TensorProto.COMPLEX64}, r"of the type COMPLEX64; expected ordinary numbers"),
    ]
    for change, message in changes:
        all_of = {"name": tensor.name, "data_type": kind, "dims": shape, "raw_data": content} | change
        spoilt = onnx.ModelProto.FromString(proto.SerializeToString())
        spoilt.graph.initializer[0].CopyFrom(onnx.TensorProto(**all_of))
        with pytest.raises(InputError, match=message):
            read(written(tmp_path / "x.onnx", spoilt))


# What the metadata say


def with_layer(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"layers": [data["layers"][0] | changes, *data["layers"][1:]]}


def with_verification(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"verification": data["verification"] | changes}


SAID: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    (with_layer(height=1e300), r"height of layer 'Conv2D_1' is 1e\+300: expected a whole number from 1"),
    (with_layer(height=25), r"'Conv2D_1' of size 25×26, where the graph gives 26×26"),
    (with_layer(width=None), r"'Conv2D_1' of size 26×None, where the graph gives 26×26"),
    (with_layer(maps="32"), r"maps of layer 'Conv2D_1' is '32'"),
    (with_layer(maps=True), r"maps of layer 'Conv2D_1' is True"),
    (with_layer(maps=10**4000), r"maps of layer 'Conv2D_1' is 1000000000"),
    (with_layer(name=""), r"name of a layer is ''"),
    (with_layer(name="n" * 5000), r"name of a layer is 'nnn"),
    (with_layer(name="\ud800"), r"the text '\\ud800' has half a character"),
    (with_layer(max_error=-1), r"max_error of layer 'Conv2D_1' is -1: expected 0 or more"),
    (with_layer(max_error=float("nan")), r"NaN stands where a finite number is expected"),
    (with_layer(tensor_before="Max_Pool_1"), r"'Conv2D_1' of size 26×26, where the graph gives 13×13"),
    (with_layer(fingerprint=[0, float("inf"), 0, 0]), r"Infinity stands where a finite number is expected"),
    (with_layer(fingerprint=[0, 1, 0]), r"fingerprint of layer 'Conv2D_1' is \[0, 1, 0\]: expected 4 numbers"),
    (with_layer(fingerprint=[5, 1, 9, 0]), r"no 21632 numbers have this mean, RMS, maximum and projection"),
    (with_layer(fingerprint=[0, 1, -1, 0]), r"no 21632 numbers have this mean"),
    (with_layer(fingerprint=[0, 1, 1, 1e3]), r"no 21632 numbers have this mean"),
    (with_verification(max_error="small"), r"max_error is 'small': expected a finite number"),
    (with_verification(gradient={"cosine": 7}), r"cosine is 7: expected a number from -1 to 1"),
    (with_verification(probes={"noise": 1.5}), r"probes is 1\.5: expected a whole number"),
    (with_verification(more=[[]] * 3 + [json.loads("[" * 30 + "]" * 30)]), r"nested deeper than 16 brackets"),
    (lambda data: data | {"graph_sha256": "f" * 63}, r"graph_sha256 is 'ff.*expected 64 hexadecimal digits"),
    (lambda data: data | {"domain": data["domain"] | {"mean": "12"}}, r"mean of the domain is '12': expected a list"),
    (lambda data: data | {"versions": {"torch": 2}}, r"the version of 'torch' is 2: expected text"),
    (lambda data: data | {"probes_in_domain": 1}, r"probes_in_domain is 1: expected true or false"),
    (lambda data: data | {"rewritten": {"graph": {"x": -1}}}, r"rewritten is -1: expected a whole number"),
]


@pytest.mark.parametrize(("change", "message"), SAID)
def test_what_a_file_says_is_strict_and_agrees_with_its_graph(
    change: Callable[[dict[str, Any]], dict[str, Any]], message: str, proto: Proto, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=rf"has damaged metadata \(.*{message}"):
        read(written(tmp_path / "x.onnx", proto, **change(metadata(proto))))


@pytest.mark.parametrize("old", ['"maps": 32', '"cosine": 0.9999999999999921', '"height": 26'])
def test_numbers_beyond_all_numbers(old: str, proto: Proto, tmp_path: Path) -> None:
    text = json.dumps(metadata(proto))
    assert old in text
    for value, said in (
        ("1e999", "1e999 stands where"),
        ("-1e999", "-1e999 stands where"),
        ("[" * 30 + "]" * 30, "it is nested deeper than 16 brackets"),
        ("[" * 30_000 + "]" * 30_000, "nested more than 200 levels deep"),
    ):
        with pytest.raises(InputError, match=rf"has damaged metadata \({said}"):
            read(written(tmp_path / "x.onnx", proto, text.replace(old, f"{old.partition(':')[0]}: {value}", 1)))


# Graphs whose layers are none

RELU = node("Relu", ["image"], ["r"])


def test_graphs_that_do_not_give_a_row_for_each_image(proto: Proto, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    flat = [RELU, weights("to", 1, 64), node("Reshape", ["r", "to"], ["f"])]
    small(path, proto, flat, (1, 8, 8), {"r": (1, 8, 8), "f": (64,)})
    with pytest.raises(InputError, match=r"'f' of layer 'f' is of shape .* for two: expected a row for each image"):
        read(path)
    made = onnx.load(small(path, proto, [RELU], (1, 8, 8), {"r": (1, 8, 8)}))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(InputError, match=r"the graph takes 1 images at once: expected an open batch"):
        read(written(path, made))
    made = onnx.load(small(path, proto, [RELU], (1, 8, 8), {"r": (1, 8, 8)}))
    made.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 8, 8), np.float32), "image"))
    with pytest.raises(InputError, match=r"does not take one input 'image', that is none of its weights"):
        read(written(path, made))


def test_one_of_several_outputs_is_no_layer(proto: Proto, tmp_path: Path) -> None:
    path, split = tmp_path / "x.onnx", node("Split", ["image"], ["a", "b"], axis=1)
    small(path, proto, [split], (2, 8, 8), {"a": (1, 8, 8)})
    with pytest.raises(InputError, match=r"layer 'a' is one of several outputs of a Split: expected the only one"):
        read(path)
    pytest.importorskip("onnxruntime")
    nodes = [
        *(node("Conv", ["image", "w"], ["z"]), node("GlobalAveragePool", ["z"], ["g"]), node("Flatten", ["g"], ["f"])),
        node("Split", ["f"], ["a", "b"], axis=1),
    ]
    foreign(path, proto, nodes, {"a": (1,)})
    with pytest.raises(InputError, match=r"the output 'a' is one of several of a Split: expected the only one"):
        oip_torch.import_onnx(path, device="cpu")


def test_whatever_a_reader_raises_is_one_kind_of_error(
    mnist_onnx: Path, proto: Proto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise IndexError("anything")

    monkeypatch.setattr("oip_torch.network.model.to_torch", fail)
    with pytest.raises(InputError, match=r"the network does not run \(IndexError anything\)") as raised:
        oip_torch.load(mnist_onnx, device="cpu")
    assert isinstance(raised.value.__cause__, IndexError)
    pytest.importorskip("onnxruntime")
    del proto.metadata_props[:]
    (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
    monkeypatch.setattr(importing, "prepare", fail)
    with pytest.raises(InputError, match=r"cannot be taken in \(IndexError anything\)") as raised:
        oip_torch.import_onnx(tmp_path / "x.onnx", device="cpu")
    assert isinstance(raised.value.__cause__, IndexError)


def test_an_import_that_does_not_fit_in_memory(proto: Proto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(importing, "free_memory", lambda: 1 << 20)
    nodes = [node("Conv", ["image", "w"], ["z"])]
    foreign(tmp_path / "x.onnx", proto, nodes, {"z": (2, 300, 300)})
    with pytest.raises(InputError, match=r"the layers of 12 images take \d.* MiB to verify, and 1 MiB are free"):
        oip_torch.import_onnx(tmp_path / "x.onnx", device="cpu")


# The self-check


def test_a_changed_weight_anywhere_is_noticed(proto: Proto, tmp_path: Path) -> None:
    """The digest is over graph and weights: one bit, of any weight, the last one too."""
    content = proto.SerializeToString()
    for index in range(len(proto.graph.initializer)):
        for at in (0, -1):
            changed = onnx.ModelProto.FromString(content)
            values = bytearray(changed.graph.initializer[index].raw_data)
            values[at] ^= 1
            changed.graph.initializer[index].raw_data = bytes(values)
            (tmp_path / "x.onnx").write_bytes(changed.SerializeToString())
            with pytest.raises(InputError, match=r"was changed or damaged after its conversion"):
                read(tmp_path / "x.onnx")


def test_no_figures_switch_the_self_check_off(proto: Proto, tmp_path: Path) -> None:
    """With a digest that fits: other weights do not pass, whatever finite figures the file says of its layers."""
    tensor = max(proto.graph.initializer, key=lambda each: len(each.raw_data))
    random = np.random.default_rng(0).normal(size=list(tensor.dims)).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(random, tensor.name))
    layers = metadata(proto)["layers"]
    for figures in (None, [0, 0, 0, 0], [0, 1e9, 1, 0], [0, 1e300, 1, 0]):
        for error in (0.0, 1e300):  # what rounding was measured
            own = {"max_error": error} if figures is None else {"max_error": error, "fingerprint": figures}
            changed = [layer | own for layer in layers]
            with pytest.raises(InputError, match=r"layer '\w+' gives \(.* where Keras gave"):
                oip_torch.load(written(tmp_path / "x.onnx", proto, layers=changed), device="cpu")
