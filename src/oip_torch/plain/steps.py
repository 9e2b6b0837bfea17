"""Which nodes of a graph become which statements?

Most become one each. A product with its bias becomes one dense layer, and an activation that ONNX spells out, as it
does gelu, the function of torch, where the numbers say that it is. What changes nothing becomes none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from oip_torch.network.extract import Tap
from oip_torch.network.onnx_file import Network
from oip_torch.network.places import function_of
from oip_torch.plain.layers import activations_of

__all__ = ["Graph", "Step"]

_IDENTITIES = ("Identity", "OnnxCopyIdentity")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One statement.

    Attributes:
        node: whose output it makes.
        inputs: of what.
        dense: the weights (outputs, inputs) and the bias of a dense layer that several nodes make up; else None.
        function: how an activation is written that several nodes make up, with {x} for its input; else "".
    """

    node: fx.Node
    inputs: tuple[fx.Node, ...]
    dense: tuple[Tensor, Tensor] | None = None
    function: str = ""


class Graph:
    """A network's graph, run once on two images, and what of it is to be written.

    Attributes:
        values: node → what it gave for two images.
        constants: the nodes whose values do not depend on the image.
        layers_at: node → the layers whose output it is.
        layer_of: node → the layer whose name it bears: as its output, or as what goes into its activation.
        aliases: node → another one that gives the same.
        steps: in order.
    """

    def __init__(self, module: fx.GraphModule, taps: Mapping[str, Tap], network: Network, images: Tensor) -> None:
        """As of `code.write_source`."""
        self.module, self.taps, self.network = module, taps, network
        self.kinds = {layer.name: layer.kind for layer in network.layers}
        run = fx.Interpreter(module, garbage_collect_values=False)
        with torch.no_grad():
            run.run(images)
        self.values: dict[fx.Node, Any] = run.env
        self.nodes = {node.name: node for node in module.graph.nodes}
        self.constants = self._constant_nodes()
        self.aliases: dict[fx.Node, fx.Node] = {}
        self._find_aliases()
        self.layers_at: dict[fx.Node, list[str]] = {}
        self.layer_of: dict[fx.Node, str] = {}
        for name, tap in taps.items():
            self.layer_of.setdefault(self.resolved(self.nodes[tap.node]), name)
        for name, tap in taps.items():
            if tap.before is not None:
                self.layer_of.setdefault(self.resolved(self.nodes[tap.before]), name)
        self.steps = self._steps()
        for name, tap in taps.items():
            self.layers_at.setdefault(self.resolved(self.nodes[tap.node]), []).append(name)

    def resolved(self, node: fx.Node) -> fx.Node:
        """The node itself, or the one that gives the same and is written."""
        while node in self.aliases:
            node = self.aliases[node]
        return node

    def readers(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that read what it gives, other than those that give the same."""
        found = set()
        for user in node.users:
            found |= self.readers(user) if user in self.aliases else {user}
        return found

    def part(self, node: fx.Node) -> nn.Module | str:
        """The module that a node calls, or the name of the function or method."""
        if node.op == "call_module":
            part = self.module.get_submodule(str(node.target))
            return function_of(part) or part
        target: Any = node.target
        return target if isinstance(target, str) else str(target.__name__)

    def kind(self, node: Any) -> str:
        """The class of the module that a node calls; "" of all else."""
        return type(self.part(node)).__name__ if isinstance(node, fx.Node) and node.op == "call_module" else ""

    @property
    def noises(self) -> list[str]:
        """The layers that are identities in the file, and something random in the training of the Keras network."""
        random = (name for name, kind in self.kinds.items() if "Dropout" in kind or kind == "GaussianNoise")
        return [name for name in random if not self.kind(self.nodes[self.taps[name].node]).startswith("Dropout")]

    def near(self, node: fx.Node) -> fx.Node | None:
        """The nearest node after this one, or itself, that bears a layer's name."""
        written = {step.node for step in self.steps}
        for _ in range(20):
            if node in self.layer_of:
                return node
            users = self.readers(node) & written
            # A layer's output may be a copy with the channels moved, beside what the network goes on with.
            moved = {user for user in users & self.layer_of.keys() if self.kind(user) == "OnnxTranspose"}
            users = moved or users
            if len(users) != 1:
                break
            (node,) = users
        return None

    def _constant_nodes(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.module.graph.nodes:
            if node.op == "get_attr" or (
                node.op.startswith("call") and node.all_input_nodes and found.issuperset(node.all_input_nodes)
            ):
                found.add(node)
        return found

    def _find_aliases(self) -> None:
        """What changes nothing; and transpositions of one tensor that are alike, of which exporters write several."""
        first: dict[tuple[Any, ...], fx.Node] = {}
        for node in self.module.graph.nodes:
            if node in self.constants or not node.op.startswith("call"):
                continue
            if self._is_idle(node):
                self.aliases[node] = node.args[0]
            elif self.kind(node) == "OnnxTranspose":
                part: Any = self.part(node)
                twin = first.setdefault((self.resolved(node.args[0]), tuple(part.perm or ())), node)
                if twin is not node:
                    self.aliases[node] = twin

    def _steps(self) -> list[Step]:
        folded = self._folded()
        inside = {node for nodes, _ in folded.values() for node in nodes}
        steps = []
        for node in self.module.graph.nodes:
            if node.op in ("placeholder", "output", "get_attr") or node in self.constants or node in inside:
                continue
            if node in self.aliases:
                continue
            if node in folded:
                steps.append(folded[node][1])
            else:
                steps.append(Step(node=node, inputs=tuple(n for n in node.all_input_nodes if n not in self.constants)))
        needed = {self.resolved(self.nodes[tap.node]) for tap in self.taps.values()}
        kept = []
        for step in reversed(steps):  # what nothing reads, as a layer or on the way to one
            if step.node in needed:
                needed.update(map(self.resolved, step.inputs))
                kept.append(step)
        return kept[::-1]

    def _folded(self) -> dict[fx.Node, tuple[list[fx.Node], Step]]:
        """Node → the nodes before it that become one statement with it, and that."""
        found: dict[fx.Node, tuple[list[fx.Node], Step]] = {}
        for node in self.module.graph.nodes:
            if (dense := self._dense(node)) is not None:
                found[node] = dense
        for layer in self.network.layers:
            tap = self.taps[layer.name]
            end = self.resolved(self.nodes[tap.node])
            start = None if tap.before is None else self.resolved(self.nodes[tap.before])
            if start is not None and (spelled := self._spelled_out(end, start, layer.activation)) is not None:
                found[end] = spelled
        return found

    def _dense(self, node: fx.Node) -> tuple[list[fx.Node], Step] | None:
        """A product with constant weights, and the bias that is added to it."""
        part, arguments = self.part(node), node.args
        if getattr(part, "math_op_function", None) is not torch.add or arguments[1] not in self.constants:
            return None
        product: Any = arguments[0]
        if self.kind(product) != "OnnxMatMul" or product in self.layer_of or len(self.readers(product)) != 1:
            return None
        x, weight = product.args
        if weight not in self.constants or x in self.constants:
            return None
        matrix, offset = self.values[weight], self.values[arguments[1]]  # type: ignore[index]
        if matrix.ndim != 2 or tuple(offset.shape) != (matrix.shape[1],):
            return None
        return [product], Step(node=node, inputs=(x,), dense=(matrix.t(), offset))

    def _spelled_out(self, end: fx.Node, start: fx.Node, activation: str | None) -> tuple[list[fx.Node], Step] | None:
        """An activation of several nodes that is a function of torch: equal where the network was run."""
        between = _between(start, end, self.constants)
        inside = [node for node in between if node is not end]
        if not inside or any(node in self.layer_of for node in inside):
            return None
        if any(not self.readers(node) <= set(between) for node in inside):
            return None
        given, expected = self.values[start], self.values[end]
        for text, function in activations_of(activation):
            got = function(given)
            if got.shape == expected.shape and bool((got - expected).abs().max() <= 1e-6 * expected.abs().max()):
                return inside, Step(node=end, inputs=(start,), function=text)
        return None

    def _is_idle(self, node: fx.Node) -> bool:
        """Whether a node gives what it gets."""
        kind, arguments = self.kind(node), node.args
        part: Any = self.part(node)
        first: Any = arguments[0] if arguments else None
        if kind in _IDENTITIES:
            return True
        if kind in ("Reshape", "OnnxCast"):
            got, given = self.values[node], self.values[first]
            return bool(got.shape == given.shape and got.dtype == given.dtype)
        if kind == "OnnxBinaryMathOperation" and arguments[1] in self.constants:
            second: Any = self.values[arguments[1]]  # type: ignore[index]
            neutral = {"add": 0, "sub": 0, "mul": 1, "_onnx_div": 1}[part.math_op_function.__name__]
            same = self.values[node].shape == self.values[first].shape
            return bool(same and second.numel() == 1 and float(second) == neutral)
        return node.op == "call_method" and node.target == "contiguous"


def _between(start: fx.Node, end: fx.Node, constants: set[fx.Node]) -> list[fx.Node]:
    """The nodes from after `start` to `end`; none where something else leads to `end`."""
    found: list[fx.Node] = []
    open_nodes = [end]
    while open_nodes:
        node = open_nodes.pop()
        if node is start or node in found or node in constants:
            continue
        if node.op == "placeholder" or len(found) > 20:
            return []
        found.append(node)
        open_nodes.extend(node.all_input_nodes)
    return found
