"""scripts/draw_ways.py: nothing that can be asked for lacks its picture, and docs/ways.md says what was drawn."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from oip_torch import AscentSettings, Calibration, FeatureModel, StartSettings, Views, calibrate, objectives
from oip_torch.optim.optimizer import Optimizer
from oip_torch.optim.settings import _KINDS, _OTHERS

PAGE = (ROOT / "docs" / "ways.md").read_text(encoding="utf-8")
NO_LOOK = {"fallback", "tf32"}  # how a silent map is helped, and how products are rounded


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_ways", ROOT / "scripts" / "draw_ways.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up what the annotations name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def calibration(model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], Any]) -> Calibration:
    return calibrate(model, digits[0][::50], "Conv2D_3", progress=False)


@pytest.fixture(scope="module")
def calls(script: ModuleType, calibration: Calibration) -> list[dict[str, Any]]:
    return [call for family in script.FAMILIES for way in family.ways for call in way.calls(calibration)]


@pytest.fixture(scope="module")
def settings(calls: list[dict[str, Any]]) -> list[AscentSettings]:
    return [call.get("settings", AscentSettings()) for call in calls]


def test_every_objective_and_regulariser_has_a_row(calls: list[dict[str, Any]]) -> None:
    def gives_an_objective(value: Any) -> bool:
        return isinstance(value, objectives.Objective) or (
            inspect.isfunction(value) and get_type_hints(value)["return"] is objectives.Objective
        )

    wanted = {name for name in objectives.__all__ if gives_an_objective(getattr(objectives, name))}
    assert {"map_mean", "diversity", "l2", "high_frequencies"} <= wanted
    asked = [call["objective"] for call in calls if "objective" in call]
    assert wanted <= {term.name.split("(")[0] for objective in asked for term in objective.terms}
    assert any(all(term.weight < 0 for term in objective.terms) for objective in asked)
    assert any({term.weight for term in objective.terms} == {1, -1} for objective in asked)


def test_every_setting_that_shapes_images_and_each_of_its_kinds_has_a_row(settings: list[AscentSettings]) -> None:
    for name, kinds in _KINDS.items():
        if name not in NO_LOOK:
            assert set(kinds) <= {type(getattr(each, name)) for each in settings}, name
    for name, default in _OTHERS.items():
        assert name in NO_LOOK or any(getattr(each, name) != default for each in settings), name
    (names,) = [kind for kind in get_args(Optimizer) if get_args(kind)]
    assert set(get_args(names)) <= {each.optimizer for each in settings}
    assert set(get_args(get_type_hints(StartSettings)["kind"])) == {each.start.kind for each in settings}
    views = [each.views for each in settings if each.views]
    for field in fields(Views):
        assert len({getattr(each, field.name) for each in views}) > 1, field.name


def test_the_page_has_the_pictures_and_an_entry_with_the_line_of_each_row(script: ModuleType) -> None:
    for family in script.FAMILIES:
        picture = Path("pictures") / f"ways_{family.name}.png"
        assert f"]({picture.as_posix()})" in PAGE
        assert (ROOT / "docs" / picture).stat().st_size < 250_000
        for way in family.ways:
            assert f"**{way.name}**" in PAGE, (family.name, way.name)
            assert f"`{way.shown}`" in " ".join(PAGE.split()), (family.name, way.name)


def test_rows_of_one_call_and_of_several_are_drawn_with_their_scores(
    script: ModuleType, model: FeatureModel, calibration: Calibration
) -> None:
    quick = "settings=oip.AscentSettings.within(1)"
    ways = (
        script.Way("mean", quick),
        script.Way("start", quick, at_start=True),
        script.Way("class", "objective=o.class_logit({0}), " + quick, script.CLASSES[:2]),
        script.Way("less", "objective=o.map_mean - o.channel({1}), " + quick, script.PAIRS[:2], script.DIFFERENCES[:2]),
    )
    rows = [script.made(way, model, script.LAYER, script.MAPS, calibration) for way in ways]
    assert [len(row.images) for row in rows] == [len(row.scores) for row in rows] == [8, 8, 2, 2]
    assert [row.labels[1] for row in rows] == ["map 3", "map 3", "class 1", "3 − 9"]
    assert not np.array_equal(rows[0].images, rows[1].images)
    reference = rows[0].scores + 1.0  # some maps may be silent after a step
    figure = script.draw(script.Family("x", "Some ways", ways), rows, reference, "a note")
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert {"mean", "class 1", "3 − 9"} <= set(shown)
    assert f"{np.median(rows[0].scores / reference):.2f} of the default's score" in shown
    assert len(shown) == 2 * (20 + 4)  # label and score of each picture, name and remark of each row


def test_an_unknown_family_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main(["shapes"])
    assert "there is no family 'shapes'" in capsys.readouterr().err
