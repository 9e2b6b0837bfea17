"""How is the same function computed in less time?

`optimize_graph` rewrites a truncated network (a torch.fx graph) without changing what it computes:

- reshapes that change nothing are left out;
- what a convolution's output is multiplied by, or what is added to it, channel by channel, as a batch norm's conversion
  leaves it, goes into its weights;
- zeros around what a ReLU gave become the padding of the max-pooling that reads them;
- a ReLU that only a max-pooling reads comes after it: the larger of two numbers is the same before and after a ReLU,
  and pooled there are a quarter as many of them;
- rows and columns that nothing reads are not computed: a 2x2 pooling of 11x11 never reads the last ones, so what comes
  before it need not make them, back to the image;
- of the last convolution, or the two branches of a last sum, each image gets the one channel that it is scored by;
- on a CPU the channels lie innermost, as the kernels want them; a convolution of few inputs of one output, as the first
  one, goes back to the image by a matrix product, and the others are oneDNN's, with what is added to them and the ReLU
  after them in the same operation (`network.kernels`).

docs/notes has what each of them brings.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from oip_torch.base.platform import Costs, costs
from oip_torch.network.kernels import FewChannels, OwnChannel, Packed
from oip_torch.network.node_shapes import copy_shape, measure_shapes, shape_of

__all__ = ["optimize_graph", "step_costs", "weight_bytes"]

_FEW = 32  # inputs of one output
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softplus)
_RELUS: dict[type[nn.Module | None], float] = {nn.ReLU: math.inf, nn.ReLU6: 6.0}  # what they let through at most
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
    _pad_in_pooling(fast)
    _pool_first(fast)
    _cut_unread(fast)
    if one_channel:
        _pick(fast, end, inputs[2])
    graph.eliminate_dead_code()
    graph.lint()
    fast = fx.GraphModule(fast, graph).eval()
    if channels_last:
        _fuse(fast)
        for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
            fast.set_submodule(name, _channels_last(fast.get_submodule(name)))
        fast.recompile()
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


def weight_bytes(network: fx.GraphModule) -> int:
    """What the weights take that a network made by `optimize_graph` does not share with the original."""
    return sum(module.bytes for module in network.modules() if isinstance(module, Packed))


def _channels_last(module: nn.Module) -> nn.Module:
    """The module, or a copy with its convolutions in the faster layout."""
    if isinstance(module, nn.Sequential):  # an asymmetric padding with its convolution
        return nn.Sequential(*map(_channels_last, module))
    if not isinstance(module, nn.Conv2d):
        return module
    if not _has_few_channels(module) and Packed.fits(module):
        return Packed(module)
    other = copy.deepcopy(module).to(memory_format=torch.channels_last)
    return FewChannels(other) if _has_few_channels(module) else other


def _has_few_channels(module: nn.Conv2d) -> bool:
    plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return plain and module.weight[0].numel() <= _FEW and math.prod(module.kernel_size) > 1


def _fuse(network: fx.GraphModule) -> None:
    """Convolutions, what is added to them and the ReLU after them become one operation."""
    for node in list(network.graph.nodes):
        module = _module(network, node)
        if not isinstance(module, nn.Conv2d) or _has_few_channels(module) or not Packed.fits(module):
            continue
        chain, added = [node], []
        after = _only_user(node)
        if after is not None and _adds(network, after):
            others = [source for source in after.args if source is not node]
            if [shape_of(node)] == [shape_of(other) for other in others] != [None]:
                chain, added, after = [node, after], others, _only_user(after)
        most = None if after is None else _RELUS.get(type(_module(network, after)))
        if after is not None and most is not None and (most == math.inf or not added):  # no sum with a limit
            chain.append(after)
        if len(chain) == 1:
            continue
        name = f"{node.name}_fused"
        most = most if chain[-1] is after else None
        network.add_submodule(name, Packed(module, most))
        with network.graph.inserting_after(chain[-1]):
            fused = network.graph.call_module(name, (*node.args, *added))
        copy_shape(chain[-1], fused)
        chain[-1].replace_all_uses_with(fused)
        for old in reversed(chain):
            network.graph.erase_node(old)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.kwargs:  # a factor, `alpha`
        return False
    operation = getattr(_module(network, node), "math_op_function", None)  # of onnx2torch
    return operation is torch.add or (node.op == "call_function" and node.target in (operator.add, torch.add))


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


def _pad_in_pooling(network: fx.GraphModule) -> None:
    """Zeros around what is nowhere negative add nothing to a maximum: the pooling pads by itself."""
    for node in list(network.graph.nodes):
        pool = _module(network, node)
        if not isinstance(pool, nn.MaxPool2d) or _pair(pool.padding) != (0, 0) or pool.ceil_mode:
            continue
        (source,) = node.all_input_nodes
        pad: Any = _module(network, source)
        if type(pad).__name__ != "OnnxPadStatic" or list(source.users) != [node]:
            continue
        pads: list[int] = [*pad.pads, 0, 0, 0, 0]
        left, right, above, below = pads[:4]
        (relu,) = source.all_input_nodes
        zeros = pad.mode == "constant" and pad.constant_value == 0 and type(_module(network, relu)) in _RELUS
        rows, columns = _pair(pool.kernel_size)
        fits = (left, above) == (right, below) and 0 <= 2 * above <= rows and 0 <= 2 * left <= columns
        if not (zeros and fits) or any(pads[4:]):
            continue
        name = f"{node.name}_padded"
        padded = nn.MaxPool2d(pool.kernel_size, pool.stride, (above, left), pool.dilation, pool.return_indices)
        network.add_submodule(name, padded)
        node.target = name
        node.replace_input_with(source, relu)
        network.graph.erase_node(source)


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
        if not _saves(network, node, read):
            continue
        with network.graph.inserting_after(node):
            cut = network.graph.call_function(_cut, (node, *read[node]))
        node.replace_all_uses_with(cut, delete_user_cb=lambda user, cut=cut: user is not cut)


def _saves(network: fx.GraphModule, node: fx.Node, read: dict[fx.Node, _Size]) -> bool:
    """Whether a convolution or pooling makes less where this node is cut; to make a ReLU's input anew costs as much."""
    for user in node.users:
        shape = shape_of(user)
        if user not in read or shape is None:
            continue
        if _is_window(_module(network, user)) and read[user] != shape[2:]:
            return True
        if isinstance(_module(network, user), nn.ReLU) and _saves(network, user, read):
            return True
    return False


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
    """Only the wanted channels, from where all that follows goes channel by channel; a convolution makes just them."""
    region = {end}
    for node in reversed(network.graph.nodes):
        if node.users and region.issuperset(node.users) and _goes_by_channel(network, node):
            region.add(node)
    for node in list(network.graph.nodes):
        if node in region or region.isdisjoint(node.users) or node.op == "get_attr" or shape_of(node) is None:
            continue
        module = _module(network, node)
        fits = isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
        if fits and region.issuperset(node.users):
            assert isinstance(module, nn.Conv2d)
            name = f"{node.name}_own"  # not in the module's place: another node may call it too
            network.add_submodule(name, OwnChannel(module))
            node.target, node.args = name, (*node.args, channels)
            continue
        with network.graph.inserting_after(channels if node.op == "placeholder" else node):
            picked = network.graph.call_function(_picked, (node, channels))
        node.replace_all_uses_with(picked, delete_user_cb=lambda user, picked=picked: user in region)


def _goes_by_channel(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether each channel of what it gives is made of the same channel of what it takes."""
    module = _module(network, node)
    if isinstance(module, _CHANNEL_BY_CHANNEL) or node.target is _cut:
        return True
    elementwise = _adds(network, node) or node.target in (operator.sub, operator.mul)
    shapes = {shape_of(source) for source in node.all_input_nodes if source.target != "leak"}
    return elementwise and shapes == {shape_of(node)}


def _picked(output: Tensor, channels: Tensor) -> Tensor:
    """(batch, channels, …) → (batch, 1, …), each image's own one."""
    return output[torch.arange(len(channels), device=channels.device), channels][:, None]
