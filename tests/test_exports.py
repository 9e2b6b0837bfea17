"""What other programs read of an atlas is what it holds, and is written whole or not at all."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from typer.testing import CliRunner

import oip_torch as oip
from oip_torch.atlas.exports import figure_rows
from oip_torch.cli.commands import app

LAYER = "Conv2D_1"


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_for_each_map_and_start_with_all_figures(small_atlas: oip.Atlas, tmp_path: Path) -> None:
    (path,) = small_atlas.export(tmp_path / "deep", "csv")
    rows, held = read_table(path), small_atlas[LAYER]
    assert [(int(row["map"]), int(row["start"])) for row in rows] == [(m, s) for m in range(32) for s in range(2)]
    assert {row["layer"] for row in rows} == {LAYER}
    assert held.quality is not None
    assert held.noise is not None
    order = np.lexsort((held.oips.starts, held.oips.maps))
    figures: dict[str, Any] = {"score": held.oips.scores, "map_mean": held.quality.scores}
    own = ("layer", "maps", "starts", "scores")
    names = [field.name for field in dataclasses.fields(held.quality) if field.name not in own]
    figures |= {name: getattr(held.quality, name) for name in names}
    assert "over_data" in names
    for name, values in figures.items():
        told = [float(row[name] or "nan") for row in rows]
        assert np.array_equal(told, values[order].astype(float), equal_nan=True), name
    assert [row["status"] for row in rows] == held.oips.status[order].tolist()
    noise = dict(zip(held.noise.maps.tolist(), held.noise.noise.tolist(), strict=True))
    assert [row["noise"] for row in rows] == [str(int(noise[int(row["map"])])) for row in rows]


@pytest.mark.parametrize("name", ["=1+2", "+cmd", "-2", "@SUM(A1)", "\tx", "\n=1", 'a,b\nc"d', "<img>"])
def test_a_name_is_quoted_and_no_formula(small_atlas: oip.Atlas, tmp_path: Path, name: str) -> None:
    held = small_atlas[LAYER]
    named = dataclasses.replace(held, layer=dataclasses.replace(held.layer, name=name))
    with (tmp_path / "table.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(figure_rows(named, 2))
    with (tmp_path / "table.csv").open(encoding="utf-8", newline="") as file:
        cells = {row[0] for row in csv.reader(file)}
    assert cells == {f"'{name}" if name[0] in "=+-@\t\n" else name}


def test_what_is_not_there_is_said(small_atlas: oip.Atlas) -> None:
    held = small_atlas[LAYER]
    gone = dataclasses.replace(held.oips.provenance, not_finite=((0, 1),))
    few = dataclasses.replace(held.oips.take(held.oips.maps > 1), provenance=gone)
    rows = list(figure_rows(dataclasses.replace(held, oips=few, quality=None, noise=None), 2))
    assert [row[4] for row in rows[:4]] == ["not_made", "not_finite", "not_made", "not_made"]
    assert len(rows) == 64
    assert {len(row) for row in rows} == {len(rows[0])}
    assert set(rows[10][6:]) == {""}  # no figures yet


def test_arrays_are_those_of_the_atlas(small_atlas: oip.Atlas, tmp_path: Path) -> None:
    from safetensors import safe_open

    files = small_atlas.export(tmp_path, ["safetensors", "npz"], LAYER)
    assert [file.name for file in files] == ["Conv2D_1.npz", "Conv2D_1.safetensors"]
    held = small_atlas[LAYER]
    with np.load(files[0], allow_pickle=False) as npz, safe_open(files[1], framework="numpy") as tensors:
        meanings = npz["status_meanings"]
        assert json.loads(tensors.metadata()["status_meanings"]) == meanings.tolist()
        assert tensors.metadata()["layer"] == str(npz["layer"]) == LAYER
        assert oip.AscentSettings.from_dict(json.loads(tensors.metadata()["settings"])) == held.oips.settings
        assert set(tensors.keys()) == set(npz.files) - {"layer", "status_meanings"}
        for name in tensors.keys():  # noqa: SIM118  # it is no mapping
            assert np.array_equal(tensors.get_tensor(name), npz[name], equal_nan=npz[name].dtype.kind == "f")
        assert np.array_equal(npz["images"], held.oips.images)
        assert np.array_equal(npz["map"], held.oips.maps)
        assert meanings[npz["status"]].tolist() == held.oips.status.tolist()
        assert held.quality is not None
        assert np.array_equal(npz["quality_over_data"], held.quality.over_data, equal_nan=True)


def test_a_sheet_has_the_size_that_is_asked_for(small_atlas: oip.Atlas, tmp_path: Path) -> None:
    (path,) = small_atlas.export(tmp_path, "sheets", width=640)
    assert imread(path).shape[1] == 640
    with pytest.raises(oip.InputError, match="width is 20: expected 300 to 16384 pixels"):
        small_atlas.export(tmp_path, width=20)


def test_ways_of_some_maps_are_shown(small_atlas: oip.Atlas, tmp_path: Path) -> None:
    best = small_atlas[LAYER].oips.best()
    files = small_atlas.export(tmp_path, "gif", maps=[3, 1], scale=1)
    expected = [f"Conv2D_1_{number:03d}_{best[number].starts[0]:02d}.gif" for number in (3, 1)]
    assert [file.name for file in files] == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(expected)
    with pytest.raises(oip.InputError, match=r"_\d\d.gif is there already, and 1 more: expected a folder without"):
        small_atlas.export(tmp_path, "gif", maps=[3, 1], scale=1)


def test_files_that_are_there_stay_unless_said(
    small_atlas: oip.Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table,) = small_atlas.export(tmp_path, "csv")
    before = table.read_bytes()
    table.write_text("mine")
    with pytest.raises(oip.InputError, match=r"figures.csv is there already: .* with --replace"):
        small_atlas.export(tmp_path, "csv,npz")
    assert table.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    small_atlas.export(tmp_path, "csv", replace=True)
    assert table.read_bytes() == before

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez_compressed", fail)
    with pytest.raises(oip.InputError, match="No space left on device"):
        small_atlas.export(tmp_path, "sheets,csv,npz", replace=True)
    assert [file.name for file in tmp_path.iterdir()] == ["figures.csv"]
    (tmp_path / "Conv2D_1.safetensors").mkdir()
    with pytest.raises(oip.InputError, match="safetensors is a directory"):
        small_atlas.export(tmp_path, "csv,safetensors", replace=True)
    assert table.read_bytes() == before
    with pytest.raises(oip.InputError, match="cannot write to the folder"):
        small_atlas.export(table, "csv")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"what": "sheets,pdf"}, "what has 'pdf': expected some of sheets, csv, npz"),
        ({"what": []}, "what is empty"),
        ({"what": 3}, "what is 3"),
        ({"layers": "Conv2D_9"}, "Conv2D_9"),
        ({"layers": []}, "layers is empty"),
        ({"layers": 3}, "layers is 3"),
        ({"what": "gif", "maps": 99}, "no map 99 among"),
        ({"folder": 3}, "the path is given as 3"),
        ({"what": "csv", "maps": 3}, "maps are given, but csv hold all of them"),
    ],
)
def test_exports_that_cannot_be(small_atlas: oip.Atlas, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(oip.InputError, match=message) as told:
        small_atlas.export(**({"folder": tmp_path / "out"} | given))
    assert "\n" not in str(told.value)
    assert not list(tmp_path.glob("out/*"))


def test_the_command_writes_the_files_and_names_them(small_atlas: oip.Atlas, tmp_path: Path) -> None:
    lines: list[str] = []
    words = ["export-atlas", small_atlas.path, LAYER, "-o", str(tmp_path), "--what", "csv,npz", "--json"]
    result = CliRunner().invoke(app, words, obj=lines, standalone_mode=False, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(lines[0]) == {"files": [str(tmp_path / name) for name in ("figures.csv", "Conv2D_1.npz")]}
    assert len(list(tmp_path.iterdir())) == 2
