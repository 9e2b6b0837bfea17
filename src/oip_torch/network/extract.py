"""How is a network run up to some of its nodes, and no further?"""

from __future__ import annotations

import contextlib
import linecache
import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import fx

from oip_torch.network.passes import optimize_graph

__all__ = ["GraphNetwork", "Tap", "extract", "forgotten_sources", "leaky", "nearest_activations", "truncate"]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place where the network can be looked at: one node of its graph.

    Not a module's path: a module may run twice in a network, as the one ReLU of a ResNet's block does.

    Attributes:
        node: name of the fx node whose output is the layer's.
        before: name of the node whose output goes into the layer's activation; None where it has none.
        channels: how many maps or units.
        size: (height, width) of a map; () where the output is flat.
    """

    node: str
    before: str | None
    channels: int
    size: tuple[int, ...]

    @property
    def pre_activation(self) -> Tap:
        """Where what goes into the activation can be looked at; the tap itself where there is none."""
        return (
            self if self.before is None else Tap(node=self.before, before=None, channels=self.channels, size=self.size)
        )


class GraphNetwork(Protocol):
    """What is needed of a network to run it up to its taps; `FeatureModel` is one."""

    graph_module: fx.GraphModule

    @property
    def taps(self) -> Mapping[str, Tap]:
        """By the name of the layer."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""


def extract(network: GraphNetwork, taps: Sequence[Tap], *, leak: bool, one_channel: bool) -> fx.GraphModule:
    """The network up to some taps, in the form that is fastest to ascend on; equal to the plain one but for rounding.

    On a CPU it holds copies of the weights in another layout: make one for each call, and keep none.

    Args:
        network: it stays as it is.
        taps: at least one.
        leak: whether there are leaky outputs of their own, see `leaky`.
        one_channel: of each image only its channel of the one tap, (batch, 1, …).

    Returns:
        A module: images (batch, C, H, W), leak, channels (batch,) → the outputs (batch, channels, …) of all taps, and
        then their leaky outputs; without `leak` the plain ones once more.
    """
    nodes = [tap.node for tap in taps]
    module = network.graph_module
    on_cpu = network.device.type == "cpu"
    part = leaky(module, nodes, activations_of(network)) if leak else truncate(module, nodes)
    with forgotten_sources():
        return optimize_graph(part, network.input_shape, one_channel=one_channel, channels_last=on_cpu)


@contextlib.contextmanager
def forgotten_sources() -> Iterator[None]:
    """torch.fx keeps the source of each module that it generates, for tracebacks, while the process lives.

    Of those made in this block none is kept: else memory would grow with every ascent.
    """
    before = set(linecache.cache)
    try:
        yield
    finally:
        sources: dict[str, str] = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {})
        for name in set(linecache.cache) - before:
            if name.startswith("<eval_with_key>"):
                linecache.cache.pop(name, None)
                sources.pop(name, None)


def truncate(module: fx.GraphModule, nodes: Sequence[str]) -> fx.GraphModule:
    """The graph up to these nodes and no further, sharing the module's weights.

    Returns:
        A module: images (batch, C, H, W) → the outputs of the nodes, a tuple.
    """
    ends = _nodes(module, nodes)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    wanted = _ancestors(ends)
    for node in module.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return _finished(module, graph, [copies[end] for end in ends])


def leaky(module: fx.GraphModule, nodes: Sequence[str], activations: Mapping[str, str]) -> fx.GraphModule:
    """The graph up to these nodes, with a second output for each in which its nearest activations leak.

    Each activation f that is met first on the way back from a node (the node itself, if it is one) is replaced by
    (1 - leak)·f(z) + leak·z there: for a ReLU a leaky ReLU. So gradients pass where f is flat.

    Args:
        module: it shares its weights.
        nodes: their names.
        activations: activation node → the node whose output goes into it.

    Returns:
        A module: images (batch, C, H, W), leak → the outputs of the nodes, and then their leaky outputs, a tuple.
    """
    ends = _nodes(module, nodes)
    by_name = {node.name: node for node in module.graph.nodes}
    nearest = [_ancestors([end], until=activations.keys()) for end in ends]
    flat = {node: by_name[activations[node.name]] for near in nearest for node in near if node.name in activations}
    # What goes into an activation need not lie on the way to its output: ONNX may compute it on a side branch.
    wanted = _ancestors([*ends, *flat.values()])
    graph = fx.Graph()
    plain: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node in wanted:
            plain[node] = graph.node_copy(node, lambda n: plain[n])
        if node.op == "placeholder":
            leak = graph.placeholder("leak")
    outputs = []
    for end, near in zip(ends, nearest, strict=True):
        copies: dict[fx.Node, fx.Node] = {}

        def leaky_or_plain(node: fx.Node, copies: dict[fx.Node, fx.Node] = copies) -> fx.Node:
            return copies.get(node, plain[node])

        for node in (node for node in module.graph.nodes if node in near):
            if node in flat:
                rest = graph.call_function(operator.sub, (plain[flat[node]], plain[node]))
                rest = graph.call_function(operator.mul, (rest, leak))
                copies[node] = graph.call_function(operator.add, (plain[node], rest))
            elif any(source in copies for source in node.all_input_nodes):
                copies[node] = graph.node_copy(node, leaky_or_plain)
        outputs.append(copies.get(end, plain[end]))
    return _finished(module, graph, [*(plain[end] for end in ends), *outputs])


def nearest_activations(network: GraphNetwork, tap: Tap) -> list[str]:
    """Names of the layers whose activations `leaky` makes leak on the way to a tap."""
    activations = activations_of(network)
    found = {node.name for node in _ancestors(_nodes(network.graph_module, [tap.node]), until=activations.keys())}
    # A block has the node of its last layer, which comes first.
    names: dict[str, str] = {}
    for name, own in network.taps.items():
        if own.before is not None and own.node in found:
            names.setdefault(own.node, name)
    return list(names.values())


def activations_of(network: GraphNetwork) -> dict[str, str]:
    """Activation node → the node whose output goes into it, of the whole network."""
    return {tap.node: tap.before for tap in network.taps.values() if tap.before is not None}


def _nodes(module: fx.GraphModule, names: Sequence[str]) -> list[fx.Node]:
    by_name = {node.name: node for node in module.graph.nodes}
    return [by_name[name] for name in names]


def _ancestors(ends: Sequence[fx.Node], until: Set[str] = frozenset()) -> set[fx.Node]:
    """The nodes and all that they are computed from; not beyond nodes whose names are in `until`."""
    found: set[fx.Node] = set()
    open_nodes = list(ends)
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found.add(node)
            if node.name not in until:
                open_nodes.extend(node.all_input_nodes)
    return found


def _finished(module: fx.GraphModule, graph: fx.Graph, outputs: Sequence[fx.Node]) -> fx.GraphModule:
    graph.output(tuple(outputs))
    graph.lint()
    # GraphModule copies only the submodules that the graph names; their parameters stay the module's.
    with forgotten_sources():
        return fx.GraphModule(module, graph).eval()
