"""How far is each runtime from the reference, all things together?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oip_torch.comparison.answers import Ascents, Errors
from oip_torch.comparison.differences import (
    Worst,
    image_correlations,
    rank_correlation,
    score_errors,
    trace_errors,
)
from oip_torch.comparison.questions import Questions
from oip_torch.comparison.runtimes import OURS, RUNTIMES, Array, Dtype, Spec

__all__ = [
    "DIVERGED",
    "DeadChannels",
    "Divergence",
    "Findings",
    "Pair",
    "ScoreDifference",
    "diverge",
    "layout_divergence",
    "runtime_findings",
]

DIVERGED = 1e-3
"""Float32 traces that end further apart than this, relative to the score, have diverged."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One figure over the ascents: in the middle of them, and at its worst."""

    median: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """How two float32 runs of the same ascents diverge, over the channels that live in one of them.

    Attributes:
        steps: number of the step → the relative error of the scores there.
        correlation: of the final images; None: no channel lives.
        diverged: how many traces end more than `DIVERGED` apart.
    """

    steps: Mapping[int, Pair]
    correlation: Pair | None
    diverged: int


@dataclass(frozen=True, kw_only=True)
class DeadChannels:
    """The indices of those whose score is 0 in the end, and of those that are dead here or in the reference alone."""

    dead: list[int]
    unlike_reference: list[int]


@dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """Scores of one maker's images against the reference's scores of them; `rank` is None where it is undefined."""

    error: Worst
    rank: float | None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """How far one runtime is from the reference.

    Attributes:
        name, spec: of the runtime.
        layer: whose channels were ascended.
        errors: of layers and gradients.
        trace: the largest error of a float64 trace; None: the runtime has no float64 ascents.
        images: the smallest correlation of final float64 images; None: no ascents, or no channel lives.
        dead: by dtype; None: no float64 ascents.
        divergence: of the float32 ascents; None: there are none.
        scores: by the maker of the images.
    """

    name: str
    spec: Spec
    layer: str
    errors: Errors
    trace: Worst | None
    images: Worst | None
    dead: Mapping[Dtype, DeadChannels] | None
    divergence: Divergence | None
    scores: Mapping[str, ScoreDifference]

    def worst_layers(self, dtype: Dtype) -> dict[str, Worst]:
        """Layer → its largest error on any kind of images."""
        by_kind = list(self.errors.layers[dtype].values())
        return {layer: max(errors[layer] for errors in by_kind) for layer in by_kind[0]}


def runtime_findings(
    name: str,
    questions: Questions,
    errors: Errors,
    ascents: Mapping[Dtype, Ascents],
    expected_ascents: Mapping[Dtype, Ascents],
    scores: Mapping[str, Array],
    expected_scores: Mapping[str, Array],
) -> Findings:
    """One runtime's ascents and scores against the reference's; its errors are measured already."""
    channels = questions.channels
    trace = images = dead = divergence = None
    if "float64" in ascents:
        got, want = ascents["float64"], expected_ascents["float64"]
        by_channel = trace_errors(got.traces, want.traces).max(1)
        trace = _at(int(by_channel.argmax()), by_channel, channels)
        live = np.flatnonzero(~want.dead)
        if len(live):
            correlations = image_correlations(got.images, want.images)[live]
            images = _at(int(correlations.argmin()), correlations, channels[live])
        dead = {
            dtype: DeadChannels(
                dead=channels[made.dead].tolist(),
                unlike_reference=channels[made.dead != expected_ascents[dtype].dead].tolist(),
            )
            for dtype, made in ascents.items()
        }
    if "float32" in ascents:
        divergence = diverge(ascents["float32"], expected_ascents["float32"])
    return Findings(
        name=name,
        spec=RUNTIMES[name],
        layer=questions.layer,
        errors=errors,
        trace=trace,
        images=images,
        dead=dead,
        divergence=divergence,
        scores={maker: _score_difference(said, expected_scores[maker], channels) for maker, said in scores.items()},
    )


def diverge(got: Ascents, want: Ascents) -> Divergence:
    """How two float32 runs from the same starts diverge: after 1, 10, 100 and all steps, and in the final images."""
    errors = trace_errors(got.traces, want.traces)
    live = ~want.dead | ~got.dead
    if not live.any():
        return Divergence(steps={}, correlation=None, diverged=0)
    last = errors.shape[1]
    correlations = image_correlations(got.images, want.images)[live]
    return Divergence(
        steps={
            step: Pair(median=float(np.median(errors[live, step - 1])), worst=float(errors[live, step - 1].max()))
            for step in (*(step for step in (1, 10, 100) if step < last), last)
        },
        correlation=Pair(median=float(np.median(correlations)), worst=float(correlations.min())),
        diverged=int((errors[:, -1] > DIVERGED).sum()),
    )


def layout_divergence(ascents: Mapping[str, Mapping[Dtype, Ascents]]) -> Divergence | None:
    """How torch diverges from itself in float32, when a plain loop has the numbers in another order in memory."""
    if OURS not in ascents or "torch-plain" not in ascents:
        return None
    return diverge(ascents["torch-plain"]["float32"], ascents[OURS]["float32"])


def _at(index: int, values: Array, channels: Array) -> Worst:
    return Worst(float(values[index]), int(channels[index]))


def _score_difference(got: Array, want: Array, channels: Array) -> ScoreDifference:
    want = want.astype(np.float64)
    errors = score_errors(got, want)
    return ScoreDifference(error=_at(int(errors.argmax()), errors, channels), rank=rank_correlation(got, want))
