"""What real data draws from each map: against brute force, to a file and back, and refusals."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.figure import Figure

from oip_torch import AscentSettings, FeatureModel, InputError, ascend, plots
from oip_torch.analysis.calibration import Calibration, calibrate
from oip_torch.analysis.image_statistics import radial_power_spectrum
from oip_torch.analysis.scores import map_means
from oip_torch.analysis.top import Top
from oip_torch.base.image_files import read_images
from oip_torch.base.tensors import standardize
from oip_torch.optim.objectives import map_mean

LAYERS = ("Conv2D_1", "Conv2D_3")
COUNT = 200
Images = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images(digits: tuple[Images, Any]) -> Images:
    return digits[0][:: len(digits[0]) // COUNT][:COUNT]


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, images: Images) -> Calibration:
    return calibrate(model, images, LAYERS, top=5, batch_size=64)


@pytest.fixture(scope="module")
def scores(model: FeatureModel, images: Images) -> dict[str, npt.NDArray[np.floating]]:
    """Every score of every image, by the plain way: one batch, every map by `map_mean`."""
    with torch.no_grad():
        outputs = model.every_layer(standardize(model.standardize(images)))
    result = {}
    for name in LAYERS:
        columns = [map_mean(outputs[name], torch.full((COUNT,), map)) for map in range(model.layers[name].maps)]
        result[name] = torch.stack(columns, 1).numpy()
    return result


@pytest.mark.parametrize("layer", LAYERS)
def test_figures_are_those_of_brute_force(
    calibration: Calibration, scores: dict[str, npt.NDArray[np.floating]], layer: str
) -> None:
    found, all_scores = calibration[layer], scores[layer].astype(np.float64)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found.maximum, all_scores.max(0), **close)
    np.testing.assert_allclose(found.p999, np.percentile(all_scores, 99.9, axis=0), **close)
    np.testing.assert_allclose(found.mean, all_scores.mean(0), **close)
    np.testing.assert_allclose(found.top_scores, -np.sort(-all_scores, axis=0)[:5].T, **close)
    np.testing.assert_allclose(np.take_along_axis(all_scores, found.top_indices.T, axis=0).T, found.top_scores, **close)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (2, 1), (3, 2), (3, 1000), (COUNT, 7), (COUNT, 1000)])
def test_percentile_for_any_count_and_batch(model: FeatureModel, images: Images, count: int, batch_size: int) -> None:
    found = calibrate(model, images[:count], "Conv2D_1", top=1, batch_size=batch_size)["Conv2D_1"]
    with torch.no_grad():
        direct = map_means(model.up_to("Conv2D_1")(standardize(model.standardize(images[:count])))).numpy()
    np.testing.assert_allclose(found.p999, np.percentile(direct, 99.9, axis=0), rtol=1e-5, atol=1e-6)
    assert found.top_indices.shape == (32, 1)


def test_top_images_give_their_scores_when_fed_again(model: FeatureModel, calibration: Calibration) -> None:
    for layer in LAYERS:
        found = calibration[layer]
        maps, top = found.top_scores.shape
        assert found.top_images.shape == (maps, top, 28, 28, 1)
        np.testing.assert_array_equal(found.top_images[3], found.top_of(3))
        x = torch.from_numpy(found.top_images.reshape(-1, 28, 28, 1)).permute(0, 3, 1, 2)
        with torch.no_grad():
            again = map_mean(model.up_to(layer)(x), torch.arange(maps).repeat_interleave(top))
        np.testing.assert_allclose(again.numpy().reshape(maps, top), found.top_scores, rtol=1e-4, atol=1e-5)
    pictures = calibration["Conv2D_3"].pictures
    np.testing.assert_allclose(pictures.mean((1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(pictures.std((1, 2, 3)), 1, atol=1e-5)


def test_equal_scores_keep_the_order_of_the_data(model: FeatureModel, images: Images) -> None:
    same = np.repeat(images[:1], 6, axis=0)
    found = calibrate(model, same, "Conv2D_1", top=4, batch_size=2)["Conv2D_1"]
    np.testing.assert_array_equal(found.top_indices, np.tile(np.arange(4), (32, 1)))


def test_brightness_and_contrast_do_not_count(model: FeatureModel, images: Images) -> None:
    plain = calibrate(model, images[:20].astype(np.float64), "Conv2D_3")["Conv2D_3"]
    pale = calibrate(model, 100 + images[:20] * 0.25, "Conv2D_3")["Conv2D_3"]
    np.testing.assert_allclose(pale.maximum, plain.maximum, rtol=1e-3, atol=1e-4)


def test_default_layers_and_fewer_images_than_top(model: FeatureModel, images: Images) -> None:
    found = calibrate(model, images[:3, ..., None])
    assert list(found.layers) == ["Conv2D_1", "Max_Pool_1", "Conv2D_2", "Max_Pool_2", "Conv2D_3"]
    assert found["Conv2D_2"].top_indices.shape == (64, 3)
    assert "Conv2D_2 (64 maps)" in repr(found)
    dense = next(layer for layer in model.layers if layer.kind == "Dense")
    assert calibrate(model, images[:3], dense.name)[dense.name].maximum.shape == (dense.maps,)


def test_uniform_images_stay_finite(model: FeatureModel) -> None:
    found = calibrate(model, np.full((2, 28, 28), 200, np.uint8), "Conv2D_1")
    assert np.isfinite(found["Conv2D_1"].maximum).all()
    assert np.abs(found.spectrum).max() < 1e-9


def test_save_and_load(calibration: Calibration, tmp_path: Path) -> None:
    path = calibration.save(tmp_path / "new" / "data.nc")
    loaded = Calibration.load(path)
    assert [p.name for p in path.parent.iterdir()] == ["data.nc"]
    assert list(loaded.layers) == list(LAYERS)
    for name in ("count", "graph_sha256", "source_sha256", "images_sha256"):
        assert getattr(loaded, name) == getattr(calibration, name)
    np.testing.assert_array_equal(loaded.spectrum, calibration.spectrum)
    for layer in LAYERS:
        for field in dataclasses.fields(calibration[layer]):
            before, after = getattr(calibration[layer], field.name), getattr(loaded[layer], field.name)
            np.testing.assert_array_equal(after, before)
            assert np.asarray(after).dtype == np.asarray(before).dtype


def test_the_digest_tells_data_sets_apart(model: FeatureModel) -> None:
    def digest(images: npt.NDArray[Any]) -> str:
        found = calibrate(model, images, "Conv2D_1", top=1).images_sha256
        assert found is not None
        return found

    assert digest(GOOD) == hashlib.sha256(b"|u1 (2, 28, 28)" + GOOD.tobytes()).hexdigest()
    for same in (GOOD.copy(), np.asfortranarray(GOOD), np.repeat(GOOD, 2, axis=0)[::2]):
        assert digest(same) == digest(GOOD)
    changed = GOOD.copy()
    changed[1, 27, 27] += 1
    others = (GOOD[::-1], changed, GOOD[:1], GOOD[..., None], GOOD.astype(np.float32), GOOD.transpose(0, 2, 1))
    assert len({digest(images) for images in (GOOD, *others)}) == 1 + len(others)


def test_a_file_from_before_the_digest_is_read(calibration: Calibration, tmp_path: Path) -> None:
    assert f"by {COUNT} images of digest {str(calibration.images_sha256)[:12]}…: " in repr(calibration)
    dataset = calibration.to_xarray()
    del dataset.attrs["images_sha256"]
    dataset.to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    old = Calibration.load(tmp_path / "old.nc")
    assert old.images_sha256 is None
    assert f"by {COUNT} images of unknown digest: " in repr(old)
    assert Calibration.load(old.save(tmp_path / "again.nc")).images_sha256 is None


def test_files_that_are_no_calibration(calibration: Calibration, model: FeatureModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.npz: expected a NetCDF file"):
        calibration.save(tmp_path / "data.npz")
    with pytest.raises(InputError, match="does not exist"):
        Calibration.load(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("hello\n")
    with pytest.raises(InputError, match="not readable as NetCDF"):
        Calibration.load(tmp_path / "text.nc")
    oips = ascend(model, "Conv2D_1", 0, settings=AscentSettings.within(1)).save(tmp_path / "oips.nc")
    with pytest.raises(InputError, match="no calibration of format 1"):
        Calibration.load(oips)
    dataset = calibration.to_xarray()
    for damaged in (
        dataset.drop_vars("p999"),
        dataset.isel(map=slice(0, 5)),
        dataset.isel(picture=slice(0, 2)),
        dataset.assign_attrs(layers="[1]"),
    ):
        with pytest.raises(InputError, match="no complete calibration"):
            Calibration.from_xarray(damaged)


def test_another_network_is_refused(calibration: Calibration, model: FeatureModel) -> None:
    oips = ascend(model, "Conv2D_1", 0, settings=AscentSettings.within(1))
    calibration.check(model)
    calibration.check(oips)
    other = copy.deepcopy(model)
    other.network = dataclasses.replace(model.network, graph_sha256="0" * 64)
    foreign = dataclasses.replace(oips, provenance=dataclasses.replace(oips.provenance, fingerprint="0" * 64))
    with pytest.raises(InputError, match=r"another network: .* the model's is 000000000000…; calibrate again"):
        calibration.check(other)
    with pytest.raises(InputError, match="that of the model which made the OIPs"):
        calibration.check(foreign)
    with pytest.raises(InputError, match="another network"):
        plots.beside_data(foreign, calibration)


def test_unknown_layers_and_numbers(calibration: Calibration, model: FeatureModel, images: Images) -> None:
    with pytest.raises(InputError, match="no calibrated layer 'conv2d_3': did you mean 'Conv2D_3'"):
        calibration["conv2d_3"]
    assert "Conv2D_1" in calibration
    assert "Conv2D_2" not in calibration
    with pytest.raises(InputError, match="no layer 'Conv2D_9'"):
        calibrate(model, images, ["Conv2D_1", "Conv2D_9"])
    with pytest.raises(InputError, match="got no layer"):
        calibrate(model, images, [])
    with pytest.raises(InputError, match="top is 0"):
        calibrate(model, images, top=0)
    with pytest.raises(InputError, match=r"batch_size is 1\.5"):
        calibrate(model, images, batch_size=1.5)  # type: ignore[arg-type]


GOOD = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
BAD = {
    "two_axes": (GOOD[0], "expected images"),
    "five_axes": (GOOD[None, None], "expected images"),
    "text": (np.full((2, 2, 2), "a"), "expected images"),
    "complex": (GOOD.astype(complex), "expected images"),
    "empty": (GOOD[:0], r"shape \(0, 28, 28\).* is empty"),
    "nan": (np.where(GOOD == 3, np.nan, GOOD), "NaN or infinite"),
    "negative": (GOOD.astype(np.float32) - 100, "values from -100 to 155"),
    "large": (GOOD.astype(np.int32) * 2, "values from 0 to 510"),
    "unit_range": (GOOD / 255, "multiply them by 255"),
}


@pytest.mark.parametrize("case", BAD)
def test_images_that_are_none(model: FeatureModel, tmp_path: Path, case: str) -> None:
    array, match = BAD[case]
    np.savez(tmp_path / "data.npz", x_test=array)
    for call in (lambda: read_images(tmp_path / "data.npz"), lambda: calibrate(model, array)):
        with pytest.raises(InputError, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_images_of_another_size(model: FeatureModel) -> None:
    with pytest.raises(InputError, match=r"shape \(2, 14, 28\)"):
        calibrate(model, GOOD[:, ::2])


def test_read_images(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mnist.npz", x_train=GOOD[:1], x_test=GOOD, y_test=np.arange(2))
    np.testing.assert_array_equal(read_images(tmp_path / "mnist.npz"), GOOD)
    np.savez(tmp_path / "single.npz", GOOD[..., None].astype(np.float32))
    assert read_images(tmp_path / "single.npz").shape == (2, 28, 28, 1)


def test_files_that_hold_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "keys.npz", a=GOOD, b=GOOD)
    np.savez(tmp_path / "none.npz")
    np.savez(tmp_path / "pickle.npz", x_test=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "single.npy", GOOD)
    (tmp_path / "text.npz").write_text("hello\n")
    (tmp_path / "start.npz").write_bytes(b"PK\x03\x04" + bytes(500))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "cut.npz", x_test=GOOD)
    whole = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.npz").write_bytes(whole[:300] + bytes(20) + whole[320:])
    for name, match in (
        ("keys.npz", r"no array x_test, and not one array only \(there are: a, b\)"),
        ("none.npz", "there are: none"),
        ("pickle.npz", "not readable as .npz"),
        ("single.npy", "single array in .npy format"),
        ("text.npz", "not readable as .npz"),
        ("start.npz", "not readable as .npz"),
        ("cut.npz", "not readable as .npz"),
        ("flipped.npz", "not readable as .npz"),
        ("empty.npz", "is empty"),
        ("missing.npz", "does not exist"),
        ("", "is a directory"),
    ):
        with pytest.raises(InputError, match=match) as caught:
            read_images(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 28, 28, 1), (2, 9, 14, 3), (1, 5, 5, 1)])
def test_spectrum_shares_out_the_variance(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).normal(size=shape)
    images -= images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(radial_power_spectrum(images).sum(1), (images**2).mean((1, 2, 3)), rtol=1e-12)


def test_spectrum_of_a_wave_lies_in_its_ring() -> None:
    wave = np.sin(2 * np.pi * 5 * np.arange(28) / 28)
    for image in (np.tile(wave, (28, 1)), np.tile(wave, (28, 1)).T):
        spectrum = radial_power_spectrum(image[None, ..., None])[0]
        assert spectrum[4] == pytest.approx(0.5)
        assert spectrum.sum() == pytest.approx(0.5)


def test_beside_data_shows_a_row_per_map(calibration: Calibration, model: FeatureModel) -> None:
    oips = ascend(model, "Conv2D_3", [17, 56, 2], starts=2, settings=AscentSettings.within(12))
    dead = dataclasses.replace(
        oips,
        status=np.where(oips.maps == 2, "dead", oips.status),
        scores=np.where(oips.maps == 2, 0.0, oips.scores),
    )
    figure = plots.beside_data(dead, calibration, [2, 17], count=3)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.texts]
    assert [label for label in labels if label.startswith("dead")] == ["dead\nno image of the data excites this map"]
    assert len([label for label in labels if label.startswith("#")]) == 2 * 3
    assert [label for label in labels if label.startswith("map")] == ["map\n2", "map\n17"]
    found = calibration["Conv2D_3"]
    best = float(oips.select(17).scores.max())
    assert f"{best:.2f} ({best / found.maximum[17]:.1f} × data)" in labels
    assert f"#{found.top_indices[17, 0]}: {found.top_scores[17, 0]:.2f}" in labels
    assert len(plots.beside_data(oips, calibration, count=99).axes[0].texts) == 3 * (2 + 5) + 2
    with pytest.raises(InputError, match="no map 3"):
        plots.beside_data(oips, calibration, 3)
    with pytest.raises(InputError, match="0 real images"):
        plots.beside_data(oips, calibration, count=0)


def test_ties_are_counted_beyond_what_is_kept() -> None:
    """By brute force, with scores of few values, batch by batch."""
    scores = torch.from_numpy(np.random.default_rng(3).integers(0, 4, (200, 6))).float()
    scores[:, 5] = torch.arange(200)
    for kept, top in ((9, 9), (9, 4), (150, 20), (200, 200)):
        found = Top(kept, scores[:1])
        for first in range(0, 200, 7):
            found.add(scores[first : first + 7], first)
        ranked = scores.sort(dim=0, descending=True, stable=True).values
        expected = (ranked[top:] == ranked[top - 1]).sum(0)
        assert found.tied(top).tolist() == expected.tolist()


def test_an_older_file_has_no_ties_and_scores_after_the_activation(calibration: Calibration, tmp_path: Path) -> None:
    dataset = calibration.to_xarray().drop_vars("tied")
    del dataset.attrs["before_activation"]
    dataset.to_netcdf(tmp_path / "old.nc", engine="h5netcdf")
    layer = Calibration.load(tmp_path / "old.nc")[LAYERS[0]]
    assert layer.tied is None
    assert not layer.pre_activation
    assert Calibration.from_xarray(Calibration.load(tmp_path / "old.nc").to_xarray())[LAYERS[0]].tied is None
