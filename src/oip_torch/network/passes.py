"""How is the same function computed in less time?

`optimize_graph` rewrites a truncated network (a torch.fx graph) without changing what it computes:

- reshapes that change nothing are left out;
- what a convolution's output is multiplied by, or what is added to it, channel by channel, as a batch norm's conversion
  leaves it, goes into its weights;
- a ReLU that only a max-pooling reads comes after it: the larger of two numbers is the same before and after a ReLU,
  and pooled there are a quarter as many of them;
- rows and columns that nothing reads are not computed: a 2x2 pooling of 11x11 never reads the last ones, so what comes
  before it need not make them, back to the image;
- of the last convolution each image gets the one channel that it is scored by, and not all of them;
- convolutions keep their weights with the channels innermost, which is how the kernels for a CPU want them; those of
  few input channels, as the first one, go back to the image by a matrix product, and those of single pixels go both
  ways by oneDNN's kernel, which torch leaves aside where one thread works.

docs/notes has what each of them brings.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from oip_torch.base.platform import Costs, costs
from oip_torch.network.kernels import FewChannels, OfPixels, OwnChannel
from oip_torch.network.node_shapes import copy_shape, measure_shapes, shape_of

__all__ = ["optimize_graph", "step_costs"]

_FEW = 32  # inputs of one output
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
_CHANNEL_BY_CHANNEL = (*_ACTIVATIONS, nn.MaxPool2d, nn.AvgPool2d)

_Size = tuple[int, int]


def optimize_graph(
    network: fx.GraphModule, image: Sequence[int], *, one_channel: bool, channels_last: bool
) -> fx.GraphModule:
    """The network in another form, equal to it but for rounding.

    Args:
        network: images (batch, C, H, W) → output or outputs; or images, leak → outputs, and then as many leaky ones.
        image: (C, H, W) of an image.
        one_channel: return of each image one channel alone, (batch, 1, …), of the one output.
        channels_last: keep the weights of convolutions in that layout; they are copied then, and shared otherwise.

    Returns:
        images, leak, channels (batch,) → outputs, leaky outputs; the same twice where the network has no leak.
    """
    graph = copy.deepcopy(network.graph)
    fast = fx.GraphModule(network, graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    leaks = len(inputs) > 1
    measure_shapes(fast, image, *[0.0] * (len(inputs) - 1))
    for name in ("leak", "channels")[len(inputs) - 1 :]:
        with graph.inserting_after(inputs[-1]):
            inputs.append(graph.placeholder(name))
    (end,) = (node for node in graph.nodes if node.op == "output")
    outputs: Any = end.args[0]
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    end.args = (outputs if leaks else outputs * 2,)
    _drop_idle_reshapes(fast)
    _fold_constants(fast)
    _pool_first(fast)
    _cut_unread(fast)
    if one_channel:
        _pick(fast, end, inputs[2])
    graph.eliminate_dead_code()
    graph.lint()
    fast = fx.GraphModule(fast, graph).eval()
    if channels_last:
        for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
            fast.set_submodule(name, _channels_last(fast.get_submodule(name)))
    return fast


def step_costs(network: fx.GraphModule, image: Sequence[int], device: torch.device, dtype: torch.dtype) -> Costs:
    """What one more image takes on the way forward and back through a network that `optimize_graph` made.

    Args:
        network: images, leak, channels → outputs, leaky outputs.
        image: (C, H, W).
        device: where its weights are.
        dtype: of its weights.
    """

    def step(count: int) -> None:
        x = torch.zeros(count, *image, device=device, dtype=dtype, requires_grad=True)
        outputs = network(x, 0.5, torch.zeros(count, dtype=torch.long, device=device))
        torch.autograd.grad([leaky.sum() for leaky in outputs[len(outputs) // 2 :]], x)

    return costs(lambda: step(2)) - costs(lambda: step(1))


def _channels_last(module: nn.Module) -> nn.Module:
    """The module, or a copy with its convolutions in the faster layout."""
    if isinstance(module, nn.Sequential):  # an asymmetric padding with its convolution
        return nn.Sequential(*map(_channels_last, module))
    if not isinstance(module, nn.Conv2d):
        return module
    other = copy.deepcopy(module).to(memory_format=torch.channels_last)
    plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    fits = torch.backends.mkldnn.is_available() and module.weight.dtype == torch.float32  # type: ignore[no-untyped-call]
    single = set(module.kernel_size) | set(module.stride) == {1} and not any(module.padding)  # type: ignore[arg-type]
    if plain and single and fits:
        return OfPixels(other)
    return FewChannels(other) if plain and module.weight[0].numel() <= _FEW else other


def _module(network: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _drop_idle_reshapes(network: fx.GraphModule) -> None:
    """Keras' layout of images with one channel becomes torch's by a reshape that changes nothing."""
    for node in list(network.graph.nodes):
        if type(_module(network, node)).__name__ == "Reshape" and shape_of(node) == shape_of(node.args[0]):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


def _fold_constants(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        operation = getattr(_module(network, node), "math_op_function", None)  # of onnx2torch
        if operation not in (torch.mul, torch.add) or len(node.args) != 2:
            continue
        constants = [source for source in node.args if isinstance(source, fx.Node) and source.op == "get_attr"]
        others = [source for source in node.args if isinstance(source, fx.Node) and source.op == "call_module"]
        if len(constants) != 1 or len(others) != 1 or list(others[0].users) != [node]:
            continue  # a convolution that something else reads stays
        (convolution,) = others
        module = _module(network, convolution)
        assert module is not None
        value: Tensor = operator.attrgetter(str(constants[0].target))(network)
        folded = _with_constant(module, value.detach(), scaled=operation is torch.mul)
        if folded is None:
            continue
        name = f"{convolution.name}_folded"
        network.add_submodule(name, folded)
        convolution.target = name
        node.replace_all_uses_with(convolution)
        network.graph.erase_node(node)


def _with_constant(module: nn.Module, value: Tensor, *, scaled: bool) -> nn.Module | None:
    """A convolution whose output is this one's times, or plus, a number for each channel; None where it is none."""
    if isinstance(module, nn.Sequential) and len(module):  # an asymmetric padding with its convolution
        last = _with_constant(module[-1], value, scaled=scaled)
        return None if last is None else nn.Sequential(*module[:-1], last)
    if not isinstance(module, nn.Conv2d):
        return None
    count, shape = module.out_channels, value.shape[-3:]
    of_channels = len(shape) == 3 and shape[1:] == (1, 1) and shape[0] == value.numel() == count
    if not (of_channels or value.numel() == 1) or value.dtype != module.weight.dtype or value.ndim > 4:
        return None
    each = value.reshape(-1).expand(count)
    other, bias = copy.deepcopy(module), module.bias
    if scaled:
        other.weight = nn.Parameter(module.weight * each[:, None, None, None], requires_grad=False)
        other.bias = None if bias is None else nn.Parameter(bias * each, requires_grad=False)
    else:
        other.bias = nn.Parameter(each.clone() if bias is None else bias + each, requires_grad=False)
    return other


def _pool_first(network: fx.GraphModule) -> None:
    for pool in list(network.graph.nodes):
        module = _module(network, pool)
        if not isinstance(module, nn.MaxPool2d) or module.return_indices:
            continue
        relu = pool.args[0]
        if isinstance(_module(network, relu), nn.ReLU) and list(relu.users) == [pool]:
            pool.replace_input_with(relu, relu.args[0])
            pool.replace_all_uses_with(relu)
            relu.replace_input_with(relu.args[0], pool)
            pool.append(relu)
            copy_shape(pool, relu)


def _cut_unread(network: fx.GraphModule) -> None:
    nodes = list(network.graph.nodes)
    read: dict[fx.Node, _Size] = {}  # the rows and columns of a node's output that something reads
    for node in reversed(nodes):
        for source, size in _reads(network, node, read.get(node)).items():
            before = read.get(source, (0, 0))
            read[source] = max(before[0], size[0]), max(before[1], size[1])
    for node in nodes:
        shape = shape_of(node)
        if node not in read or shape is None or len(shape) != 4 or read[node] == shape[2:]:
            continue
        if _is_window(_module(network, node)) or isinstance(_module(network, node), nn.ReLU):
            continue  # makes no more than its input, which is cut, lets it
        with network.graph.inserting_after(node):
            cut = network.graph.call_function(_cut, (node, *read[node]))
        node.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)


def _cut(maps: Tensor, rows: int, columns: int) -> Tensor:
    # Not a slice: a gradient goes back through a negative padding in one step, and through a slice of two axes in two.
    return nn.functional.pad(maps, (0, columns - maps.shape[3], 0, rows - maps.shape[2]))


def _reads(network: fx.GraphModule, node: fx.Node, read: _Size | None) -> dict[fx.Node, _Size]:
    """How much of each of its inputs a node reads, if so much of its own output is read."""
    module = _module(network, node)
    sources = {source: shape_of(source) for source in node.all_input_nodes}
    whole = {source: (shape[2], shape[3]) for source, shape in sources.items() if shape is not None and len(shape) == 4}
    if read is None or len(whole) != 1:
        return whole
    (source,) = whole
    if isinstance(module, nn.ReLU):
        return {source: read}
    if _is_window(module):
        kernel, stride, dilation = (_pair(getattr(module, name)) for name in ("kernel_size", "stride", "dilation"))
        rows, columns = (
            (count - 1) * step + (side - 1) * apart + 1
            for count, step, side, apart in zip(read, stride, kernel, dilation, strict=True)
        )
        return {source: (rows, columns)}
    return whole


def _is_window(module: nn.Module | None) -> bool:
    """A convolution or max-pooling without padding."""
    if isinstance(module, nn.MaxPool2d):
        return _pair(module.padding) == (0, 0) and not module.ceil_mode
    return isinstance(module, nn.Conv2d) and module.padding in ((0, 0), 0)


def _pair(value: Any) -> _Size:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _pick(network: fx.GraphModule, end: fx.Node, channels: fx.Node) -> None:
    """Only the wanted channels: in the last convolution if what follows goes channel by channel, else at the end."""
    outputs: Any = end.args[0]
    convolutions, open_nodes = set(), list(outputs)
    while open_nodes:
        node = open_nodes.pop()
        module = _module(network, node)
        if isinstance(module, _CHANNEL_BY_CHANNEL) or node.target in (_cut, operator.add, operator.sub, operator.mul):
            open_nodes.extend(source for source in node.all_input_nodes if source.target != "leak")
        else:
            convolutions.add(node)
    last = convolutions.pop()
    module = _module(network, last)
    if not convolutions and isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        network.set_submodule(str(last.target), OwnChannel(module))
        last.args = (*last.args, channels)
        return
    with network.graph.inserting_before(end):
        picked = {output: network.graph.call_function(_picked, (output, channels)) for output in dict.fromkeys(outputs)}
        end.args = (tuple(picked[output] for output in outputs),)


def _picked(output: Tensor, channels: Tensor) -> Tensor:
    """(batch, channels, …) → (batch, 1, …), each image's own one."""
    return output[torch.arange(len(channels), device=channels.device), channels][:, None]
