"""Which shape has what each node of a traced network gives?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["copy_shape", "measure_shapes", "shape_of"]

_KEY = "oip_shape"


def measure_shapes(network: fx.GraphModule, image: Sequence[int], *more: Any) -> None:
    """Run it on two images of zeros, and note the shape of each node's output; two, since an axis of 1 may be any.

    Done here since torch's own way imports its symbolic mathematics, a third of a second.

    Args:
        network: takes images (batch, C, H, W).
        image: (C, H, W).
        more: what it takes besides.
    """
    tensors = [*network.parameters(), *network.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    with torch.no_grad():
        _Watched(network).run(like.new_zeros((2, *image)), *more)


def shape_of(node: Any) -> tuple[int, ...] | None:
    """Of what a node gives for a batch of two; None where it is not one tensor, or no node, or was not measured."""
    shape: tuple[int, ...] | None = node.meta.get(_KEY) if isinstance(node, fx.Node) else None
    return shape


def copy_shape(source: fx.Node, target: fx.Node) -> None:
    """Say of `target` what was measured of `source`."""
    target.meta[_KEY] = source.meta.get(_KEY)


class _Watched(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta[_KEY] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result
