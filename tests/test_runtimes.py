"""Each runtime gives the same answers in the same form, in a process of its own that can fail without harm."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_tensorflow

import oip_torch
from oip_torch.base.errors import RuntimeProcessError
from oip_torch.comparison.runtimes import BEFORE, OURS, RUNTIMES, Spec, one_hot, select_runtimes
from oip_torch.comparison.runtimes.pool import runtime_pool
from oip_torch.comparison.runtimes.process import RuntimeProcess
from oip_torch.comparison.runtimes.torch_module import TorchModule
from oip_torch.network.probes import noise

HERE = {name: spec for name, spec in RUNTIMES.items() if spec.options.get("device", "cpu") == "cpu"}


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_has_a_home_and_names_what_it_needs(name: str) -> None:
    spec = RUNTIMES[name]
    module, cls = spec.home.split(":")
    found = importlib.util.find_spec(f"oip_torch.comparison.runtimes.{module}")
    assert found is not None
    assert found.origin is not None
    assert re.search(rf"^class {cls}\(", Path(found.origin).read_text(), re.MULTILINE)
    assert spec.packages
    assert spec.dtypes[0] == "float32"
    assert set(spec.companions) <= set(RUNTIMES)
    assert OURS in RUNTIMES


def test_what_is_not_installed_is_named_as_pip_calls_it() -> None:
    spec = Spec(
        title="", home="a:b", packages={"no_such_package_here": "no-such-package", "numpy": "numpy"}, reads="onnx"
    )
    assert spec.missing() == ["no-such-package"]


def test_one_hot_picks_each_images_map() -> None:
    scores = np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal((scores * one_hot(np.array([2, 0, 3]), 4, "float64")).sum(1), [2, 4, 11])
    assert one_hot(np.array([0]), 2, "float32").dtype == np.float32


def test_ours_and_companions_run_along_and_each_once() -> None:
    names, missing = select_runtimes(["torch", "keras-torch", "keras-torch"], cuda=False)
    assert (names, missing) == (["torch", "torch-plain", "keras-torch"], {})
    assert "torch-cuda" in select_runtimes(["keras-torch"], cuda=True)[0]


def test_a_runtime_that_fails_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Answers come in the order of the runtimes, whoever is first; an error of ours stops all of them."""
    stopped: list[str] = []
    monkeypatch.setattr(RuntimeProcess, "stop", lambda self: stopped.append(self.name))
    names = ["tensorflow", "jax", "torch"]
    asked: list[str] = []

    def question(process: RuntimeProcess) -> str:
        asked.append(process.name)
        if process.name == "jax":
            raise RuntimeProcessError("jax is tired")
        return process.name.upper()

    with runtime_pool(names, tmp_path / "a.keras", tmp_path / "a.onnx") as pool:
        for _ in range(2):
            answers = pool.ask(question)
            assert list(answers.items()) == [("tensorflow", "TENSORFLOW"), ("torch", "TORCH")]
        assert pool.failed == {"jax": "jax is tired"}
        assert asked.count("jax") == 1
    assert stopped == []
    with pytest.raises(ZeroDivisionError), runtime_pool(names, tmp_path / "a.keras", tmp_path / "a.onnx") as pool:
        pool.ask(lambda process: 1 / 0)
    assert stopped == names


def test_the_example_of_the_docs_is_a_runtime(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And agrees with the torch module, in both dtypes."""
    text = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    module, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "onnx_reference.py"
    file.write_text(f"{module}\nfrom oip_torch.comparison.runtimes import Spec\nENTRIES = {{\n{entry}}}\n")
    monkeypatch.syspath_prepend(tmp_path)
    example = importlib.import_module("onnx_reference")
    (spec,) = example.ENTRIES.values()
    home, cls = spec.home.split(":")
    assert home == file.stem
    runtime = getattr(example, cls)(Path("unread.keras"), mnist_onnx, **spec.options)
    images = noise(1, (28, 28, 1))
    torch_module = TorchModule(Path("unread.keras"), mnist_onnx)
    for dtype, error in (("float32", 1e-5), ("float64", 1e-12)):
        got, want = (each.layers(images, dtype) for each in (runtime, torch_module))
        assert set(got) == set(want)
        for layer, values in want.items():
            assert got[layer].dtype == dtype
            np.testing.assert_allclose(got[layer], values, rtol=0, atol=error * np.abs(values).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
def test_a_runtime_answers(name: str, shipped: Path, mnist_onnx: Path) -> None:
    images, maps = noise(3, (28, 28, 1)).astype(np.float64), np.array([0, 14, 29])
    with RuntimeProcess(name, shipped, mnist_onnx, threads=2) as runtime:
        for dtype in runtime.spec.dtypes:
            layers = runtime.layers(images, dtype)
            assert {array.dtype for array in layers.values()} == {np.dtype(dtype)}
            assert layers["Conv2D_1"].shape == (3, 26, 26, 32)
            assert layers["Dense_2"].shape == (3, 10)
            np.testing.assert_allclose(layers["Dense_2"].sum(1), 1, rtol=1e-5)
            np.testing.assert_array_equal(layers["Conv2D_3"], np.maximum(layers[f"{BEFORE}Conv2D_3"], 0))
            assert f"{BEFORE}Max_Pool_1" not in layers
            if not runtime.spec.differentiates:
                with pytest.raises(RuntimeProcessError, match=f"{name} could not compute gradients.*has no gradients"):
                    runtime.gradients("Conv2D_3", maps, images, dtype)
                continue
            scores, gradients = runtime.gradients("Conv2D_3", maps, images, dtype)
            np.testing.assert_allclose(
                scores, layers["Conv2D_3"].mean((1, 2))[np.arange(3), maps], rtol=1e-5, atol=1e-6
            )
            assert gradients.shape == images.shape
            assert gradients.dtype == np.dtype(dtype)
            if dtype == "float64":  # the gradient is the score's own
                step = 1e-6 * np.random.default_rng(0).normal(size=images.shape)
                moved, _ = runtime.gradients("Conv2D_3", maps, images + step, dtype)
                back, _ = runtime.gradients("Conv2D_3", maps, images - step, dtype)
                np.testing.assert_allclose(moved - back, 2 * (gradients * step).sum((1, 2, 3)), rtol=1e-5, atol=1e-13)
            traces, finals = runtime.run_ascent("Conv2D_3", maps, images, dtype, steps=4, epsilon=0.01)
            assert traces.shape == (3, 4)
            assert traces.dtype == finals.dtype == np.dtype(dtype)
            np.testing.assert_allclose(traces[:, 0], scores, rtol=1e-5, atol=1e-6)
            assert (np.diff(traces, axis=1) > 0).all()
            np.testing.assert_allclose(finals.mean((1, 2, 3)), 0, atol=1e-6)
            np.testing.assert_allclose(finals.std((1, 2, 3)), 1, rtol=1e-5)
            classes, tap = np.array([1, 7, 9]), f"{BEFORE}Dense_2"  # what goes into an activation is a target as well
            scores, gradients = runtime.gradients(tap, classes, images, dtype)
            np.testing.assert_allclose(scores, layers[tap][np.arange(3), classes], rtol=1e-4, atol=1e-5)
            assert (np.abs(gradients).max((1, 2, 3)) > 1e-3).all()
            traces, _ = runtime.run_ascent(tap, classes, images, dtype, steps=2, epsilon=0.01)
            np.testing.assert_allclose(traces[:, 0], scores, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_runtime_that_dies_says_its_last_words(shipped: Path, mnist_onnx: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(mnist_onnx.read_bytes()[:2000])
    with RuntimeProcess("torch", shipped, broken, threads=1) as runtime:
        with pytest.raises(RuntimeProcessError, match=r"torch could not compute layers: InputError: .*broken\.onnx"):
            runtime.layers(noise(1, (28, 28, 1)), "float32")
    with RuntimeProcess("torch", shipped, mnist_onnx, threads=1) as runtime:
        runtime.layers(noise(1, (28, 28, 1)), "float32")
        assert runtime._child is not None
        runtime._child.kill()
        with pytest.raises(RuntimeProcessError, match=r"torch stopped \(ended by SIGKILL\): it said nothing"):
            runtime.layers(noise(1, (28, 28, 1)), "float32")


def test_an_answer_of_another_shape_is_told_as_the_runtimes_fault(tmp_path: Path) -> None:
    """The likeliest mistake of a new runtime: channels first."""
    images = np.zeros((2, 8, 9, 1), np.float32)
    with RuntimeProcess("torch", tmp_path / "a.keras", tmp_path / "a.onnx", threads=1) as runtime:
        runtime._ask = lambda *question: ([], [np.zeros(2), images.transpose(0, 3, 1, 2)])  # type: ignore[method-assign]
        message = r"torch gives gradients of shape \(2, 1, 8, 9\): expected \(2, 8, 9, 1\)"
        with pytest.raises(RuntimeProcessError, match=message):
            runtime.gradients("Conv2D_1", np.array([0, 1]), images, "float32")
        with pytest.raises(RuntimeProcessError, match=r"torch gives traces of shape \(2,\): expected \(2, 7\)"):
            runtime.run_ascent("Conv2D_1", np.array([0, 1]), images, "float32", steps=7, epsilon=0.01)


@pytest.mark.slow
def test_nested_and_shared_layers_are_the_same_everywhere(zoo: Path, converted: Callable[[str], Path]) -> None:
    """Inside nested networks, and called twice; ascended too, where no sub-network reaches the layer."""
    file, onnx_file = zoo / "default_names.keras", converted("default_names.keras")
    model = oip_torch.load(onnx_file, device="cpu")
    images, maps = noise(2, model.network.input_shape).astype(np.float64), np.array([0, 1])
    inner = [name for name in model.layers.names if "/" in name and "@" in name][-1]
    found = {}
    for name in (OURS, "tensorflow", "keras-torch"):
        with RuntimeProcess(name, file, onnx_file, threads=2) as runtime:
            layers = runtime.layers(images, "float64")
            domain = {"mean": (0.1,), "std": (0.5,)}
            ascents = runtime.run_ascent(inner, maps, images, "float64", steps=3, epsilon=0.01, **domain)
            found[name] = layers, ascents
    layers, (traces, finals) = found.pop(OURS)
    for got, (got_traces, got_finals) in found.values():
        assert set(got) == set(layers)
        for layer, want in layers.items():
            np.testing.assert_allclose(got[layer], want, rtol=0, atol=1e-12 * np.abs(want).max())
        np.testing.assert_allclose(got_traces, traces, rtol=1e-9)
        np.testing.assert_allclose(got_finals, finals, rtol=0, atol=1e-9)


THREE_WAYS = """
import json, sys
import numpy as np
from pathlib import Path
from oip_torch.network.probes import noise
from oip_torch.comparison.runtimes.keras_tensorflow import TensorFlow

runtime = TensorFlow(Path(sys.argv[1]), Path(sys.argv[2]))
images, maps = noise(3, (28, 28, 1)), np.array([0, 14, 29])
found = {}
for way in ("batched", "graph", "eager"):
    traces, finals = runtime.run_ascent("Conv2D_3", maps, images, "float64", steps=5, epsilon=0.01, way=way)
    found[way] = [traces.tolist(), finals.ravel().tolist()]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_tensorflows_three_loops_are_one_ascent(shipped: Path, mnist_onnx: Path) -> None:
    found = json.loads(run_tensorflow(THREE_WAYS, shipped, mnist_onnx).splitlines()[-1])
    for way in ("graph", "eager"):
        for got, want in zip(found[way], found["batched"], strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
