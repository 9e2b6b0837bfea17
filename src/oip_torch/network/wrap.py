"""How does a torch module of the user's own become a `FeatureModel`?"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.image_files import check_pixels, pixel_statistics
from oip_torch.base.platform import matmul_precision, recorded_gradients
from oip_torch.base.tensors import to_tensor
from oip_torch.network.domain import NATURAL_MEAN, NATURAL_STD, Domain, check_domain, find_domain
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer, Network
from oip_torch.network.places import Place, find_places
from oip_torch.network.probes import noise
from oip_torch.network.trace import Traced, copied, trace_by_export, trace_by_fx

__all__ = ["wrap"]

_PROBES = 3
_MAX_ERROR = 1e-5
"""Of the largest value: the graph runs the module's own operations. What torch.export rewrites may sum in another
order; a wrong branch or a lost write in place shows as 1e-2 or more."""
_MAX_GRADIENT_ERROR = 1e-4
_MAX_COUPLING = 1e-2  # batch sizes choose kernels, which round differently; batch statistics move answers by far more

logger = logging.getLogger("oip_torch")


@recorded_gradients()
def wrap(
    module: nn.Module,
    input_shape: Sequence[int],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: npt.ArrayLike | None = None,
    domain: Domain | None = None,
) -> FeatureModel:
    """Take a torch module of one's own as it is: its layers by name, ready for `capture`, `ascend` and the rest.

        model = oip.wrap(resnet18, (3, 224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        oips = oip.ascend(model, "layer3.1.conv2", maps=[17, 56])

    The module is traced by torch.fx, or where that cannot be by torch.export, and what comes of it has to give the
    module's own outputs and gradients on noise images. The module itself is not changed: a copy in eval mode is worked
    on, without its hooks, where its weights are.

    Layers are named by the module's paths ("layer3.1.conv2", and blocks such as "layer3"), functions by the path of the
    module that calls them ("layer3.1.add"); what runs several times is "relu@1", "relu@2". Vision transformers' tokens,
    (batch, tokens, channels), are maps of (batch, channels, tokens, 1), or of the patches' grid where there are as many
    tokens as patches; channels that come last are put first.

    Args:
        module: takes one tensor (batch, channels, height, width); any batch. Of several outputs, `model(images)` gives
            the first; each is a layer.
        input_shape: (channels, height, width) of one image.
        mean: what is subtracted from the pixels before the network, on the 0–1 scale, as in torchvision's Normalize:
            one number, or one per channel.
        std: what they are divided by then, on the same scale. For a network that takes pixels of 0 to 255, mean is 0
            and std 1/255; for one that takes 0 to 1, mean is 0 and std 1.
        data: images of the kind that the network was trained on, (N, height, width) or (N, height, width, channels),
            pixel values 0–255: their mean and standard deviation become part of the domain.
        domain: all of this at once, instead.

    Where neither mean and std nor a domain is given, MNIST's figures are assumed for 1×28×28, and natural images' for
    other images of one or three channels; a note says so.

    Raises:
        InputError: an argument of a wrong kind; a module that does not run on such images, or that leaves the finite
            numbers on noise (the layer is named); an input of another number of channels of which nothing is said.
        ConversionError: neither way can trace the module, or what comes of it computes something else.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module is {shown(module)}: expected a torch.nn.Module, with one tensor of images as input")
    _check_plain(module)
    shape = _image_shape(input_shape)
    channels, height, width = shape
    found = _domain((height, width, channels), mean, std, data, domain)
    probes = _probes(module, shape, found)
    answers = _answers(module, probes)
    traced, (places, refused, output), errors = _trace(module, probes, answers)
    layers = tuple(_layer(place) for place in places)
    if not layers:
        raise ConversionError(
            f"no layer of this {type(module).__name__} can be looked at: {next(iter(refused.values()))}"
        )
    (end,) = (node for node in traced.module.graph.nodes if node.op == "output")
    by_name = {node.name: node for node in traced.module.graph.nodes}
    end.args = (tuple(by_name[name] for name in dict.fromkeys(place.tap.node for place in places)),)
    traced.module.graph.eliminate_dead_code()
    network = Network(
        layers=layers,
        output=output or layers[-1].name,
        input_shape=(height, width, channels),
        domain=found,
        source=type(module).__name__,
        source_sha256="",
        graph_sha256="",
        versions={name: version(name) for name in ("oip_torch", "torch", "numpy")},
        verification={"traced_by": traced.way, "probes": {"noise": _PROBES}, "batch_sizes": [_PROBES, 1], **errors},
    )
    taps = {place.name: place.tap for place in places}
    graph_module = fx.GraphModule(traced.module, traced.module.graph)
    graph_sha256 = _graph_sha256(graph_module)
    model = FeatureModel(graph_module, taps, network, refused=refused)
    model.network = dataclasses.replace(network, graph_sha256=model.sha256_with_weights(graph_sha256))
    with torch.no_grad(), matmul_precision():
        model.every_layer(probes)  # a layer may leave the finite numbers where the module's own output hides it
    if domain is None:
        logger.warning("note: %s (mean, std, data and domain say otherwise)", found.source)
    return model


def _check_plain(module: nn.Module) -> None:
    """Refuse what stands for another module, and what is not ready."""
    if isinstance(module, FeatureModel):
        raise InputError("module is a FeatureModel already: use it as it is")
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError("module is a TorchScript module, whose code cannot be traced: wrap the module it was made of")
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(f"module is a {type(module).__name__}: wrap the module inside, wrap(module.module, …)")
    if hasattr(module, "_orig_mod"):
        raise InputError("module was made by torch.compile: wrap the module inside, wrap(module._orig_mod, …)")
    tensors = [*module.parameters(), *module.buffers()]
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise InputError("module has lazy layers that never ran: call it once on images before it is wrapped")
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("module has weights on the meta device, which hold no values: load its weights first")
    if len(places := {tensor.device for tensor in tensors}) > 1:
        raise InputError(f"module has weights on {', '.join(map(str, places))}: expected one device; call module.to(…)")
    for name, tensor in module.named_parameters():
        if not torch.isfinite(tensor).all():
            raise InputError(f"module's weights {name!r} hold NaN or infinite values: expected finite ones")


def _image_shape(input_shape: Any) -> tuple[int, int, int]:
    if isinstance(input_shape, (str, bytes)) or not isinstance(input_shape, Sequence) or len(input_shape) != 3:
        raise InputError(
            f"input_shape is {shown(input_shape)}: expected (channels, height, width), as in (3, 224, 224)"
        )
    names = ("channels", "height", "width")
    channels, height, width = (whole(f"{n} of input_shape", v, 1) for n, v in zip(names, input_shape, strict=True))
    if channels * height * width == 1:
        raise InputError("input_shape is (1, 1, 1): expected images of several values, since one has no contrast")
    return channels, height, width


def _domain(
    shape: tuple[int, int, int],
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    data: npt.ArrayLike | None,
    domain: Domain | None,
) -> Domain:
    """The domain that the arguments say, or that is assumed; its numbers are on the 0–255 scale."""
    if domain is not None:
        if not isinstance(domain, Domain):
            raise InputError(f"domain is {shown(domain)}: expected oip_torch.Domain(…)")
        if not (mean is None and std is None and data is None):
            raise InputError("domain was given, and mean, std or data as well: expected one or the other")
        check_domain(domain, shape[2])
        return domain
    if (mean is None) != (std is None):
        raise InputError("only one of mean and std was given: expected both, or neither")
    statistics = None
    if data is not None:
        images = check_pixels(data, "the data")
        if (images.shape[3] if images.ndim == 4 else 1) != shape[2]:
            got = images.shape[3] if images.ndim == 4 else 1
            raise InputError(f"the data have {got} channels: expected {shape[2]}, as input_shape says")
        statistics = pixel_statistics(images)
    if mean is not None and std is not None:
        means, stds = _unit("mean", mean), _unit("std", std)
        if min(stds) <= 0:
            raise InputError(f"std is {shown(stds)}: expected numbers above 0")
        scale = [255 * value for value in means], [255 * value for value in stds]
        return find_domain(shape, scale=scale, data=statistics)
    if shape == (28, 28, 1):
        return find_domain(shape, data=statistics)
    if shape[2] not in (1, 3):
        raise InputError(
            f"the input has {shape[2]} channels, and nothing was said of what is done to the pixels: expected mean and "
            "std on the 0–1 scale (mean=0, std=1 for inputs of 0 to 1), or domain=Domain(…)"
        )
    natural = NATURAL_MEAN, NATURAL_STD
    scale = natural if shape[2] == 3 else tuple((sum(part) / len(part),) for part in natural)  # type: ignore[assignment]
    assumed = find_domain(shape, scale=scale, data=statistics)
    figures = (", ".join(f"{value / 255:.3g}" for value in part) for part in scale)
    told = "nothing was said of what is done to the pixels before the network, so natural images' figures are assumed, "
    told += "mean {} and standard deviation {} on the 0–1 scale".format(*figures)
    if statistics is not None:
        told += f"; {assumed.source.partition('; ')[2]}"
    return dataclasses.replace(assumed, source=told)


def _unit(name: str, value: Any) -> list[float]:
    """One number or several on the 0–1 scale."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} is {shown(value)}: expected a finite number, or one per channel, on the 0–1 scale")
    numbers = [float(number) for number in np.atleast_1d(array)]
    if min(numbers) < 0 or max(numbers) > 1:
        raise InputError(
            f"{name} is {shown(value)}: expected numbers of 0 to 1, on the scale of torchvision's Normalize; divide "
            "what is on the 0–255 scale by 255"
        )
    return numbers


def _probes(module: nn.Module, shape: tuple[int, int, int], domain: Domain) -> Tensor:
    """Noise in the domain, where the module's weights are."""
    weights = [tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point()]
    channels, height, width = shape
    images = domain.to_input(noise(_PROBES, (height, width, channels)))
    probes = to_tensor(images)
    return probes.to(weights[0].device, weights[0].dtype) if weights else probes


Answers = list[tuple[list[Tensor], Tensor]]


def _answers(module: nn.Module, probes: Tensor) -> Answers:
    """What the module itself says to the probes: all at once, and to the first one alone."""
    try:
        own = copied(module)
    except Exception as error:  # of deepcopy: anything
        raise InputError(
            f"module cannot be copied ({_reason(error)}): expected one that copy.deepcopy takes; where a pruning or "
            "weight norm of torch.nn.utils is in the way, remove it first"
        ) from None
    try:
        with torch.no_grad():
            own(probes)
    except Exception as error:  # of the user's code: anything
        size = ", ".join(map(str, probes.shape))
        raise InputError(f"module does not run on images ({size}): {_reason(error)}; is input_shape right?") from None
    try:
        together, again, alone = (_answer(own, images) for images in (probes, probes, probes[:1]))
    except Exception as error:
        raise InputError(f"module gives no gradient with respect to its images: {_reason(error)}") from None
    if not together[0]:
        raise InputError("module returns no tensor of floats: expected at least one, as in (batch, classes)")
    if not all(bool(torch.isfinite(output).all()) for output in together[0]):
        raise InputError(
            f"module returns NaN or infinite values for noise: expected finite ones{_where_it_arises(own, probes)}; "
            "look at the size of its weights, or wrap module.double()"
        )
    if not together[1].isfinite().all() and (where := _where_it_arises(own, probes)):  # which the outputs may hide
        raise InputError(f"module has no finite gradient on noise: expected finite numbers throughout{where}")
    if _worst(together[0], again[0]) > _MAX_ERROR:
        raise InputError(
            "module gives other values for the same images each time: something in it is random in eval mode (a "
            "dropout that does not look at self.training?)"
        )
    rows = [output[:1] for output in together[0]]
    if any(a.shape != b.shape for a, b in zip(rows, alone[0], strict=True)) or _worst(alone[0], rows) > _MAX_COUPLING:
        raise InputError(
            "module answers an image otherwise when others are in its batch, so that no image can be scored by itself: "
            "are there batch norms without running statistics?"
        )
    return [together, alone]


def _where_it_arises(module: nn.Module, images: Tensor) -> str:
    """Which submodule gives NaN or infinity first, in words; nothing where it is none of them."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(inner: nn.Module, inputs: Any, output: Any) -> None:
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            if not found and not all(bool(leaf.isfinite().all()) for leaf in leaves):
                found.append(f"; the first to do so is {name!r} ({type(inner).__name__})")

        return hook

    hooks = [inner.register_forward_hook(look(name)) for name, inner in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return "".join(found)


def _answer(module: Callable[[Tensor], Any], images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The outputs, and the gradient of their sum under fixed signs with respect to the images."""
    x = images.clone().requires_grad_()
    with matmul_precision():
        outputs = [leaf for leaf in tree_leaves(module(x)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        scores = []
        for output in outputs:
            signs = torch.arange(output[0].numel(), device=x.device).view(output.shape[1:]) % 3 - 1.0
            scores.append((output * signs.to(output)).flatten(1).mean(1).sum() + 0.01 * output.flatten(1).mean(1).sum())
        total = sum(scores)
        gradient = torch.zeros_like(x)
        if isinstance(total, Tensor) and total.requires_grad:
            found = torch.autograd.grad(total, x, allow_unused=True)[0]
            gradient = gradient if found is None else found
    return [output.detach() for output in outputs], gradient


def _trace(
    module: nn.Module, probes: Tensor, answers: Answers
) -> tuple[Traced, tuple[list[Place], dict[str, str], str], dict[str, float]]:
    """The graph whose outputs and gradients are the module's own, its layers, and how far they are apart."""
    ways: list[tuple[str, Callable[[nn.Module], Traced]]] = [
        ("torch.fx", trace_by_fx),
        ("torch.export", lambda own: trace_by_export(own, probes[:2])),
    ]
    reasons = []
    for name, way in ways:
        try:
            traced = way(copied(module))
            found = find_places(traced, probes[:2])
            got = [_answer(traced.module, images) for images in (probes, probes[:1])]
        except Exception as error:  # of the tracers and the user's code: anything
            reasons.append(f"{name}: {_reason(error)}")
            continue
        outputs = max(_worst(mine[0], own[0]) for mine, own in zip(got, answers, strict=True))
        gradient = max(_worst([mine[1]], [own[1]]) for mine, own in zip(got, answers, strict=True))
        if outputs <= _MAX_ERROR and gradient <= _MAX_GRADIENT_ERROR:
            return traced, found, {"max_error": outputs, "gradient_error": gradient}
        reasons.append(f"{name}: the graph's outputs differ by {outputs:.1e}, its gradients by {gradient:.1e}")
    if where := _where_it_arises(module, probes):  # which the module's own output and gradient may hide
        raise InputError(f"module is not finite throughout on noise: expected finite numbers{where}")
    raise ConversionError(
        f"this {type(module).__name__} cannot be traced ({'; '.join(reasons)}): expected a forward whose way does not "
        "depend on the values of an image; wrap the part of it that has none of that"
    )


def _worst(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest |got - expected| over the largest |expected|, of all tensors; infinite where they do not fit."""
    if len(got) != len(expected) or any(a.shape != b.shape for a, b in zip(got, expected, strict=True)):
        return math.inf
    worst = 0.0
    for mine, own in zip(got, expected, strict=True):
        apart, scale = float((mine - own).abs().max()), float(own.abs().max())
        worst = max(worst, apart / scale if scale > 0 else (0.0 if apart == 0 else math.inf))
    return worst if math.isfinite(worst) else math.inf


def _layer(place: Place) -> Layer:
    height, width = place.tap.size or (1, 1)
    return Layer(
        name=place.name,
        kind=place.kind,
        maps=place.tap.channels,
        height=height,
        width=width,
        activation=place.activation,
        tensor=place.tap.node,
        tensor_before=place.tap.before or place.tap.node,
    )


def _graph_sha256(module: fx.GraphModule) -> str:
    """Of the operations and what they are set to; the weights are another matter."""
    digest = hashlib.sha256()
    for node in module.graph.nodes:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        part = repr(module.get_submodule(target)) if node.op == "call_module" else ""
        digest.update(f"{node.name} {node.op} {target} {part} {node.args} {node.kwargs}\n".encode())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
