"""What does report.json hold? Numbers, texts and None alone, since JSON knows no infinity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from oip_torch.comparison.bounds import Disagreement
from oip_torch.comparison.differences import GradientDifference, Worst
from oip_torch.comparison.findings import Divergence, Findings
from oip_torch.comparison.questions import Questions
from oip_torch.comparison.runtimes import BEFORE

__all__ = ["disagreement_entry", "divergence_entry", "questions_entry", "runtime_entry"]


def questions_entry(questions: Questions) -> dict[str, Any]:
    """What was compared."""
    return {
        "layer": questions.layer,
        "before_activation": questions.tap == BEFORE + questions.layer,
        "maps": questions.channels.tolist(),
        "steps": questions.steps,
        "epsilon": questions.epsilon,
        "seed": questions.seed,
        "images": {kind: len(images) for kind, images in questions.images.items()},
    }


def runtime_entry(findings: Findings, seconds: float) -> dict[str, Any]:
    """One of `runtimes`; `seconds` is what its answers took. docs/runtimes.md says what the keys mean."""
    spec, errors = findings.spec, findings.errors
    cosines = [found.cosine.value for by_layer in errors.gradients.values() for found in by_layer.values()]
    return {
        "title": spec.title,
        "counted": spec.counted,
        "versions": spec.versions(),
        "layers": _values(findings.worst_layers("float32")),
        "layers_float64": _values(findings.worst_layers("float64")) if "float64" in errors.layers else None,
        "layers_by_images": {kind: _values(by_layer) for kind, by_layer in errors.layers["float32"].items()},
        "gradient_cosine": min(cosines) if cosines else None,
        "gradients": {dtype: _gradients(found) for dtype, found in errors.gradients.items()} or None,
        "trace_max_relative_error": findings.trace and _finite(findings.trace.value),
        "image_correlation": findings.images and _finite(findings.images.value),
        "dead_maps": findings.dead
        and {
            dtype: {"dead": found.dead, "other_than_reference": found.unlike_reference}
            for dtype, found in findings.dead.items()
        },
        "float32": divergence_entry(findings.divergence),
        "scores": {
            maker: {"max_relative_error": _finite(score.error.value), "rank_correlation": score.rank}
            for maker, score in findings.scores.items()
        },
        "seconds": round(seconds, 1),
    }


def divergence_entry(divergence: Divergence | None) -> dict[str, Any] | None:
    """The `float32` of a runtime, and the report's `layouts`."""
    if divergence is None:
        return None
    images = divergence.correlation
    return {
        "steps": {
            str(step): {"median": _finite(errors.median), "max": _finite(errors.worst)}
            for step, errors in divergence.steps.items()
        },
        "image_correlation": images and {"median": _finite(images.median), "least": _finite(images.worst)},
        "parted": divergence.diverged,
    }


def disagreement_entry(disagreement: Disagreement) -> dict[str, Any]:
    """One of `disagreements`."""
    return dataclasses.asdict(disagreement) | {"got": _finite(disagreement.got), "message": str(disagreement)}


def _gradients(by_layer: Mapping[str, GradientDifference]) -> dict[str, Any]:
    return {
        layer: {"cosine": found.cosine.value, "relative_error": _finite(found.error), "saturated": found.saturated}
        for layer, found in by_layer.items()
    }


def _values(errors: Mapping[str, Worst]) -> dict[str, float | None]:
    return {layer: _finite(error.value) for layer, error in errors.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
