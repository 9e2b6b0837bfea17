"""Numbers and products of one image: worked out as a person counts them, and as a network really makes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import oip_torch
from oip_torch.network import costs
from oip_torch.network.shapes import find_shapes

FLOAT = onnx.TensorProto.FLOAT


def graph(*nodes: onnx.NodeProto, **weights: tuple[int, ...]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    image = helper.make_tensor_value_info("image", FLOAT, ["n", 3, 10, 12])
    made = helper.make_graph(list(nodes), "g", [image], [], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


def node(kind: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), ["out"], **attributes)


PRODUCTS: list[tuple[onnx.ModelProto, int]] = [
    (graph(node("Conv", "image", "w"), w=(5, 3, 3, 4)), 5 * 8 * 9 * 3 * 3 * 4),
    (graph(node("Conv", "image", "w", group=3), w=(6, 1, 3, 3)), 6 * 8 * 10 * 3 * 3),
    (graph(node("ConvTranspose", "image", "w"), w=(3, 5, 2, 2)), 3 * 10 * 12 * 5 * 2 * 2),
    (graph(node("MatMul", "image", "w"), w=(12, 7)), 3 * 10 * 7 * 12),
    (graph(node("AveragePool", "image", kernel_shape=[2, 3])), 3 * 9 * 10 * 6),
    (graph(node("LRN", "image", size=5)), 3 * 10 * 12 * 5),
    (graph(node("Einsum", "image", "w", equation="nchw,wk->nchk"), w=(12, 7)), 3 * 10 * 12 * 7),
]


@pytest.mark.parametrize(("proto", "products"), PRODUCTS)
def test_products_are_those_that_a_person_counts(
    proto: onnx.ModelProto, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {name: one for name, (one, _) in find_shapes_here(proto).items()}
    numbers = sum(math.prod(shapes[name] or ()) for name in (*proto.graph.node[0].input, "out"))
    monkeypatch.setenv(costs.PRODUCTS, str(products + numbers))
    costs.check_costs(proto.graph, shapes)
    monkeypatch.setenv(costs.PRODUCTS, str(products + numbers - 1))
    with pytest.raises(ValueError, match=rf"more than {products + numbers} multiply-adds"):
        costs.check_costs(proto.graph, shapes)


def find_shapes_here(proto: onnx.ModelProto) -> Any:
    """In this process."""
    from oip_torch.network.shapes import _inferred

    return {name: (tuple(shape or ()), None) for name, shape in _inferred(proto, ["image"], 1).items()}


def test_an_operation_that_is_on_no_list() -> None:
    proto = graph(node("Det", "image"))
    with pytest.raises(ValueError, match="operations of the kind Det; expected those of"):
        costs.check_costs(proto.graph, {"image": (1, 1, 2, 2), "out": (1, 1)})


@pytest.mark.parametrize("name", ["mnist", "rgb", "smooth"])
def test_shapes_are_those_of_the_tensors(name: str, mnist_onnx: Path, request: pytest.FixtureRequest) -> None:
    """Of each node that torch runs, for one image and for two."""
    model: oip_torch.FeatureModel = request.getfixturevalue("model" if name == "mnist" else name)
    path = mnist_onnx if name == "mnist" else Path(__file__).parent / "data" / f"{name}.onnx"
    shapes = find_shapes(onnx.load(path))
    for count in (1, 2):
        outputs = model.every_layer(torch.zeros(count, *model.input_shape))
        for layer in model.layers:
            assert shapes[layer.tensor][count - 1] == tuple(outputs[layer.name].shape)
    assert not [name for name, (one, two) in shapes.items() if one is None or two is None or min((*one, *two, 1)) < 0]
