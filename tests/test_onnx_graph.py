"""ONNX graphs as graphs of torch modules: what ONNX gives as tensors, and torch takes as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from oip_torch.network.onnx_graph import to_torch


def of_one(kind: str, constants: dict[str, np.ndarray[Any, Any]], out: list[Any], **attributes: Any) -> Any:
    node = helper.make_node(kind, ["image", *constants], ["out"], **attributes)
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["n", 3, 4, 2]), ("out", out))
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    made = helper.make_graph([node], "g", values[:1], values[1:], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


PADS = np.array([0, 0, 1, 2, 0, 0, 3, 1])


@pytest.mark.parametrize(
    ("kind", "constants", "out", "attributes"),
    [
        ("Reshape", {"to": np.array([-1, 24])}, ["n", 24], {}),
        ("Reshape", {"to": np.array([0, 6, -1])}, ["n", 6, 4], {}),
        ("Reshape", {"to": np.array([0, 0, 8])}, ["n", 3, 8], {}),
        ("Pad", {"pads": PADS}, ["n", 3, 8, 5], {}),
        ("Pad", {"pads": PADS, "fill": np.array(2.5, np.float32)}, ["n", 3, 8, 5], {}),
        ("Pad", {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 0])}, ["n", 3, 6, 3], {"mode": "edge"}),
        ("Pad", {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 0])}, ["n", 3, 6, 3], {"mode": "reflect"}),
    ],
)
def test_targets_and_widths_are_numbers(
    kind: str, constants: dict[str, np.ndarray[Any, Any]], out: list[Any], attributes: dict[str, Any]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    proto = of_one(kind, constants, out, **attributes)
    module = to_torch(proto)
    assert [node.op for node in module.graph.nodes] == ["placeholder", "call_module", "output"]
    assert not module.state_dict()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        x = torch.randn(count, 3, 4, 2)
        np.testing.assert_array_equal(module(x).numpy(), session.run(None, {"image": x.numpy()})[0])
