"""How do a network's large weights stay out of its graph while that is made?

TensorFlow and tf2onnx copy a graph many times, and every copy would hold all weights. So they get inputs in the place
of the large ones, and the weights are written from Keras' variables into a file beside the graph, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FILE", "LargeWeights"]

FILE = "weights.bin"
"""The file beside the graph, which names it as ONNX' external data do."""
_LARGE = 1 << 14
"""Elements; what is smaller stays in the graph, where tf2onnx may look at it."""

Step = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class LargeWeights:
    """The large weights of a Keras network, each an input of its graph; `any_size` False: there are none."""

    def __init__(self, model: Any, *, any_size: bool = True) -> None:
        found = {
            id(variable): variable
            for variable in model.variables
            if any_size and variable.dtype == "float32" and math.prod(variable.shape) >= _LARGE
        }
        self._variables = {f"weight_{index}": variable for index, variable in enumerate(found.values())}
        self._made: dict[str, tuple[str, list[Step]]] = {}  # input → the weight that it is, and what is done to it

    @property
    def signature(self) -> list[Any]:
        """What the graph takes beside the image."""
        import tensorflow as tf

        return [tf.TensorSpec(variable.shape, tf.float32, name=name) for name, variable in self._variables.items()]

    def replaced_by(self, tensors: Sequence[Any]) -> Any:
        """A context in which Keras' layers compute with these tensors."""
        import keras

        return keras.StatelessScope(state_mapping=list(zip(self._variables.values(), tensors, strict=True)))

    def fold(self, proto: Any) -> None:
        """Take out the nodes that only turn a weight around, as from Keras' layout of kernels to that of ONNX.

        What they give becomes the input in the place of the weight.
        """
        import onnx

        graph = proto.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        made: dict[str, tuple[str, list[Step]]] = {name: (name, []) for name in self._variables}
        kept = []
        for node in graph.node:
            step = _step(node, constants) if node.input and node.input[0] in made else None
            if step is None:
                kept.append(node)
            else:
                weight, before = made[node.input[0]]
                made[node.output[0]] = weight, [*before, step]
        used = {name for node in kept for name in node.input}
        self._made = {name: how for name, how in made.items() if name in used}
        inputs = [value for value in graph.input if value.name not in self._variables]
        for name, (weight, steps) in self._made.items():
            shape = _apply(np.broadcast_to(np.float32(0), self._variables[weight].shape), steps).shape
            inputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        for field, values in ((graph.node, kept), (graph.input, inputs)):
            values = [type(value).FromString(value.SerializeToString()) for value in values]  # the list owns them
            del field[:]
            field.extend(values)

    def store(self, proto: Any, folder: Path) -> None:
        """Write the weights that the graph takes to a file, and make them its initialisers."""
        import onnx

        graph = proto.graph
        used = {name for node in graph.node for name in node.input}
        with (folder / FILE).open("wb") as file:
            for name, (weight, steps) in self._made.items():
                if name not in used:
                    continue
                values = _apply(_values(self._variables[weight]), steps)
                tensor = graph.initializer.add(name=name, dims=values.shape, data_type=onnx.TensorProto.FLOAT)
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", FILE), ("offset", file.tell()), ("length", values.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                file.write(np.ascontiguousarray(values, "<f4").data)
        inputs = [value for value in graph.input if value.name not in self._made]
        inputs = [type(value).FromString(value.SerializeToString()) for value in inputs]
        del graph.input[:]
        graph.input.extend(inputs)


def _values(variable: Any) -> npt.NDArray[Any]:
    """The array that TensorFlow computes with, and no copy of it; or what is an array already."""
    return np.asarray(variable.value.value() if hasattr(variable, "value") else variable)


def _step(node: Any, constants: dict[str, Any]) -> Step | None:
    """What the node does to an array, if it is one that only turns it around."""
    from onnx import numpy_helper

    if node.op_type == "Identity":
        return lambda values: values
    if node.op_type == "Transpose" and node.attribute:
        order = tuple(node.attribute[0].ints)
        return lambda values: values.transpose(order)
    if node.op_type == "Reshape" and node.input[1] in constants:
        shape = tuple(int(size) for size in numpy_helper.to_array(constants[node.input[1]]))
        return None if 0 in shape else lambda values: values.reshape(shape)
    return None


def _apply(values: npt.NDArray[Any], steps: list[Step]) -> npt.NDArray[Any]:
    for step in steps:
        values = step(values)
    return values
