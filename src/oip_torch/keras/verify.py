"""Does the torch module compute what the Keras layers compute?

Verification is numerical: on probe images each layer of the torch module is compared with TensorFlow's own
activations, and one gradient and the predicted classes with TensorFlow's. It is a check on probes, not a proof.
What misses its bound in float32, and that alone, is compared in float64, where rounding is out of the way: deep
networks may be further from each other in float32 than the bound allows, though both are right to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from oip_torch.base.errors import VerificationError
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.network.extract import truncate
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.network.probes import BEFORE, fingerprint

__all__ = [
    "DIGIT_PROBES",
    "MAX_LAYER_ERROR",
    "MAX_LAYER_ERROR_FLOAT64",
    "MIN_GRADIENT_COSINE",
    "MIN_GRADIENT_COSINE_FLOAT64",
    "NOISE_PROBES",
    "Doubt",
    "verify",
]

MAX_LAYER_ERROR = 1e-5
"""Largest |torch - Keras| over the largest |Keras| of a layer; networks of keras.applications stay below 1e-6."""
MIN_GRADIENT_COSINE = 0.9999
MAX_LAYER_ERROR_FLOAT64 = 1e-10
"""The same in float64, where float32's bound is missed. Measured: 1e-12 and less."""
MIN_GRADIENT_COSINE_FLOAT64 = 0.999999
"""On the images of noise: flat ones have ties at ReLU and max pooling, which a rounding decides."""
NOISE_PROBES, DIGIT_PROBES = 4, 8
"""How many probe images there are of each kind; the noise comes first."""
_AT_A_TIME = 2
"""Images whose gradients are worked out at once."""

Answer = Mapping[str, npt.NDArray[Any]]
_See = Callable[[str, npt.NDArray[Any]], None]  # the answer's key, and torch's output


@dataclasses.dataclass(frozen=True)
class Doubt:
    """What float32 did not tell, and float64 is to decide.

    `layers`: name → index. `gradient`: the layer's name, its index, a map, and 1 for before the activation; or None.
    """

    layers: Mapping[str, int]
    gradient: tuple[str, int, int, int] | None


def verify(
    model: FeatureModel, answers: Iterable[Answer], in_float64: Callable[[Doubt], Iterable[Answer]] | None = None
) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """Compare every layer of the model, and a gradient, with what TensorFlow computed.

    Args:
        model: on the CPU.
        answers: see `keras.export._answers`: for some images at a time, activations before and after each layer's
            activation (NHWC); in the end a gradient and what it is the gradient of.
        in_float64: gives the same in float64, of what is in doubt; asked only where a bound is missed in float32.

    Returns:
        The layers with their `max_error` and fingerprint, and what else `Network.verification` holds.

    Raises:
        VerificationError: see `convert`.
    """
    found = _compare(model, model.layers.names, answers)
    layers = [
        dataclasses.replace(layer, max_error=found.errors[layer.name], fingerprint=found.fingerprints[layer.name])
        for layer in model.layers
    ]
    doubt = _doubt(found, model.layers.names)
    failed = _failures(found, MAX_LAYER_ERROR, found.cosine, MIN_GRADIENT_COSINE)
    exact: _Found | None = None
    same_classes = found.same_classes
    if failed and in_float64 is not None and all(map(math.isfinite, found.errors.values())):
        exact = _compare(model, list(doubt.layers), in_float64(doubt), in_float64=True)
        layers = [
            dataclasses.replace(layer, error_float64=exact.errors.get(layer.name, layer.error_float64))
            for layer in layers
        ]
        failed = _failures(exact, MAX_LAYER_ERROR_FLOAT64, exact.noise_cosine, MIN_GRADIENT_COSINE_FLOAT64)
        for name in failed.keys() & doubt.layers.keys():
            failed[name] += f", and by {found.errors[name]:.1e} in float32"
        if model.network.output in doubt.layers:  # else its values are equal to within its bound, and so its classes
            same_classes = exact.same_classes
    if not same_classes:
        failed.setdefault(model.network.output, "predicts other classes than Keras")
    if failed:
        first, why = next(iter(failed.items()))
        others = f"; so do {', '.join(list(failed)[1:6])}" if len(failed) > 1 else ""
        raise VerificationError(
            f"torch does not compute what Keras computes: layer {first!r} {why}{others}; nothing was written",
            failed=list(failed),
            layers=[_finite(layer.row()) for layer in layers],
        )
    gradient = {
        "layer": found.gradient_layer,
        "map": found.gradient_map,
        "before_activation": found.gradient_before,
        "cosine": found.cosine,
    }
    if exact is not None and doubt.gradient is not None:
        gradient["cosine_float64"] = exact.noise_cosine
    verification = {
        "probes": {"noise": NOISE_PROBES, "digits": found.images - NOISE_PROBES},
        "batch_sizes": found.batch_sizes,
        "max_error": max(layer.max_error or 0.0 for layer in layers),
        "gradient": gradient,
    }
    if exact is not None:
        verification["in_float64"] = [layer.name for layer in layers if layer.error_float64 is not None]
    return tuple(layers), verification


@dataclasses.dataclass
class _Found:
    """What the comparison of all answers gave."""

    errors: dict[str, float]
    fingerprints: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    same_classes: bool = True
    images: int = 0
    batch_sizes: list[int] = dataclasses.field(default_factory=list)
    gradient_layer: str = ""
    gradient_map: int = 0
    gradient_before: bool = False
    cosine: float = 1.0
    noise_cosine: float = 1.0
    is_float64: bool = False


class _Range:
    """The largest difference and the largest value of a layer so far."""

    def __init__(self) -> None:
        self.worst = self.scale = 0.0

    def see(self, got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        worst, scale = math.inf, 0.0
        if got.shape == expected.shape:
            with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity stay in a difference
                worst, scale = _largest(got - expected), _largest(expected)
        self.worst = max(self.worst, worst if math.isfinite(worst) else math.inf)
        self.scale = max(self.scale, scale if math.isfinite(scale) else 0.0)

    @property
    def error(self) -> float:
        """The difference as a part of the layer's largest value; what is 0 in Keras must be 0."""
        if self.scale > 0:
            return self.worst / self.scale
        return 0.0 if self.worst == 0 else math.inf


def _doubt(found: _Found, names: Sequence[str]) -> Doubt:
    """What missed its bound in float32."""
    layers = {name: index for index, name in enumerate(names) if not found.errors[name] <= MAX_LAYER_ERROR}
    target = found.gradient_layer, names.index(found.gradient_layer), found.gradient_map, int(found.gradient_before)
    return Doubt(layers, None if found.cosine >= MIN_GRADIENT_COSINE else target)


def _largest(values: npt.NDArray[Any]) -> float:
    """The largest absolute value, worked out without an array of these; NaN if one is."""
    return float(np.maximum(values.max(), -values.min()))


def _compare(
    model: FeatureModel, names: Sequence[str], answers: Iterable[Answer], *, in_float64: bool = False
) -> _Found:
    """Go through the answers one by one, and keep figures alone; `names`: of the layers that they hold."""
    indices = {model.layers.names.index(name): name for name in names}
    ranges = {f"{prefix}{index}": _Range() for index in indices for prefix in ("", BEFORE)}
    output = f"{model.layers.names.index(model.network.output)}"
    places = _places(model, ranges)
    part: fx.GraphModule | None = None
    found = _Found(errors={}, is_float64=in_float64)
    chosen: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for answer in answers:
        if "gradient" in answer:
            part = None
            _compare_gradient(found, model, answer)
            continue
        if part is None:
            part = _without_outputs(truncate(model.graph_module, list(dict.fromkeys(places.values()))))
            part = _doubled(part) if in_float64 else part
        images = answer["images"]
        # Two batch sizes: a graph that froze the batch, or that mixes its images, shows with the second one; for an
        # image of noise, and for one of the others.
        sizes = [len(images), 1] if found.images in (0, NOISE_PROBES) else [len(images)]
        for size in sizes:

            def see(key: str, got: npt.NDArray[Any], answer: Answer = answer, size: int = size) -> None:
                if key in answer:
                    expected = answer[key]
                    ranges[key].see(got, expected[:size])
                    if key == output and size == len(expected):
                        chosen.append((got, expected))

            _run(part, places, images[:size], see)
        if not found.images:
            found.fingerprints = {name: fingerprint(answer[f"{index}"][:1]) for index, name in indices.items()}
            found.batch_sizes = sizes
        found.images += len(images)
    found.errors = {
        name: max(ranges[f"{index}"].error, ranges[f"{BEFORE}{index}"].error) for index, name in indices.items()
    }
    if chosen:
        scale = ranges[output].scale
        found.same_classes = all(_same_classes(got, expected, scale) for got, expected in chosen)
    return found


def _failures(found: _Found, max_error: float, cosine: float, min_cosine: float) -> dict[str, str]:
    """Layer → what is wrong."""
    kind = " in float64" if found.is_float64 else ""
    failed = {
        name: f"differs by {error:.1e} of its maximum{kind} (at most {max_error:.0e} is allowed)"
        for name, error in found.errors.items()
        if not error <= max_error
    }
    if not cosine >= min_cosine:
        failed.setdefault(
            found.gradient_layer,
            f"has an input gradient of cosine {cosine:.6f}{kind} (at least {min_cosine} is needed)",
        )
    return failed


def _places(model: FeatureModel, keys: Iterable[str]) -> dict[str, str]:
    """The answer's key → the node whose output that is."""
    places = {}
    for key in keys:
        index = int(key.removeprefix(BEFORE))
        places[key] = model.tap(model.layers[index].name, pre_activation=key.startswith(BEFORE)).node
    return places


def _without_outputs(module: fx.GraphModule) -> fx.GraphModule:
    """The same network, which gives back only what no other node needs, so that no layer is kept that was seen."""
    (end,) = (node for node in module.graph.nodes if node.op == "output")
    last = [node.name for node in end.all_input_nodes if set(node.users) == {end}]
    return truncate(module, last)


def _doubled(module: fx.GraphModule) -> fx.GraphModule:
    """A copy in float64, made weight by weight: no other copy of them is held on the way."""
    wide: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            parameter = isinstance(tensor, nn.Parameter)
            double = tensor.detach().double()
            wide[id(tensor)] = nn.Parameter(double, requires_grad=False) if parameter else double
    return copy.deepcopy(module, wide)


def _run(part: fx.GraphModule, places: Mapping[str, str], images: npt.NDArray[Any], see: _See) -> None:
    """Show every layer's output, and what goes into its activation, as soon as it is computed, in Keras' layout."""

    def hook(key: str) -> Any:
        return lambda module, inputs, output: see(key, to_array(output))

    targets = {node.name: str(node.target) for node in part.graph.nodes}
    handles = [part.get_submodule(targets[place]).register_forward_hook(hook(key)) for key, place in places.items()]
    try:
        with torch.no_grad():
            part(to_tensor(images))
    finally:
        for handle in handles:
            handle.remove()


def _compare_gradient(found: _Found, model: FeatureModel, answer: Answer) -> None:
    """Smallest cosine, over the images, between torch's and Keras' gradient of a map's mean."""
    layer, channel, before = (int(n) for n in answer["gradient_target"])
    found.gradient_layer, found.gradient_map = model.layers[layer].name, channel
    found.gradient_before = bool(before)
    part = model.up_to(found.gradient_layer, pre_activation=found.gradient_before)
    part = _doubled(part) if found.is_float64 else part
    at_a_time = 1 if found.is_float64 else _AT_A_TIME  # which takes twice the memory
    cosines = []
    for start in range(0, len(answer["images"]), at_a_time):
        x = to_tensor(answer["images"][start : start + at_a_time]).requires_grad_()
        (gradients,) = torch.autograd.grad(part(x)[:, channel].flatten(1).mean(1).sum(), x)
        for gradient, expected in zip(to_array(gradients), answer["gradient"][start:], strict=False):
            got, want = gradient.ravel().astype(np.float64), expected.ravel().astype(np.float64)
            norms = float(np.linalg.norm(got)), float(np.linalg.norm(want))
            # Where the map is silent both gradients are 0 and have no direction; if only one is 0, they differ.
            cosines.append(1.0 if norms == (0.0, 0.0) else float(got @ want) / max(norms[0] * norms[1], 1e-300))
    found.cosine, found.noise_cosine = min(cosines), min(cosines[:NOISE_PROBES])


def _same_classes(got: npt.NDArray[Any], expected: npt.NDArray[Any], scale: float) -> bool:
    """Equal argmax; where two classes tie within the layer's own tolerance, either will do."""
    if got.shape != expected.shape:
        return False
    rows = got.reshape(len(got), -1), expected.reshape(len(expected), -1)
    chosen = np.take_along_axis(rows[1], rows[0].argmax(1)[:, None], axis=1)[:, 0]
    return bool((chosen >= rows[1].max(1) - 2 * MAX_LAYER_ERROR * scale).all())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    error = row["max_error"]
    return row | {"max_error": error if error is not None and math.isfinite(error) else None}
