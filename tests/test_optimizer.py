"""In which direction a step goes: RMS, length, signs, Adam."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from oip_torch import Adam, AscentSettings, FeatureModel, InputError, ascend
from oip_torch.optim.loop import State, accumulate

LAYER = "Conv2D_3"


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def directions(optimizer: Any, gradients: torch.Tensor, momentum: float = 0.0) -> torch.Tensor:
    state = State.start(torch.zeros_like(gradients[0]), torch.zeros(len(gradients[0])), optimizer)
    found = []
    for step, gradient in enumerate(gradients):
        accumulate(state, gradient, momentum, optimizer, step)
        found.append(state.velocity.clone())
    return torch.stack(found)


def test_directions_by_length_and_by_signs() -> None:
    gradients = noise(2, 3, 1, 4, 5) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None, None]
    length = directions("l2", gradients)[0].flatten(1).norm(dim=1)
    assert length.tolist() == pytest.approx([1, 1, 1], rel=1e-3)
    assert torch.equal(directions("sign", gradients)[0], gradients[0].sign())
    assert directions("rms", gradients)[0].square().mean((1, 2, 3)).tolist() == pytest.approx([1] * 3, rel=1e-3)
    half = directions("sign", gradients, momentum=0.5)
    assert torch.allclose(half[1], 0.25 * gradients[0].sign() + 0.5 * gradients[1].sign())
    for optimizer in ("rms", "l2", "sign", Adam()):
        assert not directions(optimizer, 0 * gradients).any()


def test_adam_is_torch_s() -> None:
    own, gradients = Adam(beta1=0.8, beta2=0.95), noise(6, 2, 1, 4, 5)
    theirs = torch.zeros(2, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95))
    for gradient in gradients:
        theirs.grad = -gradient  # theirs descends
        adam.step()
    assert torch.allclose(0.1 * directions(own, gradients).sum(0), theirs)


@pytest.mark.parametrize("optimizer", ["l2", "sign", Adam()])
def test_scores_rise_and_images_that_leave_take_their_moments_along(model: FeatureModel, optimizer: Any) -> None:
    epsilon = 20.0 if optimizer == "l2" else 1.0
    double, maps = copy.deepcopy(model).double(), [3, 14, 17]
    settings = AscentSettings(steps=40, epsilon=epsilon, candidates=2, candidate_steps=5, optimizer=optimizer)
    oips = ascend(double, LAYER, maps, settings=settings)
    assert (oips.scores > oips.traces[:, 0] + 0.5).all()
    settings = AscentSettings.article(
        steps=60, epsilon=0.01 * epsilon, tolerance=2e-2, stop="converged", optimizer=optimizer
    )
    oips = ascend(double, LAYER, maps, settings=settings)
    left = np.isnan(oips.traces).sum(1)
    assert len(set(left.tolist())) > 1  # at different steps
    for row, number in enumerate(maps):
        assert ascend(double, LAYER, number, settings=settings).images[0] == pytest.approx(oips.images[row], abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adam(beta1=1.0), "beta1 is 1.0: expected a number from 0 to below 1"),
        (lambda: Adam(beta2="0.9"), "beta2 is '0.9'"),  # type: ignore[arg-type]
        (lambda: AscentSettings(optimizer="adam"), r"optimizer is 'adam': expected 'rms', 'l2', 'sign' or Adam\(…\)"),  # type: ignore[arg-type]
        (lambda: AscentSettings(optimizer=None), "optimizer is None"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
