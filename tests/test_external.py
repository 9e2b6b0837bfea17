"""A graph with its weights beside it is written and digested as if they were inside, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from oip_torch.network.external import pieces_of, read_pieces
from oip_torch.network.onnx_file import graph_sha256

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two weights in a file, one of more than is read at once, and a small one in the graph."""
    arrays = {"kernel": RNG.normal(size=(700, 513)), "small": RNG.normal(size=3), "bias": RNG.normal(size=700)}
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    nodes = [
        helper.make_node("MatMul", ["kernel", "x"], ["y"], doc_string="says more"),
        helper.make_node("Pad", ["y"], ["z"], mode="constant", pads=[0, 1]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 513]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], tensors, doc_string="of a test", value_info=[y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], producer_name="test")
    helper.set_model_props(proto, {"key": "value" * 100})
    onnx.save(
        proto,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
        convert_attribute=False,
    )
    return tmp_path


def test_the_pieces_are_what_protobuf_writes(folder: Path) -> None:
    light, whole = onnx.load(folder / "model.onnx", load_external_data=False), onnx.load(folder / "model.onnx")
    assert sum(tensor.data_location == TensorProto.EXTERNAL for tensor in light.graph.initializer) == 2
    pieces = pieces_of(light)
    assert sum(isinstance(piece, tuple) for piece in pieces) == 2  # no weight of them was read
    assert b"".join(read_pieces(pieces, folder / "weights.bin")) == whole.SerializeToString(deterministic=True)


def test_the_digest_is_that_of_the_graph_with_its_weights_inside(folder: Path) -> None:
    light, whole = onnx.load(folder / "model.onnx", load_external_data=False), onnx.load(folder / "model.onnx")
    assert graph_sha256(light, folder / "weights.bin") == graph_sha256(whole)
    content = bytearray((folder / "weights.bin").read_bytes())
    content[-1] ^= 1
    (folder / "weights.bin").write_bytes(content)
    assert graph_sha256(light, folder / "weights.bin") != graph_sha256(whole)
