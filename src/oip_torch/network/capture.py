"""What do the chosen layers say for these images?"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from oip_torch.base.checks import shown
from oip_torch.base.errors import CaptureError, InputError, unknown_name
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer

__all__ = ["FeatureMaps", "capture"]


class FeatureMaps(Mapping[str, Tensor]):
    """What `capture` caught: layer name → tensor, (batch, maps, height, width) or (batch, units).

    Of several forward passes the last one counts, and of a module that runs several times in one its last run. The
    tensors are copies, and part of the autograd graph.
    """

    def __init__(self, layers: tuple[str, ...]) -> None:
        self._layers = layers
        self._caught: dict[str, Tensor] = {}

    def __getitem__(self, layer: str) -> Tensor:
        if layer not in self._layers:
            raise unknown_name("captured layer", layer, self._layers)
        if layer not in self._caught:
            raise CaptureError(f"layer {layer!r} has not run yet: call the model inside the `with` block first")
        return self._caught[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        shapes = {name: tuple(self._caught[name].shape) if name in self._caught else None for name in self._layers}
        return f"FeatureMaps({shapes})"


@contextlib.contextmanager
def capture(model: nn.Module, *layers: str | Layer, pre_activation: bool = False) -> Iterator[FeatureMaps]:
    """Catch the outputs of layers while the model runs in this thread.

        with oip.capture(model, "Conv2D_3") as maps:
            model(images)
        maps["Conv2D_3"]        # (batch, 128, 3, 3)

    Args:
        model: a `FeatureModel`, whose layers are known by the names in its table; or any module, by module path
            (`"features.3"`, as in `named_modules`). What other threads run on it is not caught.
        layers: at least one name; of a `FeatureModel` also entries of `model.layers`.
        pre_activation: what goes into the layer's activation instead of what comes out (`FeatureModel` only).

    Raises:
        InputError: unknown name (the nearest are offered), or no name.
        CaptureError: the block ended and a layer never ran.
    """
    if not layers:
        raise InputError("capture got no layer: expected at least one name, as in capture(model, 'Conv2D_3')")
    if not isinstance(model, nn.Module):
        raise InputError(f"capture got {shown(model)}: expected a model, such as oip_torch.load returns")
    names = tuple(layer.name if isinstance(layer, Layer) else layer for layer in layers)
    modules = {name: _module(model, name, pre_activation) for name in names}
    maps = FeatureMaps(names)
    here = threading.get_ident()

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() == here:
                # A copy: what comes next may write into the output, as ReLU(inplace=True) and `x += y` do.
                maps._caught[name] = tree_map_only(Tensor, Tensor.clone, output)

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(keep(name)))
        yield maps
    finally:
        for handle in handles:
            handle.remove()
    if silent := [name for name in names if name not in maps._caught]:
        raise CaptureError(f"layer {silent[0]!r} never ran: call the model inside the `with` block")


def _module(model: nn.Module, name: str, pre_activation: bool) -> nn.Module:
    if isinstance(model, FeatureModel):
        return model.module_of(model.layer(name).name, pre_activation=pre_activation)
    if pre_activation:
        raise InputError("pre_activation needs a FeatureModel: for other modules name the layer before it")
    paths: dict[str, nn.Module] = dict(model.named_modules())
    paths.pop("", None)
    if not isinstance(name, str):
        raise InputError(f"layer is {shown(name)}: expected a module's path, as in model.named_modules()")
    if name not in paths:
        raise unknown_name("module", name, paths)
    return paths[name]
