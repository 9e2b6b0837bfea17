"""How does the Keras file run on Keras' own torch backend? No ONNX and no conversion: a witness of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from oip_torch.comparison.runtimes import Array, Dtype, one_hot
from oip_torch.comparison.runtimes.keras_runtime import KerasRuntime

__all__ = ["KerasTorch"]


class KerasTorch(KerasRuntime):
    """Keras on torch, differentiated by autograd."""

    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        scores, gradients = self._gradient(layer, channels, torch.tensor(images, dtype=getattr(torch, dtype)), dtype)
        return scores.numpy(), gradients.numpy()

    def run_ascent(
        self,
        layer: str,
        channels: Array,
        images: Array,
        dtype: Dtype,
        *,
        steps: int,
        epsilon: float,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> tuple[Array, Array]:
        x, traces = torch.tensor(images, dtype=getattr(torch, dtype)), []
        shift, scale = x.new_tensor(mean), x.new_tensor(std)
        for _ in range(steps):
            score, g = self._gradient(layer, channels, shift + scale * x, dtype)
            g = scale * g
            g /= g.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-7
            x = x + epsilon * g
            centred = x - x.mean((1, 2, 3), keepdim=True)
            deviation = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
            x = centred / deviation.clamp(min=1 / math.sqrt(x[0].numel()))
            traces.append(score)
        return torch.stack(traces, 1).numpy(), x.numpy()

    def _gradient(self, layer: str, channels: Array, x: torch.Tensor, dtype: Dtype) -> tuple[Any, Any]:
        x = x.detach().requires_grad_()
        activations = self.up_to(layer, dtype)(x)
        axes = self.spatial_axes(activations)
        means = activations.mean(axes) if axes else activations  # torch takes () for all axes
        scores = (means * torch.from_numpy(one_hot(channels, means.shape[-1], dtype))).sum(1)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        return scores.detach(), gradient
