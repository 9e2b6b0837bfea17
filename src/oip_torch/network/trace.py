"""How does a torch module become a graph: which node is the output of which of its layers?

torch.fx traces most modules. It runs the module's own Python code with stand-ins for tensors, so it fails where that
code decides by a size or writes into a part of a tensor; torch.export takes many of those, and is slower. Neither can
follow code that decides by the values of an image.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

__all__ = ["Call", "Traced", "copied", "operation", "trace_by_export", "trace_by_fx"]

_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}
_RELU = (torch.relu, nn.functional.relu, "relu")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module or function that the trace saw.

    Attributes:
        name: the module's path, such as "layer3.1.conv2", or of a function the path of the module that calls it with
            the function's name, such as "layer3.1.relu"; with "@1", "@2" … where that is called several times.
        kind: class of the module, or name of the function.
        node: whose output it is.
        is_block: whether it is a module that calls others.
    """

    name: str
    kind: str
    node: fx.Node
    is_block: bool = False


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A module as a graph that writes into nothing: images → its outputs, a flat tuple.

    Attributes:
        module: the graph; its submodules are those of the copy that was traced.
        calls: in the order in which they run.
        way: "torch.fx" or "torch.export".
    """

    module: fx.GraphModule
    calls: tuple[Call, ...]
    way: str


def copied(module: nn.Module) -> nn.Module:
    """A copy in eval mode, without the user's hooks; those by which torch makes weights (spectral norm …) stay."""
    other = copy.deepcopy(module).eval()
    for part in other.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            hooks = getattr(part, name)
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith("torch.nn.utils"):
                    del hooks[key]
    return other


class _Tracer(fx.Tracer):
    """Notes each call of a module, blocks included."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str, fx.Node, bool]] = []

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            path = self.path_of_module(m)
            is_block = not (result.node.op == "call_module" and result.node.target == path)
            self.calls.append((path, type(m).__name__, result.node, is_block))
        return result


def trace_by_fx(module: nn.Module) -> Traced:
    """Symbolically traced; whatever the module's code raises meanwhile is let through.

    Args:
        module: a copy, which this may change.
    """
    tracer = _Tracer()
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    graph = tracer.trace(module, concrete_args=defaults or None)
    graph.set_codegen(fx.graph.CodeGen())
    seen = list(tracer.calls)
    of_modules = {node for _, _, node, is_block in seen if not is_block}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node not in of_modules:
            path, _ = _caller(node)[1]
            seen.append((f"{path}.{operation(node)}".lstrip("."), operation(node), node, False))
    network = fx.GraphModule(module, graph)
    _write_nowhere(network)
    network.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))  # checks of sizes as well
    for node in list(network.graph.nodes):
        if node.op == "placeholder" and not node.users and node.args:  # an argument that has its default
            network.graph.erase_node(node)
    return _traced(network, seen, "torch.fx")


def trace_by_export(module: nn.Module, images: Tensor) -> Traced:
    """Exported by torch.export for any number of such images; its errors are let through.

    Args:
        module: a copy, which this may change.
        images: (batch, channels, height, width), two or more.
    """
    with _silent():
        exported = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        network = exported.run_decompositions({}).module()  # with no decompositions it only stops writing in place
    graph = network.graph
    graph.set_codegen(fx.graph.CodeGen())
    for node in reversed(list(graph.nodes)):
        if node.op == "call_module" or "assert" in str(node.target):  # checks of the input's shape
            graph.erase_node(node)
        elif node.target is torch.ops.aten.copy.default:
            node.target = _copy
    graph.eliminate_dead_code()
    seen: list[tuple[str, str, fx.Node, bool]] = []
    before = ""
    for node in graph.nodes:
        if node.op != "call_function" or operation(node) == "sym_size":
            continue
        key, (path, kind) = _caller(node)
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        path = path.partition("@")[0]
        if not kind.startswith("torch.nn.modules") or not path:
            key = ""
            seen.append((f"{path}.{operation(node)}".lstrip("."), operation(node), node, False))
        else:
            if key and key == before:  # the last operation of a module is its output
                seen.pop()
            seen.append((path, kind.rpartition(".")[2], node, False))
        before = key
    return _traced(fx.GraphModule(network, graph), seen, "torch.export")


def _copy(before: Tensor, values: Tensor) -> Tensor:
    """What is there after values were written over a tensor; torch's own function has no derivative."""
    return values.expand_as(before).to(before.dtype)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """torch.export logs and prints whole graphs where it fails; the error says it in one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            with contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
    finally:
        logging.disable(before)


def _caller(node: fx.Node) -> tuple[str, tuple[str, Any]]:
    """The innermost call of a module that a node belongs to: its key, and the module's path and class."""
    return next(reversed(node.meta.get("nn_module_stack", {}).items()), ("", ("", "")))


def operation(node: fx.Node) -> str:
    """The plain name of what a node calls: "relu" for F.relu, x.relu_() and aten.relu.default alike."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket.__name__
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    return str(name).strip("_") or str(name)


def _traced(network: fx.GraphModule, seen: Iterable[tuple[str, str, fx.Node, bool]], way: str) -> Traced:
    (end,) = (node for node in network.graph.nodes if node.op == "output")
    end.args = (tuple(leaf for leaf in tree_leaves(end.args) if isinstance(leaf, fx.Node)),)
    network.recompile()
    order = {node: place for place, node in enumerate(network.graph.nodes)}
    nodes = {node.name: node for node in network.graph.nodes}
    # The nodes of the graph that a GraphModule holds are copies of those that were seen, of the same names.
    calls = [(path, kind, nodes[node.name], is_block) for path, kind, node, is_block in seen if node.name in nodes]
    calls.sort(key=lambda call: (order[call[2]], call[3]))
    counts, numbers = Counter(path for path, *_ in calls), Counter[str]()
    named = []
    for path, kind, node, is_block in calls:
        numbers[path] += 1
        name = f"{path}@{numbers[path]}" if counts[path] > 1 else path
        named.append(Call(name=name, kind=kind, node=node, is_block=is_block))
    return Traced(module=network, calls=tuple(named), way=way)


def _write_nowhere(network: fx.GraphModule) -> None:
    """Instead of writing into its input a node gives a new tensor, which all that comes later reads."""
    order = {node: place for place, node in enumerate(network.graph.nodes)}
    for node in network.graph.nodes:
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        target: Any = node.target
        plain: Any = None
        if module is not None and not node.args and list(node.kwargs) == ["input"]:
            node.args, node.kwargs = (node.kwargs["input"],), {}
        if module is not None and getattr(module, "inplace", False):
            plain = target
        elif node.op == "call_function" and target in _IN_PLACE:
            plain = _IN_PLACE[target]
        elif node.op == "call_function" and node.kwargs.get("inplace"):
            plain, node.kwargs = target, {**node.kwargs, "inplace": False}
        elif node.op == "call_method" and _plain_name(target) and hasattr(Tensor, _plain_name(target)):
            plain = _plain_name(target)
        elif node.op == "call_function":
            name = _plain_name(getattr(target, "__name__", ""))
            plain = getattr(torch, name, None) or getattr(nn.functional, name, None) if name else None
        if plain is None or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        node.target = plain
        later = {user for user in node.args[0].users if order[user] > order[node]}
        node.args[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)
    for part in network.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment] # of a module, not a weight
    for node in network.graph.nodes:  # a module, so that the passes know it
        if node.op in ("call_function", "call_method") and node.target in _RELU and len(node.all_input_nodes) == 1:
            network.add_submodule(f"{node.name}_of_function", nn.ReLU())
            node.op, node.target, node.args, node.kwargs = "call_module", f"{node.name}_of_function", node.args[:1], {}


def _plain_name(name: str) -> str:
    """ "relu" for "relu_"; "" for what does not end in one underscore."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else ""
