"""How far apart answers are: what counts as a difference, what does not, and where it is."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from oip_torch.comparison.differences import (
    GradientDifference,
    Worst,
    gradient_difference,
    image_correlations,
    layer_error,
    rank_correlation,
    score_errors,
    trace_errors,
)


def test_the_worst_is_the_largest_value_and_at_the_same_value_one_of_them() -> None:
    assert max(Worst(0.5, 9), Worst(math.inf, 0), Worst(1.0, 3)) == Worst(math.inf, 0)
    assert max(Worst(0.5, 1), Worst(0.5, 2)) == Worst(0.5, 2)


def test_layer_errors_name_the_channel_and_see_what_is_wrong() -> None:
    want = np.random.default_rng(0).normal(size=(2, 3, 3, 4))
    got = want.copy()
    got[1, 2, 0, 3] += 0.5
    assert layer_error(got, want) == Worst(pytest.approx(0.5 / np.abs(want).max()), 3)
    assert layer_error(want, want) == Worst(0.0, 0)
    for wrong in (None, want[:1], np.full_like(want, np.nan)):
        assert layer_error(wrong, want).value == math.inf
    assert layer_error(np.zeros((1, 2)), np.zeros((1, 2))).value == 0
    assert layer_error(np.ones((1, 2)), np.zeros((1, 2))).value == math.inf


def test_gradient_differences_leave_out_what_is_saturated_and_only_that() -> None:
    rng = np.random.default_rng(0)
    images, gradients = rng.normal(size=(3, 4, 4, 1)), rng.normal(size=(3, 4, 4, 1))
    channels, scores = np.array([7, 8, 9]), np.ones(3)

    def difference(got: npt.NDArray[np.float64], want: npt.NDArray[np.float64]) -> GradientDifference:
        return gradient_difference(got, want, scores, channels, images, "float32")

    same = difference(gradients, gradients)
    assert (same.cosine.value, same.error) == (pytest.approx(1), 0)
    other = gradients.copy()
    other[1] = -other[1]
    found = gradient_difference(other, gradients, scores, channels, images, "float64")
    assert found == GradientDifference(cosine=Worst(pytest.approx(-1), 8), error=pytest.approx(2), saturated=0)
    # In float32 chance decides on single images, and the one in the middle tells.
    assert difference(other, gradients).cosine.value == pytest.approx(1)
    other[2] = -other[2]
    assert difference(other, gradients).cosine.value == pytest.approx(-1)
    tiny = gradients.copy()
    tiny[1] *= 1e-6
    lost = difference(np.where(np.arange(3)[:, None, None, None] == 1, 0, tiny), tiny)
    assert lost.cosine.value == pytest.approx(1)
    assert difference(tiny, tiny).saturated == 1
    # Too small for float32, a softmax at 0: what is 0 there is no difference; what is not small is one.
    scores *= 1e-40
    gone = gradients * 1e-42
    assert difference(np.zeros_like(gone), gone).cosine.value == 1
    assert difference(np.zeros_like(gone), gone).saturated == 3
    assert difference(-gradients, gone).cosine.value < 0
    scores[:] = 1
    # Silent in both is equal; silent in one of them alone is a difference.
    zero = np.zeros_like(gradients)
    assert difference(zero, zero).cosine.value == 1
    assert difference(zero, gradients).cosine.value == 0
    assert difference(gradients, zero).cosine.value == 0
    undefined = difference(np.full_like(gradients, np.nan), gradients)
    assert (undefined.cosine.value, undefined.error) == (-1, math.inf)


def test_trace_errors_are_relative_to_the_score_but_not_to_a_vanishing_one() -> None:
    want = np.array([[1e-9, 1.0, 10.0], [0.0, 0.0, 0.0]], np.float32)
    got = want + np.array([[1e-4, 0.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(trace_errors(got, want), [[1e-2, 0, 0.1], [0, 0, 0]], rtol=1e-4)
    assert np.isinf(trace_errors(got + 1, want)[1]).all()  # dead in the one, alive in the other


def test_images_correlate_whatever_their_mean_and_contrast() -> None:
    images = np.random.default_rng(0).normal(size=(3, 5, 5, 1))
    got = np.stack([2 * images[0] + 7, -images[1], np.ones_like(images[2])])
    np.testing.assert_allclose(image_correlations(got, images), [1, -1, 0], atol=1e-12)


def test_score_errors_are_relative_to_the_largest_score_of_all() -> None:
    errors = score_errors(np.array([0.1, 4.0, np.nan]), np.array([0.0, -5.0, 1.0]))
    np.testing.assert_allclose(errors, [0.02, 1.8, np.nan])
    assert score_errors(np.zeros(2), np.zeros(2)).tolist() == [0, 0]


def test_the_order_of_the_channels_is_compared_by_rank() -> None:
    scores = np.array([3.0, 1.0, 2.0])
    assert rank_correlation(scores**3, scores) == pytest.approx(1)
    assert rank_correlation(-scores, scores) == pytest.approx(-1)
    assert rank_correlation(np.array([1.0, 1.0, 2.0, 3.0]), np.arange(4.0)) == pytest.approx(3 / math.sqrt(10))  # ties
    assert rank_correlation(np.array([3.0, np.nan, 1.0]), scores) == pytest.approx(1)
    for unordered in (scores[:1], scores[:0], np.full(3, 2.0), np.full(3, np.nan)):
        assert rank_correlation(unordered, scores[: len(unordered)]) is None
        assert rank_correlation(scores[: len(unordered)], unordered) is None
