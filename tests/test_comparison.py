"""The runtimes agree on the shipped network; a planted error is caught, named, and told from rounding."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from conftest import without

import oip_torch
from oip_torch import plots
from oip_torch.cli import main
from oip_torch.comparison.runtimes import RUNTIMES

KERAS = ("tensorflow", "jax", "keras-torch")
STEPS = 120
MAPS = [0, 14, 29, 56, 3, 77]


@pytest.fixture(scope="module")
def compared(shipped: Path, mnist_onnx: Path) -> oip_torch.Comparison:
    return oip_torch.compare(shipped, mnist_onnx, maps=MAPS, steps=STEPS)


@pytest.fixture
def planted(mnist_onnx: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function: the part of a constant's name, and what is done to it, to a changed copy of the ONNX file."""

    def plant(name: str, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> Path:
        proto = onnx.load(mnist_onnx)
        (constant,) = [entry for entry in proto.graph.initializer if name in entry.name]
        values = change(onnx.numpy_helper.to_array(constant).copy())
        constant.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), constant.name))
        path = tmp_path / "planted.onnx"
        onnx.save(proto, path)
        return path

    return plant


@pytest.mark.slow
def test_the_runtimes_agree_within_the_bounds(compared: oip_torch.Comparison) -> None:
    report = compared.report
    assert report["agree"] is compared.agree is True
    assert compared.disagreements == ()
    assert compared.verdict.startswith("6 runtimes agree: tensorflow, jax, keras-torch, onnxruntime, torch")
    assert report["reference"] == "tensorflow, float64"
    for name in (*KERAS, "onnxruntime", "torch", "torch-plain"):
        entry = report["runtimes"][name]
        assert entry["counted"]
        assert (
            list(entry["layers"]) == "Conv2D_1 Max_Pool_1 Conv2D_2 Max_Pool_2 Conv2D_3 Flatten Dense_1 Dense_2".split()
        )
        assert max(entry["layers"].values()) <= 1e-5
        if name == "onnxruntime":
            assert entry["gradient_cosine"] is entry["trace_max_relative_error"] is entry["image_correlation"] is None
            continue
        assert entry["gradient_cosine"] >= 0.99999
        assert max(entry["layers_float64"].values()) <= 1e-10
        assert entry["trace_max_relative_error"] <= 1e-9
        assert entry["image_correlation"] >= 0.999999
        assert entry["dead_maps"]["float64"]["other_than_reference"] == []
    assert not report["runtimes"]["onnxruntime-optimised"]["counted"]
    # Float32 and float64 were both measured, and are not one: rounding is there in one of them.
    assert max(report["runtimes"]["tensorflow"]["layers"].values()) > 1e-8
    assert report["runtimes"]["torch"]["float32"]["steps"]["1"]["max"] > 0


@pytest.mark.slow
def test_every_runtime_ascends_by_itself(compared: oip_torch.Comparison) -> None:
    made = {name: by_dtype for name, by_dtype in compared.ascents.items() if by_dtype}
    assert set(made) == {*KERAS, "torch", "torch-plain"}
    for by_dtype in made.values():
        for dtype, ascents in by_dtype.items():
            assert ascents.traces.shape == (len(MAPS), STEPS)
            assert ascents.traces.dtype == ascents.images.dtype == np.dtype(dtype)
            live = ~ascents.dead
            assert live.sum() >= 4
            assert (ascents.traces[live, -1] > 2 * ascents.traces[live, 0]).all()
    singles = [by_dtype["float32"].images for by_dtype in made.values()]
    assert all((singles[0] != other).any() for other in singles[1:3])  # not one result handed round


@pytest.mark.slow
def test_classes_are_ascended_before_their_softmax(shipped: Path, mnist_onnx: Path) -> None:
    found = oip_torch.compare(shipped, mnist_onnx, runtimes="tensorflow", layer="Dense_2", maps=range(3), steps=30)
    assert found.agree, found.verdict
    assert found.report["before_activation"]
    assert found.place == "Dense_2 before its activation"
    for by_dtype in found.ascents.values():
        for ascents in by_dtype.values():
            assert (ascents.traces[:, -1] > ascents.traces[:, 0] + 1).all()  # no probability rises so far
    assert "before:Dense_2" in found.report["runtimes"]["torch"]["gradients"]["float64"]


@pytest.mark.slow
def test_our_ascent_is_that_of_the_public_face(compared: oip_torch.Comparison, model: oip_torch.FeatureModel) -> None:
    oips = oip_torch.ascend(model, "Conv2D_3", MAPS, settings=oip_torch.AscentSettings.article(steps=STEPS))
    np.testing.assert_allclose(compared.ascents["torch"]["float32"].traces[:, :50], oips.traces[:, :50], rtol=1e-4)


@pytest.mark.slow
def test_each_runtimes_oips_score_alike_in_every_other(compared: oip_torch.Comparison) -> None:
    for name, entry in compared.report["runtimes"].items():
        assert set(entry["scores"]) == {*KERAS, "torch", "torch-plain"}
        for maker, scores in entry["scores"].items():
            assert scores["max_relative_error"] <= (0 if name == "tensorflow" else 1e-5), maker
            assert scores["rank_correlation"] == pytest.approx(1, abs=1e-9)


@pytest.mark.slow
def test_the_report_is_written_whole_and_needs_nothing_else(compared: oip_torch.Comparison, tmp_path: Path) -> None:
    files = compared.save(tmp_path / "report")
    assert [file.name for file in files] == ["report.json", "report.html"]
    assert json.loads(files[0].read_text()) == compared.report
    html = files[1].read_text()
    text = unescape(html)
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=.(?!data:)|<script|@import|https?:", html)
    for name, entry in compared.report["runtimes"].items():
        assert name in text
        assert entry["title"] in text
    assert compared.verdict in text
    assert compared.report["float32"] in text


@pytest.mark.slow
def test_the_pictures_show_the_maps_that_are_asked_for(compared: oip_torch.Comparison) -> None:
    figure = plots.side_by_side(compared, [14, 3])
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert [label for label in labels if label.startswith("map")] == ["map 14", "map 3"]
    assert len(plots.divergence(compared, 14).axes[0].lines) == 5
    assert plots.agreement(compared)._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(oip_torch.InputError, match="map 1 was not compared: expected one of 0, 14"):
        plots.side_by_side(compared, 1)


@pytest.mark.slow
def test_a_changed_bias_is_caught_and_named_even_of_a_dead_map(
    shipped: Path, planted: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Map 20 of Conv2D_2 never fires on these images: only before the activation can it be seen."""

    def change(bias: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        bias[20] += 1e-2
        return bias

    call = [str(shipped), str(planted("Conv2D_2_1/Squeeze", change)), "--runtimes", "tensorflow,onnxruntime"]
    assert main(["compare", *call, "--maps", "14", "--steps", "2", "--json", "-o", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["agree"] is False
    first = report["disagreements"][0]
    assert (first["layer"], first["map"]) == ("Conv2D_2", 20)
    assert {entry["runtime"] for entry in report["disagreements"]} == {"onnxruntime", "torch", "torch-plain"}
    assert report["runtimes"]["torch"]["layers"]["Conv2D_1"] <= 1e-5 < report["runtimes"]["torch"]["layers"]["Conv2D_2"]
    assert max(report["runtimes"]["tensorflow"]["layers"].values()) <= 1e-5
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: layer 'Conv2D_2', map 20: onnxruntime has a relative error in float32 of ")
    assert "torch" in lines[-1]
    assert any("was changed after its conversion" in line for line in lines[:-1])
    assert "They do not agree" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_transposed_weights_are_caught_and_named(shipped: Path, planted: Callable[..., Path]) -> None:
    file = planted("Conv2D_3_1/convolution", lambda weights: weights.transpose(0, 1, 3, 2))
    found = oip_torch.compare(shipped, file, runtimes=["tensorflow"], maps=[0, 14, 29], steps=20)
    assert not found.agree
    assert found.disagreements[0].layer == "Conv2D_3"
    assert {entry.runtime for entry in found.disagreements} == {"torch", "torch-plain"}
    whats = " ".join(entry.what for entry in found.disagreements)
    for part in ("relative error in float64", "gradient cosine", "trace's relative error", "final image's correlation"):
        assert part in whats
    assert found.report["float32"].endswith("this is not rounding alone.")
    assert "disagree as well" in found.verdict or "disagrees as well" in found.verdict
    page = found.report["disagreements"][0]["message"]
    assert page in str(found)


@pytest.mark.slow
def test_what_is_not_finite_is_named_and_fits_into_json(
    shipped: Path, planted: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = planted("Conv2D_2_1/Squeeze", lambda bias: np.full_like(bias, np.inf))
    call = ["compare", str(shipped), str(file), "--runtimes", "tensorflow", "--maps", "14", "--steps", "2", "--json"]
    assert main([*call, "-o", str(tmp_path / "out")]) == 2
    assert "layer 'Conv2D_2' (Conv2D) gives NaN or infinite values" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_that_do_not_belong_together_are_refused(zoo: Path, mnist_onnx: Path) -> None:
    with pytest.raises(oip_torch.InputError, match="different networks: only one of them has a layer 'Conv2D_3'"):
        oip_torch.compare(zoo / "silent.h5", mnist_onnx, runtimes=["tensorflow"], maps=[0], steps=1)


@pytest.mark.slow
def test_a_network_whose_maps_are_dead_agrees_too(zoo: Path, converted: Callable[[str], Path]) -> None:
    found = oip_torch.compare(
        zoo / "silent.h5", converted("silent.h5"), runtimes=["tensorflow"], layer="Conv2D_2", steps=3
    )
    assert found.agree, found.verdict
    entry = found.report["runtimes"]["torch"]
    assert entry["image_correlation"] is None
    assert entry["dead_maps"]["float64"]["dead"] == list(range(6))
    found.save(zoo / "silent_report")


@pytest.mark.slow
def test_a_runtime_that_fails_is_named_and_the_others_go_on(
    shipped: Path, mnist_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {**RUNTIMES["jax"].environment, "JAX_PLATFORMS": "no-such-platform"}
    monkeypatch.setitem(RUNTIMES, "jax", dataclasses.replace(RUNTIMES["jax"], environment=broken))
    found = oip_torch.compare(shipped, mnist_onnx, runtimes=["tensorflow", "jax"], maps=[14], steps=2)
    assert not found.agree
    assert found.disagreements == ()
    assert list(found.report["failed"]) == ["jax"]
    assert "no-such-platform" in found.verdict
    assert set(found.report["runtimes"]) == {"tensorflow", "torch", "torch-plain"}


@pytest.mark.slow
def test_what_is_not_installed_is_left_out_and_named(shipped: Path, mnist_onnx: Path) -> None:
    """In a Python where jax and onnxruntime are not found."""
    code = f"""{without("jax", "onnxruntime")}
from oip_torch.cli import main
main(["compare", {str(shipped)!r}, {str(mnist_onnx)!r}, "--maps", "14", "--steps", "2", "--json",
      "--runtimes", "jax,keras-torch,onnxruntime"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    report = json.loads(result.stdout)
    assert report["missing"] == {"jax": "pip install jax", "onnxruntime": "pip install onnxruntime"}
    assert set(report["runtimes"]) == {"keras-torch", "torch", "torch-plain"}
    assert report["reference"] == "keras-torch, float64"
    assert report["agree"]
    assert "jax is not installed: run `pip install jax` to compare with it" in result.stderr


def test_wrong_calls_are_refused_before_anything_starts(shipped: Path, mnist_onnx: Path) -> None:
    for arguments, message in [
        ({"runtimes": ["tensorflo"]}, "no runtime 'tensorflo': did you mean 'tensorflow'"),
        (
            {"runtimes": ["onnxruntime"]},
            "none of the runtimes onnxruntime can read the Keras file here: add tensorflow",
        ),
        ({"layer": "Conv2D_9"}, "no layer 'Conv2D_9'"),
        ({"maps": [200]}, "layer 'Conv2D_3' has no map 200"),
        ({"device": "gpu"}, "device 'gpu': expected auto, cpu or cuda"),
        ({"steps": 0}, "steps is 0: expected a whole number, 1 or more"),
    ]:
        with pytest.raises(oip_torch.InputError, match=re.escape(message)):
            oip_torch.compare(shipped, mnist_onnx, **arguments)  # type: ignore[arg-type]
    assert main(["compare", str(shipped), "missing.onnx"]) == 2
    assert main(["compare", str(shipped), str(mnist_onnx), "--maps", "1,x"]) == 2
