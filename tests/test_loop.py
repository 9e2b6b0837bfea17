"""One step of the loop as a device needs it: the same shapes each time, and nothing that the host has to wait for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import score_of
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from oip_torch import Adam, FeatureModel, start_images
from oip_torch.optim import loop
from oip_torch.optim.ascent import gradient_ascent
from oip_torch.optim.concerns import StopSettings
from oip_torch.optim.loop import Score, State
from oip_torch.optim.optimizer import Optimizer
from oip_torch.optim.schedule import Criterion, Schedule

LAYER = "Conv2D_3"


def record_step(score: Score, start: State, schedule: Schedule, optimizer: Optimizer) -> fx.GraphModule:
    """A step's operations, recorded at the first step with tensors that hold no numbers.

    Raises `GuardOnDataDependentSymNode` where the host asks for a number, or where a size depends on one.
    """

    def one(x: Tensor, velocity: Tensor, moments: Tensor, traces: Tensor, t: Tensor, rates: Tensor) -> Tensor:
        state = dataclasses.replace(start, x=x, velocity=velocity, moments=moments)
        epsilon, leak, momentum = rates.index_select(0, t.view(1)).view(3).unbind()

        def told(scores: Tensor) -> None:
            traces.index_put_((start.rows, t), scores)

        loop.step(score, state, t, (epsilon, leak, momentum), told, None, optimizer)
        return state.x

    rates, traces = schedule.rates(), torch.zeros(len(start.rows), schedule.steps)
    given = start.x, start.velocity.clone(), start.moments.clone(), traces, torch.tensor(0), rates
    played = make_fx(one, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    made = [node.meta.get("val") for node in played.graph.nodes]
    sizes = [size for each in made if isinstance(each, Tensor) for size in each.shape]
    if not all(type(size) is int for size in sizes):
        raise GuardOnDataDependentSymNode("a size depends on numbers", sizes)  # as where the host asks for one
    return played


@pytest.mark.parametrize("optimizer", ["rms", "l2", "sign", Adam()], ids=str)
def test_a_recorded_step_is_played_for_all_others(model: FeatureModel, optimizer: Optimizer) -> None:
    channels = torch.tensor([0, 3, 17, 56])
    x = start_images((1, 28, 28), [(int(channel), 0) for channel in channels], layer=LAYER)
    schedule, score = Schedule(steps=12), score_of(model, LAYER)
    assert all(len(set(of_step.tolist())) == 12 for of_step in schedule.rates().T)  # each changes at every step
    expected = gradient_ascent(score, x, channels, schedule, optimizer=optimizer)
    state = State.start(x, channels, optimizer)
    play = record_step(score, state, schedule, optimizer)
    traces, rates, images = torch.full((4, schedule.steps), torch.nan), schedule.rates(), x
    for t in range(schedule.steps):
        images = play(images, state.velocity, state.moments, traces, torch.tensor(t), rates)
    assert torch.equal(traces, expected.traces)
    assert torch.equal(images, expected.images)


@pytest.mark.parametrize(
    "asks", [lambda x: x[x.mean((1, 2, 3)) < 10], lambda x: x * float(x.mean()), lambda x: x * len(x.nonzero())]
)
def test_it_would_be_noticed_if_the_host_had_to_wait(model: FeatureModel, asks: Callable[[Tensor], Tensor]) -> None:
    score, x = score_of(model, LAYER), start_images((1, 28, 28), [(0, 0)], layer=LAYER)
    settle = score.decoder.settle

    class Asking:
        is_identity = True
        decode = score.decoder.decode

        def settle(self, parameters: Tensor) -> Tensor:
            return asks(settle(parameters))

    start = State.start(x, torch.tensor([0]))
    with pytest.raises(GuardOnDataDependentSymNode):
        record_step(dataclasses.replace(score, decoder=Asking()), start, Schedule(steps=2), "rms")  # type: ignore[arg-type]


def test_where_images_leave_seldom_they_leave_later_and_are_the_same_until_then(
    model: FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = torch.arange(24)
    x = start_images((1, 28, 28), [(int(channel), 0) for channel in channels], layer=LAYER)
    schedule, score = Schedule(steps=100, leak=0.0), score_of(model, LAYER)
    stop = StopSettings(rule="converged", criterion=Criterion(tolerance=5e-3))
    soon = gradient_ascent(score, x, channels, schedule, stop=stop)
    monkeypatch.setitem(loop._LEAVE_AT, "cpu", 16)
    late = gradient_ascent(score, x, channels, schedule, stop=stop)
    steps_soon, steps_late = ((~found.traces.isnan()).sum(1) for found in (soon, late))
    assert (steps_late >= steps_soon).all()
    left = steps_late < schedule.steps
    assert left.any()
    assert ((steps_late[left] - 1) % 16 == 0).all()
    same = ~soon.traces.isnan()
    torch.testing.assert_close(late.traces[same], soon.traces[same], rtol=1e-4, atol=1e-5)
