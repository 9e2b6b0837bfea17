"""Regularisers: what each measures, that it rises and that there is less of it where it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import nchw

from oip_torch import AscentSettings, FeatureModel, InputError, ascend, objectives
from oip_torch.analysis.image_statistics import radial_power_spectrum
from oip_torch.base.tensors import standardize
from oip_torch.optim.objectives import Objective, map_mean

LAYER = "Conv2D_3"
SETTINGS = AscentSettings.article(steps=60, epsilon=0.1)
REGULARISERS = {
    "total_variation": objectives.total_variation,
    "l1": objectives.l1,
    "l2": objectives.l2,
    "high_frequencies(7)": objectives.high_frequencies(7),
}
THAT_MATTER = [name for name in REGULARISERS if name != "l2"]  # which is constant for standardised images


def of(regulariser: Objective, images: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.asarray(regulariser(nchw(images), torch.zeros(len(images), dtype=torch.long)).numpy())


@pytest.mark.parametrize("name", THAT_MATTER)
def test_there_is_more_of_it_where_it_is_asked_for_and_less_where_it_is_not(model: FeatureModel, name: str) -> None:
    regulariser = REGULARISERS[name]
    plain, less, more = (
        ascend(model, LAYER, [3, 14], settings=SETTINGS, objective=objective)
        for objective in (map_mean, map_mean - 10 * regulariser, 0.001 * map_mean + regulariser)
    )
    assert (of(regulariser, less.images) < 0.8 * of(regulariser, plain.images)).all()
    assert (of(regulariser, more.images) > of(regulariser, more.snapshots[:, 0])).all()
    assert less.provenance.objective == f"map_mean - 10 {name}"
    assert less.scored_by == "map_mean"
    said = map_mean(model.up_to(LAYER)(nchw(less.images)), torch.tensor([3, 14]))
    assert less.scores == pytest.approx(said.numpy(), rel=1e-4)
    assert ((less.scores > 0) & (less.scores < plain.scores)).all()  # the price


def test_l2_is_constant_for_standardised_images_and_a_step_along_it_raises_it_elsewhere() -> None:
    x = torch.randn(4, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    channels = torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(objectives.l2(standardize(x), channels), torch.ones(4), rtol=1e-5, atol=0)
    x.requires_grad_()
    before = objectives.l2(x, channels)
    (slope,) = torch.autograd.grad(before.sum(), x)
    assert (objectives.l2(x + 0.1 * slope, channels) > before).all()
    torch.testing.assert_close(objectives.l2(2 * x, channels), 4 * before)


def test_they_measure_what_they_say() -> None:
    channels = torch.zeros(1, dtype=torch.long)
    edge = torch.zeros(1, 2, 4, 6)
    edge[:, :, :, 3:] = 2.0  # four rows of a step of 2, in both of the colours
    assert objectives.total_variation(edge, channels).item() == pytest.approx(2 * 4 * 2 / edge.numel())
    assert objectives.l1(edge, channels).item() == pytest.approx(1.0)
    assert objectives.l2(edge, channels).item() == pytest.approx(2.0)
    waves = torch.cos(2 * torch.pi * torch.tensor([[2.0], [9.0]]) * torch.arange(28) / 28)
    images = (2**0.5 * waves)[:, None, None, :].expand(2, 1, 28, 28)
    found = objectives.high_frequencies(7)(images, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found, torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 14, 3)])
def test_high_frequencies_are_those_of_the_spectrum(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    rings = radial_power_spectrum(images)  # ring r holds what is nearer to r than to others
    assert of(objectives.high_frequencies(3.5), images) == pytest.approx(rings[:, 3:].sum(1), rel=1e-4)


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_batch_scores_as_its_images_do_and_flat_images_stay_finite(name: str) -> None:
    regulariser = REGULARISERS[name]
    x = torch.randn(3, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    channels = torch.tensor([0, 5, 9])
    scores = regulariser(x, channels)
    alone = torch.cat([regulariser(x[[i]], channels[[i]]) for i in range(3)])
    torch.testing.assert_close(alone, scores, rtol=1e-12, atol=0)
    assert not torch.autograd.grad(scores[1], x)[0][[0, 2]].any()
    flat = torch.zeros(2, 1, 28, 28).requires_grad_()
    assert (regulariser(flat, channels[:2]) == 0).all()
    assert torch.autograd.grad(regulariser(flat, channels[:2]).sum(), flat)[0].isfinite().all()


@pytest.mark.parametrize("above", [-1, float("nan"), "7", None, True])
def test_a_limit_that_is_none(above: Any) -> None:
    with pytest.raises(InputError, match=r"above is .*: expected a number of 0 or more"):
        objectives.high_frequencies(above)


def test_a_limit_that_no_image_of_the_size_reaches(model: FeatureModel) -> None:
    objective = map_mean - objectives.high_frequencies(20)
    with pytest.raises(InputError, match=r"above=20, but images of 28×28 pixels have none above 19.8 cycles"):
        ascend(model, LAYER, [0], objective=objective)


def test_regularisers_alone_are_refused(model: FeatureModel) -> None:
    with pytest.raises(InputError, match="total_variation - l1 shapes the images alone: expected a term that says"):
        ascend(model, LAYER, [0], objective=objectives.total_variation - objectives.l1)
