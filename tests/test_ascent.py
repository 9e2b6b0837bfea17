"""The loop and its settings: invariants. Agreement with TensorFlow: test_parity_tensorflow.py."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import score_of

from oip_torch import AscentSettings, FeatureModel, StartSettings, ascend, start_images
from oip_torch.base.platform import Costs
from oip_torch.base.tensors import standardize
from oip_torch.optim.ascent import gradient_ascent
from oip_torch.optim.objectives import map_mean
from oip_torch.optim.schedule import Schedule
from oip_torch.search import plan, target

LAYER = "Conv2D_3"


def test_one_step_is_the_equation(model: FeatureModel) -> None:
    x = start_images((1, 28, 28), [(0, 0), (3, 0)], layer=LAYER)
    maps = torch.tensor([0, 3])
    schedule = Schedule(steps=1, epsilon=0.01, epsilon_last=None, leak=0.0, momentum=0.0)
    result = gradient_ascent(score_of(model, LAYER), x, maps, schedule)
    for row, number in enumerate(maps.tolist()):
        image = x[row : row + 1].clone().requires_grad_()
        score = model.up_to(LAYER)(image)[0, number].mean()
        (g,) = torch.autograd.grad(score, image)
        expected = image.detach() + 0.01 * g / (g.square().mean().sqrt() + 1e-7)
        expected = (expected - expected.mean()) / expected.std(correction=0)
        assert torch.allclose(result.images[row], expected[0], atol=1e-5)
        assert result.traces[row, 0] == pytest.approx(score.item(), rel=1e-4)


def test_momentum_keeps_part_of_the_direction_before(model: FeatureModel) -> None:
    x, maps = start_images((1, 28, 28), [(3, 0)], layer=LAYER), torch.tensor([3])

    def direction(image: torch.Tensor) -> torch.Tensor:
        image = image.clone().requires_grad_()
        (g,) = torch.autograd.grad(model.up_to(LAYER)(image)[0, 3].mean(), image)
        return g / (g.square().mean().sqrt() + 1e-7)

    schedule = Schedule(steps=2, epsilon=0.5, epsilon_last=None, leak=0.0, momentum=0.25)
    result = gradient_ascent(score_of(model, LAYER), x, maps, schedule)
    first = direction(x)
    second = standardize(x + 0.5 * first)
    expected = standardize(second + 0.5 * (0.25 * first + 0.75 * direction(second)))
    assert torch.allclose(result.images, expected, atol=1e-5)


def test_the_score_rises(model: FeatureModel) -> None:
    oips = ascend(model, LAYER, [0, 3, 14], settings=AscentSettings.article(steps=60))
    assert (oips.scores > 2 * oips.traces[:, 0]).all()
    assert (np.diff(oips.traces, axis=1) > -1e-2).all()


def test_images_stay_standardised(model: FeatureModel) -> None:
    oips = ascend(model, LAYER, [0, 1], settings=AscentSettings.within(20))
    assert oips.images.mean((1, 2, 3)) == pytest.approx(0, abs=1e-5)
    assert oips.images.std((1, 2, 3)) == pytest.approx(1, abs=1e-4)


def test_a_batch_gives_what_single_runs_give(model: FeatureModel) -> None:
    """Largest difference of a pixel, measured over 40 steps of the article: 1.1e-4 in float32, 0 in float64.

    Over 600 steps float32 diverges by up to 0.24, since rounding decides which way an image takes; float64 stays at 0.
    So what is left in float32 is rounding, and the batch as such changes nothing.
    """
    settings = AscentSettings.article(steps=40)
    maps = [0, 1, 3, 4, 6, 8, 9, 11]
    for network, pixels in ((model, 1e-3), (copy.deepcopy(model).double(), 1e-12)):
        together = ascend(network, LAYER, maps, settings=settings, batch_size=8)
        for number in maps:
            alone = ascend(network, LAYER, number, settings=settings)
            same = together.select(maps=number)
            assert np.abs(same.images - alone.images).max() < pixels
            assert same.traces == pytest.approx(alone.traces, rel=pixels, abs=pixels)


def test_the_same_seed_gives_the_same_result(model: FeatureModel) -> None:
    settings = AscentSettings.within(20)
    first, second = (ascend(model, LAYER, [0, 3], settings=settings, seed=4) for _ in range(2))
    assert np.array_equal(first.images, second.images)
    other = ascend(model, LAYER, [0, 3], settings=settings, seed=5)
    assert not np.allclose(first.images, other.images, atol=0.1)


def test_a_zero_gradient_stays_finite_and_is_called_dead(model: FeatureModel) -> None:
    settings = AscentSettings.article(steps=30)
    oips = ascend(model, LAYER, range(32), settings=settings)
    dead = oips.status == "dead"
    assert 0 < dead.sum() < 32
    assert (oips.scores[dead] == 0).all()
    assert (oips.traces[dead] == 0).all()
    assert (oips.max_preactivation[dead] <= 0).all()
    assert (oips.converged_at[dead] == -1).all()
    assert (oips.scores[~dead] > 0).all()
    starts = start_images((1, 28, 28), [(k, 0) for k in range(32)], layer=LAYER).numpy().transpose(0, 2, 3, 1)
    assert np.abs(oips.images[dead] - starts[dead]).max() < 1e-4


def test_snapshots_are_the_images_that_the_steps_found(model: FeatureModel) -> None:
    settings = AscentSettings.article(steps=12, snapshots=(0, 5, 11))
    oips = ascend(model, LAYER, [0, 3], settings=settings)
    assert oips.snapshot_steps.tolist() == [0, 5, 11]
    shown = torch.from_numpy(oips.snapshots.transpose(0, 1, 4, 2, 3).copy())
    with torch.no_grad():
        for index, step in enumerate((0, 5, 11)):
            scores = map_mean(model.up_to(LAYER)(shown[:, index]), torch.tensor([0, 3]))
            assert scores.numpy() == pytest.approx(oips.traces[:, step], rel=1e-4)


def test_converged_means_four_calm_steps(model: FeatureModel) -> None:
    settings = AscentSettings.article(steps=400, tolerance=2e-3)
    oips = ascend(model, LAYER, [0, 3], settings=settings)
    assert (oips.status == "converged").all()
    for row in range(2):
        trace = oips.traces[row].astype(np.float64)
        change = np.abs(np.diff(trace)) / (np.abs(trace[1:]) + 1e-7)  # change[j] belongs to step j + 1
        at = int(oips.converged_at[row])
        calm = change < 2e-3
        assert calm[at - 4 : at].all()
        assert not any(calm[j - 4 : j].all() for j in range(13, at))


def test_converged_images_leave_the_batch(model: FeatureModel) -> None:
    settings = AscentSettings.article(steps=400, tolerance=2e-3, stop="converged", snapshots=(0, 399))
    oips = ascend(model, LAYER, [0, 3, 14], settings=settings)
    whole = ascend(model, LAYER, [0, 3, 14], settings=AscentSettings.article(steps=400, tolerance=2e-3))
    assert (oips.converged_at == whole.converged_at).all()
    assert oips.provenance.image_steps == (oips.converged_at + 1).sum() < whole.provenance.image_steps
    for row, step in enumerate(oips.converged_at):
        assert np.isfinite(oips.traces[row, : step + 1]).all()
        assert np.isnan(oips.traces[row, step + 1 :]).all()
        assert np.array_equal(oips.snapshots[row, 1], oips.images[row])


def test_stages_add_the_shorter_wavelengths_later(model: FeatureModel) -> None:
    start = StartSettings(kind="fourier", bands=2, highest=14)  # cut at 3.7 cycles
    settings = AscentSettings.article(stages=(4, 6), start=start, snapshots=(0, 4))
    assert settings.schedule.steps == 10
    oips = ascend(model, LAYER, 0, settings=settings)

    def shorter(image: np.ndarray) -> float:
        power = np.abs(np.fft.fft2(image[..., 0])) ** 2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(28) * 28, np.fft.fftfreq(28) * 28))
        return float(power[frequency > 4].sum() / power.sum())

    before, after = (shorter(oips.snapshots[0, index]) for index in range(2))
    assert before < 1e-6
    assert after > 0.05


def test_standardize_of_a_uniform_image_is_finite() -> None:
    assert not standardize(torch.full((2, 1, 8, 8), 3.0)).any()


def test_images_that_nothing_moves_leave_after_one_step_and_end_as_if_they_had_stayed(
    model: FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = AscentSettings.article(steps=30, snapshots=(0, 7, 29))
    batches = []
    network = score_of(model, LAYER).network
    monkeypatch.setattr(target, "extract", lambda *_, **__: lambda *x: batches.append(len(x[0])) or network(*x))
    monkeypatch.setattr(plan, "step_costs", lambda *_: Costs(1 << 20, 0))
    monkeypatch.setattr(plan, "weight_bytes", lambda _: 0)
    oips = ascend(model, LAYER, range(32), settings=settings, batch_size=32)
    moving = int((oips.scores > 0).sum())
    assert 0 < moving < 32
    assert sum(batches) == 32 + 29 * moving + 32  # all of them once more for the scores
    assert oips.provenance.image_steps == 32 * 30
    # Where something is to be added later, if only zeros, all of them stay.
    x, maps = start_images((1, 28, 28), [(k, 0) for k in range(32)], layer=LAYER), torch.arange(32)
    nothing = {20: torch.zeros_like(x)}
    stayed = gradient_ascent(*(score_of(model, LAYER), x, maps, settings.schedule), kept=(0, 7, 29), inject=nothing)
    for name, found in (("images", oips.images), ("snapshots", oips.snapshots)):
        expected = getattr(stayed, name).movedim(-3, -1).numpy()
        assert np.abs(found - expected)[oips.scores == 0].max() < 1e-5
    assert (oips.traces[oips.scores == 0] == 0).all()
    assert (stayed.traces[oips.scores == 0] == 0).all()
    assert (~stayed.responded).tolist() == (oips.status == "dead").tolist()


def test_an_image_on_which_a_leak_or_a_later_stage_works_stays(model: FeatureModel) -> None:
    dead = ascend(model, LAYER, range(32), settings=AscentSettings.article(steps=3))
    numbers = dead.maps[dead.status == "dead"][:4].tolist()
    leaking = ascend(model, LAYER, numbers, settings=AscentSettings.article(steps=30, leak=0.3))
    staged = ascend(model, LAYER, numbers, settings=AscentSettings.article(stages=(2, 2, 2, 2)))
    stopped = ascend(model, LAYER, numbers, settings=AscentSettings.article(steps=30, stop="converged"))
    assert (leaking.scores > 0).any()
    assert (np.abs(staged.snapshots[:, -1] - staged.snapshots[:, 0]).max((1, 2, 3)) > 0.1).all()
    assert np.isnan(stopped.traces[:, -1]).all()
