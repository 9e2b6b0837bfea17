"""Callbacks: what they are told of each step, from which threads, and what becomes of their exceptions."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, FeatureModel, InputError, Step, ascend
from oip_torch.optim.image import Pen

LAYER = "Conv2D_3"
SEARCH = AscentSettings(candidates=3, candidate_steps=4, steps=8)


def test_a_callback_is_told_of_every_step_in_the_words_of_the_result(model: FeatureModel) -> None:
    told: list[Step] = []
    oips = ascend(model, LAYER, [3, 14], starts=2, settings=AscentSettings.article(steps=5), callback=told.append)
    assert [step.step for step in told if 3 in step.maps] == [0, 1, 2, 3, 4]
    assert {(step.layer, step.phase, step.attempt) for step in told} == {(LAYER, "ascent", 0)}
    found = 0
    for step in told:
        for number, start, score, image in zip(step.maps, step.starts, step.scores, step.images, strict=True):
            row = oips.take(np.flatnonzero((oips.maps == number) & (oips.starts == start)))
            assert score == row.traces[0, step.step]
            if step.step in oips.snapshot_steps:
                assert np.array_equal(image, row.snapshots[0, row.snapshot_steps.tolist().index(step.step)])
            found += 1
    assert found == 4 * 5


def test_phases_attempts_and_steps_are_those_of_the_search(model: FeatureModel) -> None:
    """Steps count on from the screening, as traces do; some maps are inactive after so short a one, and fall back."""
    told: list[Step] = []
    oips = ascend(model, LAYER, range(8), settings=SEARCH, batch_size=8, callback=told.append)
    assert (oips.status == "recovered").any()
    at = {phase: {(step.attempt, step.step) for step in told if step.phase == phase} for phase in
          ("screening", "ascent", "fallback")}  # fmt: skip
    survivors = range(SEARCH.screening.survivors)
    assert at["screening"] == {(attempt, step) for attempt in range(3) for step in range(4)}
    assert at["ascent"] == at["fallback"] == {(attempt, step) for attempt in survivors for step in range(4, 12)}
    fell = {int(number) for step in told if step.phase == "fallback" for number in step.maps}
    assert set(oips.maps[oips.status == "recovered"].tolist()) <= fell
    assert not fell & {int(number) for step in told if step.phase == "ascent" for number in step.maps}
    assert sum(len(step) for step in told) == oips.provenance.image_steps


def test_a_callback_changes_no_result_even_where_it_writes_into_what_it_gets(model: FeatureModel) -> None:
    def spoil(step: Step) -> None:
        for array in (step.images, step.scores, step.maps, step.starts):
            array[:] = 7

    plain, watched = (ascend(model, LAYER, range(8), settings=SEARCH, callback=each) for each in (None, spoil))
    assert np.array_equal(plain.images, watched.images)
    assert np.array_equal(plain.traces, watched.traces)


def test_images_are_those_that_the_optimised_numbers_stand_for(model: FeatureModel) -> None:
    told: list[Step] = []
    settings = AscentSettings.article(steps=3, image=Pen())
    oips = ascend(model, LAYER, 3, settings=settings, callback=told.append)
    assert np.array_equal(told[-1].images, oips.snapshots[:, -1])
    assert told[0].images.std() == pytest.approx(1, abs=1e-3)
    assert repr(told[2]) == "<Step 2 of 'Conv2D_3', ascent 0: 1 images>"


def test_calls_come_one_at_a_time(model: FeatureModel) -> None:
    inside, most, threads = 0, 0, set()

    def slow(step: Step) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threads.add(threading.get_ident())
        time.sleep(0.002)
        inside -= 1

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ascend(model, LAYER, range(16), batch_size=4, settings=AscentSettings.article(steps=12), callback=slow)
    finally:
        torch.set_num_threads(before)
    assert most == 1
    assert len(threads) == 2


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, StopIteration, InputError])
@pytest.mark.parametrize("cores", [1, 2])
def test_what_a_callback_raises_ends_the_ascent_and_comes_out(
    model: FeatureModel, kind: type[BaseException], cores: int
) -> None:
    calls, error = [], kind("on purpose")

    def fail(step: Step) -> None:
        calls.append(step)
        if len(calls) == 5:
            raise error

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        with pytest.raises(kind, match="on purpose") as caught:
            ascend(model, LAYER, range(32), batch_size=4, settings=AscentSettings.article(steps=400), callback=fail)
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert caught.value is error
    assert len(calls) == 5  # and none after it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    ascend(model, LAYER, 0, settings=AscentSettings.article(steps=2))  # nothing is left behind


@pytest.mark.parametrize("wrong", [3, "print", [print], True])
def test_what_cannot_be_called_is_refused(model: FeatureModel, wrong: object) -> None:
    with pytest.raises(InputError, match=r"callback is .*: expected a function of one argument, a Step, or None"):
        ascend(model, LAYER, 0, callback=wrong)  # type: ignore[call-overload]
