"""Which torch module is the Keras network, and how is it run up to a layer and no further?"""

from __future__ import annotations

import dataclasses
import hashlib
import operator
import os
import re
import warnings
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from oip_torch.base.checks import shown
from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.platform import matmul_precision
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.network.onnx_file import Layer, Layers, Network, graph_sha256, read
from oip_torch.network.passes import optimize_graph, step_bytes
from oip_torch.network.probes import fingerprint, noise

if TYPE_CHECKING:
    import onnx

__all__ = ["FeatureModel", "load", "resolve_device"]

SELF_CHECK_TOLERANCE = 1e-4
"""Of the layer's RMS. Verification allows 1e-5 of the maximum, and other CPUs and torch versions sum in another order;
a single bias that is off by 1e-2 shows as 1e-3 or more."""


_SATURATING = frozenset({"softmax", "sigmoid", "hard_sigmoid"})
"""Activations that end at 1, whatever goes into them: there every image scores alike, and no gradient is left."""


class FeatureModel(nn.Module):
    """A Keras CNN as a torch module: in eval mode, its parameters frozen, every Keras layer known by name.

    `model(images)` takes standardised images (batch, channels, height, width) and returns what the Keras network
    returns. `layers` is the table of layers, `network` what the ONNX file says of itself.

    The weights may be changed, in place or not: nothing here keeps a copy of them from one call to the next.
    """

    def __init__(self, proto: onnx.ModelProto, network: Network) -> None:
        super().__init__()
        self.network = network
        self.layers = Layers(network.layers)
        # What is made in inference mode never takes part in a gradient; and the caller may have another default device.
        with torch.inference_mode(False), torch.device("cpu"):
            self.graph_module = _to_torch(proto)
        self._with_maps = {value.name for value in proto.graph.output if len(value.type.tensor_type.shape.dim) == 4}
        self._with_maps = {value.name for value in proto.graph.output if len(value.type.tensor_type.shape.dim) == 4}
        self._paths = _paths_by_tensor(self.graph_module)
        self._output_paths = _output_paths(self.graph_module.graph)
        self._step_bytes: dict[tuple[object, ...], int] = {}
        self.eval().requires_grad_(False)
        self._loaded_sha256 = self._weights_sha256()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        height, width, channels = self.network.input_shape
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((tensor.device for tensor in [*self.parameters(), *self.buffers()]), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, or float64 after `.double()`."""
        return next(tensor.dtype for tensor in [*self.parameters(), *self.buffers()] if tensor.is_floating_point())

    @property
    def fingerprint(self) -> str:
        """Of graph and weights in use, 64 hexadecimal digits: the file's `graph_sha256` while the weights are its own.

        Worked out anew each time, from all weights rounded to float32, so that `.double()` and another device keep it.
        """
        weights, own = self._weights_sha256(), self.network.graph_sha256
        return own if weights == self._loaded_sha256 else hashlib.sha256(f"{own} {weights}".encode()).hexdigest()

    def _weights_sha256(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            values = tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.cpu().contiguous().numpy().tobytes())
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
        return self.layers[layer].tensor in self._with_maps

    def noun(self, layer: str) -> str:
        """What a channel of the layer is called: "map", or where the output is flat "unit", or "class"."""
        if self.has_maps(layer):
            return "map"
        classifies = self.layers[layer].activation in ("softmax", "sigmoid")
        return "class" if classifies and layer == self.network.output else "unit"

    def before_activation(self, layer: str, wanted: bool | None) -> bool:
        """Whether what goes into the layer's activation is looked at, rather than what comes out.

        `wanted` None: where the activation saturates, as a softmax or a sigmoid does. False where there is none.
        """
        entry = self.layers[layer]
        if wanted is not None and not isinstance(wanted, (bool, np.bool_)):
            raise InputError(f"before_activation is {shown(wanted)}: expected True, False, or None for the default")
        chosen = entry.activation in _SATURATING if wanted is None else bool(wanted)
        return chosen and entry.tensor != entry.tensor_before

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) → the Keras network's output, (batch, classes) for a classifier.

        Raises:
            InputError: images of another shape.
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
        by_path = dict(zip(self._output_paths, outputs if isinstance(outputs, list) else [outputs], strict=True))
        return {layer.name: by_path[self._path(layer.name, False)] for layer in self.layers}

    def module_of(self, layer: str, *, before_activation: bool = False) -> nn.Module:
        """The submodule whose output is the layer's, to register hooks on."""
        return self.graph_module.get_submodule(self._path(layer, before_activation))

    def up_to(self, layer: str, *, before_activation: bool = False) -> fx.GraphModule:
        """The network up to a layer and no further, sharing this model's weights.

        Returns a module: images (batch, channels, height, width) → (batch, maps, height, width), or (batch, units).
        """
        end = self._node(layer, before_activation)
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        wanted = _ancestors(end)
        for node in self.graph_module.graph.nodes:
            if node in wanted:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        graph.output(copies[end])
        graph.lint()
        # GraphModule copies only the submodules that the graph names; their parameters stay this model's.
        return fx.GraphModule(self.graph_module, graph).eval()

    def leaky_up_to(self, layer: str, *, before_activation: bool = False) -> fx.GraphModule:
        """The network up to a layer, with a second output in which the nearest activations leak.

        Each activation f that is met first on the way back from the layer (its own, if it has one and is not left out)
        is replaced by (1 - leak)·f(z) + leak·z there: for a ReLU a leaky ReLU. So gradients pass where f is flat.

        Returns a module: images, leak → (the layer's output, its leaky output).
        """
        end, nearest, before_paths = self._nearest(layer, before_activation)
        nodes = {node.target: node for node in self.graph_module.graph.nodes}
        flat = {node: nodes[before_paths[node.target]] for node in nearest if node.target in before_paths}
        # What goes into an activation need not lie on the way to its output: ONNX may compute it on a side branch.
        wanted = _ancestors(end).union(*(_ancestors(before) for before in flat.values()))
        graph = fx.Graph()
        plain: dict[fx.Node, fx.Node] = {}
        leaky: dict[fx.Node, fx.Node] = {}
        for node in self.graph_module.graph.nodes:
            if node in wanted:
                plain[node] = graph.node_copy(node, lambda n: plain[n])
            if node.op == "placeholder":
                leak = graph.placeholder("leak")
        for node in self.graph_module.graph.nodes:
            if node in flat:
                rest = graph.call_function(operator.sub, (plain[flat[node]], plain[node]))
                rest = graph.call_function(operator.mul, (rest, leak))
                leaky[node] = graph.call_function(operator.add, (plain[node], rest))
            elif node in nearest and any(n in leaky for n in node.all_input_nodes):
                leaky[node] = graph.node_copy(node, lambda n: leaky.get(n, plain[n]))
        graph.output((plain[end], leaky.get(end, plain[end])))
        graph.lint()
        return fx.GraphModule(self.graph_module, graph).eval()

    def climbed(self, layer: str, *, leaky: bool, one_map: bool, before_activation: bool = False) -> fx.GraphModule:
        """The network up to a layer in the form that is fastest to climb on; equal to the plain ones but for rounding.

        On a CPU it holds copies of the weights in another layout: make one for each ascent, and keep none.

        Returns a module: images, leak, maps (batch,) → (the layer's output, its leaky output); with `one_map` of each
        image only its map, (batch, 1, …), and without `leaky` the plain output twice.
        """
        make = self.leaky_up_to if leaky else self.up_to
        network = make(layer, before_activation=before_activation)
        return optimize_graph(network, self.input_shape, one_map=one_map, channels_last=self.device.type == "cpu")

    def step_bytes(self, layer: str, *, leaky: bool, one_map: bool, before_activation: bool = False) -> int:
        """Memory that one image takes on the way forward and back through `climbed`, measured on the first call."""
        key = layer, leaky, one_map, before_activation, self.device, self.dtype
        if key not in self._step_bytes:
            network = self.climbed(layer, leaky=leaky, one_map=one_map, before_activation=before_activation)
            self._step_bytes[key] = step_bytes(network, self.input_shape, self.device, self.dtype)
        return self._step_bytes[key]

    def nearest_activations(self, layer: str, *, before_activation: bool = False) -> dict[str, str]:
        """The layers whose activations `leaky_up_to` makes leak, and which activations these are."""
        _, nearest, before_paths = self._nearest(layer, before_activation)
        found = {node.target for node in nearest} & set(before_paths)
        return {entry.name: str(entry.activation) for entry in self.layers if self._path(entry.name, False) in found}

    def _nearest(self, layer: str, before_activation: bool) -> tuple[fx.Node, set[fx.Node], dict[Any, str]]:
        """The layer's node, the nodes back from it to the nearest activations, and where each activation's input is."""
        before_paths: dict[Any, str] = {
            self._path(entry.name, False): self._path(entry.name, True)
            for entry in self.layers
            if entry.tensor != entry.tensor_before
        }
        end = self._node(layer, before_activation)
        return end, _ancestors(end, until=before_paths.keys()), before_paths

    def _node(self, layer: str, before_activation: bool) -> fx.Node:
        path = self._path(layer, before_activation)
        found: fx.Node = next(node for node in self.graph_module.graph.nodes if node.target == path)
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> FeatureModel:
        with torch.inference_mode(False):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _path(self, layer: str, before_activation: bool) -> str:
        """Module path inside `graph_module` of the layer's output."""
        entry = self.layers[layer]
        return self._paths[entry.tensor_before if before_activation else entry.tensor]

    def standardize(self, images: npt.ArrayLike) -> Tensor:
        """Images of pixel values 0–255 to what the network expects, on its device.

        Args:
            images: (batch, height, width) or (batch, height, width, channels), as in Keras' `mnist.npz`.

        Returns:
            (batch, channels, height, width), minus the network's mean, over its standard deviation.

        Raises:
            InputError: wrong shape, or a network whose standardisation is not known.
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
        if self.network.mean is None or self.network.std is None:
            raise InputError(
                "how this network's inputs were standardised is not known: convert it again with "
                "`oip convert MODEL.keras --mean M --std S`"
            )
        scaled = (array - np.array(self.network.mean)) / np.array(self.network.std)
        return to_tensor(scaled, self.device, self.dtype)


def load(
    path: str | os.PathLike[str], *, device: str | int | torch.device | None = "auto", check: bool = True
) -> FeatureModel:
    """Load an ONNX file that `convert` made. Needs no TensorFlow.

    Args:
        path: the file.
        device: "auto" (CUDA when present; None says the same), "cpu", "cuda", "cuda:1", the number of a CUDA device, or
            a `torch.device`.
        check: compare the graph with its digest, and each layer's fingerprint on one probe with Keras' own.

    Raises:
        InputError: missing, damaged, unsafe or foreign file; fingerprints that differ; no such device.
    """
    chosen = resolve_device(device)
    proto, network = read(path, check_digest=check)
    if not check:  # results carry the digest of what is there, and not what the file says of itself
        network = dataclasses.replace(network, graph_sha256=graph_sha256(proto))
    model = FeatureModel(proto, network)
    if check:
        _self_check(model, path)
    return model.to(chosen)


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """ "auto" and None to CUDA when present, else the CPU; anything else checked."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = shown(str(device) if isinstance(device, torch.device) else device)
    wanted = f"device {name}: expected auto, cpu or cuda"
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
        raise InputError(wanted)
    try:
        # A bare number is one of a CUDA device, also where torch would take it for one of another kind.
        chosen = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except RuntimeError:
        raise InputError(wanted) from None
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(wanted)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name} was asked for, but torch finds no CUDA device here; use auto or cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name}: expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return chosen


def _self_check(model: FeatureModel, path: str | os.PathLike[str]) -> None:
    probe = to_tensor(noise(1, model.network.input_shape))
    try:
        with torch.no_grad(), matmul_precision():
            outputs = model.every_layer(probe)
    except RuntimeError as error:  # shapes that do not fit, or more memory than there is
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: the network does not run ({reason}): the file is damaged; convert again") from None
    for layer in model.layers:
        got = fingerprint(to_array(outputs[layer.name]))
        # A layer whose RMS is 0 must stay so; the floor only keeps rounding of tiny numbers out.
        allowed = SELF_CHECK_TOLERANCE * max(layer.fingerprint[1], 1e-6) if len(layer.fingerprint) == len(got) else -1.0
        worst = max((abs(a - b) for a, b in zip(got, layer.fingerprint, strict=False)), default=0.0)
        if not worst <= allowed:  # NaN fails too
            raise InputError(
                f"{path}: layer {layer.name!r} gives {_short(got)} where Keras gave {_short(layer.fingerprint)}: the "
                "file is damaged, or a library here computes wrongly; convert again, and compare the installed versions"
            )


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"


def _to_torch(proto: onnx.ModelProto) -> fx.GraphModule:
    import onnx2torch  # takes seconds, since it imports torchvision: only when needed

    safe = type(proto).FromString(proto.SerializeToString())
    for index, node in enumerate(safe.graph.node):
        # fx writes module names into Python source and runs it: a name in an untrusted file could be any code.
        node.name = f"op{index}_" + re.sub(r"[^A-Za-z0-9_]", "_", node.output[0])[:60]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx2torch's own deprecated calls; its results are verified
            module: fx.GraphModule = onnx2torch.convert(safe, attach_onnx_mapping=True)
    except Exception as error:  # on a valid graph NotImplementedError; on a crafted one anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConversionError(f"onnx2torch cannot convert this network: {reason}") from None
    return module


def _paths_by_tensor(module: fx.GraphModule) -> dict[str, str]:
    """Which submodule makes which ONNX tensor (tensor names are unique, layer and node names are not)."""
    paths: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            mapping: Any = module.get_submodule(str(node.target)).onnx_mapping
            paths.update(dict.fromkeys(mapping.outputs, str(node.target)))
    return paths


def _output_paths(graph: fx.Graph) -> list[str]:
    """Module paths of the graph's outputs, in order."""
    outputs: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    return [str(node.target) for node in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


def _ancestors(end: fx.Node, until: Set[object] = frozenset()) -> set[fx.Node]:
    """The node and all that it is computed from; not beyond nodes whose target is in `until`."""
    found: set[fx.Node] = set()
    open_nodes = [end]
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found.add(node)
            if node.target not in until:
                open_nodes.extend(node.all_input_nodes)
    return found
