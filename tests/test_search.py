"""Finding an OIP for every map: waking, candidates, many starts, threads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, FeatureModel, InputError, ascend, load
from oip_torch.objectives import map_mean

LAYER = "Conv2D_3"


def test_maps_that_the_article_leaves_dead_wake(model: FeatureModel) -> None:
    article = ascend(model, LAYER, range(32), settings=AscentSettings.article(steps=5))
    dead = article.maps[article.status == "dead"]
    assert len(dead) > 5
    woken = ascend(model, LAYER, dead, settings=AscentSettings.within(60))
    assert (woken.scores > 0).all()
    assert woken.info["leaking"] == {LAYER: "relu"}


def test_a_map_that_cannot_fire_is_reported_with_evidence(model: FeatureModel) -> None:
    silenced = copy.deepcopy(model)
    convolution = silenced.module_of(LAYER, before_activation=True)
    with torch.no_grad():
        convolution.bias.copy_(torch.full((128,), -100.0))
    oips = ascend(silenced, LAYER, [0, 1], starts=2, settings=AscentSettings.within(30))
    assert (oips.status == "dead").all()
    assert (oips.scores == 0).all()
    assert (oips.largest_before < 0).all()
    assert (oips.largest_before > -100).all()  # it was tried: the pre-activation has risen
    assert oips.info["image_steps"] <= 4 * 30  # what was tried to wake them is within the budget


def test_sleeping_maps_climb_by_their_peak(model: FeatureModel) -> None:
    """Among others that are awake, within the same budget, and with all that belongs to an image in its own row."""
    settings = AscentSettings.within(100, snapshots=(0, 20, 51))
    oips = ascend(model, "Conv2D_2", settings=settings)
    woken = oips.status == "woken"
    assert woken.any()
    assert (oips.status == "dead").any()
    assert (oips.status == "finished").any()
    assert oips.info["image_steps"] <= 100 * len(oips)
    straight = ascend(model, "Conv2D_2", settings=dataclasses.replace(settings, waking=False))
    assert (straight.scores > 0).sum() < (oips.scores > 0).sum()
    assert not np.isnan(oips.traces).any()
    with torch.no_grad():
        for images, scores in (
            (oips.images, oips.scores),
            *((oips.snapshots[:, i], oips.traces[:, step]) for i, step in enumerate(oips.snapshot_steps)),
        ):
            activations = model.up_to("Conv2D_2")(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
            assert map_mean(activations, torch.from_numpy(oips.maps)).numpy() == pytest.approx(scores, abs=1e-5)


def test_more_finalists_find_no_weaker_images(model: FeatureModel) -> None:
    one = AscentSettings(steps=12, candidates=4, candidate_steps=4, finalists=1)
    scores = [
        ascend(model, LAYER, [0, 3, 14], settings=dataclasses.replace(one, finalists=finalists)).scores
        for finalists in (1, 2, 4)
    ]
    assert (scores[0] <= scores[1] * (1 + 1e-5)).all()
    assert (scores[1] <= scores[2] * (1 + 1e-5)).all()


def test_a_climb_that_loses_gives_back_what_it_began_with(model: FeatureModel) -> None:
    wild = AscentSettings(steps=1, epsilon=100.0, epsilon_last=None, candidates=3, candidate_steps=20, finalists=1)
    oips = ascend(model, LAYER, [0, 3, 14], settings=wild)
    assert (oips.scores >= oips.traces[:, 0]).all()


def test_a_pooling_layer_wakes_by_the_activation_before_it(model: FeatureModel) -> None:
    oips = ascend(model, "Max_Pool_2", settings=AscentSettings.article(steps=5))
    dead = oips.maps[oips.status == "dead"].tolist()
    kin = ascend(model, "Conv2D_2", dead, settings=AscentSettings.within(30))
    can = [number for number, score in zip(dead, kin.scores, strict=True) if score > 0.1][:3]
    woken = ascend(model, "Max_Pool_2", can, settings=AscentSettings.within(60))
    assert can
    assert (woken.scores > 0).all()
    assert woken.info["leaking"] == {"Conv2D_2": "relu"}


@pytest.mark.parametrize("layer", ["Dense_1", "Dense_2", "Flatten"])
def test_flat_layers_have_units(model: FeatureModel, layer: str) -> None:
    oips = ascend(model, layer, [0, 7], settings=AscentSettings.within(60))
    assert oips.images.shape == (2, 28, 28, 1)
    assert (oips.scores > 0).all()


def test_a_leaky_network_is_the_network_where_nothing_leaks(model: FeatureModel) -> None:
    x = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        plain, leaky = model.leaky_up_to(LAYER)(x, 0.25)
        z = model.up_to(LAYER, before_activation=True)(x)
    assert torch.equal(plain, model.up_to(LAYER)(x))
    assert torch.allclose(leaky, torch.nn.functional.leaky_relu(z, 0.25), atol=1e-5)


@pytest.mark.slow
def test_every_layer_of_another_network_can_be_ascended(converted: Callable[[str], Path]) -> None:
    """With swish, average pooling, and a Dense layer on maps, whose pre-activation ONNX computes on a side branch."""
    other = load(converted("rgb.keras"), device="cpu")
    for layer in other.layers:
        oips = ascend(other, layer.name, [0], settings=AscentSettings.within(12))
        assert oips.images.shape == (1, *other.network.input_shape)
        assert np.isfinite(oips.images).all()


def test_the_best_candidate_goes_on(model: FeatureModel) -> None:
    trial = AscentSettings.within(1)
    one = AscentSettings(steps=1, candidates=1, epsilon=1e-6, epsilon_last=None)
    many = AscentSettings(steps=1, candidates=6, candidate_steps=8, epsilon=1e-6, epsilon_last=None)
    assert trial.candidates == 1
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


def test_an_objective_of_one_s_own(model: FeatureModel) -> None:
    def peak(activations: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        return activations[torch.arange(len(maps)), maps].flatten(1).amax(1)

    oips = ascend(model, LAYER, [0, 3], settings=AscentSettings.within(20), objective=peak)
    images = torch.from_numpy(oips.images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        activations = model.up_to(LAYER)(images)
    assert oips.scores == pytest.approx(peak(activations, torch.tensor([0, 3])).numpy(), rel=1e-4)
    assert (oips.scores > map_mean(activations, torch.tensor([0, 3])).numpy()).all()
    assert oips.info["objective"] == "peak"


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
