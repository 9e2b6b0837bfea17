"""Large weights stand aside of a graph, and come back as they would have been in it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from oip_torch.keras.aside import FILE, LargeWeights

RNG = np.random.default_rng(0)


def variable(*shape: int) -> npt.NDArray[np.float32]:
    """As Keras' variables: with a shape and a dtype, and an array."""
    return RNG.normal(size=shape).astype(np.float32)


def traced() -> Any:
    """What tf2onnx makes of a convolution: the kernel, height and width first in Keras, is turned around."""
    nodes = [
        helper.make_node("Transpose", ["weight_0"], ["turned"], perm=[3, 2, 0, 1]),
        helper.make_node("Reshape", ["turned", "shape"], ["kernel"]),
        helper.make_node("Conv", ["image", "kernel"], ["conv"]),
        helper.make_node("ReduceMean", ["conv"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight_1"], ["out"]),
    ]
    inputs = {"image": ["N", 64, 8, 8], "weight_0": [5, 5, 64, 32], "weight_1": [32, 512]}
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 512])],
        [numpy_helper.from_array(np.array([32, 64, 5, 5]), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    proto.ir_version = 8
    return proto


def run(proto: Any, **values: Any) -> Any:
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, values
    )[0]


def test_large_weights_are_written_beside_the_graph(tmp_path: Path) -> None:
    kernel, dense = variable(5, 5, 64, 32), variable(32, 512)
    weights = LargeWeights(SimpleNamespace(variables=[kernel, variable(32), dense, kernel]))
    proto, image = traced(), variable(2, 64, 8, 8)
    expected = run(proto, image=image, weight_0=kernel, weight_1=dense)
    weights.fold(proto)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "ReduceMean", "MatMul"]
    assert [value.name for value in proto.graph.input] == ["image", "weight_1", "kernel"]
    onnx.checker.check_model(proto, full_check=True)
    weights.store(proto, tmp_path)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert (tmp_path / FILE).stat().st_size == kernel.nbytes + dense.nbytes
    loaded = onnx.load(tmp_path / "model.onnx")
    assert [value.name for value in loaded.graph.input] == ["image"]
    np.testing.assert_array_equal(
        numpy_helper.to_array(next(t for t in loaded.graph.initializer if t.name == "kernel")),
        kernel.transpose(3, 2, 0, 1),
    )
    np.testing.assert_allclose(run(loaded, image=image), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_what_is_no_mere_turning_stays_in_the_graph() -> None:
    proto = traced()
    proto.graph.node[0].op_type = "Neg"
    del proto.graph.node[0].attribute[:]
    weights = LargeWeights(SimpleNamespace(variables=[variable(32, 64, 5, 5), variable(32, 512)]))
    weights.fold(proto)
    assert [node.op_type for node in proto.graph.node] == ["Neg", "Reshape", "Conv", "ReduceMean", "MatMul"]
    assert [value.name for value in proto.graph.input] == ["image", "weight_0", "weight_1"]
