"""Results: selection, files, and how they show themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from oip_torch import AscentSettings, FeatureModel, InputError, Oips, ascend
from oip_torch.results.fields import array
from oip_torch.search import search
from oip_torch.search.batch import Batch


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

    def fail(file: Path, content: memoryview) -> None:
        with file.open("wb") as opened:
            opened.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
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


@pytest.mark.parametrize("place", [0.0001, 0.02, 0.1, 0.5])
def test_a_damaged_file_is_one_line(oips: Oips, tmp_path: Path, place: float) -> None:
    path = oips.save(tmp_path / "oips.nc")
    content = bytearray(path.read_bytes())
    start = 8 + int(place * len(content))
    content[start : start + 3000] = bytes(255 - byte for byte in content[start : start + 3000])
    path.write_bytes(content)
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


def test_files_of_format_1_are_read(oips: Oips) -> None:
    """As version 0.1 wrote them: flat settings, notes in a dictionary, two other names."""
    dataset = oips.to_xarray().rename({"max_preactivation": "largest_before"})
    dataset["status"] = ("image", np.array(["woken", *oips.status[1:].tolist()], object))
    settings = {"steps": 9, "epsilon": 0.01, "epsilon_last": None, "momentum": 0.0, "leak": 0.0, "candidates": 1}
    settings |= {"candidate_steps": 25, "candidate_epsilon": 3.0, "finalists": 1, "waking": False, "stages": None}
    settings |= {"stop": "steps", "tolerance": 5e-4, "patience": 4, "first_check": 10, "snapshots": None}
    settings |= {"doublings": 6, "tf32": False, "start": dataclasses.asdict(AscentSettings().start)}
    info = {"seed": 4, "graph_sha256": "ab", "before_activation": True, "activation": "relu", "way": "some steps"}
    info |= {"not_finite": [[3, 0]], "image_steps": 54, "versions": {"torch": "2.9"}, "noun": "map"}
    dataset.attrs = {"oip_torch_format": 1, "layer": "Conv2D_3", "settings": json.dumps(settings)}
    dataset.attrs["info"] = json.dumps(info)
    again = Oips.from_xarray(dataset)
    assert again.settings == AscentSettings.article(steps=9)
    assert again.provenance.fingerprint == "ab"
    assert again.provenance.not_finite == ((3, 0),)
    assert (again.provenance.seed, again.place) == (4, "Conv2D_3 before its relu")
    assert again.status.tolist() == ["recovered", *oips.status[1:].tolist()]
    assert np.array_equal(again.max_preactivation, oips.max_preactivation)


@pytest.mark.parametrize(
    "damage",
    [
        lambda dataset: dataset.drop_vars("traces"),
        lambda dataset: dataset.assign_attrs(settings="[]"),
        lambda dataset: dataset.assign_attrs(settings='{"schedule": {"steps": "many"}}'),
        lambda dataset: dataset.assign_attrs(settings='{"schedule": {"speed": 1}}'),
        lambda dataset: dataset.assign_attrs(provenance='{"versions": 3}'),
        lambda dataset: dataset.assign_attrs(oip_torch_format=3),
        lambda dataset: dataset.assign(status=("image", ["?"] * dataset.sizes["image"])),
        lambda dataset: dataset.rename({"y": "x", "x": "y"}),
    ],
)
def test_datasets_that_are_no_oips(oips: Oips, damage: Callable[[xr.Dataset], xr.Dataset]) -> None:
    with pytest.raises(InputError, match="dataset") as told:
        Oips.from_xarray(damage(oips.to_xarray()))
    assert "\n" not in str(told.value)


def test_one_more_figure_is_a_field_and_a_line(
    model: FeatureModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The example in CONTRIBUTING.md: the field here, the line in `Batch.run`; the rest follows."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class More(Oips):
        contrast: np.ndarray = array("image")

    run = Batch.run
    monkeypatch.setattr(search, "Oips", More)
    monkeypatch.setattr(
        Batch, "run", lambda self: (all_ := run(self)) | {"contrast": np.ptp(all_["images"], (1, 2, 3))}
    )
    oips = ascend(model, "Conv2D_3", [0, 2, 3], settings=AscentSettings.article(steps=3), batch_size=2)
    assert oips.contrast.tolist() == np.ptp(oips.images, (1, 2, 3)).tolist()
    assert oips.select(maps=[3]).contrast == oips.contrast[2]
    assert More.load(oips.save(tmp_path / "oips.nc")).contrast.tolist() == oips.contrast.tolist()
    assert Oips.load(tmp_path / "oips.nc").maps.tolist() == [0, 2, 3]


# In a notebook


def test_a_number_in_brackets_is_a_map_s(oips: Oips) -> None:
    assert repr(oips[3]) == repr(oips.select(maps=3))
    assert oips[np.int64(2)].maps.tolist() == [2, 2]
    assert 3 in oips
    assert np.int64(0) in oips
    assert 1 not in oips
    assert "3" not in oips
    assert [3] not in oips
    with pytest.raises(InputError, match=r"no map 1 among"):
        oips[1]
    for several in (slice(1, 3), [3, 2], (3, 0), oips.maps == 3, True, "3", 3.0, None):
        with pytest.raises(InputError, match=r"expected one map's number, .* oips\.select\(.*oips\.take\(") as told:
            oips[several]  # type: ignore[index]
        assert "\n" not in str(told.value)


def test_a_loop_gives_each_image_with_what_is_known_of_it(oips: Oips) -> None:
    assert len(list(oips)) == len(oips)
    for row, (number, start, image, score, status) in enumerate(oips):
        assert (number, start) == (oips.maps[row], oips.starts[row])
        assert np.array_equal(image, oips.images[row])
        assert (score, status) == (oips.scores[row], oips.status[row])
        assert [type(each) for each in (number, start, score, status)] == [int, int, float, str]
    best = max(oips, key=lambda each: each.score)
    assert best.score == oips.scores.max()


def test_names_stand_for_the_numbers_of_classes(model: FeatureModel, oips: Oips, tmp_path: Path) -> None:
    classes = ascend(model, "Dense_2", [7, 2], settings=AscentSettings.article(steps=3))
    names = [f"the {number}" for number in range(10)]
    assert [label.split(":")[0] for label in classes.label(names)] == ["the 7", "the 2"]
    assert classes.label() == classes.labels
    assert classes.channel_names(np.array(names)) == ["the 7", "the 2"]
    assert classes.channel_names((*names[:7], "a\nb", *names[8:]))[0] == "a b"
    for wrong in (names[:9], [*names, "more"], []):
        with pytest.raises(InputError, match=rf"{len(wrong)} names are given .* expected 10, one for each"):
            classes.channel_names(wrong)
    for bad in ("0123456789", [*names[:9], 9], [*names[:9], " "], 3, {"0": "x"}):
        with pytest.raises(InputError, match=r"names are .*: expected a list of texts"):
            classes.channel_names(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="names are given for maps of 'Conv2D_3': expected them only for a layer"):
        oips.channel_names(names)
    again = Oips.load(classes.save(tmp_path / "classes.nc"))
    assert again.provenance.channels == 10
    old = dataclasses.replace(classes, provenance=dataclasses.replace(classes.provenance, channels=0))
    assert old.channel_names(names[:8]) == ["the 7", "the 2"]
    with pytest.raises(InputError, match=r"7 names are given .* expected 8 or more"):
        old.channel_names(names[:7])
