"""Does the torch module compute what the Keras layers compute?

Verification is numerical: on probe images each layer of the torch module is compared with TensorFlow's own
activations, and one gradient and the predicted classes with TensorFlow's. It is a check on probes, not a proof.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oip_torch.base.errors import VerificationError
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.network.capture import capture
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer
from oip_torch.network.probes import BEFORE

__all__ = ["DIGIT_PROBES", "MAX_LAYER_ERROR", "MIN_GRADIENT_COSINE", "NOISE_PROBES", "verify"]

MAX_LAYER_ERROR = 1e-5
"""Largest |torch - Keras| over the largest |Keras| of a layer; networks of keras.applications stay below 1e-6."""
MIN_GRADIENT_COSINE = 0.9999
NOISE_PROBES, DIGIT_PROBES = 4, 8
"""How many probe images there are of each kind; the noise comes first."""

_Activations = dict[str, npt.NDArray[Any]]  # by layer


def verify(model: FeatureModel, reference: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """Compare every layer of the model, and a gradient, with what TensorFlow computed.

    Args:
        model: on the CPU.
        reference: see `keras.export._reference`: images, activations before and after each layer's activation (NHWC),
            a gradient and what it is the gradient of.

    Returns:
        The layers with their `max_error`, and what else `Network.verification` holds.

    Raises:
        VerificationError: see `convert`.
    """
    images = reference["images"]
    layers, failed = [], {}
    # Two batch sizes: a graph that froze the batch, or that mixes its images, shows with the second one.
    batches = [slice(0, len(images)), slice(0, 1), slice(NOISE_PROBES, NOISE_PROBES + 1)]
    after, before = zip(*(_run(model, images[part]) for part in batches), strict=True)
    for index, layer in enumerate(model.layers):
        error = _error(after, reference[f"{index}"], batches, layer.name)
        if f"{BEFORE}{index}" in reference:
            error = max(error, _error(before, reference[f"{BEFORE}{index}"], batches, layer.name))
        layers.append(dataclasses.replace(layer, max_error=error))
        if not error <= MAX_LAYER_ERROR:
            failed[layer.name] = f"differs by {error:.1e} of its maximum (at most {MAX_LAYER_ERROR:.0e} is allowed)"

    target, map_index, silent = (int(n) for n in reference["gradient_target"])
    gradient_layer = model.layers[target].name
    cosine = _gradient_cosine(model, gradient_layer, map_index, bool(silent), images, reference["gradient"])
    if not cosine >= MIN_GRADIENT_COSINE:
        failed.setdefault(
            gradient_layer, f"has an input gradient of cosine {cosine:.6f} (at least {MIN_GRADIENT_COSINE} is needed)"
        )
    output = model.layers.names.index(model.network.output)
    if not _same_classes(after[0][model.network.output], reference[f"{output}"]):
        failed.setdefault(model.network.output, "predicts other classes than Keras")
    if failed:
        first, why = next(iter(failed.items()))
        others = f"; so do {', '.join(list(failed)[1:6])}" if len(failed) > 1 else ""
        raise VerificationError(
            f"torch does not compute what Keras computes: layer {first!r} {why}{others}; nothing was written",
            failed=list(failed),
            layers=[_finite(layer.row()) for layer in layers],
        )
    verification = {
        "probes": {"noise": NOISE_PROBES, "digits": len(images) - NOISE_PROBES},
        "batch_sizes": [len(images), 1],
        "max_error": max(layer.max_error or 0.0 for layer in layers),
        "gradient": {"layer": gradient_layer, "map": map_index, "before_activation": bool(silent), "cosine": cosine},
    }
    return tuple(layers), verification


def _run(model: FeatureModel, images: npt.NDArray[np.float32]) -> tuple[_Activations, _Activations]:
    """Every layer's output after and before its activation, for NHWC images, in Keras' layout."""
    with torch.no_grad(), capture(model, *model.layers.names, pre_activation=True) as maps:
        after = model.every_layer(to_tensor(images))
    to_arrays = [{name: to_array(tensor) for name, tensor in side.items()} for side in (after, maps)]
    return to_arrays[0], to_arrays[1]


def _error(runs: Sequence[_Activations], expected: npt.NDArray[Any], batches: list[slice], name: str) -> float:
    """Largest |got - expected| over the largest |expected|; infinite where a shape differs or a value is not finite."""
    if not np.isfinite(expected).all():
        return math.inf
    worst = 0.0
    for run, part in zip(runs, batches, strict=True):
        got = run[name]
        if got.shape != expected[part].shape or not np.isfinite(got).all():
            return math.inf
        worst = max(worst, float(np.abs(got - expected[part]).max()))
    scale = float(np.abs(expected).max())
    return worst / scale if scale > 0 else (0.0 if worst == 0 else math.inf)


def _gradient_cosine(
    model: FeatureModel,
    layer: str,
    map_index: int,
    before: bool,
    images: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
) -> float:
    """Smallest cosine, over the images, between torch's and Keras' gradient of a map's mean."""
    x = to_tensor(images).requires_grad_()
    maps = model.up_to(layer, pre_activation=before)(x)
    (gradient,) = torch.autograd.grad(maps[:, map_index].mean((1, 2)).sum(), x)
    got = to_array(gradient).reshape(len(images), -1).astype(np.float64)
    want = expected.reshape(len(images), -1).astype(np.float64)
    norms = np.linalg.norm(got, axis=1), np.linalg.norm(want, axis=1)
    cosines = (got * want).sum(1) / np.maximum(norms[0] * norms[1], 1e-300)
    # Where the map is silent both gradients are 0 and have no direction; if only one is 0, that is a difference.
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    return float(np.where(both_zero, 1.0, cosines).min())


def _same_classes(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Equal argmax; where two classes tie within the layer's own tolerance, either will do."""
    if got.shape != expected.shape:
        return False
    rows = got.reshape(len(got), -1), expected.reshape(len(expected), -1)
    chosen = np.take_along_axis(rows[1], rows[0].argmax(1)[:, None], axis=1)[:, 0]
    return bool((chosen >= rows[1].max(1) - 2 * MAX_LAYER_ERROR * np.abs(expected).max()).all())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    error = row["max_error"]
    return row | {"max_error": error if error is not None and math.isfinite(error) else None}
