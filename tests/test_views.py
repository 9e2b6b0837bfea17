"""What the network sees of an image while it is optimised: rotation, scaling, shift, noise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from conftest import nchw

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, Views, ascend
from oip_torch.base.tensors import standardize
from oip_torch.optim.views import seen_under

LAYER = "Conv2D_3"


def test_views_turn_scale_and_shift() -> None:
    x = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    x[..., 10, 15] = 1
    still = torch.zeros(1, 4, dtype=torch.float64)
    views = Views(rotation=90, scale=0.5, shift=2)
    assert torch.allclose(views.see(x, still, 1.0), x, atol=1e-12)
    assert views.see(x, still + 1, 0.0) is x
    turned = views.see(x, torch.tensor([[1.0, 0, 0, 0]]), 1.0)[0, 0]
    assert divmod(int(turned.argmax()), 21) in ((5, 10), (15, 10))
    shifted = views.see(x, torch.tensor([[0.0, 0, 0, 1]]), 1.0)[0, 0]
    assert divmod(int(shifted.argmax()), 21) == (10, 13)
    below = views.see(x, torch.tensor([[0.0, 0, -1, 0]]), 1.0)[0, 0]
    assert divmod(int(below.argmax()), 21) == (12, 15)
    smaller = views.see(x, torch.tensor([[0.0, 1, 0, 0]]), 1.0)[0, 0]
    assert divmod(int(smaller.argmax()), 21) == (10, 13)
    assert [Views(fade=0.5).size(done) for done in (0, 0.25, 0.5, 1)] == [1, 0.5, 0, 0]
    assert Views(fade=None).size(1.0) == 1


def test_noise_is_each_image_s_own_and_fades() -> None:
    views = Views(rotation=0, scale=0, shift=0, noise=0.3, fade=0.5)
    x, draws = torch.zeros(2, 1, 40, 40, dtype=torch.float64), torch.zeros(2, 5, 4, dtype=torch.float64)

    def seen(step: int, *rows: int) -> torch.Tensor:
        streams = [np.random.Generator(np.random.Philox(key=row)) for row in range(2)]
        return seen_under(views, draws, streams)(step, torch.tensor(rows))(x[list(rows)])

    first = seen(0, 0, 1)
    assert first.std((1, 2, 3)).tolist() == pytest.approx([0.3, 0.3], rel=0.1)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(seen(0, 1)[0], first[1])
    assert seen(1, 0).std() == pytest.approx(0.15, rel=0.1)
    assert torch.equal(seen(2, 0), x[:1])
    assert views.see(x, draws[:, 0] + 1, 1.0) is x


def test_what_is_seen_under_noise_is_robust_to_noise_whatever_the_batch(model: FeatureModel) -> None:
    noisy = Views(rotation=0, scale=0, shift=0, noise=1.0, fade=None)
    maps = list(range(24))

    def kept(oips: Oips) -> float:
        """Mean score under noise over the score without, in the median of the maps."""
        x = nchw(oips.images)
        drawn = torch.randn(20, *x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            scores = [model.up_to(LAYER)(standardize(x + noise))[maps, maps].mean((1, 2)) for noise in drawn]
        alive = oips.scores > 0
        return float(np.median((torch.stack(scores).mean(0).numpy() / np.maximum(oips.scores, 1e-6))[alive]))

    without, within = (
        ascend(model, LAYER, maps, settings=AscentSettings(steps=60, candidates=1, views=views))
        for views in (None, noisy)
    )
    assert kept(within) > 1.2 * kept(without)
    settings = AscentSettings(steps=20, candidates=2, candidate_steps=5, views=Views(noise=0.3), stop="converged")
    double = copy.deepcopy(model).double()
    together = ascend(double, LAYER, [3, 14, 17], settings=settings)
    alone = ascend(double, LAYER, 14, settings=settings)
    assert alone.images[0] == pytest.approx(together.images[1], abs=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(scale=1.0), "scale is 1.0: expected a number below 1"),
        (lambda: Views(rotation=-1), "rotation is -1"),
        (lambda: Views(noise=-0.1), "noise is -0.1: expected a number of 0 or more"),
        (lambda: Views(noise="0.1"), "noise is '0.1'"),  # type: ignore[arg-type]
        (lambda: Views(fade=0.0), "fade is 0.0"),
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_is_said_of_them() -> None:
    assert Views().summary == "seen under random views fading out at 70% of the steps"
    assert Views(noise=0.2, fade=None).summary == "seen under random views and noise of 0.2 to the end"
    assert Views(rotation=0, scale=0, shift=0).summary == ""
    assert Views(noise=np.float32(0.5)) == Views(noise=0.5)  # type: ignore[arg-type]
