"""What has to hold for runtimes to agree, and what does not?"""

from __future__ import annotations

from dataclasses import dataclass

from oip_torch.comparison.differences import Worst
from oip_torch.comparison.findings import Findings
from oip_torch.comparison.runtimes import BEFORE
from oip_torch.keras.verify import MAX_LAYER_ERROR

__all__ = ["BOUNDS", "Disagreement", "disagreements_of"]

BOUNDS = {
    "layer_error": MAX_LAYER_ERROR,
    "layer_error_float64": 1e-10,
    "gradient_cosine": 0.99999,
    "trace_error_float64": 1e-9,
    "image_correlation_float64": 0.999999,
    "cross_score_error": MAX_LAYER_ERROR,
}
"""What has to hold for `agree`: errors at most, cosines and correlations at least these. Ascents are bound in float64
alone, since in float32 they are chaotic in places; layers and cross-scores in both or in float32."""

_AT_LEAST = {"gradient_cosine", "image_correlation_float64"}  # the others are errors


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One bound that does not hold: where, in which runtime, and by how much."""

    runtime: str
    what: str
    got: float
    bound: float
    layer: str
    map: int | None = None

    def __str__(self) -> str:
        where = f"layer {self.layer!r}" + ("" if self.map is None else f", map {self.map}")
        allowed = f"at least {self.bound}" if self.bound > 0.5 else f"at most {self.bound:.0e}"
        return f"{where}: {self.runtime} has a {self.what} of {self.got:.6g}, but {allowed} is allowed"


def disagreements_of(findings: Findings) -> list[Disagreement]:
    """The bounds that one runtime breaks: layers, gradients, ascents, cross-scores; none if it is not counted."""
    broken: list[Disagreement] = []

    def check(what: str, got: Worst, bound: str, layer: str) -> None:
        limit = BOUNDS[bound]
        holds = got.value >= limit if bound in _AT_LEAST else got.value <= limit  # NaN does not
        if not holds:
            broken.append(
                Disagreement(runtime=findings.name, what=what, got=got.value, bound=limit, layer=layer, map=got.channel)
            )

    if not findings.spec.counted:
        return broken
    for dtype in findings.errors.layers:
        for layer, error in findings.worst_layers(dtype).items():
            bound = "layer_error" if dtype == "float32" else "layer_error_float64"
            check(f"relative error in {dtype}", error, bound, layer)
    for dtype, gradients in findings.errors.gradients.items():
        for name, found in gradients.items():
            check(f"gradient cosine in {dtype}", found.cosine, "gradient_cosine", name.removeprefix(BEFORE))
    if findings.trace is not None:
        check("trace's relative error in float64", findings.trace, "trace_error_float64", findings.layer)
    if findings.images is not None:
        what = "final image's correlation in float64"
        check(what, findings.images, "image_correlation_float64", findings.layer)
    for maker, score in findings.scores.items():
        check(f"relative error in scoring {maker}'s OIPs", score.error, "cross_score_error", findings.layer)
    return broken
