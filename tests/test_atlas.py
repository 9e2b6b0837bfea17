"""The atlas: what is in it is what `ascend` makes, however the work was cut, and what others than we read of it."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import oip_torch as oip
from oip_torch.atlas.job import Job, Made, Outcome, run
from oip_torch.atlas.layout import Layout
from oip_torch.atlas.local import local
from oip_torch.atlas.units import Work
from oip_torch.optim import objectives

SETTINGS = oip.AscentSettings(steps=4, candidates=2, candidate_steps=2)
LAYERS = ["Conv2D_1", "Conv2D_2"]


@pytest.fixture(scope="module")
def images(digits: Any) -> tuple[Any, Any]:
    pixels, labels = digits
    return pixels[::50], labels[::50]


@pytest.fixture(scope="module")
def made(model: oip.FeatureModel, images: Any, tmp_path_factory: pytest.TempPathFactory) -> oip.Atlas:
    """Of two layers with two starts, with real data. Not to be changed."""
    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    return oip.make_atlas(
        model, LAYERS, path=path, starts=2, seed=3, settings=SETTINGS, data=images[0], labels=images[1]
    )


def same(one: oip.Oips, other: oip.Oips) -> bool:
    """Bit by bit, in whatever order the images are."""
    orders = [np.lexsort((oips.starts, oips.maps)) for oips in (one, other)]
    return all(
        np.array_equal(getattr(one, name)[orders[0]], getattr(other, name)[orders[1]], equal_nan=name != "status")
        for name in ("maps", "starts", "images", "scores", "traces", "snapshots", "status", "converged_at")
    )


def test_the_images_are_those_of_ascend(model: oip.FeatureModel, made: oip.Atlas) -> None:
    for layer in LAYERS:
        oips = oip.ascend(model, layer, starts=2, seed=3, settings=SETTINGS)
        held = made[layer]
        assert same(held.oips, oips)
        assert held.planned == len(oips)
        assert held.oips.provenance.fingerprint == oips.provenance.fingerprint
        assert held.oips.provenance.image_steps == oips.provenance.image_steps
        assert dataclasses.replace(held.oips.provenance, seconds=0, predicted_bytes=0) == dataclasses.replace(
            oips.provenance, seconds=0, predicted_bytes=0
        )
        assert np.array_equal(held.oips.snapshot_steps, oips.snapshot_steps)
        assert held.oips.settings == SETTINGS


def test_the_figures_are_those_of_the_other_functions(model: oip.FeatureModel, made: oip.Atlas, images: Any) -> None:
    held = made["Conv2D_2"]
    assert held.quality is not None
    assert held.noise is not None
    assert held.data is not None
    calibration = oip.calibrate(model, images[0], "Conv2D_2")
    readers = oip.Readers.of(model, "Conv2D_2", images[0][::2], images[0][1::2])
    quality = oip.assess(model, held.oips, calibration, readers=readers)
    for field in dataclasses.fields(quality):
        if field.name != "layer":
            assert np.array_equal(getattr(held.quality, field.name), getattr(quality, field.name), equal_nan=True)
    noise = oip.noise_control(model, held.oips)
    assert np.array_equal(held.noise.noise, noise.noise)
    assert np.array_equal(held.noise.agreement, noise.agreement)
    own = calibration["Conv2D_2"]
    assert np.array_equal(held.data.calibration.maximum, own.maximum)
    assert np.array_equal(held.data.calibration.top_images, own.top_images)
    assert held.data.count == len(images[0])


def test_the_data_of_a_layer(model: oip.FeatureModel, made: oip.Atlas, images: Any) -> None:
    data = made["Conv2D_1"].data
    assert data is not None
    pixels, labels = images
    with torch.no_grad(), oip.capture(model, "Conv2D_1") as maps:
        x = model.standardize(pixels)
        x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True, correction=0)
        model(x)
        scores = maps["Conv2D_1"].mean((2, 3)).double().numpy()
    assert data.class_names == tuple("0123456789")
    means = np.stack([scores[labels == number].mean(0) for number in range(10)], axis=1)
    assert data.classes == pytest.approx(means, rel=1e-4, abs=1e-6)
    varies = scores.std(0) > 0
    expected = np.corrcoef(scores[:, varies].T)
    assert data.likeness[np.ix_(varies, varies)] == pytest.approx(expected, abs=1e-3)
    assert np.isnan(data.likeness[~varies]).all()
    top = data.calibration.top_indices[5, 0]
    responses = oip.respond(model, pixels[top : top + 1], "Conv2D_1", 5)
    assert responses.fields is not None
    assert np.array_equal(data.fields[5, 0], responses.fields[0])


def test_others_read_it_with_xarray_alone(made: oip.Atlas) -> None:
    tree = xr.open_datatree(made.path, engine="zarr")
    assert tree.attrs["oip_torch_atlas_format"] == 1
    layer = xr.open_zarr(made.path, group="layer_002")
    assert layer.attrs["layer"] == "Conv2D_2"
    assert dict(layer["images"].sizes) == {"map": 64, "start": 2, "y": 28, "x": 28, "channel": 1}
    assert layer["images"].dtype == np.float32
    meanings = layer["status"].attrs["flag_meanings"].split()
    codes = dict(zip(layer["status"].attrs["flag_values"], meanings, strict=True))
    oips = made["Conv2D_2"].oips
    assert [codes[code] for code in layer["status"].values[oips.maps, oips.starts].tolist()] == oips.status.tolist()
    quality = xr.open_zarr(made.path, group="layer_002/quality")
    assert dict(quality.sizes) == {"map": 64, "start": 2}


def test_it_says_what_it_is(made: oip.Atlas, model: oip.FeatureModel) -> None:
    assert made.layers == tuple(made) == ("Conv2D_1", "Conv2D_2")
    assert "Conv2D_3" not in made
    assert made.network.fingerprint == model.fingerprint
    assert made.network.layers == tuple(model.layers)
    assert made.network.settings == SETTINGS.to_dict()
    assert made.network.seed == 3
    assert repr(made) == (
        f"<Atlas of 'mnist_cnn.keras': 192 of 192 images, 2 starts of the maps of Conv2D_1, Conv2D_2; {made.path}>"
    )
    assert [(state.done, state.planned, state.images) for state in made.state.values()] == [(2, 2, 64), (4, 4, 128)]
    with pytest.raises(oip.InputError, match=r"no layer of the atlas 'Conv2D_9': did you mean"):
        made["Conv2D_9"]


# Work in units


def job(model: oip.FeatureModel, **changes: Any) -> Job:
    given: dict[str, Any] = {"maps": tuple(range(8)), "starts": (0, 1), "batch": 4, "settings": SETTINGS, "seed": 0}
    return Job(fingerprint=model.fingerprint, layer="Conv2D_1", **(given | changes))


def test_a_job_is_a_value(model: oip.FeatureModel) -> None:
    one = job(model)
    again = pickle.loads(pickle.dumps(one))  # noqa: S301  # our own
    assert again == one
    assert hash(again) == hash(one)
    assert len(one) == 16
    assert one.cells == [((0, 1, 2, 3), 0), ((4, 5, 6, 7), 0), ((0, 1, 2, 3), 1), ((4, 5, 6, 7), 1)]


def test_later_starts_are_made_alone(model: oip.FeatureModel) -> None:
    (cell,) = run(job(model, maps=(4, 5, 6, 7), starts=(3,)), model).cells
    oips = oip.ascend(model, "Conv2D_1", range(4, 8), starts=4, settings=SETTINGS)
    assert same(cell, oips.select(starts=3))


def test_a_job_of_another_network_is_refused(model: oip.FeatureModel) -> None:
    with pytest.raises(oip.InputError, match=r"the job is of the network of digest 0000"):
        run(dataclasses.replace(job(model), fingerprint="0" * 64), model)


def test_where_memory_is_short_a_cell_is_done_in_halves(
    model: oip.FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = oip.ascend(model, "Conv2D_1", range(8), starts=1, settings=SETTINGS)
    from oip_torch.atlas import job as module

    real = module.ascend_layer

    def short(*given: Any, batch_size: int, **more: Any) -> oip.Oips:
        sizes.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given, batch_size=batch_size, **more)

    monkeypatch.setattr(module, "ascend_layer", short)
    found = run(job(model, starts=(0,)), model)
    assert sizes == [4, 2, 2]  # and later cells begin with what did fit
    assert all(same(cell, whole.select(maps=cell.maps.tolist())) for cell in found.cells)
    monkeypatch.setattr(module, "ascend_layer", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        run(job(model, starts=(0,)), model)


def work_of(model: oip.FeatureModel, maps: int = 64, starts: int = 4) -> Work:
    layout = Layout(maps=maps, starts=starts, cell=8, image=(28, 28, 1), steps=6, snapshots=3)

    def make(layer: str, of_maps: range, of_starts: range) -> Job:
        return job(model, maps=tuple(of_maps), starts=tuple(of_starts), batch=8)

    return Work({"Conv2D_1": np.ones((layout.cells, starts), bool)}, {"Conv2D_1": layout}, make)


def test_units_are_sized_by_what_was_measured(model: oip.FeatureModel) -> None:
    work = work_of(model)
    first = next(work)
    assert len(first.cells) == 1  # nothing is known yet
    work.done(first, 5.0)
    assert len(next(work).cells) == 4  # 20 s
    quick = work_of(model)
    quick.done(next(quick), 0.001)
    sizes = [len(unit.cells) for unit in quick]
    assert sum(sizes) == 31
    assert max(sizes) > 4
    slow = work_of(model)
    slow.done(next(slow), 60.0)
    assert {len(unit.cells) for unit in slow} == {1}


def test_a_unit_that_does_not_fit_is_halved(model: oip.FeatureModel) -> None:
    work = work_of(model)
    work.done(next(work), 5.0)
    unit = next(work)
    assert work.halve(unit)
    again = [next(work), next(work)]
    assert [cell for part in again for cell in part.cells] == unit.cells
    assert not work.halve(dataclasses.replace(unit, maps=unit.maps[:8]))


class Cut:
    """An engine that does one cell at a time, the last job first, and fails on what is larger than it likes."""

    def __init__(self, most: int) -> None:
        self.most, self.jobs = most, []

    def __call__(self, model: oip.FeatureModel, jobs: Iterator[Job], watch: Any) -> Iterator[Outcome]:
        for unit in reversed(list(jobs)):
            self.jobs.append(unit)
            yield unit, run(unit, model) if len(unit.cells) <= self.most else MemoryError("too much")


def test_however_the_work_is_cut_the_images_are_the_same(
    model: oip.FeatureModel, made: oip.Atlas, tmp_path: Path
) -> None:
    engine = Cut(1)
    other = oip.make_atlas(
        *(model, LAYERS), path=tmp_path / "a.zarr", starts=2, seed=3, settings=SETTINGS, engine=engine
    )
    assert len(engine.jobs) >= 6
    for layer in LAYERS:
        assert same(other[layer].oips, made[layer].oips)
        assert other[layer].data is None


def test_one_image_that_does_not_fit_ends_the_run(model: oip.FeatureModel, tmp_path: Path) -> None:
    with pytest.raises(oip.OipError, match=r"an image of 'Conv2D_1' does not fit in memory: too much; what was made"):
        oip.make_atlas(model, "Conv2D_1", path=tmp_path / "a.zarr", settings=SETTINGS, engine=Cut(0))


def test_the_local_engine_does_alone_what_did_not_fit_beside_others(
    model: oip.FeatureModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(unit: Job, own: oip.FeatureModel, *, memory: int | None = None, watch: Any = None) -> Made:
        if memory is not None:
            raise MemoryError
        return run(unit, own, watch=watch)

    monkeypatch.setattr("oip_torch.atlas.local.run", short)
    steps: list[int] = []
    ((_, found),) = local(model, iter([job(model, starts=(0,))]), steps.append)
    assert isinstance(found, Made)
    assert sum(steps) == sum(cell.provenance.image_steps for cell in found.cells)


def test_images_that_leave_the_finite_numbers_are_recorded(
    model: oip.FeatureModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def engine(own: oip.FeatureModel, jobs: Iterator[Job], watch: Any) -> Iterator[Outcome]:
        for unit in jobs:
            lost = [
                dataclasses.replace(
                    cell.take([0]), provenance=dataclasses.replace(cell.provenance, not_finite=((1, 0),))
                )
                for cell in run(unit, own).cells
            ]
            yield unit, Made(tuple(lost))

    made = oip.make_atlas(model, "Conv2D_1", path=tmp_path / "a.zarr", settings=SETTINGS, engine=engine)
    held = made["Conv2D_1"]
    assert len(held.oips) == 1
    assert len(held.oips.provenance.not_finite) == 31
    assert held.quality is not None
    assert len(held.quality) == 1
    assert made.state["Conv2D_1"].finished
    with caplog.at_level(logging.WARNING, "oip_torch"):
        oip.make_atlas(model, path=made.path, resume=True)
    assert "nothing was left to do" in caplog.text


# Other networks


def test_names_from_strangers_and_modules_of_ones_own(tmp_path: Path) -> None:
    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 5, 3)
            self.add_module("/<img src=x>/", torch.nn.Conv2d(5, 3, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.get_submodule("/<img src=x>/")(torch.relu(self.first(x))).mean((2, 3))

    own = oip.wrap(Own(), (3, 12, 10), mean=0.5, std=0.25)
    atlas = oip.make_atlas(own, path=tmp_path / "a.zarr", settings=SETTINGS, starts=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr"]
    name = next(name for name in atlas.layers if "img" in name)
    assert atlas[name].oips.images.shape == (6, 12, 10, 3)
    assert atlas.network.source_sha256 == ""
    assert len(oip.open_atlas(atlas.path)) == 2


def test_what_no_atlas_can_be_made_of(model: oip.FeatureModel, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    for given, message in [
        ({"starts": 0}, "starts is 0"),
        ({"layers": ["Conv2D_9"]}, "no layer 'Conv2D_9'"),
        ({"settings": 3}, "settings is 3"),
        ({"engine": "abacus"}, "engine is 'abacus': expected 'local'"),
        ({"objective": objectives.class_logit(3)}, "expected one of each map"),
        ({"objective": objectives.map_mean + objectives.diversity()}, "that couples no images"),
        ({"labels": [1, 2]}, "labels, class_names and training belong to data"),
        ({"data": np.full((2, 28, 28), 200), "labels": [0.5, 1]}, "labels are an array"),
    ]:
        with pytest.raises(oip.InputError, match=message):
            oip.make_atlas(model, **({"path": path} | given))
        assert not path.exists()
