"""How far apart are two answers? Arrays in, numbers out.

`got` is what is judged and `want` the reference's, of the same shape. Errors are 0 and correlations 1 where both agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from oip_torch.comparison.runtimes import Array, Dtype

__all__ = [
    "GradientDifference",
    "Worst",
    "gradient_difference",
    "image_correlations",
    "layer_error",
    "rank_correlation",
    "score_errors",
    "trace_errors",
]

_NOT_ZERO = 1e-300  # at least this is divided by
_FLOOR = 1e-3  # scores are compared relative to themselves, but not to less than this share of the trace's largest
_RESOLUTION: dict[Dtype, float] = {
    "float32": 1e-3,
    "float64": 1e-12,
}  # some ten thousand times the rounding of a number
_UNDERFLOW: dict[Dtype, float] = {"float32": 1e-30, "float64": 1e-140}
"""Where numbers of a gradient are so small that some lose digits and others become 0, in float64 their squares. A
softmax is there for every class that an image speaks against strongly enough."""


@dataclass(frozen=True, order=True)
class Worst:
    """The largest error, or the smallest correlation, over the channels of a layer; and the channel that has it."""

    value: float
    channel: int


@dataclass(frozen=True, kw_only=True)
class GradientDifference:
    """How far the gradients of several images are apart.

    Attributes:
        cosine: in float64 the smallest one, in float32 that of the image in the middle; and the channel of that image.
            Where a value before a ReLU, or two in the window of a pooling, are equal but for rounding, float32 decides
            by chance which way the gradient of that image goes.
        error: the largest |Δ| over the largest |reference|.
        saturated: how many images were left out; see `gradient_difference`.
    """

    cosine: Worst
    error: float
    saturated: int


def layer_error(got: Array | None, want: Array) -> Worst:
    """Largest |Δ| over the largest |reference| of (batch, …, channels); infinite where shapes or numbers are wrong.

    `got` is None where a runtime does not give the layer.
    """
    if got is None or got.shape != want.shape or not np.isfinite(got).all():
        return Worst(math.inf, 0)
    by_channel = np.abs(got - want).reshape(-1, want.shape[-1]).max(0)
    scale = np.abs(want).max()
    channel = int(by_channel.argmax())
    largest = by_channel[channel]
    return Worst(float(largest / scale) if scale > 0 else (0.0 if largest == 0 else math.inf), channel)


def gradient_difference(
    got: Array, want: Array, scores: Array, channels: Array, images: Array, dtype: Dtype
) -> GradientDifference:
    """How far gradients with respect to the images are apart, (batch, height, width, channels).

    Images whose channel is saturated are left out, and counted: where the whole image could not move the score by more
    than `_RESOLUTION` of it (a softmax at 1, say), the gradient is a difference of numbers that are equal in this
    dtype; and where both could move it by no more than `_UNDERFLOW` (a softmax at 0), they are of numbers that it
    cannot hold.

    Args:
        got: in `dtype`.
        want: the reference's, in float64.
        scores: (batch,), the reference's.
        channels: (batch,), the index of the channel whose mean was scored.
        images: at which the gradients were taken.
        dtype: in which `got` was computed.
    """
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (got, want, images)]
    norms = [np.linalg.norm(row, axis=1) for row in rows]
    saturated = (norms[1] > 0) & (norms[1] * norms[2] <= _RESOLUTION[dtype] * np.abs(scores))
    saturated |= (norms[1] > 0) & (np.maximum(norms[0], norms[1]) * norms[2] <= _UNDERFLOW[dtype])
    # Where the channel is silent both gradients are 0 and have no direction; if only one is 0, that is a difference.
    silent = (norms[0] == 0) & (norms[1] == 0)
    cosines = (rows[0] * rows[1]).sum(1) / np.maximum(norms[0] * norms[1], _NOT_ZERO)
    errors = np.abs(rows[0] - rows[1]).max(1) / np.maximum(np.abs(rows[1]).max(1), _NOT_ZERO)
    cosines = np.where(saturated | silent, 1.0, np.nan_to_num(cosines, nan=-1.0))
    errors = np.where(saturated | silent, 0.0, np.nan_to_num(errors, nan=np.inf))
    told = np.flatnonzero(~(saturated | silent))
    ranked = told[cosines[told].argsort(kind="stable")] if len(told) else np.arange(len(cosines))
    worst = int(ranked[0 if dtype == "float64" else (len(ranked) - 1) // 2])
    return GradientDifference(
        cosine=Worst(float(cosines[worst]), int(channels[worst])),
        error=float(errors.max()),
        saturated=int(saturated.sum()),
    )


def trace_errors(got: Array, want: Array) -> Array:
    """(ascents, steps) |Δ| over the reference's score, or over `_FLOOR` of its largest one where that is more."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    scale = np.maximum(np.abs(want), _FLOOR * np.abs(want).max(1, keepdims=True))
    # A trace of zeros alone: the channel is dead there, and whether it is dead here too is what counts.
    return np.where(scale > 0, np.abs(got - want) / np.maximum(scale, _NOT_ZERO), np.where(got != want, np.inf, 0.0))


def image_correlations(got: Array, want: Array) -> Array:
    """(images,) Pearson's correlation of the pixels of two images; 0 where one of them is uniform."""
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (got, want)]
    rows = [row - row.mean(1, keepdims=True) for row in rows]
    norms = [np.linalg.norm(row, axis=1) for row in rows]
    return np.asarray((rows[0] * rows[1]).sum(1) / np.maximum(norms[0] * norms[1], _NOT_ZERO))


def score_errors(got: Array, want: Array) -> Array:
    """(images,) |Δ| of scores over the largest |reference| of all; NaN where there is no score."""
    return np.asarray(np.abs(got - want) / max(float(np.abs(want).max()), _NOT_ZERO))


def rank_correlation(got: Array, want: Array) -> float | None:
    """Spearman's correlation of (images,) scores, those left out that are NaN. None: undefined, as one has no order."""
    known = ~(np.isnan(got) | np.isnan(want))
    got, want = got[known], want[known]
    if not len(got) or (got == got[0]).all() or (want == want[0]).all():
        return None
    return float(spearmanr(got, want).statistic)
