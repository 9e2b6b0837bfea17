"""The command line's contract: JSON keys, exit codes, files. Bad input: test_bad_input.py."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure

import oip_torch
from oip_torch import Calibration, Comparison, OipError, Oips, VerificationError
from oip_torch.cli import main
from oip_torch.network.onnx_file import graph_sha256, read, write

LAYER_KEYS = {"name", "kind", "maps", "height", "width", "activation", "max_error"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    result: dict[str, object] = json.loads(out)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("script", [False, True])
def test_convert(shipped: Path, tmp_path: Path, script: bool) -> None:
    root = Path(__file__).resolve().parent.parent
    command = [str(root / "scripts" / "convert_keras_to_torch.py")] if script else ["-m", "oip_torch", "convert"]
    result = subprocess.run(
        [sys.executable, *command, str(shipped), "-o", str(tmp_path / "m.onnx"), "--json"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert set(data) >= {"onnx", "layers", "seconds"}
    assert data["onnx"] == str(tmp_path / "m.onnx")
    assert [layer["name"] for layer in data["layers"]][:5] == "Conv2D_1 Max_Pool_1 Conv2D_2 Max_Pool_2 Conv2D_3".split()
    assert len(data["layers"]) >= 8
    for layer in data["layers"]:
        assert set(layer) == LAYER_KEYS
        assert 0 <= layer["max_error"] <= 1e-5
    assert "MNIST's standardisation is assumed: mean 33.318421, standard deviation 78.56749" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_layers(mnist_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run(capsys, "layers", mnist_onnx)
    third = data["layers"][4]  # type: ignore[index]
    assert set(third) == LAYER_KEYS
    assert {key: third[key] for key in ("name", "kind", "maps", "height", "width", "activation")} == {
        "name": "Conv2D_3",
        "kind": "Conv2D",
        "maps": 128,
        "height": 3,
        "width": 3,
        "activation": "relu",
    }
    assert main(["layers", str(mnist_onnx)]) == 0
    assert "Conv2D_3    Conv2D        128   3×3    relu" in capsys.readouterr().out


def test_layers_needs_no_torch(mnist_onnx: Path) -> None:
    code = "import sys; from oip_torch.cli import main; main(['layers', sys.argv[1]]); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code, str(mnist_onnx)], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_ascend(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--starts", "2", "--steps", "10", "--device", "cpu", "-o", tmp_path / "new" / "folder"]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", "3", "17", *options)
    assert (data["images"], data["maps"], data["steps"], data["device"]) == (4, 2, 40, "cpu")
    assert data["above_data"] is None
    oips = Oips.load(tmp_path / "new" / "folder" / "oips.nc")
    assert data["alive"] == int((oips.best().scores > 0).sum())
    layer = data["layers"]["Conv2D_3"]  # type: ignore[index]
    assert {"maps", "alive", "above_data", "median_score"} <= set(layer)
    for file in data["files"]:  # type: ignore[attr-defined]
        assert Path(file).stat().st_size > 500
    assert {"oips.nc", "sheet.png", "trace.png"} < {path.name for path in (tmp_path / "new" / "folder").iterdir()}


def test_real_data_beside_the_oips(
    mnist_onnx: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "some.npz", x_test=digits[0][:100])
    options = ["--steps", "60", "--data", tmp_path / "some.npz", "-o", tmp_path / "out"]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", "0", "3", *options)
    calibration = Calibration.load(tmp_path / "out" / "calibration.nc")
    oips = Oips.load(tmp_path / "out" / "oips.nc")
    assert data["above_data"] == int((oips.scores > calibration["Conv2D_3"].maximum[[0, 3]]).sum()) == 2
    assert (tmp_path / "out" / "beside_data.png").stat().st_size > 500


def test_dead_maps_come_with_evidence(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--settings", "article", "--steps", "5", "-o", tmp_path]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", *range(8), *options)
    dead = data["layers"]["Conv2D_3"]["dead"]  # type: ignore[index]
    assert len(dead) == 8 - data["alive"] > 0  # type: ignore[operator]
    assert all(entry["tries"] == 1 and entry["max_preactivation"] <= 0 for entry in dead)


def test_article_settings_and_seed(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        capsys,
        *("ascend", mnist_onnx, "Conv2D_1", "0", "--settings", "article", "--steps", "8", "--seed", "9"),
        *("-o", tmp_path),
    )
    oips = Oips.load(tmp_path / "oips.nc")
    assert oips.settings.screening.candidates == 1
    assert oips.settings.schedule.epsilon == 0.01
    assert oips.provenance.seed == 9
    assert oips.traces.shape == (1, 8)


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("convert", "import", "layers", "ascend", "compare"))


@pytest.mark.parametrize("command", [[], ["convert"], ["layers"], ["ascend"], ["compare"]])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: list[str], option: str) -> None:
    assert main([*command, option]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(" ".join(["Usage: oip", *command, "[OPTIONS]"]))
    assert err == ""


# The maps


@pytest.mark.parametrize(
    ("words", "maps"),
    [
        (["0-3"], [0, 1, 2, 3]),
        (["5,0"], [5, 0]),
        (["0-2,9", "4", "7-7"], [0, 1, 2, 9, 4, 7]),
        (["--maps", "0-2,9"], [0, 1, 2, 9]),
        (["31", "--maps", "2, 4-5"], [31, 2, 4, 5]),
    ],
)
def test_maps_are_numbers_and_ranges(mnist_onnx: Path, tmp_path: Path, words: list[str], maps: list[int]) -> None:
    assert main(["ascend", str(mnist_onnx), "Conv2D_1", *words, "--steps", "1", "-q", "-o", str(tmp_path)]) == 0
    assert Oips.load(tmp_path / "oips.nc").maps.tolist() == maps


def test_compare_takes_the_same_ranges(
    mnist_onnx: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(
        "oip_torch.comparison.comparison.compare", lambda *_, maps, **__: asked.append(maps) or made_up()
    )
    for words in ([], ["--maps", "0-2,9"]):
        assert main(["compare", str(shipped), str(mnist_onnx), *words, "--json"]) == 0
    assert asked == [None, [0, 1, 2, 9]]
    capsys.readouterr()
    assert main(["compare", str(shipped), str(mnist_onnx), "--maps", "5-2"]) == 2
    assert capsys.readouterr().err.startswith("error: --maps '5-2': its end is below its start; expected a range")


# Results first, then pictures


def made_up(agree: bool = True) -> Comparison:
    return Comparison(
        layer="Conv2D_1", maps=np.array([0]), reference="tensorflow", disagreements=(), ascents={},
        report={"agree": agree, "notes": [], "runtimes": {}, "failed": {"jax": "jax fell over"}},
    )  # fmt: skip


def ascend_some(mnist_onnx: Path, folder: Path, *words: str) -> int:
    arguments = words or ("0", "1")
    return main(
        ["ascend", str(mnist_onnx), "Conv2D_1", *arguments, "--steps", "2", "--device", "cpu", "-o", str(folder)]
    )


@pytest.mark.parametrize("picture", ["sheet", "trace", "evolution"])
def test_a_picture_that_fails_costs_no_results(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], picture: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no such\ncolour.")

    monkeypatch.setattr(f"oip_torch.plots.{picture}", fail)
    assert ascend_some(mnist_onnx, tmp_path) == 1
    printed = capsys.readouterr()
    made = rf"error: \S+{picture}(_00\d)?\.png was not made: no such colour; the results are safe in \S+oips\.nc\n"
    assert re.fullmatch(made, printed.err)
    assert "2 images of maps 0–1" in printed.out
    assert len(Oips.load(tmp_path / "oips.nc")) == 2
    assert ascend_some(mnist_onnx, tmp_path, "0", "1", "--json") == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["images"] == 2
    assert answer["files"][0] == str(tmp_path / "oips.nc")
    assert all(Path(file).exists() for file in answer["files"])
    assert printed.err == f"error: {answer['error']}\n"


@pytest.mark.parametrize("way", ["full", "in the way", "no matplotlib"])
def test_a_picture_that_cannot_be_written_costs_no_results(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if way == "full":
        monkeypatch.setattr(Figure, "savefig", full)
    elif way == "in the way":
        (tmp_path / "sheet.png").mkdir()
    else:
        monkeypatch.delattr("oip_torch.plots")
        monkeypatch.setitem(sys.modules, "oip_torch.plots", None)
    assert ascend_some(mnist_onnx, tmp_path) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: \S+sheet\.png was not made: .*; the results are safe in \S+oips\.nc\n", err), err
    assert len(Oips.load(tmp_path / "oips.nc")) == 2
    assert not list(tmp_path.glob(".oip-*"))


@pytest.mark.parametrize("name", ["oips.nc", "calibration.nc"])
def test_results_that_could_not_be_written_are_refused_before_the_work(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr("oip_torch.search.search.ascend", lambda *_, **__: pytest.fail("the work was begun"))
    (tmp_path / name).mkdir()
    assert ascend_some(mnist_onnx, tmp_path) == 2
    assert re.fullmatch(rf"error: \S+{name} is a directory: expected .*\n", capsys.readouterr().err)


def test_what_was_found_is_told_though_it_cannot_be_saved(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("oip_torch.base.files._as_netcdf", full)
    assert ascend_some(mnist_onnx, tmp_path, "0", "--json") == 2
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert (answer["maps"], answer["files"]) == (1, [])
    assert answer["error"].startswith(f"cannot write {tmp_path / 'oips.nc'}: No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_page_that_fails_costs_no_report(
    mnist_onnx: Path, shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no such colour")

    monkeypatch.setattr("oip_torch.comparison.report.page", fail)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("of an earlier comparison")
    monkeypatch.setattr("oip_torch.comparison.comparison.compare", lambda *_, **__: made_up())
    with pytest.raises(
        OipError, match=r"report\.html was not made: no such colour; the results are safe in .*report\.json"
    ):
        made_up().save(tmp_path / "a")
    assert main(["compare", str(shipped), str(mnist_onnx), "--json", "-o", str(tmp_path / "b")]) == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["agree"]
    assert printed.err == f"error: {answer['error']}\n"
    for folder in ("a", "b"):
        assert json.loads((tmp_path / folder / "report.json").read_text())["agree"]
        assert os.listdir(tmp_path / folder) == ["report.json"]


def test_pictures_of_an_earlier_run_are_not_mixed_with_new_ones(
    mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ascend_some(mnist_onnx, tmp_path, "0-2", "--starts", "2") == 0
    kept = {"evolution_007.png": b"drawn by somebody else", "notes.png": b"", "evolution.txt": b""}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    shutil.copy(tmp_path / "sheet.png", tmp_path / "my favourite.png")
    (tmp_path / "evolution_008.png").mkdir()
    assert capsys.readouterr().err == ""
    assert ascend_some(mnist_onnx, tmp_path, "2-3") == 0
    assert capsys.readouterr().err.splitlines() == [
        f"note: removed from {tmp_path}, as an earlier run drew them: evolution_000.png, evolution_001.png, starts.png",
        f"note: left in {tmp_path}, though not of this run: evolution_007.png",
    ]
    ours = {"oips.nc", "sheet.png", "trace.png", "evolution_002.png", "evolution_003.png"}
    assert set(os.listdir(tmp_path)) == {*ours, *kept, "my favourite.png", "evolution_008.png"}
    assert all((tmp_path / name).read_bytes() == content for name, content in kept.items())


def test_a_failed_picture_leaves_none_of_an_earlier_run(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ascend_some(mnist_onnx, tmp_path) == 0
    monkeypatch.delattr("oip_torch.plots.sheet")
    assert ascend_some(mnist_onnx, tmp_path) == 1
    assert os.listdir(tmp_path) == ["oips.nc"]


@pytest.mark.parametrize(("starts", "columns"), [(1, None), (3, 9), (6, 12), (20, 20), (40, 32)])
def test_the_pictures_show_every_start(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: int, columns: int | None
) -> None:
    shown: dict[str, list[Any]] = {"sheet": [], "trace": [], "evolution": []}
    for name, calls in shown.items():
        draw = lambda *given, calls=calls, **_: calls.append(given) or Figure()  # noqa: E731
        monkeypatch.setattr(f"oip_torch.plots.{name}", draw)
    assert ascend_some(mnist_onnx, tmp_path, "4-6", "--starts", str(starts)) == 0
    assert len(shown["sheet"][0][0]) == 3
    assert len(shown["trace"][0][0]) == 3 * starts
    assert [len(given[2]) for given in shown["evolution"]] == [min(starts, 16)] * 3
    assert (tmp_path / "starts.png").exists() == (starts > 1)
    if starts > 1:
        oips, given, title = shown["sheet"][1]
        assert given == columns  # so that the starts of a map stand in one row
        assert (oips.maps.tolist(), title) == (
            np.repeat([4, 5, 6], starts).tolist(),
            f"Conv2D_1: all {starts} starts of 3 maps",
        )


def test_what_is_noise_is_said_with_several_starts_alone(
    mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--starts", "3", "--steps", "40", "--device", "cpu", "-o", tmp_path]
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_3", "17", "56", *options)
    assert data["layers"]["Conv2D_3"]["noise"] == []  # type: ignore[index]
    assert ascend_some(mnist_onnx, tmp_path, "0-1", "--starts", "2") == 0
    assert "of 2 maps are not distinguishable from noise" in capsys.readouterr().out
    assert ascend_some(mnist_onnx, tmp_path, "0-1") == 0
    assert "distinguishable" not in capsys.readouterr().out
    data = run(capsys, "ascend", mnist_onnx, "Conv2D_1", "0", "--steps", "1", "--device", "cpu", "-o", tmp_path)
    assert data["layers"]["Conv2D_1"]["noise"] is None  # type: ignore[index]


# The process: streams, environment


def oip(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    options["env"] = {**os.environ, **options.get("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 100} | options
    return subprocess.run([sys.executable, "-m", "oip_torch", *map(str, words)], text=True, encoding="utf-8", **options)


def test_the_module_is_the_command_and_tells_its_version(mnist_onnx: Path) -> None:
    assert oip("--version").stdout == f"oip_torch {version('oip_torch')}\n"
    assert oip("layers", mnist_onnx).stdout.splitlines()[0].startswith("name ")
    assert oip("layers", "missing.onnx").returncode == 2


def test_the_version_needs_no_torch() -> None:
    code = "import sys; from oip_torch.cli import main; main(['--version']); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines() == [f"oip_torch {version('oip_torch')}", "False"]


@pytest.mark.parametrize("words", [["layers", "FILE"], ["layers", "FILE", "--json"], ["ascend", "-h"], ["--version"]])
def test_a_reader_that_goes_is_no_error(mnist_onnx: Path, words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = oip(*(mnist_onnx if word == "FILE" else word for word in words), stdout=writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_reader_that_goes_hides_no_failure(
    mnist_onnx: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            return nowhere

    monkeypatch.setattr("oip_torch.comparison.comparison.compare", lambda *_, **__: made_up(agree=False))
    monkeypatch.setattr(Comparison, "__repr__", lambda _: "a table")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["compare", str(shipped), str(mnist_onnx)]) == 1
    os.close(nowhere)
    assert capsys.readouterr().err == "error: jax fell over\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [["layers", "FILE"], ["layers", "FILE", "--json"], ["layers", "-h"]])
def test_a_full_disk_is_told_in_one_line(mnist_onnx: Path, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = oip(*(mnist_onnx if word == "FILE" else word for word in words), stdout=full)
    assert result.returncode == 2
    assert re.fullmatch(r"error: [^\n]*: No space left on device[^\n]*\n", result.stderr), result.stderr


def with_closed(streams: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "oip_torch", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize(("closed", "told"), [(">&-", True), ("2>&-", False), ("<&-", True), ("<&- >&- 2>&-", False)])
def test_closed_streams(mnist_onnx: Path, closed: str, told: bool) -> None:
    result = with_closed(closed, "layers", mnist_onnx)
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) is (">&-" not in closed.replace("2>&-", ""))
    result = with_closed(closed, "layers", "missing.onnx")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: missing.onnx does not exist: expected an ONNX file; check the path\n" if told else ""
    )


@pytest.mark.slow
def test_nothing_is_written_into_a_file_that_takes_a_closed_streams_number(mnist_onnx: Path, tmp_path: Path) -> None:
    words = ["ascend", mnist_onnx, "Conv2D_1", "0", "--steps", "1", "-o", tmp_path]
    assert with_closed("<&- >&- 2>&-", *words).returncode == 0
    assert len(Oips.load(tmp_path / "oips.nc")) == 1
    assert (tmp_path / "trace.png").exists()


def test_an_ascii_terminal_gets_replacements(mnist_onnx: Path, tmp_path: Path) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    result = oip("layers", mnist_onnx, env=ascii_only)
    assert (result.returncode, result.stderr) == (0, "")
    assert "26?26" in result.stdout
    assert oip("convert", "-h", env=ascii_only).returncode == 0
    result = oip("layers", tmp_path / "é…", env=ascii_only)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path}/?? does not exist")


@pytest.mark.slow
def test_neither_ascii_nor_an_unknown_backend_of_matplotlib_stops_an_ascent(mnist_onnx: Path, tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "MPLBACKEND": "nonsense"}
    folder = tmp_path / "é…"
    result = oip("ascend", mnist_onnx, "Conv2D_1", "0-1", "--steps", "1", "-o", folder, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{tmp_path}/??/oips.nc" in result.stdout
    assert (folder / "sheet.png").exists()


# Errors as JSON


def test_a_failed_verification_is_one_object(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VerificationError("layer 'a' differs", failed=["a"], layers=[{"name": "a"}])

    monkeypatch.setattr("oip_torch.keras.convert.convert", fail)
    assert main(["convert", str(shipped), "--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "onnx": None, "layers": [{"name": "a"}], "failed": ["a"], "error": "layer 'a' differs"
    }  # fmt: skip
    assert printed.err == "error: layer 'a' differs\n"


def test_a_disagreement_is_one_object(
    mnist_onnx: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("oip_torch.comparison.comparison.compare", lambda *_, **__: made_up(agree=False))
    assert main(["compare", str(shipped), str(mnist_onnx), "--json"]) == 1
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert (answer["agree"], answer["error"]) == (False, "jax fell over")
    assert printed.err == "error: jax fell over\n"


def test_an_error_of_the_system_is_told_in_one_line(
    mnist_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")

    monkeypatch.setattr("oip_torch.network.onnx_file.read", full)
    assert main(["layers", str(mnist_onnx)]) == 2
    assert (
        capsys.readouterr().err
        == "error: the operating system stopped the command (a/file): No space left on device; mend that, and repeat\n"
    )


def test_classes_go_before_their_softmax(
    mnist_onnx: Path, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "some.npz", x_test=digits[0][:100])
    options = ["--steps", "20", "--data", tmp_path / "some.npz", "-o", tmp_path / "out"]
    for flags, before in (([], True), (["--before-activation"], True), (["--after-activation"], False)):
        data = run(capsys, "ascend", mnist_onnx, "Dense_2", "0", "3", *options, *flags)
        assert data["layers"]["Dense_2"]["before_activation"] is before  # type: ignore[index]
        assert Oips.load(tmp_path / "out" / "oips.nc").pre_activation is before
        calibration = Calibration.load(tmp_path / "out" / "calibration.nc")
        assert calibration["Dense_2"].pre_activation is before
    assert main(["ascend", str(mnist_onnx), "Dense_2", "0", *map(str, options)]) == 0
    assert "1 of 1 classes score above the maximum of 100 real images" in capsys.readouterr().out


def test_dead_is_said_of_maps_that_are_and_not_of_low_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a network of tanh and ELU a score below 0 is a score like any other."""
    smooth = Path(__file__).parent / "data" / "smooth.onnx"
    options = ["--settings", "article", "--steps", "1", "--epsilon", "1e-6", "-o", tmp_path]
    data = run(capsys, "ascend", smooth, "Tanh_1", *options)
    layer = data["layers"]["Tanh_1"]  # type: ignore[index]
    assert data["alive"] < data["maps"]  # type: ignore[operator] # of the contract: scores above 0
    assert layer["dead"] == []


def test_images_that_are_lost_are_told_and_the_rest_is_kept(
    mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = oip_torch.load(mnist_onnx, device="cpu")
    proto = onnx.load(mnist_onnx)
    node = next(node for node in proto.graph.node if network.layers["Conv2D_3"].tensor_before in node.output)
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[1])
    values = onnx.numpy_helper.to_array(weights).copy()
    values[17] = np.inf
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    broken = tmp_path / "broken.onnx"
    write(proto, dataclasses.replace(read(mnist_onnx)[1], graph_sha256=graph_sha256(proto)), broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("oip_torch.network.load._self_check", lambda *_: None)  # which would tell, and refuse
        code = main(["ascend", str(broken), "Conv2D_3", "3,17", "--steps", "6", "-o", str(tmp_path / "out"), "--json"])
    assert code == 1
    told = capsys.readouterr()
    data = json.loads(told.out)
    assert (data["images"], data["maps"]) == (1, 1)
    assert "1 of 2 images left the finite numbers, of maps 17: the others are in" in data["error"]
    assert data["error"] in told.err
    assert Oips.load(tmp_path / "out" / "oips.nc").maps.tolist() == [3]


@pytest.mark.parametrize("command", ["convert", "import"])
@pytest.mark.parametrize("path", ["", "/", ".."])
def test_a_path_without_a_name_is_refused(capsys: pytest.CaptureFixture[str], command: str, path: str) -> None:
    """The name of the default output follows from it."""
    assert main([command, path]) == 2
    assert "is a directory" in capsys.readouterr().err
