"""Where can a traced module be looked at, and where do the channels lie there?

Every place becomes a node of its own that calls a module of its own, so that hooks see it and nothing else. Networks
that keep their channels last, as vision transformers do, are shown as (batch, channels, height, width) there: a view,
after which the values go on as they came.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from oip_torch.network.extract import Tap
from oip_torch.network.trace import Call, Traced, operation

__all__ = ["Place", "find_places", "function_of"]

FIRST, LAST = "first", "last"

_CHANNELS_FIRST = frozenset(
    "batchnorm channelshuffle conv instancenorm padding pixelshuffle pooling upsampling".split()
)
"""Of torch.nn.modules, the files whose modules have the channels first."""
_CHANNELS_FIRST_FUNCTIONS = frozenset(
    "adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d batch_norm conv1d conv2d conv_transpose2d group_norm "
    "instance_norm interpolate max_pool2d max_pool2d_with_indices pixel_shuffle upsample_bilinear2d "
    "upsample_nearest2d".split()
)
_CHANNELS_LAST_FUNCTIONS = frozenset(("embedding", "linear"))
_REARRANGING = frozenset(
    "alias chunk clone contiguous detach dim dropout expand flatten float getattr getitem identity movedim numel "
    "permute reshape select size slice split squeeze stochastic_depth swapaxes to transpose type_as unbind "
    "unsqueeze view AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout Flatten Identity Permute "
    "StochasticDepth Unflatten".split()
)
_ACTIVATIONS = {
    "celu": "celu",
    "elu": "elu",
    "gelu": "gelu",
    "hardshrink": "hard_shrink",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_silu",
    "hardtanh": "hard_tanh",
    "leakyrelu": "leaky_relu",
    "logsigmoid": "log_sigmoid",
    "logsoftmax": "log_softmax",
    "mish": "mish",
    "prelu": "prelu",
    "relu": "relu",
    "relu6": "relu6",
    "rrelu": "rrelu",
    "selu": "selu",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "softmax": "softmax",
    "softmax2d": "softmax",
    "softplus": "softplus",
    "softshrink": "soft_shrink",
    "softsign": "softsign",
    "tanh": "tanh",
    "tanhshrink": "tanh_shrink",
    "threshold": "threshold",
}
"""Names in torch, of modules and functions, without underscores and in small letters → Keras' names."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A layer that can be looked at.

    Attributes:
        name: of the layer, see `trace.Call`.
        kind: class of the module, or name of the function.
        tap: where it is in the graph.
        activation: which one the layer is, such as "relu"; None where it is none.
    """

    name: str
    kind: str
    tap: Tap
    activation: str | None


def find_places(traced: Traced, images: Tensor) -> tuple[list[Place], dict[str, str], str]:
    """Rewrite the traced graph so that each layer is a node of its own.

    Args:
        traced: its graph is changed; its outputs stay the module's own.
        images: (2, channels, height, width).

    Returns:
        The layers in order; the names of those that cannot be looked at, and why; and the output's layer.
    """
    shapes = _Shapes(traced.module).of(images)
    layouts = _layouts(traced.module, shapes)
    rewriting = _Rewriting(traced.module, shapes, layouts)
    outputs: Any = next(node for node in traced.module.graph.nodes if node.op == "output").args[0]
    chosen, refused = [], {}
    for call in traced.calls:
        call = replace(call, node=_first_of_tuple(call.node, shapes))
        if call.kind in _REARRANGING and call.node not in outputs:
            refused[call.name] = f"a {call.kind} only passes on or rearranges what comes in: name the layer before it"
        elif (reason := rewriting.why_not(call.node)) is not None:
            refused[call.name] = reason
        else:
            chosen.append(call)
    known = {call.node for call in chosen}
    for number, node in enumerate(outputs):
        if node not in known and rewriting.why_not(node) is None:
            suffix = f"@{number + 1}" if len(outputs) > 1 else ""
            chosen.append(Call(name=f"output{suffix}", kind=operation(node), node=node))
    befores = {call.node: _before(traced.module, call.node, rewriting) for call in chosen}
    activations = {node: _activation(traced.module, node) for node, before in befores.items() if before is not None}
    wanted = [*dict.fromkeys([*befores, *(node for node in befores.values() if node is not None)])]
    order = {node: place for place, node in enumerate(traced.module.graph.nodes)}
    sizes = {node: rewriting.size(node) for node in wanted}
    placed = {node: rewriting.place(node) for node in sorted(wanted, key=lambda node: -order[node])}
    places = []
    for call in chosen:
        before = befores[call.node]
        tap = Tap(
            node=placed[call.node].name,
            before=None if before is None else placed[before].name,
            channels=rewriting.channels(call.node),
            size=sizes[call.node],
        )
        places.append(Place(name=call.name, kind=call.kind, tap=tap, activation=activations.get(call.node)))
    traced.module.graph.lint()
    traced.module.recompile()
    result = next((call.name for call in chosen if call.node == outputs[0] and not call.is_block), None)
    result = result or next((call.name for call in chosen if call.node == outputs[0]), "")
    return places, {name: why for name, why in refused.items() if name not in {call.name for call in chosen}}, result


def _first_of_tuple(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> fx.Node:
    """Of a module that returns several tensors, as attention does, the first, where something reads it."""
    firsts = (user for user in node.users if user.target is operator.getitem and user.args == (node, 0))
    return node if node in shapes else next(firsts, node)


def _activation(module: fx.GraphModule, node: fx.Node) -> str | None:
    name = type(_module(module, node)).__name__ if node.op == "call_module" else operation(node)
    return _ACTIVATIONS.get(name.replace("_", "").lower())


def _before(module: fx.GraphModule, node: fx.Node, rewriting: _Rewriting) -> fx.Node | None:
    """What goes into an activation; None where the node is none."""
    if _activation(module, node) is None or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    alike = rewriting.shapes.get(source) == rewriting.shapes[node] and rewriting.why_not(source) is None
    return source if alike and rewriting.layouts.get(source) == rewriting.layouts.get(node) else None


def _module(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


class _Shapes(fx.Interpreter):
    """Of each node's output for two images, where it is one tensor of floats that has a row for each image."""

    def of(self, images: Tensor) -> dict[fx.Node, tuple[int, ...]]:
        runs = []
        with torch.no_grad():
            for count in (2, 3):
                self.found: dict[fx.Node, tuple[int, ...]] = {}
                self.run(torch.cat([images, images])[:count])
                runs.append(self.found)
        two, three = runs
        return {
            node: shape
            for node, shape in two.items()
            if shape[:1] == (2,) and three.get(node, ())[:1] == (3,) and three[node][1:] == shape[1:]
        }

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if isinstance(output, Tensor) and output.is_floating_point():
            self.found[n] = tuple(output.shape)
        return output


def _layouts(module: fx.GraphModule, shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, str | None]:
    """Where the channels lie in a node's output: `FIRST` after the batch, `LAST`, or not known.

    Convolutions, poolings and batch norms have them first, linear layers last; a permutation moves them, and what goes
    value by value leaves them where they were.
    """
    layouts: dict[fx.Node, str | None] = {}
    for node in module.graph.nodes:
        layouts[node] = _layout(module, node, shapes, layouts)
    return layouts


def _layout(
    module: fx.GraphModule,
    node: fx.Node,
    shapes: Mapping[fx.Node, tuple[int, ...]],
    layouts: Mapping[fx.Node, str | None],
) -> str | None:
    part, name = _module(module, node), operation(node)
    family = type(part).__module__.rpartition(".")[2] if part is not None else ""
    if node.op == "placeholder":
        return FIRST
    if family in _CHANNELS_FIRST or isinstance(part, (nn.GroupNorm, nn.LocalResponseNorm)):
        return FIRST
    if name in _CHANNELS_FIRST_FUNCTIONS:
        return FIRST
    if isinstance(part, nn.Linear) or name in _CHANNELS_LAST_FUNCTIONS:
        return LAST
    if isinstance(part, nn.MultiheadAttention):
        return LAST if part.batch_first else None
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    shape, old = shapes.get(node), shapes.get(source) if source is not None else None
    was = layouts.get(source) if source is not None else None
    if name in ("permute", "transpose", "swapaxes", "movedim"):
        if shape is None or old is None or was is None:
            return None
        order = _order(name, node.args[1:], len(old))
        at = None if order is None else order.index(1 if was == FIRST else len(old) - 1)
        return {1: FIRST, len(shape) - 1: LAST}.get(at if at is not None else -1)
    if name in ("flatten", "reshape", "view", "unflatten") or isinstance(part, (nn.Flatten, nn.Unflatten)):
        if shape is None or old is None or len(shape) < 3:
            return None
        kept = shape[1] == old[1] if was == FIRST else shape[-1] == old[-1]
        return was if kept else None
    of_sources = {
        layouts[other]
        for other in node.all_input_nodes
        if layouts.get(other) is not None
        and (shape is None or shapes.get(other) is None or len(shapes[other]) == len(shape))
    }
    return of_sources.pop() if len(of_sources) == 1 else None


def _order(name: str, arguments: Sequence[Any], count: int) -> list[int] | None:
    """The permutation of the axes, as `permute` takes it."""
    if name == "permute":
        axes = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else arguments
        return [axis % count for axis in axes] if all(isinstance(axis, int) for axis in axes) else None
    if len(arguments) != 2 or not all(isinstance(axis, int) for axis in arguments):
        return None
    first, second = (axis % count for axis in arguments)
    order = list(range(count))
    if name == "movedim":
        order.insert(second, order.pop(first))
    else:
        order[first], order[second] = second, first
    return order


class _Rewriting:
    """Gives nodes a module of their own, in a graph whose other nodes stay."""

    def __init__(
        self,
        module: fx.GraphModule,
        shapes: Mapping[fx.Node, tuple[int, ...]],
        layouts: Mapping[fx.Node, str | None],
    ) -> None:
        self.module, self.shapes, self.layouts = module, shapes, layouts
        self.grids: dict[fx.Node, tuple[int, int]] = {}
        grid = (1, 1)
        for node in module.graph.nodes:
            shape = shapes.get(node, ())
            if len(shape) == 4 and layouts[node] is not None:
                grid = (shape[2], shape[3]) if layouts[node] == FIRST else (shape[1], shape[2])
            self.grids[node] = grid

    def why_not(self, node: fx.Node) -> str | None:
        """Why a node's output cannot be looked at; None where it can."""
        shape = self.shapes.get(node)
        if shape is None:
            return "its output is not one tensor of floats with a row for each image"
        text = f"its output is (batch, {', '.join(map(str, shape[1:]))})"
        if not 2 <= len(shape) <= 4:
            return f"{text}: expected (batch, units), (batch, positions, channels) or maps"
        if len(shape) > 2 and self.layouts[node] is None:
            return f"{text}, and the graph does not tell which of these are the channels"
        return None

    def channels(self, node: fx.Node) -> int:
        """How many maps or units."""
        shape = self.shapes[node]
        return shape[-1] if self.layouts[node] == LAST else shape[1]

    def size(self, node: fx.Node) -> tuple[int, ...]:
        """(height, width) of a map; () where the output is flat. Positions in a row lie in their grid again."""
        shape = self.shapes[node]
        if len(shape) == 2:
            return ()
        last = self.layouts[node] == LAST
        places = shape[1:-1] if last else shape[2:]
        if len(places) == 2:
            return places
        height, width = self.grids[node]
        return (height, width) if places[0] == height * width else (places[0], 1)

    def place(self, node: fx.Node) -> fx.Node:
        """The node that calls a module of its own, and gives what this one gives, as maps."""
        own = self._called(node)
        shape = self.shapes[node]
        last = self.layouts[node] == LAST and len(shape) > 2
        if not last and len(shape) != 3:
            return own
        back = _FromMaps(last=last, row=len(shape) == 3)
        maps = self._inserted(own, f"{node.name}_as_maps", _ToMaps(last=last, size=self.size(node)))
        self._inserted(maps, f"{node.name}_from_maps", back)
        return maps

    def _called(self, node: fx.Node) -> fx.Node:
        graph, name = self.module.graph, f"own_{node.name}"
        part = _module(self.module, node)
        if part is not None:
            if sum(other.target == node.target for other in graph.nodes if other.op == "call_module") == 1:
                return node
            if not [*part.parameters(), *part.buffers()]:
                self.module.add_submodule(name, copy.deepcopy(part))
                node.target = name
                return node
        elif node.op in ("call_function", "call_method"):
            self.module.add_submodule(name, _Function(node.target, is_method=node.op == "call_method"))
            node.op, node.target = "call_module", name
            return node
        return self._inserted(node, name, nn.Identity())

    def _inserted(self, node: fx.Node, name: str, part: nn.Module) -> fx.Node:
        """A node after this one, which all that read it read instead."""
        self.module.add_submodule(name, part)
        with self.module.graph.inserting_after(node):
            new = self.module.graph.call_module(name, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        return new


class _Function(nn.Module):
    """A function as a module, on which hooks can be registered."""

    def __init__(self, function: Callable[..., Any] | str, *, is_method: bool) -> None:
        super().__init__()
        self.function, self.is_method = function, is_method

    def extra_repr(self) -> str:
        name = self.function if isinstance(self.function, str) else getattr(self.function, "__name__", "")
        return str(name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_method:
            return getattr(args[0], str(self.function))(*args[1:], **kwargs)
        return self.function(*args, **kwargs)  # type: ignore[operator] # only methods are given by name


def function_of(module: nn.Module) -> str | None:
    """The name of the function or method that a module of ours stands for; None of any other module."""
    return module.extra_repr() if isinstance(module, _Function) else None


class _ToMaps(nn.Module):
    """Values of one position after the other, or with the channels last, as maps: a view."""

    def __init__(self, *, last: bool, size: tuple[int, ...]) -> None:
        super().__init__()
        self.last, self.size = last, size

    def forward(self, x: Tensor) -> Tensor:
        """(batch, positions, channels), (batch, channels, positions) or (batch, height, width, channels) → maps."""
        x = x.movedim(-1, 1) if self.last else x
        return x.reshape(*x.shape[:2], *self.size) if x.ndim == 3 else x


class _FromMaps(nn.Module):
    """The way back from `_ToMaps`."""

    def __init__(self, *, last: bool, row: bool) -> None:
        super().__init__()
        self.last, self.row = last, row

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) → as it was."""
        x = x.flatten(2) if self.row else x
        return x.movedim(1, -1) if self.last else x
