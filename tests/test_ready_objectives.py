"""The ready objectives: that each rises, what each exists for, and what is said of its images."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import nchw
from torch import Tensor

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend, assess, calibrate, noise_control, plots
from oip_torch import objectives as ready
from oip_torch.analysis.image_statistics import cross_correlations
from oip_torch.optim.objectives import Objective, Place, map_mean, map_peak

LAYER = "Conv2D_3"
QUICK = AscentSettings.article(steps=40, epsilon=0.1, leak=0.3)  # with it what is silent at the start is no end
MAPS = [3, 14]
TOWARDS = np.eye(128)[3] + np.eye(128)[14]


def said(model: FeatureModel, oips: Oips, layer: str = LAYER, *, pre_activation: bool = False) -> Tensor:
    with torch.no_grad():
        return model.up_to(layer, pre_activation=pre_activation)(nchw(oips.images))


def logits(model: FeatureModel, oips: Oips) -> Tensor:
    return said(model, oips, "Dense_2", pre_activation=True)


OF_MAPS = {
    "map_mean": map_mean,
    "map_peak": map_peak,
    "soft_peak": ready.soft_peak(0.5),
    "neuron": ready.neuron(),
    "neuron at": ready.neuron(row=2, column=0),
    "difference": map_mean - ready.channel(5),
    "beside a unit": map_mean + 0.1 * ready.unit("Dense_1", 3),
    "diversity": map_mean + ready.diversity(),
}
OF_NONE = {
    "whole_layer": ready.whole_layer,
    "direction": ready.direction(TOWARDS),
    "direction by cosine": ready.direction(TOWARDS, cosine_power=2),
    "channel": ready.channel(14),
    "unit": ready.unit("Dense_1", 3),
    "class_logit": ready.class_logit(3),
    "class of a layer": ready.class_logit(3, "Dense_2"),
    "classes": ready.class_logit(3) - ready.class_logit(5),
    "negative": -ready.class_logit(3),
}


# Each rises, image by image, and stays finite


@pytest.mark.parametrize("name", [*OF_MAPS, *OF_NONE])
def test_the_score_rises(model: FeatureModel, name: str) -> None:
    objective = {**OF_MAPS, **OF_NONE}[name]
    oips = ascend(model, LAYER, MAPS if name in OF_MAPS else None, starts=2, settings=QUICK, objective=objective)
    assert (oips.scores > oips.traces[:, 0] + 1e-3).all()
    assert oips.provenance.objective == objective.name
    assert set(oips.status) <= {"finished", "converged"}


@pytest.mark.parametrize("name", [*OF_MAPS, *OF_NONE])
@pytest.mark.parametrize("size", [(128, 3, 3), (128, 4, 6), (128,)])
def test_a_batch_scores_as_its_images_do_and_a_silent_layer_stays_finite(name: str, size: tuple[int, ...]) -> None:
    objective = {**OF_MAPS, **OF_NONE}[name].reported
    if name == "neuron at" and len(size) == 1:
        return
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(5, *size, dtype=torch.float64, generator=stream).requires_grad_()
    channels = torch.tensor([0, 14, 3, 3, 127])
    scores = objective(x, channels)
    (slope,) = torch.autograd.grad(scores[1], x)
    assert slope[1].any()
    assert not slope[[0, 2, 3, 4]].any()
    alone = torch.cat([objective(x[[i]], channels[[i]]) for i in range(5)])
    torch.testing.assert_close(alone, scores, rtol=1e-12, atol=1e-12)
    silent = torch.zeros(5, *size).requires_grad_()
    assert (objective(silent, channels) == 0).all()  # exactly: else a silent map would not be taken for one
    whole = {**OF_MAPS, **OF_NONE}[name]
    assert torch.autograd.grad(whole(silent, channels).sum(), silent)[0].isfinite().all()


@pytest.mark.parametrize("name", [*OF_MAPS, *OF_NONE])
def test_objectives_can_be_sent_to_another_process(name: str) -> None:
    objective = {**OF_MAPS, **OF_NONE}[name]
    again = pickle.loads(pickle.dumps(objective))  # noqa: S301 (our own)
    x, channels = torch.rand(2, 128, 3, 3), torch.tensor([3, 3])
    assert again.name == objective.name
    assert torch.equal(again(x, channels), objective(x, channels))


# What each exists for


@pytest.mark.parametrize("sharpness", [0.01, 0.5, 3, 1000])
def test_the_soft_peak_lies_between_mean_and_peak(sharpness: float) -> None:
    x, channels = 10 * torch.rand(4, 8, 5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    mean, peak = map_mean(x, channels), map_peak(x, channels)
    soft = ready.soft_peak(sharpness)(x, channels)
    assert ((mean < soft) & (soft < peak)).all()
    share = (soft - mean) / (peak - mean)
    assert (share < 0.1).all() if sharpness == 0.01 else (share > 0.99).all() if sharpness == 1000 else True


def test_the_soft_peak_asks_for_more_than_one_position(model: FeatureModel) -> None:
    """Its images have a higher peak than those of the mean, and a higher mean than those of the peak."""
    mean, soft, peak = (
        said(model, ascend(model, LAYER, MAPS, settings=QUICK, objective=objective))
        for objective in (map_mean, ready.soft_peak(0.2), map_peak)
    )
    channels = torch.tensor(MAPS)
    assert (map_peak(soft, channels) > map_peak(mean, channels)).all()
    assert (map_mean(soft, channels) > map_mean(peak, channels)).all()


@pytest.mark.parametrize(("given", "at"), [((0, 2), 2), ((2, 0), 6), ((None, None), 4), ((None, 0), 3)])
def test_a_neuron_fires_where_it_lies(model: FeatureModel, given: tuple[int | None, int | None], at: int) -> None:
    oips = ascend(model, LAYER, MAPS, settings=QUICK, objective=ready.neuron(*given))
    own = said(model, oips)[torch.arange(2), MAPS].flatten(1)
    assert own.argmax(1).tolist() == [at, at]
    assert oips.scores == pytest.approx(own[:, at].numpy(), rel=1e-4)


def test_a_neuron_of_a_silent_map_is_woken_at_its_place(model: FeatureModel) -> None:
    """By the fallback, which goes to this position and not to the map's peak."""
    objective, settings = ready.neuron(row=0, column=0), AscentSettings.within(60)
    oips = ascend(model, "Conv2D_2", range(24), settings=settings, objective=objective)
    recovered = oips.take(oips.status == "recovered")
    assert len(recovered)
    assert (recovered.scores > 0).all()


def test_whole_layer_is_the_mean_of_squares_and_a_negative_response_is_none(model: FeatureModel) -> None:
    oips = ascend(model, LAYER, settings=QUICK, objective=ready.whole_layer)
    assert oips.scores == pytest.approx(said(model, oips).square().mean((1, 2, 3)).numpy(), rel=1e-4)
    maps = said(model, ascend(model, LAYER, MAPS, settings=QUICK))
    assert oips.scores[0] > maps.square().mean((1, 2, 3)).max()
    x = torch.tensor([[-2.0, 1.0]])
    assert ready.whole_layer(x, torch.tensor([0])).item() == pytest.approx((-4 + 1) / 2)


def test_activations_turn_to_the_direction(model: FeatureModel) -> None:
    def cosine(oips: Oips) -> float:
        mean = said(model, oips).mean((0, 2, 3)).double()
        return float(torch.nn.functional.cosine_similarity(mean, torch.from_numpy(TOWARDS), dim=0))

    plain = ascend(model, LAYER, settings=QUICK, objective=ready.direction(TOWARDS))
    turned = ascend(model, LAYER, settings=QUICK, objective=ready.direction(10 * TOWARDS, cosine_power=2))
    start = dataclasses.replace(plain, images=plain.snapshots[:, 0])
    assert cosine(start) < 0.3 < cosine(plain) < cosine(turned)
    along = (said(model, plain).double() * torch.from_numpy(TOWARDS)[:, None, None]).sum(1).mean() / 2**0.5
    assert plain.scores[0] == pytest.approx(float(along), rel=1e-4)


@pytest.mark.parametrize("layer", ["Conv2D_1", "Dense_2"])
def test_a_class_wins_over_another_from_any_layer(model: FeatureModel, layer: str) -> None:
    one = ascend(model, layer, settings=QUICK, objective=ready.class_logit(3))
    assert logits(model, one).argmax(1).tolist() == [3]
    assert one.scores == pytest.approx(logits(model, one)[:, 3].numpy(), rel=1e-4)
    over = ascend(model, layer, settings=QUICK, objective=ready.class_logit(3) - ready.class_logit(5))
    apart = [float(found[0, 3] - found[0, 5]) for found in (logits(model, one), logits(model, over))]
    assert apart[1] > max(apart[0], 10)
    assert over.scores[0] == pytest.approx(apart[1], rel=1e-4)


def test_one_place_may_be_read_twice(model: FeatureModel) -> None:
    """As the layer of the OIPs, and by its name, and as the output."""
    objective = map_mean - ready.unit("Dense_2", 5) + ready.class_logit(7)
    oips = ascend(model, "Dense_2", [3], settings=QUICK, objective=objective)
    found = logits(model, oips)[0]
    assert oips.scores[0] == pytest.approx(float(found[3] - found[5] + found[7]), rel=1e-4)


def test_a_map_rather_than_another_and_with_a_unit(model: FeatureModel) -> None:
    plain = said(model, ascend(model, LAYER, [14], settings=QUICK)).mean((0, 2, 3))
    rival = int(torch.cat([plain[:14], plain.new_zeros(1), plain[15:]]).argmax())
    without = said(model, ascend(model, LAYER, [14], settings=QUICK, objective=map_mean - ready.channel(rival)))
    assert without.mean((0, 2, 3))[rival] < 0.5 * plain[rival]
    alone = ascend(model, LAYER, [14], settings=QUICK)
    beside = ascend(model, LAYER, [14], settings=QUICK, objective=map_mean + 2 * ready.unit("Dense_1", 3))
    units = [float(said(model, oips, "Dense_1")[0, 3]) for oips in (alone, beside)]
    assert units[1] > units[0] + 1
    assert beside.of_maps


def test_the_starts_of_a_map_are_pushed_apart(model: FeatureModel) -> None:
    apart = map_mean + 3 * ready.diversity()
    oips = [ascend(model, LAYER, MAPS, starts=3, settings=QUICK, objective=o) for o in (map_mean, apart)]
    unlike = [ready.diversity()(said(model, each), torch.from_numpy(each.maps)).numpy() for each in oips]
    assert (unlike[1] > unlike[0]).all()
    alike = [np.mean([cross_correlations(each.select(maps=n).images).mean() for n in MAPS]) for each in oips]
    assert alike[1] < alike[0]
    assert oips[1].scores == pytest.approx(map_mean(said(model, oips[1]), torch.from_numpy(oips[1].maps)), rel=1e-4)


def test_diversity_is_of_the_images_of_one_map(model: FeatureModel) -> None:
    x = torch.rand(5, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = ready.diversity()(x, torch.tensor([2, 7, 2, 7, 4]))
    assert scores[4] == 0  # one start: no other one
    assert ((scores[:4] > 0) & (scores[:4] < 1)).all()
    assert scores[0] == scores[2]
    torch.testing.assert_close(ready.diversity()(x[[0, 2]], torch.tensor([2, 2])), scores[[0, 2]])
    copies = ready.diversity()(x[[0, 0, 0]], torch.tensor([1, 1, 1]))
    torch.testing.assert_close(copies, torch.zeros_like(copies), rtol=0, atol=1e-12)
    other = map_mean + ready.diversity("Conv2D_2")
    assert other.places == (Place.LAYER, "Conv2D_2")
    assert other.couples_images
    assert not other.reads_one_channel
    assert other.reported.name == "map_mean"


def spread_out(activations: Tensor, channels: Tensor) -> Tensor:
    rows = activations[torch.arange(len(channels)), channels].flatten(1)
    return rows.mean(1) - 0.1 * (rows @ rows.T).mean(1)


def test_images_that_were_made_to_go_together_are_taken_together(model: FeatureModel) -> None:
    """Of two survivors all images of one: else their scores would be of other neighbours than they have."""
    settings = AscentSettings(candidates=3, candidate_steps=3, survivors=2, steps=15)
    oips = ascend(model, LAYER, range(6), settings=settings, objective=Objective.of(spread_out, couples_images=True))
    assert oips.scores == pytest.approx(spread_out(said(model, oips), torch.arange(6)).numpy(), rel=1e-3, abs=1e-4)


# What is said of them


def test_images_of_no_map(model: FeatureModel, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    oips = ascend(model, LAYER, starts=2, settings=QUICK, objective=ready.class_logit(3))
    assert (len(oips), oips.maps.tolist(), oips.noun, oips.of_maps) == (2, [0, 0], "image", False)
    assert oips.title == "class_logit(3), image 0: 2 OIPs"
    assert repr(oips).startswith("<Oips of class_logit(3): 2 images, numbers 0;")
    assert oips.legend.startswith("Image·start: score.")
    assert oips.provenance.leaking == {"Dense_1": "relu"}
    assert Oips.load(oips.save(tmp_path / "oips.nc")).title == oips.title
    three = ascend(model, LAYER, [0, 1, 2], settings=AscentSettings.article(steps=2), objective=ready.whole_layer)
    assert three.title == "whole_layer of Conv2D_3: 3 OIPs"
    before = ascend(model, "Dense_2", settings=AscentSettings.article(steps=2), objective=ready.whole_layer)
    assert before.place == "whole_layer of Dense_2 before its softmax"
    assert before.max_preactivation[0] == pytest.approx(float(logits(model, before).max()), rel=1e-4)
    calibration = calibrate(model, digits[0][:50])
    refused = r"these images are of class_logit\(3\), and of no map: expected OIPs of maps"
    for look in (
        lambda: assess(model, oips),
        lambda: noise_control(model, oips),
        lambda: plots.beside_data(oips, calibration),
    ):
        with pytest.raises(InputError, match=refused):
            look()
    for figure in (plots.sheet(oips), plots.evolution(oips, 0), plots.trace(oips), plots.consistency(oips, 0)):
        figure.savefig(tmp_path / "picture.png")
    assert plots.trace(oips).axes[0].get_ylabel() == "score (class_logit(3))"


def test_pictures_name_what_shaped_the_images_and_compare_the_scores_that_compare(
    model: FeatureModel, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    settings, objective = AscentSettings.article(steps=3), map_mean - 0.1 * ready.total_variation
    oips = ascend(model, LAYER, [14], settings=settings, objective=objective)
    assert oips.way.startswith("Maximised: map_mean - 0.1 total_variation. Settings: 3 steps")
    assert plots.trace(oips).axes[0].get_ylabel() == "score (mean activation of the map)"
    figure = plots.beside_data(oips, calibrate(model, digits[0][:50]))
    labels = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "× data)" in labels
    assert ascend(model, LAYER, [14], settings=settings).way.startswith("Settings:")


@pytest.mark.parametrize(
    ("objective", "alive"),
    [
        (map_mean, True),
        (ready.soft_peak(1), True),
        (ready.neuron(), True),
        (map_mean - 0.1 * ready.total_variation, True),
        (map_mean + ready.diversity(), True),
        (map_mean - ready.channel(5), True),
        (-map_mean, False),
        (ready.channel(5) - map_mean, False),
        (ready.whole_layer, False),
    ],
)
def test_dead_and_alive_are_said_of_objectives_that_grow_with_the_map(
    model: FeatureModel, objective: Objective, alive: bool
) -> None:
    settings = AscentSettings.article(steps=3)
    oips = ascend(model, LAYER, range(8), settings=settings, objective=objective)
    assert ("alive" in oips.title) == alive
    dead = ascend(model, LAYER, range(8), settings=settings).status == "dead"
    assert 0 < dead.sum() < 8
    if not alive:
        assert "dead" not in oips.status
    elif objective.reported.name != "map_mean - channel(5)":  # which is no silence where map 5 fires
        assert ((oips.status == "dead") == dead).all()


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ready.soft_peak(0), "sharpness is 0: expected a number above 0"),
        (lambda: ready.soft_peak(float("nan")), "sharpness is nan: expected a number above 0"),
        (lambda: ready.soft_peak("1"), "sharpness is '1': expected a number above 0"),
        (lambda: ready.neuron(-1), "row is -1: expected a whole number, 0 or more"),
        (lambda: ready.neuron(column=1.5), "column is 1.5: expected a whole number, 0 or more"),
        (lambda: ready.neuron([0, 1]), r"row is \(0, 1\): expected a whole number, 0 or more"),
        (lambda: ready.neuron(True), "row is True: expected a whole number, 0 or more"),
        (lambda: ready.direction([0.0, 0.0]), r"vector is \[0.0, 0.0\]: expected one finite number per channel"),
        (lambda: ready.direction([1.0, float("inf")]), "expected one finite number per channel"),
        (lambda: ready.direction(np.ones((2, 2))), "expected one finite number per channel .* in one dimension"),
        (lambda: ready.direction([[1], [1, 2]]), "expected one finite number per channel"),
        (lambda: ready.direction("ab"), "expected one finite number per channel"),
        (lambda: ready.direction([1.0], cosine_power=-1), "cosine_power is -1: expected a number of 0 or more"),
        (lambda: ready.channel(2.0), "index is 2.0: expected a whole number, 0 or more"),
        (lambda: ready.unit(3, 4), "layer is 3: expected the name of a layer"),
        (lambda: ready.unit("Dense_1", -4), "index is -4: expected a whole number, 0 or more"),
        (lambda: ready.class_logit("3"), "index is '3': expected a whole number, 0 or more"),
        (lambda: ready.diversity(4), "layer is 4: expected the name of a layer"),
    ],
)
def test_what_cannot_be_asked_for(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        make()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("layer", "objective", "message"),
    [
        (LAYER, ready.neuron(3), "neuron asks for row 3, but maps of the layer .* have 3×3 positions: .* from 0 to 2"),
        (LAYER, ready.neuron(column=7), "neuron asks for column 7, but maps of .* 3×3 positions: .* from 0 to 2"),
        ("Dense_1", ready.neuron(0), "neuron asks for a position, but the layer .* is flat, of 100 units"),
        (LAYER, ready.direction([1, 2]), "the direction has 2 numbers, but the layer .* has 128 channels"),
        (LAYER, ready.channel(128), r"channel\(128\): the layer .* has 128 channels: expected .* from 0 to 127"),
        (LAYER, ready.unit("Dense_1", 100), r"unit\(Dense_1, 100\): layer 'Dense_1' has 100 units: .* from 0 to 99"),
        (LAYER, ready.unit("Dense_9", 1), "no layer 'Dense_9'"),
        (LAYER, ready.class_logit(10), r"class_logit\(10\): the network's output.* has 10 units: .* from 0 to 9"),
        (LAYER, ready.class_logit(1, "Conv2D_1"), "asks for a class, but layer 'Conv2D_1' has maps of 26×26"),
        (LAYER, ready.diversity(), "the objective diversity shapes the images alone: expected a term that says"),
        (LAYER, map_mean + ready.diversity("Conv2D_9"), "no layer 'Conv2D_9'"),
    ],
)
def test_what_the_network_does_not_have(model: FeatureModel, layer: str, objective: Objective, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        ascend(model, layer, [0], objective=objective)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2), torch.tensor(2)])
def test_numbers_of_numpy_and_torch_are_taken(number: Any) -> None:
    assert ready.neuron(number, number).name == "neuron(row=2, column=2)"
    assert ready.class_logit(number).name == "class_logit(2)"
    assert ready.soft_peak(number).name == "soft_peak(2)"


@pytest.mark.parametrize("vector", [[1, 0], (1.0, 0.0), np.array([3, 0]), torch.tensor([2.0, 0.0], requires_grad=True)])
def test_directions_are_taken_in_any_form_and_length(vector: Any) -> None:
    x = torch.tensor([[5.0, 7.0]])
    assert ready.direction(vector)(x, torch.tensor([0])).item() == 5.0
