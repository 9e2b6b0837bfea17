"""Operations of later opsets, in the form that onnx2torch knows: equal values, on graphs made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from oip_torch import ConversionError, InputError, import_onnx
from oip_torch.network.opsets import in_known_opset

ORT = pytest.importorskip("onnxruntime")
SHAPE = (6, 8, 8)  # what is tried takes and gives maps of this shape, or of another height and width
CASES: dict[str, tuple[int, list[tuple[Any, ...]], dict[str, Any]]] = {
    "ReduceMean, axes as input": (18, [("ReduceMean", ["x", "axes"], ["y"], {"keepdims": 1})], {"axes": [-1, -2]}),
    "ReduceMax with noop_with_empty_axes": (
        20,
        [("ReduceMax", ["x", "axes"], ["y"], {"keepdims": 1, "noop_with_empty_axes": 0})],
        {"axes": [2, 3]},
    ),
    "ReduceL2": (18, [("ReduceL2", ["x", "axes"], ["s"], {}), ("Add", ["x", "s"], ["y"], {})], {"axes": [1]}),
    "Split by the number of parts": (
        18,
        [
            ("Split", ["x"], ["a", "b", "c"], {"axis": 1, "num_outputs": 3}),
            ("Concat", ["c", "a", "b"], ["y"], {"axis": 1}),
        ],
        {},
    ),
    "Split in given parts": (
        21,
        [("Split", ["x", "parts"], ["a", "b"], {"axis": 1}), ("Concat", ["b", "a"], ["y"], {"axis": 1})],
        {"parts": [2, 4]},
    ),
    "Gelu": (20, [("Gelu", ["x"], ["y"], {})], {}),
    "Gelu by tanh": (21, [("Gelu", ["x"], ["y"], {"approximate": "tanh"})], {}),
    "Mish": (18, [("Mish", ["x"], ["y"], {})], {}),
    "GroupNormalization": (
        21,
        [("GroupNormalization", ["x", "scale", "bias"], ["y"], {"num_groups": 2, "epsilon": 1e-3})],
        {"scale": np.linspace(0.5, 1.5, 6, dtype=np.float32), "bias": np.linspace(-1, 1, 6, dtype=np.float32)},
    ),
    "LayerNormalization": (
        20,
        [
            ("Transpose", ["x"], ["t"], {"perm": [0, 2, 3, 1]}),
            ("LayerNormalization", ["t", "scale", "bias"], ["l"], {"axis": -1}),
            ("Transpose", ["l"], ["y"], {"perm": [0, 3, 1, 2]}),
        ],
        {"scale": np.linspace(0.5, 1.5, 6, dtype=np.float32), "bias": np.linspace(-1, 1, 6, dtype=np.float32)},
    ),
    "Reshape with allowzero": (
        20,
        [("Reshape", ["x", "there"], ["r"], {"allowzero": 1}), ("Reshape", ["r", "back"], ["y"], {"allowzero": 1})],
        {"there": [-1, 3, 128], "back": [-1, 6, 8, 8]},
    ),
    "AveragePool with dilations of 1": (
        19,
        [("AveragePool", ["x"], ["y"], {"kernel_shape": [2, 2], "dilations": [1, 1]})],
        {},
    ),
    "AveragePool, uneven padding": (
        21,
        [("AveragePool", ["x"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]})],
        {},
    ),
    "GlobalMaxPool": (21, [("GlobalMaxPool", ["x"], ["y"], {})], {}),
    "MaxPool by a rule": (
        21,
        [("MaxPool", ["x"], ["y"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"})],
        {},
    ),
    "HardSwish": (21, [("HardSwish", ["x"], ["y"], {})], {}),
}


def network(
    opset: int, nodes: list[tuple[Any, ...]], constants: dict[str, Any], *, batch: Any = "n"
) -> onnx.ModelProto:
    """A convolution, what is tried, and a second convolution."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(6, 3, 3, 3)), "v": rng.normal(size=(4, 6, 1, 1))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()}
    arrays |= {
        name: np.asarray(v) if isinstance(v, np.ndarray) else np.asarray(v, np.int64) for name, v in constants.items()
    }
    made = [
        helper.make_node("Conv", ["image", "w"], ["x"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        *(helper.make_node(kind, inputs, outputs, **given) for kind, inputs, outputs, given in nodes),
        helper.make_node("Conv", ["y", "v"], ["out"], kernel_shape=[1, 1]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 4, None, None])
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(made, "g", [image], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def given(proto: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ORT.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [session.run(["out"], {"image": images[i : i + 1]})[0] for i in range(len(images))]
    return np.concatenate(outputs)


@pytest.mark.parametrize("batch", ["n", 1], ids=["open", "static"])
@pytest.mark.parametrize("case", CASES)
def test_an_operation_of_a_later_opset_is_taken_in(case: str, batch: Any, tmp_path: Path) -> None:
    proto = network(*CASES[case], batch=batch)
    onnx.save(proto, tmp_path / "net.onnx")
    model = import_onnx(tmp_path / "net.onnx", mean=0, std=255, device="cpu")
    images = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        got = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, given(proto, images), rtol=1e-4, atol=1e-5)


def test_unequal_parts_by_their_number_are_not_taken_for_equal_ones(tmp_path: Path) -> None:
    """Of seven rows in three parts the last has one: the earlier Split has no such form."""
    nodes = [
        ("Split", ["x"], ["a", "b", "c", "d"], {"axis": 1, "num_outputs": 4}),  # 2, 2, 2 and 0 or an error
        ("Concat", ["a", "b", "c"], ["y"], {"axis": 1}),
    ]
    onnx.save(network(18, nodes, {}), tmp_path / "net.onnx")
    with pytest.raises(InputError):
        import_onnx(tmp_path / "net.onnx", mean=0, std=255, device="cpu")


def test_layers_go_by_the_modules_that_the_exporter_names(tmp_path: Path) -> None:
    proto = network(20, [("Relu", ["x"], ["y"], {})], {})
    scopes = [["", "stem", "stem.0", "conv2d"], ["", "stem", "stem.1", "relu"], ["", "head", "conv2d"]]
    for number, (node, scope) in enumerate(zip(proto.graph.node, scopes, strict=True)):
        node.name = f"node_{node.op_type}_{number}"
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(scope))
    onnx.save(proto, tmp_path / "net.onnx")
    assert import_onnx(tmp_path / "net.onnx", mean=0, std=255, device="cpu").layers.names == [
        "stem.0",
        "stem.1",
        "head",
    ]


def test_a_graph_without_a_way_stays_as_it_is() -> None:
    proto = network(
        21,
        [("Resize", ["x", "", "scales"], ["y"], {"antialias": 1, "mode": "linear"})],
        {"scales": np.float32([1, 1, 0.5, 0.5])},
    )
    assert in_known_opset(proto).opset_import[0].version == 21
    with pytest.raises(ConversionError, match="opset 6: expected 7 or later"):
        in_known_opset(network(6, [("Relu", ["x"], ["y"], {})], {}))
