"""Arguments at the boundary: what is unambiguous comes out plain, everything else is told in one sentence."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oip_torch import (
    AscentSettings,
    FeatureModel,
    InputError,
    Oips,
    ascend,
    assess,
    calibrate,
    capture,
    compare,
    plots,
    start_images,
)
from oip_torch.base.checks import number, plain, whole, whole_numbers
from oip_torch.network.load import load, resolve_device
from oip_torch.search.chosen import chosen_maps

LAYER = "Conv2D_3"


def some(model: FeatureModel) -> Oips:
    return ascend(model, LAYER, [0, 3], settings=AscentSettings.article(steps=2))


@pytest.mark.parametrize(
    "given",
    [
        [3, 5],
        (3, 5),
        {3: "a", 5: "b"}.keys(),
        range(3, 6, 2),
        (n for n in (3, 5)),
        [np.int64(3), 5],
        np.array([3, 5]),
        np.array([3, 5], np.uint8),
        torch.tensor([3, 5]),
        torch.tensor([3, 5], dtype=torch.int16),
        [torch.tensor(3), torch.tensor(5)],
        np.arange(8) % 8 == np.array([9, 9, 9, 3, 9, 5, 9, 9]),
        torch.tensor([False, False, False, True, False, True, False, False]),
    ],
)
def test_whole_numbers_of_any_kind(given: Any) -> None:
    found = whole_numbers("maps", given, 8)
    assert found == [3, 5]
    assert json.dumps(found) == "[3, 5]"


@pytest.mark.parametrize("given", [7, np.int32(7), np.array(7), torch.tensor(7)])
def test_one_whole_number(given: Any) -> None:
    assert whole_numbers("maps", given) == [7]
    assert whole("steps", given, 1) == 7
    assert type(whole("steps", given, 1)) is int


@pytest.mark.parametrize(
    "given",
    [
        *("3", b"3", 3.0, np.array([3.0]), torch.tensor([0.5]), [3, "5"], [True, False], True, {"a": 1}, object()),
        *([[1, 2], [3]], np.zeros((2, 2), int), np.array([True, False]), [None]),
    ],
)
def test_what_is_no_whole_number_is_told_in_one_sentence(given: Any) -> None:
    with pytest.raises(
        InputError, match=r"maps are given as .*: expected whole numbers, such as 3 or \[3, 5\]"
    ) as told:
        whole_numbers("maps", given, 8)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 300


def test_plain_values_can_be_saved() -> None:
    mixed = (np.float32(0.5), [np.int64(3)], torch.tensor(2), np.array([1, 2]), "a", None, True, np.bool_(False))
    assert plain(mixed) == (0.5, (3,), 2, (1, 2), "a", None, True, False)
    assert json.dumps(plain(mixed))
    for wrong in ("1", None, True, float("nan"), np.inf):
        with pytest.raises(InputError, match=r"epsilon is .*: expected a finite number"):
            number("epsilon", wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "mnist_cnn.onnx"},
            r"model is 'mnist_cnn.onnx': expected what oip_torch.load, convert or wrap returns",
        ),
        ({"layer": 4}, r"layer is 4: expected the name of one layer \(Conv2D_1, .*or an entry of model.layers"),
        ({"layer": ["Conv2D_1", 4]}, "layer is 4: expected the name of one layer"),
        ({"layer": None}, "layer is None"),
        ({"maps": "3"}, "maps of layer 'Conv2D_3' are given as '3': expected whole numbers"),
        ({"maps": np.array([3.0])}, "are given as ndarray .*: expected whole numbers"),
        ({"maps": 3.5}, "are given as 3.5"),
        ({"maps": -1}, "has no map -1: expected a number from 0 to 127"),
        ({"maps": np.array([True, False])}, "or a mask of 128 booleans"),
        ({"maps": [0, 3, 0]}, "map 0 of layer 'Conv2D_3' is named more than once: .*starts=3"),
        ({"settings": {"steps": 3}}, r"settings is dict .*: expected AscentSettings"),
        ({"settings": "article"}, r"settings is 'article': expected .*AscentSettings.article"),
        ({"starts": [2]}, r"starts is \(2,\): expected a whole number"),
        ({"starts": 2.0}, "starts is 2.0"),
        ({"seed": None}, "seed is None"),
        ({"seed": "0"}, "seed is '0'"),
        ({"objective": "peak"}, "objective is 'peak': expected one of oip_torch.objectives"),
        ({"objective": [1]}, "objective is"),
        ({"pre_activation": "yes"}, "pre_activation is 'yes': expected True, False, or None"),
    ],
)
def test_wrong_arguments_of_ascend(model: FeatureModel, arguments: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"model": model, "layer": LAYER, "maps": [0]} | arguments
    with pytest.raises(InputError, match=message):
        ascend(**options)


def test_what_is_unambiguous_is_taken(model: FeatureModel, tmp_path: Path) -> None:
    settings = AscentSettings.article(steps=2)
    expected = ascend(model, LAYER, [3, 5], settings=settings, seed=3)
    mask = np.isin(np.arange(128), (3, 5))
    for maps in (torch.tensor([3, 5]), np.array([3, 5], np.int16), mask, torch.from_numpy(mask)):
        found = ascend(model, model.layers[LAYER], maps, settings=settings, seed=np.int64(3), starts=np.int64(1))  # type: ignore[arg-type]
        assert found.maps.tolist() == [3, 5]
        assert np.array_equal(found.images, expected.images)
        assert type(found.provenance.seed) is int
        assert Oips.load(found.save(tmp_path / "oips.nc")).provenance.seed == 3
    layer = model.layers[LAYER]
    assert chosen_maps(model, LAYER, None) == list(range(128))
    with capture(model, layer) as maps_of:
        model(torch.zeros(1, 1, 28, 28))
    assert maps_of[LAYER].shape == (1, 128, 3, 3)
    images = np.full((2, 28, 28), 9.0)
    images[:, 5:9, 3:20] = 200
    assert list(calibrate(model, images, layer).layers) == list(calibrate(model, images, [layer]).layers) == [LAYER]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: calibrate("a.onnx", np.zeros((1, 28, 28))), "model is 'a.onnx': expected what oip_torch.load"),
        (lambda model: calibrate(model, np.full((1, 28, 28), 9), layers=4), "layers is 4: expected names of layers"),
        (lambda model: calibrate(model, np.full((1, 28, 28), 9), layers=[4]), "layer is 4: expected the name"),
        (lambda model: calibrate(model, [[1, 2], [3]]), "the images are rows of different lengths"),
        (lambda model: model.standardize([[1, 2], [3]]), r"expected \(batch, 28, 28"),
        (lambda model: model.standardize([["a"]]), r"expected \(batch, 28, 28"),
        (lambda model: model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)), "images of uint8: expected float32"),
        (
            lambda model: model(torch.zeros(1, 1, 28, 28).double()),
            "images of float64: expected float32",
        ),
        (
            lambda model: ascend(copy.deepcopy(model).bfloat16(), LAYER, 0),
            r"computes in bfloat16.*model.float\(\)",
        ),
        (lambda model: load(3), "the path is given as 3: expected that of an ONNX file"),
        (lambda model: load(None), "the path is given as None"),
        (lambda model: Oips.load(None), "the path is given as None: expected that of a NetCDF file"),
        (lambda model: start_images((28, 28), [(0, 0)]), r"shape is \(28, 28\): expected \(channels, height, width\)"),
        (lambda model: ascend(model, LAYER, starts=10**12), "OIPs of 'Conv2D_3', 128000000000000 in number, need"),
        (lambda model: assess(model, some(model), "c.nc"), "calibration is 'c.nc': expected what oip_torch.calibrate"),
        (lambda model: plots.beside_data(some(model), None), "calibration is None: expected what oip_torch.calibrate"),
        (lambda model: plots.sheet(some(model), columns=-1), "columns is -1: expected a whole number, 1 or more"),
        (lambda model: plots.sheet(None), "oips is None: expected what oip_torch.ascend or Oips.load returns"),
        (lambda model: plots.evolution("oips.nc", 3), "oips is 'oips.nc'"),
        (lambda model: assess(model, "oips.nc"), "oips is 'oips.nc': expected what"),
        (lambda model: capture("resnet", "conv1").__enter__(), "capture got 'resnet': expected a model"),
        (lambda model: capture(model, 3).__enter__(), "layer is 3: expected the name of one layer"),
        (lambda model: capture(torch.nn.Linear(1, 1), 3).__enter__(), "layer is 3: expected a module's path"),
    ],
)
def test_wrong_arguments_elsewhere(model: FeatureModel, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(model)


def test_both_files_of_a_comparison_are_paths(shipped: Path) -> None:
    with pytest.raises(InputError, match="the path is given as None: expected that of an ONNX file"):
        compare(shipped, None)  # type: ignore[arg-type]


def test_devices(mnist_onnx: Any) -> None:
    cpu = torch.device("cpu")
    assert resolve_device(cpu) == resolve_device("cpu") == cpu
    assert resolve_device(None) == resolve_device("auto")
    assert load(mnist_onnx, device=cpu).device == cpu
    for wrong in ("gpu", -1, 1.5, True, ["cpu"], "cuda:abc", torch.device("meta")):
        with pytest.raises(InputError, match=r"device .*: expected auto, cpu or cuda|torch finds no CUDA device here"):
            resolve_device(wrong)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 0 was asked for, but torch finds no CUDA device here"):
            load(mnist_onnx, device=0)


def test_positions_of_images(model: FeatureModel) -> None:
    oips: Oips = ascend(model, LAYER, range(6), settings=AscentSettings.article(steps=2))
    mask = oips.maps == 4
    assert oips.take(mask).maps.tolist() == [4]
    assert oips.take(mask.tolist()).maps.tolist() == [4]
    assert oips.take(torch.from_numpy(mask)).maps.tolist() == [4]
    assert oips.take(np.zeros(6, bool)).maps.tolist() == []
    assert oips.take([2, 0]).maps.tolist() == [2, 0]
    assert oips.take(5).maps.tolist() == [5]
    assert oips.take([]).maps.tolist() == []
    assert oips.select(maps=torch.tensor([4, 1])).maps.tolist() == [4, 1]
    for wrong in (mask[:5], [6], [-1], [0.5], "0"):
        with pytest.raises(InputError, match="expected"):
            oips.take(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="map numbers are given as"):
        oips.select(maps="4")  # type: ignore[arg-type]
