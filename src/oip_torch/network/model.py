"""Which torch module is the network: its layers by name, what it takes, what it was verified as?"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError
from oip_torch.base.tensors import to_tensor
from oip_torch.network.domain import Domain
from oip_torch.network.extract import Tap, forgotten_sources, truncate
from oip_torch.network.onnx_file import Layer, Layers, Network
from oip_torch.network.onnx_graph import nodes_by_tensor, output_nodes, to_torch

if TYPE_CHECKING:
    import onnx

__all__ = ["FeatureModel"]

_SATURATING = frozenset({"softmax", "sigmoid", "hard_sigmoid"})
"""Activations that end at 1, whatever goes into them: there every image scores alike, and no gradient is left."""
_WEIGHTED = re.compile("Conv|Dense|Linear|Gemm|MatMul|Norm")
"""Kinds of layers whose outputs are never infinite on purpose."""


class FeatureModel(nn.Module):
    """A CNN with every layer known by name: in eval mode, its parameters frozen. From `load`, `convert` or `wrap`.

    `model(images)` takes standardised images (batch, channels, height, width) and returns what the network returns.
    `layers` is the table of layers, `network` what is known of the network besides.

    The weights may be changed, in place or not: nothing here keeps a copy of them from one call to the next.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        taps: Mapping[str, Tap],
        network: Network,
        *,
        refused: Mapping[str, str] | None = None,
    ) -> None:
        """From a graph that returns the outputs of all taps; `refused`: other names, and why they are no layers."""
        super().__init__()
        self.graph_module = graph_module
        self.network = network
        self.layers = Layers(network.layers, refused)
        self._taps = dict(taps)
        self._outputs = output_nodes(graph_module)
        self.eval().requires_grad_(False)
        self._loaded_sha256 = self._weights_sha256()

    @classmethod
    def of_onnx(cls, proto: onnx.ModelProto, network: Network) -> FeatureModel:
        """From the graph and the description that an ONNX file of ours holds."""
        # What is made in inference mode never takes part in a gradient; and the caller may have another default device.
        with torch.inference_mode(False), torch.device("cpu"):
            graph_module = to_torch(proto)
        with_maps = {value.name for value in proto.graph.output if len(value.type.tensor_type.shape.dim) == 4}
        nodes = nodes_by_tensor(graph_module)
        taps = {
            layer.name: Tap(
                node=nodes[layer.tensor],
                before=nodes[layer.tensor_before] if layer.tensor_before != layer.tensor else None,
                channels=layer.maps,
                size=(layer.height or 1, layer.width or 1) if layer.tensor in with_maps else (),
            )
            for layer in network.layers
        }
        return cls(graph_module, taps, network)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        height, width, channels = self.network.input_shape
        return channels, height, width

    @property
    def domain(self) -> Domain:
        """How pixels become inputs, and what the data look like there."""
        return self.network.domain

    @property
    def taps(self) -> Mapping[str, Tap]:
        """By the name of the layer: the node of the graph that is its output."""
        return self._taps

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    def weights_in_words(self, fingerprint: str) -> str:
        """Of weights by their `fingerprint`: "as converted" or "as wrapped", or that they were changed since."""
        changed = fingerprint != self.network.graph_sha256
        if self.network.is_wrapped:
            return "changed since it was wrapped" if changed else "as wrapped"
        return "changed since the conversion" if changed else "as converted"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 after `.double()`."""
        weights = (tensor for tensor in [*self.parameters(), *self.buffers()] if tensor.is_floating_point())
        return next((tensor.dtype for tensor in weights), torch.float32)

    @property
    def fingerprint(self) -> str:
        """Of graph and weights in use, 64 hexadecimal digits: the file's `graph_sha256` while the weights are its own.

        Worked out anew each time, from all weights rounded to float32, so that `.double()` and another device keep it.
        """
        weights, own = self._weights_sha256(), self.network.graph_sha256
        return own if weights == self._loaded_sha256 else hashlib.sha256(f"{own} {weights}".encode()).hexdigest()

    def sha256_with_weights(self, graph: str) -> str:
        """The digest of a graph by its own digest, and of the weights in use."""
        return hashlib.sha256(f"{graph} {self._weights_sha256()}".encode()).hexdigest()

    def _weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            values = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()

    def check_dtype(self) -> None:
        """Raise an `InputError` where NumPy, which results are given in, has no such numbers as the weights."""
        if self.dtype not in (torch.float16, torch.float32, torch.float64):
            raise InputError(
                f"the model computes in {str(self.dtype).removeprefix('torch.')}, which NumPy does not have: expected "
                "float32 or float64; call model.float()"
            )

    def layer(self, layer: str | Layer) -> Layer:
        """The entry of a layer that is given by its name, or as it is; an `InputError` names the nearest ones."""
        if isinstance(layer, Layer):
            layer = layer.name
        if not isinstance(layer, str):
            known = ", ".join(self.layers.names[:3])
            raise InputError(
                f"layer is {shown(layer)}: expected the name of one layer ({known} …), or an entry of model.layers"
            )
        return self.layers[layer]

    def has_maps(self, layer: str) -> bool:
        """Whether the layer's output is (batch, maps, height, width)."""
        return bool(self._taps[self.layers[layer].name].size)

    def noun(self, layer: str) -> str:
        """What a channel of the layer is called: "map", or where the output is flat "unit", or "class"."""
        if self.has_maps(layer):
            return "map"
        classifies = self.layers[layer].activation in ("softmax", "sigmoid")
        return "class" if classifies and layer == self.network.output else "unit"

    def wants_pre_activation(self, layer: str, wanted: bool | None) -> bool:
        """Whether what goes into the layer's activation is looked at, rather than what comes out.

        `wanted` None: where the activation saturates, as a softmax or a sigmoid does. False where there is none.
        """
        entry = self.layers[layer]
        if wanted is not None and not isinstance(wanted, (bool, np.bool_)):
            raise InputError(f"pre_activation is {shown(wanted)}: expected True, False, or None for the default")
        chosen = entry.activation in _SATURATING if wanted is None else bool(wanted)
        return chosen and self._taps[layer].before is not None

    def tap(self, layer: str, *, pre_activation: bool = False) -> Tap:
        """Where the layer's output can be looked at, or what goes into its activation."""
        tap = self._taps[self.layers[layer].name]
        return tap.pre_activation if pre_activation else tap

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) → the network's output, (batch, classes) for a classifier.

        Raises:
            InputError: images of another shape, or for which a layer (it is named) leaves the finite numbers.
        """
        return self.every_layer(images)[self.network.output]

    def every_layer(self, images: Tensor) -> dict[str, Tensor]:
        """(batch, channels, height, width) → each layer's output, by name."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1:] != self.input_shape:
            channels, height, width = self.input_shape
            got = f"images of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"{type(images).__name__}"
            raise InputError(
                f"the network got {got}: expected a tensor (batch, {channels}, {height}, {width}), that is (batch, "
                "channels, height, width); model.standardize makes one of pixels as Keras has them"
            )
        if images.dtype != self.dtype and not torch.is_autocast_enabled(images.device.type):
            got, expected = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, self.dtype))
            raise InputError(
                f"the network got images of {got}: expected {expected}, as its weights are; model.standardize makes "
                "such images of pixels"
            )
        outputs = self.graph_module(images)
        by_node = dict(zip(self._outputs, outputs if isinstance(outputs, (list, tuple)) else [outputs], strict=True))
        found = {layer.name: by_node[self._taps[layer.name].node] for layer in self.layers}
        if not torch.compiler.is_compiling():  # there is nothing to look at yet
            self._check_finite(images, found)
        return found

    def _check_finite(self, images: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Raise an `InputError` that names the layer in which NaN or infinity arises.

        Minus infinity is taken of layers without weights: so masks are written, which a softmax makes 0 of.
        """
        with torch.no_grad():
            # A sum is finite only if all of it is; one transfer for all layers. Where it is not, each is looked at.
            sums = [output.detach().sum(dtype=torch.float64) for output in outputs.values() if not output.is_complex()]
            if not sums or bool(torch.stack(sums).isfinite().all()):
                return
            if not images.isfinite().all():
                raise InputError("the images hold NaN or infinite values: expected finite numbers")
            for name, output in outputs.items():
                layer = self.layers[name]
                wrong = ~output.isfinite()
                if not _WEIGHTED.search(layer.kind):
                    wrong &= output != -math.inf
                if lost := int(wrong.flatten(1).any(1).sum()):
                    raise InputError(
                        f"layer {name!r} ({layer.kind}) gives NaN or infinite values for {lost} of {len(images)} "
                        "images, and the layers before it do not: expected finite numbers; look at the size of its "
                        "weights, or compute in float64, model.double()"
                    )

    def module_of(self, layer: str, *, pre_activation: bool = False) -> nn.Module:
        """The submodule whose output is the layer's, to register hooks on."""
        tap = self.tap(layer, pre_activation=pre_activation)
        node = next(node for node in self.graph_module.graph.nodes if node.name == tap.node)
        return self.graph_module.get_submodule(str(node.target))

    def up_to(self, layer: str, *, pre_activation: bool = False) -> fx.GraphModule:
        """The network up to a layer and no further, sharing this model's weights.

        Returns a module: images (batch, channels, height, width) → (batch, maps, height, width), or (batch, units).
        """
        with forgotten_sources():
            part = truncate(self.graph_module, [self.tap(layer, pre_activation=pre_activation).node])
            (end,) = (node for node in part.graph.nodes if node.op == "output")
            end.args = (end.args[0][0],)
            part.recompile()
        return part

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureModel:
        with torch.inference_mode(False):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def standardize(self, images: npt.ArrayLike) -> Tensor:
        """Images of pixel values 0–255 to what the network expects, on its device.

        Args:
            images: (batch, height, width) or (batch, height, width, channels), as in Keras' `mnist.npz`.

        Returns:
            (batch, channels, height, width), minus the domain's `pixel_mean`, over its `pixel_std`.

        Raises:
            InputError: wrong shape.
        """
        try:
            array = np.asarray(images)
        except ValueError:  # rows of different lengths
            array = np.empty(0)
        given = array.shape
        if array.ndim == 3:
            array = array[..., None]
        if array.dtype.kind not in "buif" or array.ndim != 4 or array.shape[1:] != self.network.input_shape:
            height, width, channels = self.network.input_shape
            expected = f"(batch, {height}, {width}" + (f", {channels})" if channels > 1 else "[, 1])")
            raise InputError(f"images of shape {given}: expected {expected}; resize them first")
        return to_tensor(self.domain.of_pixels(array), self.device, self.dtype)

    def to_input(self, images: Tensor) -> Tensor:
        """Images in units of the data's standard deviation around its mean, as OIPs are, as the network takes them.

        (batch, C, H, W), such as images that are standardised one by one.
        """
        domain = self.domain
        if domain.is_standard:
            return images
        mean, std = (images.new_tensor(values).view(1, -1, 1, 1) for values in (domain.mean, domain.std))
        return mean + std * images
