"""Finding an OIP for every map: the fallback, candidates, many starts, threads."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import ROOT, nchw, score_of

from oip_torch import (
    AscentSettings,
    FeatureModel,
    InputError,
    OipError,
    Oips,
    ascend,
    assess,
    calibrate,
    convert,
    load,
    start_images,
)
from oip_torch.base.platform import Costs
from oip_torch.network.extract import extract
from oip_torch.optim.ascent import Ascents, gradient_ascent
from oip_torch.optim.objectives import map_mean
from oip_torch.search import plan, target
from oip_torch.search.batch import Batch, _after, _better

LAYER = "Conv2D_3"


def test_maps_that_the_article_leaves_dead_are_recovered(model: FeatureModel) -> None:
    article = ascend(model, LAYER, range(32), settings=AscentSettings.article(steps=5))
    dead = article.maps[article.status == "dead"]
    assert len(dead) > 5
    recovered = ascend(model, LAYER, dead, settings=AscentSettings.within(60))
    assert (recovered.scores > 0).all()
    assert recovered.provenance.leaking == {LAYER: "relu"}


def test_maps_that_draw_no_stroke_fall_back_to_another_way(model: FeatureModel, tmp_path: Path) -> None:
    """To images that the fallback's settings make alone, within the budget, and marked as such."""
    settings = AscentSettings.strokes(candidates=3, candidate_steps=10, steps=60, snapshots=(0, 9, 40, 69))
    oips = ascend(model, LAYER, [14, 13, 56, 36], settings=settings)
    assert oips.status.tolist() == ["finished", "fallback", "finished", "fallback"]
    assert (oips.scores > 0).all()
    assert oips.provenance.image_steps <= settings.image_steps * 4 == 90 * 4
    fallback = settings.fallback
    assert isinstance(fallback, AscentSettings)
    alone = ascend(model, LAYER, [13, 36], settings=fallback)
    fallen = oips.take([1, 3])
    assert fallen.scores == pytest.approx(alone.scores, rel=1e-3)
    assert fallen.images == pytest.approx(alone.images, abs=1e-2)
    ended = np.isnan(fallen.traces)
    assert (ended == (np.arange(settings.way_steps) >= fallback.way_steps)).all()
    assert np.array_equal(fallen.snapshots[:, 3], fallen.images)
    assert not np.isnan(oips.take([0, 2]).traces).any()
    without = ascend(model, LAYER, [14, 13, 56, 36], settings=dataclasses.replace(settings, fallback=None))
    assert (without.scores[[1, 3]] < 0.5 * fallen.scores).all()
    assert oips.labels[1].endswith("†")
    assert "† made another way" in oips.legend
    assert "a pen" in oips.way
    assert "†" not in oips.take([0, 2]).legend
    again = Oips.load(oips.save(tmp_path / "oips.nc"))
    assert again.status.tolist() == oips.status.tolist()
    assert again.settings == settings


def test_a_fallback_has_no_more_steps_than_are_left() -> None:
    made = AscentSettings(fallback=AscentSettings(candidates=8, steps=100))
    assert made.image_steps == AscentSettings().image_steps
    with pytest.raises(InputError, match="the fallback's settings take 600 image-steps: expected at most 400, what is"):
        AscentSettings(fallback=AscentSettings())
    with pytest.raises(InputError, match="the fallback's candidates take 22 steps each: expected 25, as these"):
        AscentSettings(fallback=AscentSettings.within(400))
    for candidates, each, steps in ((2, 5, 20), (3, 11, 67), (8, 25, 400), (22, 75, 3350)):
        strokes = AscentSettings.strokes(candidates=candidates, candidate_steps=each, steps=steps)
        assert isinstance(strokes.fallback, AscentSettings)
        assert 0.9 * steps < strokes.fallback.image_steps <= steps
        assert strokes.image_steps == candidates * each + steps
    with pytest.raises(InputError, match=r"fallback is 3: expected Fallback\(…\) or AscentSettings\(…\), or None"):
        AscentSettings(fallback=3)  # type: ignore[arg-type]


def test_a_map_that_cannot_fire_is_reported_with_evidence(model: FeatureModel) -> None:
    silenced = copy.deepcopy(model)
    convolution = silenced.module_of(LAYER, pre_activation=True)
    with torch.no_grad():
        convolution.bias.copy_(torch.full((128,), -100.0))
    oips = ascend(silenced, LAYER, [0, 1], starts=2, settings=AscentSettings.within(30))
    assert (oips.status == "dead").all()
    assert (oips.scores == 0).all()
    assert (oips.max_preactivation < 0).all()
    assert (oips.max_preactivation > -100).all()  # it was tried: the pre-activation has risen
    assert oips.provenance.image_steps <= 4 * 30  # the fallback is within the budget


def test_inactive_maps_are_optimised_by_their_peak(model: FeatureModel) -> None:
    """Among others that are active, within the same budget, and with all that belongs to an image in its own row."""
    settings = AscentSettings.within(100, snapshots=(0, 20, 51))
    oips = ascend(model, "Conv2D_2", settings=settings)
    recovered = oips.status == "recovered"
    assert recovered.any()
    assert (oips.status == "dead").any()
    assert (oips.status == "finished").any()
    assert oips.provenance.image_steps <= 100 * len(oips)
    straight = ascend(model, "Conv2D_2", settings=dataclasses.replace(settings, fallback=None))
    assert (straight.scores > 0).sum() < (oips.scores > 0).sum()
    assert not np.isnan(oips.traces).any()
    with torch.no_grad():
        for images, scores in (
            (oips.images, oips.scores),
            *((oips.snapshots[:, i], oips.traces[:, step]) for i, step in enumerate(oips.snapshot_steps)),
        ):
            activations = model.up_to("Conv2D_2")(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
            assert map_mean(activations, torch.from_numpy(oips.maps)).numpy() == pytest.approx(scores, abs=1e-5)


def test_more_survivors_find_no_weaker_images(model: FeatureModel) -> None:
    one = AscentSettings(steps=12, candidates=4, candidate_steps=4, survivors=1)
    scores = [
        ascend(model, LAYER, [0, 3, 14], settings=dataclasses.replace(one, survivors=survivors)).scores
        for survivors in (1, 2, 4)
    ]
    assert (scores[0] <= scores[1] * (1 + 1e-5)).all()
    assert (scores[1] <= scores[2] * (1 + 1e-5)).all()


def test_an_ascent_that_loses_gives_back_what_it_began_with(model: FeatureModel) -> None:
    wild = AscentSettings(steps=1, epsilon=100.0, epsilon_last=None, candidates=3, candidate_steps=20, survivors=1)
    oips = ascend(model, LAYER, [0, 3, 14], settings=wild)
    assert (oips.scores >= oips.traces[:, 0]).all()


def test_a_pooling_layer_is_recovered_by_the_activation_before_it(model: FeatureModel) -> None:
    oips = ascend(model, "Max_Pool_2", settings=AscentSettings.article(steps=5))
    dead = oips.maps[oips.status == "dead"].tolist()
    kin = ascend(model, "Conv2D_2", dead, settings=AscentSettings.within(30))
    can = [number for number, score in zip(dead, kin.scores, strict=True) if score > 0.1][:3]
    recovered = ascend(model, "Max_Pool_2", can, settings=AscentSettings.within(60))
    assert can
    assert (recovered.scores > 0).all()
    assert recovered.provenance.leaking == {"Conv2D_2": "relu"}


@pytest.mark.parametrize("layer", ["Dense_1", "Dense_2", "Flatten"])
def test_flat_layers_have_units(model: FeatureModel, layer: str) -> None:
    oips = ascend(model, layer, [0, 7], settings=AscentSettings.within(60))
    assert oips.images.shape == (2, 28, 28, 1)
    assert (oips.scores > 0).all()


@pytest.mark.slow
def test_every_layer_of_another_network_can_be_ascended(converted: Callable[[str], Path]) -> None:
    """With swish, average pooling, and a Dense layer on maps, whose pre-activation ONNX computes on a side branch."""
    other = load(converted("rgb.keras"), device="cpu")
    for layer in other.layers:
        oips = ascend(other, layer.name, [0], settings=AscentSettings.within(12))
        assert oips.images.shape == (1, *other.network.input_shape)
        assert np.isfinite(oips.images).all()


def test_the_best_candidate_goes_on(model: FeatureModel) -> None:
    one = AscentSettings(steps=1, candidates=1, epsilon=1e-6, epsilon_last=None)
    many = AscentSettings(steps=1, candidates=6, candidate_steps=8, epsilon=1e-6, epsilon_last=None)
    assert AscentSettings.within(1).screening.candidates == 1
    few = AscentSettings(steps=1, candidates=2, candidate_steps=8, epsilon=1e-6, epsilon_last=None)
    scores = [ascend(model, LAYER, [0, 3, 14], settings=s).scores for s in (one, few, many)]
    assert (scores[0] < scores[1]).all()
    assert (scores[1] <= scores[2] * (1 + 1e-5)).all()


def test_results_do_not_depend_on_the_number_of_threads(model: FeatureModel) -> None:
    settings = AscentSettings.within(12)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(ascend(model, LAYER, range(6), settings=settings, batch_size=2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert np.abs(runs[0].images - runs[1].images).max() < 1e-4
    assert runs[0].maps.tolist() == runs[1].maps.tolist() == list(range(6))


def test_starts_are_told_apart_and_the_best_is_found(model: FeatureModel) -> None:
    oips = ascend(model, LAYER, [3, 0], starts=3, settings=AscentSettings.within(12))
    assert oips.maps.tolist() == [3, 3, 3, 0, 0, 0]
    assert oips.starts.tolist() == [0, 1, 2, 0, 1, 2]
    best = oips.best()
    assert best.maps.tolist() == [3, 0]
    assert best.scores.tolist() == [oips.scores[:3].max(), oips.scores[3:].max()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "Conv2D_4"}, "no layer 'Conv2D_4': did you mean 'Conv2D_"),
        ({"maps": 128}, "layer 'Conv2D_3' has no map 128: expected a number from 0 to 127"),
        ({"maps": [0, -1]}, "has no map -1"),
        ({"maps": []}, "no maps of layer"),
        ({"starts": 0}, "starts is 0: expected a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": -3}, "batch_size is -3"),
    ],
)
def test_wrong_calls(model: FeatureModel, arguments: dict[str, object], message: str) -> None:
    options = {"layer": LAYER, "maps": [0]} | arguments
    with pytest.raises(InputError, match=message):
        ascend(model, **options)  # type: ignore[arg-type]


def of_smooth(oips: Oips, smooth: FeatureModel) -> npt.NDArray[np.floating]:
    """The mean activations on OIPs of the network of tanh and ELU, by the network itself."""
    with torch.no_grad():
        activations = smooth.up_to(oips.layer)(smooth.to_input(nchw(oips.images)))
    return map_mean(activations, torch.from_numpy(oips.maps)).numpy()


# What is called converged, dead and recovered


def test_a_silent_map_has_not_converged(model: FeatureModel) -> None:
    """Maps that fire late: with the leak they are inactive for dozens of steps, and their score stands still at 0."""
    oips = ascend(model, LAYER, range(48), settings=AscentSettings())
    late = (oips.traces[:, 30:34] == 0).all(1) & (oips.scores > 0)
    assert late.any()
    for row in np.flatnonzero(oips.converged_at >= 0):
        at = int(oips.converged_at[row])
        assert (oips.traces[row, at - 3 : at + 1] != 0).all()
        assert at >= oips.screening_steps + 10


def test_an_image_without_a_gradient_has_not_converged(smooth: FeatureModel) -> None:
    """A saturated unit: its score is 1, and stands still since there is nothing to follow."""
    own = copy.deepcopy(smooth)
    with torch.no_grad():
        for tensor in [*own.parameters(), *own.buffers()]:
            if tensor.shape == (4,) and tensor.is_floating_point():
                tensor.fill_(200.0)
    oips = ascend(own, "Sigmoid_3", pre_activation=False, settings=AscentSettings.article(steps=30))
    assert (oips.scores == 1).all()
    assert (oips.converged_at == -1).all()
    assert set(oips.status) == {"finished"}


def test_recovered_images_stop_where_they_converge(model: FeatureModel) -> None:
    settings = AscentSettings(steps=200, stop="converged", tolerance=0.05)
    oips = ascend(model, "Conv2D_2", range(32), settings=settings)
    recovered = oips.status == "recovered"
    stopped = recovered & (oips.converged_at >= 0)
    assert stopped.any()
    for row in np.flatnonzero(stopped):
        at = int(oips.converged_at[row])
        assert np.isfinite(oips.traces[row, : at + 1]).all()
        assert np.isnan(oips.traces[row, at + 1 :]).all()
    assert oips.provenance.image_steps < 600 * len(oips)


def test_without_a_leak_the_plan_measures_what_the_fallback_builds(
    model: FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    built: list[object] = []
    leaks: list[bool] = []

    def step_costs(network: object, *more: Any) -> Costs:
        measured.append(network)
        return plan_step_costs(network, *more)

    def build(*more: Any, leak: bool, one_channel: bool) -> object:
        leaks.append(leak)
        built.append(extract(*more, leak=leak, one_channel=one_channel))
        return built[-1]

    plan_step_costs = plan.step_costs
    settings = AscentSettings(leak=0.0, steps=16, candidates=2, candidate_steps=4)
    monkeypatch.setattr(plan, "step_costs", step_costs)
    monkeypatch.setattr(target, "extract", build)
    for objective in (map_mean, lambda activations, maps: 2 * map_mean(activations, maps)):
        for told in (measured, built, leaks):
            told.clear()
        ascend(model, "Conv2D_2", range(32), settings=settings, objective=objective)
        assert set(map(id, built)) == set(map(id, measured))
        assert set(leaks) == {False, True}


def test_a_network_without_dead_regions_is_ascended_like_any_other(smooth: FeatureModel) -> None:
    """tanh and ELU: a negative score is no sign of an inactive map, with a leak or without."""
    for settings in (
        AscentSettings.article(steps=20),
        AscentSettings.within(60),
        AscentSettings.article(leak=0.3, steps=20),
    ):
        for layer in ("Tanh_1", "Elu_2"):
            oips = ascend(smooth, layer, starts=2, settings=settings)
            assert oips.scores == pytest.approx(of_smooth(oips, smooth), rel=1e-4, abs=1e-5)
            assert not set(oips.status) & {"dead", "recovered"}
            assert (oips.scores >= oips.traces[:, 0] - 1e-6).all()
            assert np.isfinite(oips.images).all()
    few = AscentSettings.article(steps=1, epsilon=1e-6)
    assert (ascend(smooth, "Tanh_1", starts=4, settings=few).scores < 0).any()


@pytest.mark.parametrize("settings", [AscentSettings.article(steps=8), AscentSettings.within(60)])
def test_a_map_at_0_is_dead_with_a_leak_and_without(model: FeatureModel, settings: AscentSettings) -> None:
    """And one below 0 is not: `dead` is about the activation, where it stands still, and not about the score."""
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced.module_of(LAYER, pre_activation=True).bias.fill_(-100.0)
    oips = ascend(silenced, LAYER, [0, 1], settings=settings)
    assert (oips.status == "dead").all()
    before = ascend(silenced, LAYER, [0, 1], settings=settings, pre_activation=True)
    assert (before.scores < 0).all()
    assert not set(before.status) & {"dead", "recovered"}


def test_a_map_that_has_responded_is_not_dead(model: FeatureModel) -> None:
    """Steps that are far too large leave maps inactive: the trace shows that they had responded."""
    oips = ascend(model, LAYER, starts=2, settings=AscentSettings.article(steps=2, epsilon=30.0))
    fell_silent = (oips.traces > 0).any(1) & (oips.scores == 0)
    assert fell_silent.any()
    assert not (oips.status[fell_silent] == "dead").any()
    assert (oips.status[(oips.traces == 0).all(1) & (oips.scores == 0)] == "dead").all()


# What goes into an activation


def test_classes_are_ascended_before_the_softmax(model: FeatureModel) -> None:
    """After it every image scores 1, and none is better than another."""
    oips = ascend(model, "Dense_2", settings=AscentSettings.within(60))
    assert oips.pre_activation
    assert oips.place == "Dense_2 before its softmax"
    assert "classes 0–9" in repr(oips)
    with torch.no_grad():
        logits = model.up_to("Dense_2", pre_activation=True)(nchw(oips.images))
    assert oips.scores == pytest.approx(logits[torch.arange(10), torch.arange(10)].numpy(), rel=1e-4)
    assert oips.scores == pytest.approx(oips.max_preactivation, rel=1e-6)
    assert (logits.argmax(1) == torch.arange(10)).all()
    assert len(set(np.round(oips.scores, 3))) == 10
    after = ascend(model, "Dense_2", pre_activation=False, settings=AscentSettings.within(60))
    assert not after.pre_activation
    assert (after.scores <= 1).all()


def test_before_or_after_is_the_layer_s_or_the_caller_s(
    model: FeatureModel, smooth: FeatureModel, rgb: FeatureModel
) -> None:
    settings = AscentSettings.article(steps=3)
    assert not ascend(model, LAYER, 0, settings=settings).pre_activation
    assert ascend(smooth, "Sigmoid_3", 0, settings=settings).pre_activation
    assert not ascend(rgb, "logits", 0, settings=settings, pre_activation=True).pre_activation  # the same there
    oips = ascend(smooth, "Elu_2", starts=2, settings=settings, pre_activation=True)
    with torch.no_grad():
        z = smooth.up_to("Elu_2", pre_activation=True)(smooth.to_input(nchw(oips.images)))
    assert oips.scores == pytest.approx(map_mean(z, torch.from_numpy(oips.maps)).numpy(), rel=1e-4, abs=1e-5)
    leaking = ascend(model, LAYER, 0, settings=AscentSettings.within(20), pre_activation=True).provenance.leaking
    assert leaking == {"Conv2D_2": "relu"}
    data = np.random.default_rng(0).integers(0, 255, (20, 28, 28))
    for before in (None, True, False):
        calibration = calibrate(model, data, ["Dense_2", LAYER], pre_activation=before)
        assert calibration["Dense_2"].pre_activation == (before is not False)
        assert calibration[LAYER].pre_activation == bool(before)
    classes = ascend(model, "Dense_2", 0, settings=settings)
    with pytest.raises(InputError, match=r"scored 'Dense_2' after its activation, these OIPs before it: .*pre_activ"):
        calibration.check(classes)
    quality = assess(model, classes)
    assert quality.scores == pytest.approx(classes.scores, rel=1e-4)


# Who calls, and how


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),  # as a default device, on which nothing can be computed
    ],
    ids=["no_grad", "inference_mode", "autocast", "default device"],
)
def test_an_ascent_needs_no_gradients_of_the_caller_s(
    mnist_onnx: Path, workers: int, context: Callable[[], AbstractContextManager[None]]
) -> None:
    threads = torch.get_num_threads()
    own, settings = load(mnist_onnx, device="cpu"), AscentSettings.within(60)
    expected = ascend(own, LAYER, range(4), settings=settings)
    data = np.random.default_rng(0).integers(0, 255, (20, 28, 28))
    maximum = calibrate(own, data, LAYER)[LAYER].maximum
    try:
        torch.set_num_threads(workers)
        with context():
            there = load(mnist_onnx, device="cpu")
            runs = [ascend(network, LAYER, range(4), settings=settings, batch_size=2) for network in (own, there)]
            wide = there.double()
            assert calibrate(own, data, LAYER)[LAYER].maximum == pytest.approx(maximum, rel=1e-5)
            quality = assess(own, runs[0])
        runs += [ascend(network, LAYER, range(4), settings=settings, batch_size=2) for network in (own, wide)]
    finally:
        torch.set_num_threads(threads)
    assert quality.scores == pytest.approx(expected.scores, rel=1e-3)
    for run in runs:
        assert run.scores == pytest.approx(expected.scores, rel=2e-2)


@pytest.mark.parametrize(
    ("cores", "count", "products", "threads"),
    [
        (1, 1, 10**12, 1),
        (8, 1, 10**6, 1),  # little work, done by one thread
        (8, 1, 10**9, 3),
        (8, 1, 10**12, 8),
        (8, 2, 10**12, 4),  # two batches at once
        (8, 8, 10**12, 1),
        (8, 100, 10**12, 1),
    ],
)
def test_a_batch_gets_as_many_threads_as_its_work_is_worth(
    model: FeatureModel, monkeypatch: pytest.MonkeyPatch, cores: int, count: int, products: int, threads: int
) -> None:
    monkeypatch.setattr(plan, "step_costs", lambda *_: Costs(1 << 10, products))
    used = set()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores)
        ascend(
            model,
            LAYER,
            range(count),
            settings=AscentSettings.article(steps=1),
            callback=lambda step: used.add(torch.get_num_threads()),
        )
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)
    assert used == {threads}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupt_ends_an_ascent_at_once_and_leaves_no_thread(model: FeatureModel, workers: int) -> None:
    threads, before = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(workers)
    timer = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
    settings = AscentSettings.article(steps=100_000)
    began = time.perf_counter()
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            ascend(model, LAYER, range(64), settings=dataclasses.replace(settings, snapshots=()), batch_size=32)
    finally:
        torch.set_num_threads(threads)
        timer.join()
    assert (
        time.perf_counter() - began < 30
    )  # 175 s before, and more with more steps; seconds are told by the benchmarks
    assert threading.active_count() == before


def test_images_that_leave_the_finite_numbers_are_named_and_the_rest_is_kept(
    model: FeatureModel, caplog: pytest.LogCaptureFixture
) -> None:
    own = copy.deepcopy(model)
    with torch.no_grad():
        own.module_of(LAYER, pre_activation=True).bias[3] = float("nan")
        own.module_of(LAYER, pre_activation=True).weight[6] = float("inf")
    settings = AscentSettings.within(20)
    oips = ascend(own, LAYER, range(8), starts=2, settings=settings, batch_size=4)
    assert sorted(set(oips.maps.tolist())) == [0, 1, 2, 4, 5, 7]
    assert oips.provenance.not_finite == ((3, 0), (3, 1), (6, 0), (6, 1))
    assert (
        "4 of 16 images of 'Conv2D_3' left the finite numbers: map 3 (starts 0, 1), map 6 (starts 0, 1)" in caplog.text
    )
    expected = ascend(model, LAYER, [0, 1, 2, 4, 5, 7], starts=2, settings=settings)
    assert oips.scores == pytest.approx(expected.scores, rel=1e-3)
    with pytest.raises(OipError, match="2 of 2 images of 'Conv2D_3' left the finite numbers: map 3"):
        ascend(own, LAYER, 3, starts=2, settings=settings)


# The way from the start to the result


def test_the_way_begins_with_the_start_and_holds_the_screening(model: FeatureModel) -> None:
    settings = AscentSettings(steps=10, candidates=4, candidate_steps=5, survivors=2, snapshots=(0, 3, 4, 5, 14))
    assert (settings.screening_steps, settings.way_steps) == (5, 15)
    numbers = [3, 14, 17, 56]
    oips = ascend(model, LAYER, numbers, settings=settings)
    assert oips.screening_steps == 5
    assert oips.traces.shape == (4, 15)
    starts = start_images((1, 28, 28), [(k, 0, c) for k in numbers for c in range(4)], layer=LAYER)
    starts = starts.numpy().transpose(0, 2, 3, 1).reshape(4, 4, 28, 28, 1)
    with torch.no_grad():
        for row, number in enumerate(numbers):
            distances = np.abs(starts[row] - oips.snapshots[row, 0]).max((1, 2, 3))
            assert distances.min() < 1e-5  # the start of one of its candidates
            scores = map_mean(model.up_to(LAYER)(nchw(oips.snapshots[row])), torch.full((5,), number))
            assert scores.numpy() == pytest.approx(oips.traces[row, [0, 3, 4, 5, 14]], rel=1e-3, abs=1e-5)
    article = ascend(model, LAYER, 3, settings=AscentSettings.article(steps=7))
    assert (article.screening_steps, article.traces.shape) == (0, (1, 7))


def test_the_candidate_with_the_highest_leaky_score_survives(smooth: FeatureModel) -> None:
    settings = AscentSettings(steps=1, candidates=6, candidate_steps=8, survivors=1, epsilon=1e-6, epsilon_last=None)
    oips = ascend(smooth, "Elu_2", settings=settings)
    score = score_of(smooth, "Elu_2", settings)
    for number in range(8):
        keys = [(number, 0, candidate) for candidate in range(6)]
        x = start_images(smooth.input_shape, keys, layer="Elu_2")
        screened = gradient_ascent(score, x, torch.full((6,), number), settings.screening_schedule)
        best = int(screened.leaky_scores.argmax())
        found = oips.snapshots[oips.maps == number][:, 0]
        assert np.abs(found[0].transpose(2, 0, 1) - x[best].numpy()).max() < 1e-5


def test_of_two_tries_that_stay_dead_the_nearer_one_is_the_evidence() -> None:
    """By the leaky score where the scores are equal: the first of two tries is not always the better one."""
    nothing = torch.zeros(3, 0)

    def tries(image: float, scores: list[float], leaky_scores: list[float]) -> Ascents:
        images = torch.full((3, 1, 2, 2), image)
        flags = torch.zeros(3, dtype=torch.bool)
        return Ascents(
            images, torch.tensor(scores), torch.tensor(leaky_scores), nothing, nothing, torch.zeros(3), flags, flags
        )

    first, second = tries(0.0, [0, 0, 0], [-3, -1, -2]), tries(1.0, [0, 0, 0], [-2, -2, -2])
    assert _better(first, second).images.flatten(1).mean(1).tolist() == [1, 0, 0]
    second = tries(1.0, [-1, 1, float("nan")], [-2, -2, -2])
    assert _better(first, second).images.flatten(1).mean(1).tolist() == [0, 1, 0]
    assert _better(second, first).images.flatten(1).mean(1).tolist() == [0, 1, 0]


def test_two_ascents_are_one_way() -> None:
    """A map that responded in the screening alone has responded; steps that lose give back what they began with."""

    def part(image: float, trace: list[float], score: float, converged_at: int, responded: bool) -> Ascents:
        images = torch.full((1, 1, 2, 2), image)
        flags = torch.tensor([score == 0]), torch.tensor([responded])
        scores, traces = torch.tensor([score]), torch.tensor([trace])
        return Ascents(images, scores, scores, traces, images[:, None], torch.tensor([converged_at]), *flags)

    way = _after(part(1.0, [0, 2, 0], 0.0, -1, True), part(2.0, [0, 0], 0.0, -1, False))
    assert way.responded.tolist() == [True]
    assert way.silent.tolist() == [True]
    assert way.traces.tolist() == [[0, 2, 0, 0, 0]]
    assert way.converged_at.tolist() == [-1]
    way = _after(part(1.0, [0, 1], 3.0, -1, True), part(2.0, [3, 1], 0.0, 1, True))
    assert (float(way.images.mean()), way.scores.tolist(), way.silent.tolist()) == (1.0, [3.0], [False])
    assert way.converged_at.tolist() == [3]
    assert way.snapshots.mean((2, 3, 4)).tolist() == [[1.0, 2.0]]


def test_a_dead_map_s_leaky_score_is_its_peak(model: FeatureModel) -> None:
    """What tells its tries apart is the largest pre-activation that was reached, not what the small steps end with."""
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        silenced.module_of(LAYER, pre_activation=True).bias.fill_(-100.0)
    settings = AscentSettings(steps=16, candidates=3, candidate_steps=4)
    silent = target.target_of(silenced, LAYER, False, map_mean, settings)
    batch = Batch(silent, [(0, 0), (5, 0)], 0, settings, lambda count: None)
    result = batch.by_the_peak(batch.start(torch.zeros_like(batch.channels)), batch.rows, (0, 9, 15))
    assert result.silent.all()
    peaks = silenced.up_to(LAYER, pre_activation=True)(result.snapshots[:, 2])
    reached = peaks[torch.arange(2), batch.channels].flatten(1).amax(1)
    assert result.leaky_scores.tolist() == pytest.approx(reached.tolist(), abs=3.0)
    assert (result.leaky_scores > -100).all()
    mean = peaks[torch.arange(2), batch.channels].flatten(1).mean(1)
    assert (result.leaky_scores > mean).all()


# Several layers


def test_several_layers_are_each_as_by_themselves(model: FeatureModel) -> None:
    settings = AscentSettings.article(steps=4)
    layers = [model.layers["Conv2D_2"], "Conv2D_1"]
    made = ascend(model, layers, {"Conv2D_2": [3, 5]}, settings=settings, starts=2, seed=4)
    assert list(made) == ["Conv2D_2", "Conv2D_1"]
    assert [len(oips) for oips in made.values()] == [4, 64]
    alone = ascend(model, "Conv2D_2", [3, 5], settings=settings, starts=2, seed=4)
    assert np.array_equal(made["Conv2D_2"].images, alone.images)
    assert made["Conv2D_1"].layer == "Conv2D_1"
    assert list(ascend(model, ["Dense_2"], settings=settings)) == ["Dense_2"]  # of a list always a dict
    by_generator = ascend(model, (name for name in ("Dense_2",)), {"Dense_2": 3}, settings=settings)
    assert by_generator["Dense_2"].maps.tolist() == [3]


@pytest.mark.parametrize(
    ("layers", "more", "match"),
    [
        ([], {}, "no layers were given: expected names"),
        (["Conv2D_1", "Conv2D_1"], {}, "layer 'Conv2D_1' is named more than once: expected each once"),
        (["Conv2D_1", "Conv2D_9"], {}, "Conv2D_9"),
        (["Conv2D_1", 3], {}, "layer is 3: expected the name of one layer"),
        (b"Conv2D_1", {}, "layer is 67: expected the name of one layer"),
        (["Conv2D_1"], {"maps": [3]}, r"maps are given as \[3\] for 1 layers: expected None, or a dict by layer"),
        (["Conv2D_1"], {"maps": 3}, "maps are given as 3 for 1 layers: expected None, or a dict"),
        (["Conv2D_1"], {"maps": {"Conv2D_2": 3}}, "maps are given for the layer 'Conv2D_2': expected one of Conv2D_1"),
        (["Conv2D_1", "Conv2D_2"], {"maps": {"Conv2D_2": [64]}}, "layer 'Conv2D_2' has no map 64"),
        (["Conv2D_1", "Conv2D_2"], {"maps": {"Conv2D_2": []}}, "no maps of layer 'Conv2D_2' were given"),
        (["Conv2D_1", "Conv2D_2"], {"starts": 0}, "starts is 0"),
        ("Conv2D_1", {"maps": {"Conv2D_1": [3]}}, "maps of layer 'Conv2D_1' are given as"),
    ],
)
def test_layers_and_maps_that_do_not_fit_are_refused_before_any_work(
    model: FeatureModel, layers: Any, more: dict[str, Any], match: str
) -> None:
    told: list[Any] = []
    with pytest.raises(InputError, match=match) as refused:
        ascend(model, layers, callback=told.append, **more)
    assert "\n" not in str(refused.value)
    assert told == []


def test_an_objective_that_a_later_layer_cannot_have_is_refused_before_any_work(model: FeatureModel) -> None:
    def of_maps(activations: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        return activations[:, :1].mean((1, 2, 3))

    told: list[Any] = []
    with pytest.raises(InputError):
        ascend(model, ["Conv2D_1", "Dense_1"], objective=of_maps, callback=told.append)
    assert told == []


@pytest.mark.slow
def test_another_network_recognises_the_classes(
    model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]], tmp_path: Path
) -> None:
    """Images of the logits within the data's range are of digits, not of one network's quirks: both ways round."""
    images, labels = digits
    order = np.random.default_rng(0).permutation(len(images))
    x, y = images[order], labels[order].astype(np.int64)
    np.savez(tmp_path / "digits.npz", x_train=x[500:], y_train=y[500:], x_test=x[:500], y_test=y[:500])
    script, keras_file = ROOT / "scripts" / "train_mnist_cnn.py", tmp_path / "second.keras"
    words = ["--seed", "5", "--epochs", "6", "--data", str(tmp_path / "digits.npz"), "-o", str(keras_file)]
    subprocess.run([sys.executable, str(script), *words], check=True, capture_output=True, timeout=300)
    second = convert(keras_file, tmp_path / "second.onnx", device="cpu", progress=False)
    settings = AscentSettings.strokes(calibrate(model, images[::10], LAYER).limits)
    for maker, reader in ((model, second), (second, model)):
        classes = ascend(maker, "Dense_2", settings=settings)
        with torch.no_grad():
            said = reader.up_to("Dense_2", pre_activation=True)(reader.to_input(nchw(classes.images))).argmax(1)
        assert (said.numpy() == classes.maps).sum() >= 9, said
