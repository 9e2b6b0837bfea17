"""A rewritten graph computes what the graph before computed (in ONNX Runtime, or by its formula), and torch runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from scipy import special

from oip_torch.base.errors import ConversionError
from oip_torch.network.onnx_graph import to_torch
from oip_torch.network.rewrites import rewrite_graph

SHAPE = (4, 11, 9)  # channels, height, width
RNG = np.random.default_rng(0)


def graph(kind: str, *constants: Any, shape: tuple[int, ...] = SHAPE, opset: int = 15, **options: Any) -> Any:
    """One node that reads the image, and constants after it."""
    names = [f"constant_{index}" for index in range(len(constants))]
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, ["image", *names], ["out"], **options)],
            "one",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *shape])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", "C", "H", "W"])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(names, constants, strict=True)],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    proto.ir_version = 8
    return proto


WEIGHT = RNG.normal(size=(9, 5)).astype(np.float32)  # of a dense layer along the last axis


def dense(wide: int = 9, high: int = 4) -> Any:
    """As tf2onnx writes it: rows of all axes but the last, by a size that is worked out as it runs, and back again."""
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "axes"], ["sizes"]),
        helper.make_node("ReduceProd", ["sizes"], ["count"], axes=[0], keepdims=1),
        helper.make_node("Concat", ["count", "wide"], ["flat"], axis=0),
        helper.make_node("Reshape", ["image", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weight"], ["product"]),
        helper.make_node("Reshape", ["product", "whole"], ["out"]),
    ]
    constants = {
        "axes": np.array([0, 1, 2]),
        "wide": np.array([wide]),
        "weight": WEIGHT[:wide],
        "whole": np.array([-1, high, 11, 5]),
    }
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "dense",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *SHAPE])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", high, 11, 5])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 15)],
    )
    proto.ir_version = 8
    return proto


def run(proto: Any, images: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def images_of(shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.float32]:
    return RNG.normal(size=(3, *shape)).astype(np.float32)


KERNEL = RNG.normal(size=(4, 5, 3, 3)).astype(np.float32)  # of a transposed convolution: in, out
BIAS = np.arange(1, 6, dtype=np.float32)
CONV = RNG.normal(size=(5, 4, 3, 3)).astype(np.float32)
REWRITES: dict[str, tuple[str, Callable[[], Any]]] = {
    "global max": ("GlobalMaxPool", lambda: graph("GlobalMaxPool")),
    "average": (
        "AveragePool, uneven padding",
        lambda: graph("AveragePool", kernel_shape=[2, 3], strides=[2, 2], pads=[0, 1, 1, 0]),
    ),
    "average, overlapping": (
        "AveragePool, uneven padding",
        lambda: graph("AveragePool", kernel_shape=[4, 4], strides=[1, 3], pads=[1, 0, 2, 2]),
    ),
    "average, padding counts": (
        "AveragePool, uneven padding",
        lambda: graph("AveragePool", kernel_shape=[2, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    ),
    "average, by rule": (
        "AveragePool, uneven padding",
        lambda: graph("AveragePool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    ),
    "maximum, by rule": (
        "auto_pad",
        lambda: graph("MaxPool", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    ),
    "valid, by rule": ("auto_pad", lambda: graph("MaxPool", kernel_shape=[2, 3], auto_pad="VALID")),
    "convolution, by rule": (
        "auto_pad",
        lambda: graph("Conv", CONV, strides=[2, 1], auto_pad="SAME_UPPER"),
    ),
    "transposed": (
        "ConvTranspose, uneven padding",
        lambda: graph("ConvTranspose", KERNEL, strides=[2, 2], pads=[0, 1, 1, 0]),
    ),
    "transposed, by rule": (
        "ConvTranspose, uneven padding",
        lambda: graph("ConvTranspose", KERNEL, strides=[2, 2], auto_pad="SAME_UPPER"),
    ),
    "backwards": (
        "Slice",
        lambda: graph("Slice", np.array([-1]), np.array([-99]), np.array([1]),
                      np.array([-1])),
    ),
    "a cut": (
        "Slice",
        lambda: graph("Slice", np.array([2, 1]), np.array([9, 10**9]), np.array([2, 3]), np.array([1, 2])),
    ),
    "scale rounded down": (
        "Resize, rounded scale",
        lambda: graph(
            "Resize", np.zeros(0, np.float32), np.array([1, 1, 20 / 12, 1], np.float32), shape=(2, 12, 6),
            mode="linear", coordinate_transformation_mode="half_pixel",
        ),
    ),
    "dense layer along the channels": ("MatMul of rows", dense),
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITES)
def test_a_rewrite_computes_the_same(name: str) -> None:
    rewrite, make = REWRITES[name]
    proto = make()
    shape = tuple(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim)[1:]
    images = images_of(shape)
    if name == "scale rounded down":  # ONNX Runtime, too, would lose the last row
        wanted = torch.nn.functional.interpolate(torch.from_numpy(images), (20, 6), mode="bilinear").numpy()
    else:
        wanted = run(proto, images)
    counts = rewrite_graph(proto)
    assert counts[rewrite] == 1
    onnx.checker.check_model(proto, full_check=True)
    scale = np.abs(wanted).max()
    for got in (run(proto, images), to_torch(proto).eval()(torch.from_numpy(images)).detach().numpy()):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * scale)
    assert rewrite_graph(proto) == {}


def test_a_global_maximum_takes_its_axes_as_the_opset_wants_them() -> None:
    proto = graph("GlobalMaxPool", opset=18)
    assert rewrite_graph(proto) == {"GlobalMaxPool": 1}
    onnx.checker.check_model(proto, full_check=True)
    images = images_of()
    np.testing.assert_array_equal(run(proto, images), images.max((2, 3), keepdims=True))


@pytest.mark.parametrize(("kind", "function"), [("Erfc", special.erfc), ("Expm1", np.expm1), ("Log1p", np.log1p)])
def test_operations_of_tensorflow_become_onnx(kind: str, function: Callable[[Any], Any]) -> None:
    """tf2onnx leaves them under TensorFlow's name, which makes the graph invalid."""
    proto = graph(kind)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto, full_check=True)
    assert rewrite_graph(proto) == {kind: 1}
    onnx.checker.check_model(proto, full_check=True)
    images = np.abs(images_of())
    got = to_torch(proto).eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, function(images.astype(np.float64)), rtol=0, atol=1e-6 * np.abs(got).max())


@pytest.mark.parametrize(
    "proto",
    [
        graph("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        graph("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]),  # onnx2torch pads by itself
        graph("ConvTranspose", KERNEL, strides=[2, 2], pads=[1, 1, 1, 1]),
        graph("Slice", np.array([0]), np.array([1]), np.array([0])),  # of the batch
        graph("AveragePool", kernel_shape=[2, 2], pads=[0, 0, 1, 1], shape=(4, 0, 0)),  # sizes that are not known
        dense(wide=3, high=12),  # the rows are thirds of the last axis
    ],
)
def test_what_needs_no_rewrite_stays_as_it_is(proto: Any) -> None:
    before = proto.SerializeToString(deterministic=True)
    assert rewrite_graph(proto) == {}
    assert proto.SerializeToString(deterministic=True) == before


def test_what_only_a_replaced_operation_read_goes_with_it() -> None:
    proto = dense()
    rewrite_graph(proto)
    assert [node.op_type for node in proto.graph.node] == ["MatMul"]
    kept = dense()
    kept.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, ["rows", 5]))
    rewrite_graph(kept)
    assert [node.op_type for node in kept.graph.node][-3:] == ["Reshape", "MatMul", "MatMul"]


def test_the_constants_round_nothing() -> None:
    """So that a verification in float64 sees the same numbers on both sides."""
    proto = graph("AveragePool", kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 1])
    rewrite_graph(proto)
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(values, np.round(values))


@pytest.mark.parametrize(("pads", "more"), [([0, 0, -1, -1], (1, 1)), ([1, 0, 0, -2], (0, 2)), ([1, 0, 1, -1], (0, 1))])
def test_a_negative_padding_of_a_transposed_convolution_is_more_at_its_end(
    pads: list[int], more: tuple[int, int]
) -> None:
    """As tf2onnx writes `output_padding`; ONNX Runtime refuses it, and the rows that are added hold the bias."""
    made = graph("ConvTranspose", KERNEL, BIAS, strides=[2, 3], pads=pads)
    assert rewrite_graph(made) == {"ConvTranspose, uneven padding": 1}
    images = images_of()
    kernel, bias = torch.from_numpy(KERNEL), torch.from_numpy(BIAS)
    whole = torch.nn.functional.conv_transpose2d(torch.from_numpy(images), kernel, bias, (2, 3), 0, more).numpy()
    expected = whole[:, :, pads[0] : whole.shape[2] - max(0, pads[2])]
    np.testing.assert_allclose(run(made, images), expected, rtol=1e-4, atol=1e-4)


def test_the_graph_is_as_it_was_after_torch_has_it() -> None:
    """Its names and shapes are changed for the time of the conversion; also where that fails."""
    proto = graph("Conv", CONV, pads=[1, 1, 1, 1])
    proto.graph.value_info.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    before = proto.SerializeToString(deterministic=True)
    to_torch(proto)
    assert proto.SerializeToString(deterministic=True) == before
    proto.graph.node[0].op_type = "Unknown"
    before = proto.SerializeToString(deterministic=True)
    with pytest.raises(ConversionError, match="onnx2torch cannot convert"):
        to_torch(proto)
    assert proto.SerializeToString(deterministic=True) == before
