"""scripts/rate_pictures.py: a sheet to rate, and what made-up ratings say."""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from oip_torch import AscentSettings, FeatureModel, ascend


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rate_pictures", ROOT / "scripts" / "rate_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def key(script: ModuleType, tmp_path: Path) -> Path:
    """Of eight pictures; `tells` is undefined for the last, `looks` is the same for all."""
    rows = [["number", "source", "map", *script.FIGURES]]
    for number in range(1, 9):
        figures = {"legibility": number / 10, "tells": math.nan if number == 8 else -number, "looks": 0.5}
        rows.append([number, "default", 3, *(figures.get(name, 1.0) for name in script.FIGURES)])
    return written(tmp_path / "key.csv", rows)


def written(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def rated(path: Path, ratings: Sequence[Any]) -> Path:
    return written(path, [["number", "rating"], *([n, value] for n, value in enumerate(ratings, 1))])


def test_ratings_that_follow_a_figure_correlate_with_it(script: ModuleType, key: Path, tmp_path: Path) -> None:
    found = script.correlations(key, [rated(tmp_path / "a.csv", [1, 1, 2, 2, 3, 4, 5, 5])])
    assert found["legibility"][0] > 0.95
    assert found["legibility"][1] == 8
    assert found["tells"][0] < -0.95
    assert found["tells"][1] == 7
    assert math.isnan(found["looks"][0])
    assert "| looks | undefined | 8 |" in script.table(found)


def test_several_people_are_averaged_and_gaps_are_left_out(script: ModuleType, key: Path, tmp_path: Path) -> None:
    one = rated(tmp_path / "a.csv", [1, 2, 3, 4, 5, 1, "", ""])
    two = rated(tmp_path / "b.csv", [1, 2, 3, 4, 5, 5, 5, ""])
    assert script.correlations(key, [one])["legibility"] == (pytest.approx(5 / (17.5 * 17) ** 0.5), 6)
    together = script.correlations(key, [one, two])["legibility"]
    assert together[1] == 7
    assert together[0] > 0.8


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([6], "the rating of picture 1 is '6': expected 1 to 5, or none"),
        (["good"], "the rating of picture 1 is 'good'"),
        ([""] * 8, "holds no ratings"),
        ([3] * 9, "rates picture 9: expected numbers that are in"),
    ],
)
def test_wrong_ratings_are_told_in_a_line(
    script: ModuleType, key: Path, tmp_path: Path, ratings: list[Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["evaluate", str(key), str(rated(tmp_path / "a.csv", ratings))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_other_tables_are_refused(
    script: ModuleType, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["evaluate", str(rated(tmp_path / "a.csv", [1])), str(key)]) == 2
    assert "is no table with the columns number, legibility" in capsys.readouterr().err


def test_a_sheet_is_written_rated_and_evaluated(
    script: ModuleType,
    model: FeatureModel,
    mnist_onnx: Path,
    digits: tuple[npt.NDArray[np.uint8], Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    oips = ascend(model, "Conv2D_3", [9, 17, 56], starts=2, settings=AscentSettings.within(12), progress=False)
    oips.save(tmp_path / "short.nc")
    np.savez(tmp_path / "data.npz", x_test=digits[0][::20], x_train=digits[0][7::25])
    call = ["sheet", str(mnist_onnx), str(tmp_path / "short.nc"), "--data", str(tmp_path / "data.npz")]
    for folder in ("a", "b"):
        assert script.main([*call, "--count", "8", "--controls", "3", "-o", str(tmp_path / folder)]) == 0
    folder = tmp_path / "a"
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "key.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == [str(number) for number in range(1, 9)]
    assert sorted(row["source"] for row in rows) == ["noise", "real", "real", *["short"] * 5]
    looks = {row["source"]: float(row["looks"]) for row in rows}
    assert looks["noise"] < looks["real"]
    assert (folder / "ratings.csv").read_text().splitlines() == ["number,rating", *(f"{n}," for n in range(1, 9))]
    assert (tmp_path / "b" / "key.csv").read_text() == (folder / "key.csv").read_text()
    order = sorted(rows, key=lambda row: float(row["looks"]))
    ratings = {row["number"]: 1 + place // 2 for place, row in enumerate(order)}
    filled = rated(folder / "ratings.csv", [ratings[str(number)] for number in range(1, 9)])
    capsys.readouterr()
    assert script.main(["evaluate", str(folder / "key.csv"), str(filled)]) == 0
    assert "| looks | 0.9" in capsys.readouterr().out

    assert script.main([*call, "--count", "2", "--controls", "3"]) == 2
    assert "--controls 3 of --count 2" in capsys.readouterr().err
    np.savez(tmp_path / "data.npz", x_test=digits[0][:9])
    assert script.main([*call, "-o", str(folder)]) == 2
    assert "has no array x_train" in capsys.readouterr().err
