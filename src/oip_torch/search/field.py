"""Which part of the image does a unit see, where all units of a map are one function of theirs?"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import fx, nn

from oip_torch.network.model import FeatureModel
from oip_torch.network.node_shapes import measure_shapes, shape_of

__all__ = ["Field", "field_of", "without_idle_reshapes"]

_SAME = 1e-9  # of float64: how far two ways to compute a unit may differ, as a share of the largest value


def without_idle_reshapes(network: fx.GraphModule, model: FeatureModel) -> fx.GraphModule:
    """Keras' layout of images with one channel becomes torch's by a reshape, which would refuse a part of an image."""
    measure_shapes(network, model.input_shape)
    for node in list(network.graph.nodes):
        if node.op == "call_module" and type(network.get_submodule(str(node.target))).__name__ == "Reshape":
            source = node.all_input_nodes[0]
            if shape_of(node) is not None and shape_of(node) == shape_of(source):
                node.replace_all_uses_with(source)
                network.graph.erase_node(node)
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


@dataclass(frozen=True)
class Field:
    """The part of an image that one unit sees, where all units of a map are the same function of theirs."""

    top: int
    left: int
    height: int
    width: int


def field_of(network: fx.GraphModule, shape: tuple[int, int, int]) -> Field | None:
    """Of a unit in the middle; None where units see all of the image, or differ, as at padded borders.

    That all units are what the network says of their fields alone is checked on random images, in float64.
    """
    passing = deepcopy(network)  # where no ReLU and no pooling hides what a unit could see
    for name, module in network.named_modules():
        if isinstance(module, nn.ReLU):
            passing.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.MaxPool2d):
            pool = module.kernel_size, module.stride, module.padding, module.ceil_mode
            passing.set_submodule(name, nn.AvgPool2d(*pool))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *shape, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = passing(x)
    if outputs.ndim != 4 or outputs[0, 0].numel() < 2:
        return None
    down, across = outputs.shape[2:]
    weights = torch.rand(outputs.shape[1], generator=generator, dtype=torch.float64) + 0.5

    def extent(row: int, column: int) -> tuple[int, int, int, int]:
        (seen,) = torch.autograd.grad((outputs[:, :, row, column] * weights).sum(), x, retain_graph=True)
        places = torch.nonzero((seen != 0).any(0).any(0))
        (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
        return top, left, bottom + 1 - top, right + 1 - left

    top, left, height, width = extent(0, 0)
    last = extent(down - 1, across - 1)
    steps = [
        (end - start) // max(1, count - 1) for start, end, count in ((top, last[0], down), (left, last[1], across))
    ]
    if last[2:] != (height, width) or min(step or 1 for step in steps) < 1 or (height, width) == shape[1:]:
        return None
    with torch.no_grad():
        fields = x[:, :, top:, left:].unfold(2, height, steps[0] or 1).unfold(3, width, steps[1] or 1)
        fields = fields[:, :, :down, :across].permute(0, 2, 3, 1, 4, 5)
        if fields.shape[:3] != (2, down, across):
            return None
        try:
            alone = network(fields.reshape(-1, shape[0], height, width))
        except RuntimeError:  # a reshape to a size that the field has not
            return None
        plain = network(x)
        if alone.shape[2:] != (1, 1):
            return None
        alone = alone.view(2, down, across, -1).permute(0, 3, 1, 2)
    if not torch.allclose(alone, plain, rtol=0, atol=_SAME * float(plain.abs().max())):
        return None
    return Field(top + (down // 2) * steps[0], left + (across // 2) * steps[1], height, width)
