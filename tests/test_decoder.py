"""Every image with every constraint, optimizer, colours and views: what holds of each holds of all together."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from oip_torch import (
    Adam,
    AscentSettings,
    Ball,
    Blurred,
    Decorrelated,
    FeatureModel,
    Fourier,
    Oips,
    Pen,
    Phases,
    Pixels,
    Range,
    Standardized,
    Views,
    ascend,
)

IMAGES = (Pixels(), Blurred(), Pen(), Fourier(), Phases())
CONSTRAINTS = (Standardized(), Range(), Range(turns=0), Ball(radius=0.8))
OPTIMIZERS: Any = ("rms", "l2", "sign", Adam())
MAPS = [0, 2, 4]


@pytest.fixture(scope="module")
def double(rgb: FeatureModel) -> FeatureModel:
    return copy.deepcopy(rgb).double()


# Each image meets each constraint, and over them each optimizer, colours and views by turns.
@pytest.mark.parametrize("at_image", range(len(IMAGES)), ids=lambda at: type(IMAGES[at]).__name__)
@pytest.mark.parametrize("at_constraint", range(len(CONSTRAINTS)), ids=lambda at: CONSTRAINTS[at].summary or "method")
def test_all_that_can_be_set_composes(double: FeatureModel, at_image: int, at_constraint: int) -> None:
    constraint, optimizer = CONSTRAINTS[at_constraint], OPTIMIZERS[(at_image + at_constraint) % 4]
    settings = AscentSettings(
        steps=12,
        epsilon=20.0 if optimizer == "l2" else 1.0,
        candidates=2,
        candidate_steps=4,
        candidate_epsilon=20.0 if optimizer == "l2" else 1.0,
        image=IMAGES[at_image],
        constraint=constraint,
        optimizer=optimizer,
        colors=Decorrelated.natural() if (at_image + at_constraint // 2) % 2 else None,
        views=Views(noise=0.2) if at_constraint % 2 else None,
        smoothness=0.1 if at_image % 2 else 0.0,
    )
    oips = ascend(double, "narrow", MAPS, settings=settings)
    check_bounds(oips, double)
    start = ascend(double, "narrow", MAPS, settings=first_of(settings))
    assert (oips.scores > start.scores).all()
    alone = ascend(double, "narrow", MAPS[1], settings=settings)
    assert alone.images[0] == pytest.approx(oips.images[1], abs=1e-8)
    assert AscentSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings == oips.settings
    for part in (settings.image.summary, constraint.summary, settings.views and settings.views.summary):
        assert (part or "") in settings.summary
    assert optimizer == "rms" or ", by " in settings.summary


@pytest.mark.parametrize("image", [Fourier(), Phases(), Blurred()])
def test_smoothness_is_that_of_the_image_whatever_it_is_made_of(double: FeatureModel, image: Any) -> None:
    rough, smooth = (
        ascend(double, "wide", settings=AscentSettings(steps=30, candidates=1, image=image, smoothness=share)).images
        for share in (0.0, 0.9)
    )
    variation = [np.abs(np.diff(x, axis=1)).sum() + np.abs(np.diff(x, axis=2)).sum() for x in (rough, smooth)]
    assert variation[1] < 0.9 * variation[0]


def first_of(settings: AscentSettings) -> AscentSettings:
    """The same way without a step."""
    own = {"image": settings.image, "constraint": settings.constraint, "colors": settings.colors}
    return AscentSettings(steps=1, epsilon=1e-9, epsilon_last=None, candidates=1, **own)  # type: ignore[arg-type]


def check_bounds(oips: Oips, model: FeatureModel) -> None:
    """The result and every snapshot are finite, and within the constraint."""
    x = np.concatenate([oips.images, oips.snapshots.reshape(-1, *oips.images.shape[1:])])
    constraint = oips.settings.constraint
    assert np.isfinite(x).all()
    if constraint.fixes_mean:
        assert x.mean((1, 2, 3)) == pytest.approx(0, abs=1e-6)
    if constraint.fixes_contrast:
        radius = constraint.radius if isinstance(constraint, Ball) else 1.0
        assert np.sqrt((x**2).mean((1, 2, 3))) == pytest.approx(radius, abs=1e-4)
    if isinstance(constraint, Range):
        low, high = model.domain.ends
        beyond = max((low - x).max(), (x - high).max())
        assert beyond < (0.2 if constraint.turns else 1e-9)
