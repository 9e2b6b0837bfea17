"""How an ascent is made: the defaults, the article, budgets, and settings that cannot be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, InputError, StartSettings
from oip_torch.optim.schedule import Criterion
from oip_torch.optim.settings import logarithmic_steps


def test_the_article_to_the_letter() -> None:
    article = AscentSettings.article()
    assert (article.schedule.steps, article.schedule.epsilon, article.schedule.leak) == (600, 0.01, 0.0)
    assert (article.screening.candidates, article.fallback) == (1, None)
    assert article.image_steps == 600
    assert {article.schedule.at(step) for step in range(600)} == {(0.01, 0.0, 0.0)}
    assert article.snapshot_steps() == (0, 9, 18, 36, 72, 144, 288, 599)
    assert article.stopping.criterion == Criterion(tolerance=5e-4, patience=4, first_check=10)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 63, 64, 65, 400, 600])
def test_logarithmic_steps_stay_inside(steps: int) -> None:
    chosen = logarithmic_steps(steps)
    assert chosen[0] == 0
    assert chosen[-1] == steps - 1
    assert list(chosen) == sorted(set(chosen))


@pytest.mark.parametrize("budget", [1, 2, 5, 13, 60, 100, 299, 600, 1000])
def test_a_budget_is_kept(budget: int) -> None:
    settings = AscentSettings.within(budget)
    assert budget - settings.survivors < settings.image_steps <= budget


def test_the_defaults_are_the_budget_of_600() -> None:
    assert AscentSettings.within(600) == AscentSettings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0: expected a whole number, 1 or more"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"epsilon": 0.0}, "epsilon is 0.0: expected a number above 0"),
        ({"epsilon": float("nan")}, "epsilon is nan"),
        ({"epsilon_last": -1.0}, "epsilon_last is -1.0"),
        ({"momentum": 1.0}, "momentum is 1.0: expected a number from 0 to below 1"),
        ({"survivors": 0}, "survivors is 0"),
        ({"leak": 1.5}, "leak is 1.5: expected a number from 0 to 1"),
        ({"candidates": 0}, "candidates is 0"),
        ({"stop": "soon"}, "expected 'steps' or 'converged'"),
        ({"snapshots": (600,)}, "snapshot at step 600: expected steps from 0 to 224"),
        ({"stages": (20, 40)}, "expected 4 numbers of steps"),
    ],
)
def test_wrong_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AscentSettings(**changes)  # type: ignore[arg-type]


def test_settings_of_numpy_scalars_are_those_of_plain_numbers() -> None:
    given = AscentSettings(
        steps=np.int64(20),  # type: ignore[arg-type]
        epsilon=np.float32(0.5),  # type: ignore[arg-type]
        snapshots=np.array([0, 5]),  # type: ignore[arg-type]
        start=StartSettings(sides=np.array([3, 7]), factors=torch.tensor([0.5, 1.0])),  # type: ignore[arg-type]
    )
    same = AscentSettings(
        steps=20, epsilon=0.5, snapshots=(0, 5), start=StartSettings(sides=(3, 7), factors=(0.5, 1.0))
    )
    assert given == same
    assert json.loads(json.dumps(given.to_dict())) == json.loads(json.dumps(same.to_dict()))
    assert AscentSettings.within(np.int64(60)) == AscentSettings.within(60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": "3"}, "epsilon is '3': expected a number above 0"),
        ({"epsilon": None}, "epsilon is None"),
        ({"leak": "0"}, "leak is '0': expected a number from 0 to 1"),
        ({"steps": "20"}, "steps is '20': expected a whole number"),
        ({"steps": True}, "steps is True"),
        ({"fallback": 1}, r"fallback is 1: expected Fallback\(…\) or AscentSettings\(…\), or None"),
        ({"schedule": {"steps": 3}}, r"schedule is .*: expected Schedule\(…\)"),
        ({"waking": True}, "no setting 'waking'"),
        ({"epsilom": 1}, "no setting 'epsilom': did you mean 'epsilon'"),
        ({"snapshots": (0.5,)}, "snapshot at step 0.5"),
        ({"snapshots": "all"}, "snapshot at step 'all'"),
        ({"stages": 20}, "stages are 20: expected 4 numbers"),
        ({"start": {"kind": "fourier"}}, "start is .*: expected StartSettings"),
    ],
)
def test_settings_of_a_wrong_type(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AscentSettings(**changes)
