"""How does the imported torch module run? The way that `ascend` goes, in the settings of the article."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import standardize, to_array, to_tensor
from oip_torch.comparison.runtimes import BEFORE, Array, Dtype, Runtime
from oip_torch.network.capture import capture
from oip_torch.network.domain import Domain
from oip_torch.network.load import load
from oip_torch.network.model import FeatureModel
from oip_torch.optim.ascent import gradient_ascent
from oip_torch.optim.objectives import map_mean
from oip_torch.optim.settings import AscentSettings
from oip_torch.search.target import target_of

__all__ = ["TorchModule"]


def _in_its_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Not once for the process: torch's compiler refuses to work in one where its settings were changed for good."""

    @functools.wraps(method)
    def run(self: TorchModule, *arguments: Any, **named: Any) -> Any:
        with matmul_precision(tf32=self.tf32):
            return method(self, *arguments, **named)

    return run


class TorchModule(Runtime):
    """What `load` gives.

    `plain`: ascend by a loop as anyone would write it, on the network as it was imported, in place of the package's own
    loop on a rewritten network. `tf32`: products of float32 numbers may be rounded to 10 bits on CUDA, as torch does in
    convolutions if it is not told otherwise.
    """

    def __init__(
        self, keras_file: Path, onnx_file: Path, *, device: str = "cpu", plain: bool = False, tf32: bool = False
    ) -> None:
        self.file, self.device, self.plain, self.tf32 = onnx_file, torch.device(device), plain, tf32

    @_in_its_precision
    def layers(self, images: Array, dtype: Dtype) -> dict[str, Array]:
        network = self._network(dtype)
        activated = [layer.name for layer in network.layers if layer.tensor_before != layer.tensor]
        with torch.no_grad(), capture(network, *network.layers.names, pre_activation=True) as before:
            outputs = network.every_layer(self._to_torch(images, dtype))
        outputs |= {BEFORE + name: before[name] for name in activated}
        return {name: to_array(output) for name, output in outputs.items()}

    @_in_its_precision
    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        scores, gradient = self._gradient(layer, self._to_torch(images, dtype), self._indices(channels))
        return scores.cpu().numpy(), to_array(gradient)

    @_in_its_precision
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
        x, indices = self._to_torch(images, dtype), self._indices(channels)
        if not self.plain:
            settings = AscentSettings.article(steps=steps, epsilon=epsilon)
            name = layer.removeprefix(BEFORE)
            network = self._network(dtype)
            domain = Domain(mean=tuple(mean), std=tuple(std))  # what is asked, whatever the file says
            network.network = dataclasses.replace(network.network, domain=domain)
            score = target_of(network, name, name != layer, map_mean, settings).score
            result = gradient_ascent(score, x, indices, settings.schedule)
            return result.traces.cpu().numpy(), to_array(result.images)
        traces = []
        moved = set(mean) != {0.0} or set(std) != {1.0}  # what does nothing is not to cost the benchmarks time either
        shift, scale = (x.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        for _ in range(steps):
            scores, g = self._gradient(layer, shift + scale * x if moved else x, indices)
            g = scale * g if moved else g
            g = g / (g.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-7)
            x = standardize(x + epsilon * g)
            traces.append(scores)
        return torch.stack(traces, 1).cpu().numpy(), to_array(x)

    def _gradient(self, layer: str, x: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        dtype: Dtype = "float64" if x.dtype == torch.float64 else "float32"
        name = layer.removeprefix(BEFORE)
        scores = map_mean(self._network(dtype).up_to(name, pre_activation=name != layer)(x), indices)
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        return scores.detach(), gradient

    def _indices(self, channels: Array) -> torch.Tensor:
        return torch.as_tensor(channels, device=self.device)

    @cache  # noqa: B019 - the process ends with the runtime
    def _network(self, dtype: Dtype) -> FeatureModel:
        # Whether the file computes what it claims is what is being measured here: no check that would refuse it.
        model = load(self.file, device=self.device, check=False)
        return model.to(dtype=getattr(torch, dtype))

    def _to_torch(self, images: Array, dtype: Dtype) -> torch.Tensor:
        return to_tensor(images, self.device, getattr(torch, dtype))
