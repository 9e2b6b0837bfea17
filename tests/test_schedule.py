"""Step sizes over the steps, and the criterion of convergence."""

from __future__ import annotations

import pytest
import torch

from oip_torch import AscentSettings
from oip_torch.optim.schedule import Schedule


def test_schedules_fall_from_the_first_to_the_last() -> None:
    schedule = Schedule(steps=50, epsilon=2.0, epsilon_last=0.1, leak=0.3, momentum=0.8)
    steps = [schedule.at(step) for step in range(50)]
    assert steps[0] == (2.0, 0.3, 0.0)
    assert steps[-1] == pytest.approx((0.1, 0.0, 0.8))
    for values in list(zip(*steps, strict=True))[:2]:
        assert list(values) == sorted(values, reverse=True)


@pytest.mark.parametrize("first_check", [0, 1, 3, 10])
@pytest.mark.parametrize("patience", [1, 2, 4, 30])
def test_converged_is_told_from_the_traces_as_step_by_step(first_check: int, patience: int) -> None:
    settings = AscentSettings(tolerance=0.1, patience=patience, first_check=first_check)
    traces = torch.rand(200, 24, generator=torch.Generator().manual_seed(first_check + patience)) * 0.3 + 1
    traces[0, 12:] = torch.nan  # it has left
    expected = []
    for trace in traces.tolist():
        calm, at = 0, -1
        for step in range(1, 24):
            small = abs(trace[step] - trace[step - 1]) / (abs(trace[step]) + 1e-7) < 0.1
            calm = calm + 1 if small and step >= first_check else 0
            if calm >= patience and at < 0:
                at = step
        expected.append(at)
    nowhere = torch.full((200,), torch.nan)  # a score that no silent map has
    assert settings.stopping.criterion.met_at(traces, nowhere).tolist() == expected
    assert (max(expected) > 0) == (patience < 30)
