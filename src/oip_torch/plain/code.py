"""How does a network become the source of one nn.Module that a person can read and change?

Statement by statement, with the layers' names as attributes, and the shapes in comments.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, fx, nn

from oip_torch.network.extract import Tap
from oip_torch.network.onnx_file import Network
from oip_torch.plain.layers import linear
from oip_torch.plain.operations import write
from oip_torch.plain.steps import Graph, Step
from oip_torch.plain.words import Operation, number, uncovered

__all__ = ["Source", "write_source"]

_VARIABLES = ["x", "y", "z", *(f"x{count}" for count in range(2, 5000))]
_TAKEN = frozenset(dir(nn.Module())) | {"self"}
_TRAINED = frozenset(
    "BatchNormalization Conv2D Conv2DTranspose Dense DepthwiseConv2D EinsumDense GroupNormalization LayerNormalization "
    "LayerScale PReLU RMSNormalization SeparableConv2D".split()
)
"""Layers of Keras whose tensors are weights; those of others, such as Normalization, are constants."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network as plain PyTorch.

    Attributes:
        code: of the file.
        name: of the class.
        weights: its state dict.
        statements: layer → the number of the statement of `forward` that makes its output, -1 for the image itself.
    """

    code: str
    name: str
    weights: dict[str, Tensor]
    statements: dict[str, int]


def write_source(module: fx.GraphModule, taps: Mapping[str, Tap], network: Network, images: Tensor) -> Source:
    """The source and the weights of a network.

    Args:
        module: a graph that returns the outputs of all taps, float32 on the CPU.
        taps: by the name of the layer.
        network: what is known of it.
        images: (2, channels, height, width), of the kind that it takes.

    Raises:
        ConversionError: an operation that is not covered.
    """
    return _Writer(Graph(module, taps, network, images)).source()


class _Arguments(Sequence[str]):
    """As they are written: a constant becomes an attribute when it is first asked for, and not before."""

    def __init__(self, given: Sequence[Any], written: Callable[[Any], str]) -> None:
        self._given, self._written = given, written

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[str]: ...
    def __getitem__(self, key: int | slice) -> str | Sequence[str]:
        chosen = self._given[key]
        return list(map(self._written, chosen)) if isinstance(key, slice) else self._written(chosen)

    def __len__(self) -> int:
        return len(self._given)


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.network = graph, graph.network
        self.names: set[str] = set()
        self.own_of: dict[fx.Node, str] = {}  # constant → how it is read
        self.made: list[str] = []
        self.weights: dict[str, Tensor] = {}

    def source(self) -> Source:
        """All of it."""
        graph = self.graph
        body, at, result = self._forward()
        name = _class_name(self.network.source)
        made = [f"        {line}\n" for line in self.made]
        code = _HEAD + _imports(made + body) + self._told(name)
        code += f"\n\nclass {name}(nn.Module):\n    def __init__(self) -> None:\n        super().__init__()\n"
        code += "".join(made)
        code += "\n    def forward(self, x: torch.Tensor) -> torch.Tensor:\n"
        code += "".join(body) + f"        return {result}\n"
        statements = {layer: at[graph.resolved(graph.nodes[tap.node])] for layer, tap in graph.taps.items()}
        return Source(code=code, name=name, weights=self.weights, statements=statements)

    def _forward(self) -> tuple[list[str], dict[fx.Node, int], str]:
        """The statements, which of them makes which node, and the variable of the network's output."""
        graph, steps = self.graph, self.graph.steps
        (image,) = (node for node in graph.nodes.values() if node.op == "placeholder")
        output = graph.resolved(graph.nodes[graph.taps[self.network.output].node])
        last = {graph.resolved(node): place for place, step in enumerate(steps) for node in step.inputs}
        last[output] = len(steps)
        holds = {"x": image}
        variables = {image: "x"}
        at = {image: -1}
        lines = [f"        # {_size(self.graph.values[image])}\n"]
        for place, step in enumerate(steps):
            inputs = [graph.resolved(node) for node in step.inputs]
            text = self._text(step, dict(zip(step.inputs, (variables[node] for node in inputs), strict=True)))
            free = [name for name, node in holds.items() if last.get(node, -1) <= place]
            target = min(free, key=_VARIABLES.index, default="") or _VARIABLES[len(holds)]
            holds[target], variables[step.node], at[step.node] = step.node, target, place
            lines.append(f"        {target} = {text}{self._remark(step.node)}\n")
        return lines, at, variables[output]

    def _text(self, step: Step, variables: Mapping[fx.Node, str]) -> str:
        if step.function:
            return step.function.format(x=variables[step.inputs[0]])
        if step.dense is not None:
            return linear(self._operation(step.node, step.inputs, variables), *step.dense)
        node = step.node
        given = [*node.args, *([] if isinstance(self.graph.part(node), str) else node.kwargs.values())]
        return write(self._operation(node, given, variables))

    def _operation(self, node: fx.Node, given: Sequence[Any], names: Mapping[fx.Node, str]) -> Operation:
        part = self.graph.part(node)

        def written(value: Any) -> str:
            if isinstance(value, fx.Node):
                return names[value] if value in names else self._constant(value, node)
            if isinstance(value, (tuple, list)):
                parts = ", ".join(map(written, value))
                return f"({parts}{',' if len(value) == 1 else ''})"
            if isinstance(value, torch.dtype) or (isinstance(value, str) and re.fullmatch(r"[a-z_]+", value)):
                return repr(value)
            if value is None or isinstance(value, (int, float)):
                return number(value)
            raise uncovered(f"{node.name} of {type(value).__name__}")

        def own(made_by: str, weights: Mapping[str, Tensor]) -> str:
            name = self._attribute(node, str(part) if isinstance(part, str) else type(part).__name__)
            self._add(name, made_by, node)
            self.weights.update({f"{name}.{key}": _kept(value) for key, value in weights.items()})
            return f"self.{name}"

        return Operation(
            part=part,
            args=_Arguments(given, written),
            values=[self.graph.values.get(value, value) if isinstance(value, fx.Node) else value for value in given],
            constants=[not isinstance(value, fx.Node) or value in self.graph.constants for value in given],
            output=self.graph.values[node],
            keywords={key: written(node.kwargs[key]) for key in _keywords(node)} if isinstance(part, str) else {},
            own=own,
        )

    def _remark(self, node: fx.Node) -> str:
        """Which layers' output it is, and its shape."""
        value = self.graph.values[node]
        names = ", ".join(map(_printable, self.graph.layers_at.get(node, [])))
        told = ": ".join(part for part in (names, _size(value) if isinstance(value, Tensor) else "") if part)
        return f"  # {told}" if told else ""

    def _add(self, name: str, made_by: str, node: fx.Node) -> None:
        layer = self.graph.layer_of.get(node, "")
        kind = self.graph.kinds.get(layer, "")
        remarks = [repr(_printable(layer))] if layer and layer != name else []
        if kind == "BatchNormalization" and not made_by.startswith("nn.BatchNorm"):
            remarks.append("a batch norm, folded: it has no statistics any more")
        self.made.append(f"self.{name} = {made_by}" + (f"  # {'; '.join(remarks)}" if remarks else ""))

    def _constant(self, node: fx.Node, reader: fx.Node) -> str:
        """A number in place, or a tensor as an attribute: a parameter where Keras trains it, a buffer elsewhere."""
        value: Tensor = self.graph.values[node]
        if value.numel() == 1 and value.ndim <= self.graph.values[reader].ndim:
            return number(value.reshape(()))
        if node in self.own_of:
            return self.own_of[node]
        part = reader
        while part not in self.graph.layer_of and len(part.users) == 1:
            (user,) = part.users
            if self.graph.kind(user) != "OnnxBinaryMathOperation":
                break
            part = user
        trained = part in self.graph.layer_of and self.graph.kinds[self.graph.layer_of[part]] in _TRAINED
        function = getattr(getattr(self.graph.part(reader), "math_op_function", None), "__name__", "")
        what = {"add": "offset", "sub": "offset", "mul": "factor", "_onnx_div": "factor"}.get(function, "constant")
        name = self._unique(f"{_identifier(self._near(reader))}_{what}")
        shape = ", ".join(map(str, value.shape))
        if value.is_floating_point() and trained:
            self._add(name, f"nn.Parameter(torch.zeros({shape}))", reader)
        else:
            dtype = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
            self.made.append(f'self.register_buffer("{name}", torch.zeros({shape}{dtype}))')
        self.weights[name] = _kept(value)
        self.own_of[node] = f"self.{name}"
        return self.own_of[node]

    def _attribute(self, node: fx.Node, kind: str) -> str:
        """An attribute's name: the layer's, or that of the layer which the node belongs to."""
        if self.network.is_wrapped and node.op == "call_module" and node not in self.graph.layer_of:
            return self._unique(_identifier(str(node.target)))  # as the user's module calls it
        near = self.graph.near(node)
        name = self._near(node)
        bare = near is node or self.graph.kind(near) in ("OnnxBinaryMathOperation", "OnnxPadStatic")
        bare = bare or self.graph.kinds.get(name) == "Dense"  # which has one product, and its channels moved after it
        return self._unique(_identifier(name if bare else f"{name}_{kind.removeprefix('Onnx').lower()}"))

    def _near(self, node: fx.Node) -> str:
        near = self.graph.near(node)
        return "network" if near is None else self.graph.layer_of[near]

    def _unique(self, name: str) -> str:
        chosen, count = name, 1
        while chosen in self.names or chosen in _TAKEN or keyword.iskeyword(chosen):
            count += 1
            chosen = f"{name}_{count}"
        self.names.add(chosen)
        return chosen

    def _told(self, name: str) -> str:
        domain = self.network.domain
        height, width, channels = self.network.input_shape
        noises = ", ".join(f"{_printable(n)} ({_printable(self.graph.kinds[n])})" for n in self.graph.noises)
        whole = domain.pixel_mean == (0.0,) and domain.pixel_std == (1.0,)
        pixels = "as they are" if whole else f"as (pixel - {_few(domain.pixel_mean)}) / {_few(domain.pixel_std)}"
        return (
            f"# Made of {_printable(self.network.source)!r}. The weights lie beside this file:\n"
            f"#     model = {name}()\n"
            '#     model.load_state_dict(safetensors.torch.load_file("weights.safetensors"))\n'
            "#     model.eval()\n"
            f"# It takes images (batch, {channels}, {height}, {width}), channels first;\n"
            f"# pixels of 0 to 255 go in {pixels}.\n"
            + (f"# Left out, since they act in training alone and the file holds no rates: {noises}.\n" * bool(noises))
        )


_HEAD = '"""A network as plain PyTorch, written by oip_torch: to read, to change and to train."""\n\n'


def _imports(lines: Sequence[str]) -> str:
    functional = "import torch.nn.functional as F\n" if any("F." in line.partition("  #")[0] for line in lines) else ""
    return f"import torch\n{functional}from torch import nn\n\n"


def _keywords(node: fx.Node) -> list[str]:
    """Those that say something: not torch's own bookkeeping, and what is so anyway."""
    idle = {"_stacklevel": (3, 5), "dtype": (None,), "inplace": (False,)}
    return [key for key, value in node.kwargs.items() if value not in idle.get(key, ())]


def _kept(value: Tensor) -> Tensor:
    return value.detach().clone().contiguous()


def _identifier(name: str) -> str:
    """A name from a file as an identifier: letters and digits of ASCII alone."""
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60] or "layer"
    return f"layer_{plain}" if plain[0].isdigit() else plain


def _class_name(source: str) -> str:
    words = re.findall(r"[A-Za-z0-9]+", source.rpartition("/")[2].partition(".")[0])
    name = "".join(word[:1].upper() + word[1:] for word in words)[:60]
    return name if len(name) > 1 and not name[0].isdigit() and not keyword.iskeyword(name) else "Network"


def _printable(text: str) -> str:
    """Without what could end a comment, or make a reader see another text than there is."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:120]


def _few(values: Sequence[float]) -> str:
    return number(values[0]) if len(values) == 1 else f"({', '.join(map(number, values))})"


def _size(value: Tensor) -> str:
    first, *rest = value.shape if value.ndim else (0,)
    batch = "batch" if first == 2 else f"batch * {first // 2}" if first and first % 2 == 0 else str(first)
    return f"({', '.join([batch, *map(str, rest)])})"
