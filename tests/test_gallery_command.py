"""`oip gallery` and `Atlas.gallery`: from a store to a page, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gallery_contents import QUICK

import oip_torch as oip
from oip_torch.cli import main


@pytest.fixture(scope="module")
def atlas(model: oip.FeatureModel, tmp_path_factory: pytest.TempPathFactory) -> oip.Atlas:
    path = tmp_path_factory.mktemp("atlas") / "atlas.zarr"
    return oip.make_atlas(model, "Conv2D_1", path=path, settings=QUICK, progress=False)


def test_the_command_writes_the_page_that_a_notebook_shows(
    atlas: oip.Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["gallery", str(atlas.path), "-o", str(page), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page"] == str(page)
    assert told["bytes"] == page.stat().st_size
    assert told["layers"] == ["Conv2D_1"]
    gallery = atlas.gallery()
    assert isinstance(gallery, oip.Gallery)
    assert gallery.html == page.read_text(encoding="utf-8")
    assert "<li>32 maps in 1 layer</li><li>32 images</li>" in gallery.html
    assert repr(gallery).startswith("<Gallery: a page of ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.zarr", "-o", "page.html"], "is no atlas"),
        (["ATLAS", "-o", "page.txt"], "ends in .txt: expected an HTML file"),
        (["ATLAS", "-o", "page.html", "--report", "none"], "does not exist"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(
    atlas: oip.Atlas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gallery", *(str(atlas.path) if each == "ATLAS" else each for each in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []
