"""Does the torch module compute what the Keras layers compute?

Verification is numerical: on probe images each layer of the torch module is compared with TensorFlow's own
activations, and one gradient and the predicted classes with TensorFlow's. It is a check on probes, not a proof.
What misses its bound in float32 is compared in float64, where rounding is out of the way: deep networks may be further
from each other in float32 than the bound allows, though both are right to rounding.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

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
_LARGEST_ROUNDING = 1e-2
"""Of a layer's maximum: what differs by more in float32 is no rounding, and not looked at in float64."""

Answer = Mapping[str, npt.NDArray[Any]]
_See = Callable[[str, npt.NDArray[Any]], None]  # the answer's key, and torch's output


def verify(
    model: FeatureModel, answers: Iterable[Answer], in_float64: Callable[[], Iterable[Answer]] | None = None
) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """Compare every layer of the model, and a gradient, with what TensorFlow computed.

    Args:
        model: on the CPU.
        answers: see `keras.export._answers`: for some images at a time, activations before and after each layer's
            activation (NHWC); in the end a gradient and what it is the gradient of.
        in_float64: gives the same in float64; asked only where a bound is missed in float32.

    Returns:
        The layers with their `max_error` and fingerprint, and what else `Network.verification` holds.

    Raises:
        VerificationError: see `convert`.
    """
    found = _compare(model, answers)
    layers = [
        dataclasses.replace(layer, max_error=found.errors[layer.name], fingerprint=found.fingerprints[layer.name])
        for layer in model.layers
    ]
    failed = _failures(found, MAX_LAYER_ERROR, MIN_GRADIENT_COSINE, [])
    exact: _Found | None = None
    doubtful = [name for name in failed if found.errors[name] <= _LARGEST_ROUNDING]
    same_classes = found.same_classes
    if doubtful and len(doubtful) == len(failed) and in_float64 is not None:
        exact = _compare(copy.deepcopy(model).double(), in_float64())
        checked = [name for name in failed if not found.errors[name] <= MAX_LAYER_ERROR]
        layers = [
            dataclasses.replace(layer, error_float64=exact.errors[layer.name]) if layer.name in checked else layer
            for layer in layers
        ]
        failed = _failures(exact, MAX_LAYER_ERROR_FLOAT64, MIN_GRADIENT_COSINE_FLOAT64, checked)
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
    if exact is not None and not found.cosine >= MIN_GRADIENT_COSINE:
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
        if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
            self.worst = math.inf
            return
        self.worst = max(self.worst, float(np.abs(got - expected).max()))
        self.scale = max(self.scale, float(np.abs(expected).max()))

    @property
    def error(self) -> float:
        """The difference as a part of the layer's largest value; what is 0 in Keras must be 0."""
        if self.scale > 0:
            return self.worst / self.scale
        return 0.0 if self.worst == 0 else math.inf


def _compare(model: FeatureModel, answers: Iterable[Answer]) -> _Found:
    """Go through the answers one by one, and keep figures alone."""
    ranges = {f"{prefix}{index}": _Range() for index in range(len(model.layers)) for prefix in ("", BEFORE)}
    output = model.layers.names.index(model.network.output)
    part = _without_outputs(model)
    found = _Found(errors={}, is_float64=model.dtype == torch.float64)
    chosen: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for answer in answers:
        if "gradient" in answer:
            _compare_gradient(found, model, answer)
            continue
        images = answer["images"]
        # Two batch sizes: a graph that froze the batch, or that mixes its images, shows with the second one; for an
        # image of noise, and for one of the others.
        sizes = [len(images), 1] if found.images in (0, NOISE_PROBES) else [len(images)]
        for size in sizes:

            def see(key: str, got: npt.NDArray[Any], answer: Answer = answer, size: int = size) -> None:
                if key in answer:
                    expected = answer[key]
                    ranges[key].see(got, expected[:size])
                    if key == f"{output}" and size == len(expected):
                        chosen.append((got, expected))

            _run(model, part, images[:size], see)
        if not found.images:
            found.fingerprints = {
                layer.name: fingerprint(answer[f"{index}"][:1]) for index, layer in enumerate(model.layers)
            }
            found.batch_sizes = sizes
        found.images += len(images)
    found.errors = {
        layer.name: max(ranges[f"{index}"].error, ranges[f"{BEFORE}{index}"].error)
        for index, layer in enumerate(model.layers)
    }
    scale = ranges[f"{output}"].scale
    found.same_classes = all(_same_classes(got, expected, scale) for got, expected in chosen)
    return found


def _failures(found: _Found, max_error: float, min_cosine: float, checked: list[str]) -> dict[str, str]:
    """Layer → what is wrong; in float64 of the layers in `checked` alone, and the gradient on noise."""
    failed = {}
    for name, error in found.errors.items():
        if (not found.is_float64 or name in checked) and not error <= max_error:
            kind = " in float64" if found.is_float64 else ""
            failed[name] = f"differs by {error:.1e} of its maximum{kind} (at most {max_error:.0e} is allowed)"
    cosine = found.noise_cosine if found.is_float64 else found.cosine
    if not cosine >= min_cosine:
        kind = " in float64" if found.is_float64 else ""
        failed.setdefault(
            found.gradient_layer,
            f"has an input gradient of cosine {cosine:.6f}{kind} (at least {min_cosine} is needed)",
        )
    return failed


def _without_outputs(model: FeatureModel) -> fx.GraphModule:
    """The same network, which gives back only what no other node needs, so that no layer is kept that was seen."""
    (end,) = (node for node in model.graph_module.graph.nodes if node.op == "output")
    last = [node.name for node in end.all_input_nodes if set(node.users) == {end}]
    return truncate(model.graph_module, last)


def _run(model: FeatureModel, part: fx.GraphModule, images: npt.NDArray[Any], see: _See) -> None:
    """Show every layer's output, and what goes into its activation, as soon as it is computed, in Keras' layout."""

    def hook(key: str) -> Any:
        return lambda module, inputs, output: see(key, to_array(output))

    handles = [
        model.module_of(layer.name, pre_activation=bool(prefix)).register_forward_hook(hook(f"{prefix}{index}"))
        for index, layer in enumerate(model.layers)
        for prefix in ("", BEFORE)
    ]
    try:
        with torch.no_grad():
            part(to_tensor(images, dtype=model.dtype))
    finally:
        for handle in handles:
            handle.remove()


def _compare_gradient(found: _Found, model: FeatureModel, answer: Answer) -> None:
    """Smallest cosine, over the images, between torch's and Keras' gradient of a map's mean."""
    layer, channel, before = (int(n) for n in answer["gradient_target"])
    found.gradient_layer, found.gradient_map = model.layers[layer].name, channel
    found.gradient_before = bool(before)
    part = model.up_to(found.gradient_layer, pre_activation=found.gradient_before)
    cosines = []
    for start in range(0, len(answer["images"]), _AT_A_TIME):
        images = answer["images"][start : start + _AT_A_TIME]
        x = to_tensor(images, dtype=model.dtype).requires_grad_()
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
