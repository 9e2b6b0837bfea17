"""Results: selection, files, and how they show themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend


@pytest.fixture(scope="module")
def oips(model: FeatureModel) -> Oips:
    return ascend(model, "Conv2D_3", [0, 2, 3], starts=2, settings=AscentSettings.article(steps=9))


def test_a_file_gives_back_all_of_it(oips: Oips, tmp_path: Path) -> None:
    again = Oips.load(oips.save(tmp_path / "deep" / "oips.nc"))
    for field in dataclasses.fields(Oips):
        ours, theirs = getattr(oips, field.name), getattr(again, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.shape == theirs.shape
            assert np.array_equal(ours, theirs), field.name
        else:
            assert ours == theirs
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["oips.nc"]


def test_results_carry_what_made_them(oips: Oips, model: FeatureModel) -> None:
    assert oips.provenance.fingerprint == model.network.graph_sha256
    assert oips.provenance.source_sha256 == model.network.source_sha256
    assert oips.provenance.seed == 0
    assert oips.provenance.device == "cpu"
    assert oips.provenance.seconds > 0
    assert oips.provenance.image_steps == 6 * 9
    assert {"torch", "oip_torch"} <= set(oips.provenance.versions)


def test_selection(oips: Oips) -> None:
    assert oips.select(maps=[3, 0]).maps.tolist() == [3, 3, 0, 0]
    assert oips.select(maps=3, starts=1).starts.tolist() == [1]
    assert len(oips.select()) == 6
    with pytest.raises(InputError, match=r"no map 1 among these OIPs of 'Conv2D_3': there are 0, 2–3"):
        oips.select(maps=1)
    with pytest.raises(InputError, match="no start 2 among"):
        oips.select(starts=2)


def test_a_notebook_shows_pictures(oips: Oips) -> None:
    html = oips._repr_html_()
    assert "data:image/png;base64," in html
    assert "&lt;Oips of" in html
    assert "6 images of maps 0, 2–3" in repr(oips)


def test_a_file_that_is_there_stays_when_writing_fails(
    oips: Oips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = oips.save(tmp_path / "oips.nc")
    before = path.read_bytes()

    def fail(*arguments: object, **options: object) -> None:
        Path(str(arguments[1])).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xarray.Dataset.to_netcdf", fail)
    with pytest.raises(InputError, match="No space left on device"):
        oips.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["oips.nc"]


@pytest.mark.parametrize("content", [b"", b"no NetCDF", None])
def test_files_of_another_kind(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "oips.nc"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"does not exist|is empty|not readable as NetCDF"):
        Oips.load(path)


@pytest.mark.parametrize("kind", [OSError, RuntimeError, KeyError, AttributeError])
def test_a_damaged_file_is_one_line(
    oips: Oips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """Feigned, since on truly damaged blocks of a file the HDF5 library may end the process of the tests."""
    path = oips.save(tmp_path / "oips.nc")

    def fail(*arguments: object, **options: object) -> None:
        raise kind("incorrect metadata checksum\nfile = 'oips.nc'")

    monkeypatch.setattr("xarray.open_dataset", fail)
    with pytest.raises(
        InputError, match=r"oips\.nc is not readable as NetCDF .*: expected a file that Oips.save wrote"
    ) as caught:
        Oips.load(path)
    assert "\n" not in str(caught.value)


def test_a_netcdf_file_of_others(tmp_path: Path, oips: Oips) -> None:
    dataset = oips.to_xarray()
    dataset.attrs.pop("oip_torch_format")
    dataset.to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="no OIPs of format 1"):
        Oips.load(tmp_path / "other.nc")
    oips.to_xarray().drop_vars("traces").to_netcdf(tmp_path / "part.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="traces"):
        Oips.load(tmp_path / "part.nc")
    with pytest.raises(InputError, match=r"expected a NetCDF file, with the ending \.nc"):
        oips.save(tmp_path / "oips.zip")
