"""What is bit-equal and what is not: the table in docs/bit_equality.md, row by row; and where NaN is caught."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import oip_torch as oip
from oip_torch import AscentSettings, FeatureModel, InputError, OipError

LAYER = "Conv2D_3"
MAPS = [0, 3, 14, 17, 56, 60, 99, 100]
Arrays = list[np.ndarray]
Pair = Callable[[FeatureModel, AscentSettings, Path], tuple[Arrays, Arrays]]


def ascent(model: FeatureModel, settings: AscentSettings, maps: Any = MAPS, **options: Any) -> Arrays:
    found = oip.ascend(model, LAYER, maps, settings=settings, **options).select(maps=[3, 17], starts=0)
    return [found.images, found.scores, found.traces]


def again(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings), ascent(model, settings)


def loaded_again(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    other = oip.load(ROOT / "models" / "mnist_cnn.onnx", device="cpu")
    return ascent(model, settings), ascent(other, settings)


def saved(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    made = oip.ascend(model, LAYER, MAPS, settings=settings)
    back = oip.Oips.load(made.save(folder / "oips.nc"))
    assert back.settings == made.settings
    assert back.provenance == made.provenance
    return [made.images, made.scores, made.traces, made.snapshots], [
        back.images,
        back.scores,
        back.traces,
        back.snapshots,
    ]


def other_maps(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings), ascent(model, settings, [3, 17])


def more_starts(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings, [3, 17]), ascent(model, settings, [3, 17], starts=3)


def batches(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings, batch_size=1), ascent(model, settings, batch_size=8)


def with_threads(work: Callable[[], Arrays]) -> tuple[Arrays, Arrays]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = work()
        torch.set_num_threads(2)
        return one, work()
    finally:
        torch.set_num_threads(before)


def threads(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return with_threads(lambda: ascent(model, settings))


def atlas(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    found = []
    for name, cuts in (("whole", [2]), ("in_parts", [1, 2])):
        for starts in cuts:
            made = oip.make_atlas(
                model, "Conv2D_1", path=folder / name, starts=starts, settings=settings, resume=starts != cuts[0]
            )
        oips = made["Conv2D_1"].oips
        found.append([oips.images, oips.scores])
    return found[0], found[1]


def starts_of_a_batch(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    keys = [(number, 0) for number in MAPS]
    whole = oip.start_images(model.input_shape, keys, layer=LAYER)
    single = [oip.start_images(model.input_shape, [key], layer=LAYER) for key in keys]
    return [whole.numpy()], [torch.cat(single).numpy()]


def starts_of_threads(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    keys = [(number, 0) for number in MAPS]
    return with_threads(lambda: [oip.start_images(model.input_shape, keys, layer=LAYER).numpy()])


def calibrations(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    small, large = (oip.calibrate(model, images, LAYER, batch_size=size, progress=False)[LAYER] for size in (3, 256))
    return [small.maximum, small.mean], [large.maximum, large.mean]


def dtypes(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings), ascent(copy.deepcopy(model).double(), settings)


def devices(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return ascent(model, settings), ascent(copy.deepcopy(model).cuda(), settings)


def again_on_cuda(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    return again(copy.deepcopy(model).cuda(), settings, folder)


def tf32(model: FeatureModel, settings: AscentSettings, folder: Path) -> tuple[Arrays, Arrays]:
    cuda = copy.deepcopy(model).cuda()
    return ascent(cuda, settings), ascent(cuda, dataclasses.replace(settings, tf32=True))


PAIRS: dict[str, Pair] = {
    "nothing: the same call again": again,
    "the file is loaded again, in between": loaded_again,
    "results are saved and loaded": saved,
    "other maps in the same call": other_maps,
    "more starts of the same map": more_starts,
    "batch size 1 or 8": batches,
    "1 or 2 threads of torch": threads,
    "an atlas at once, or interrupted and resumed by more starts": atlas,
    "the start images, whatever the batch": starts_of_a_batch,
    "the start images, whatever the number of threads": starts_of_threads,
    "calibrated in batches of 3 or of 256": calibrations,
    "float32 or float64": dtypes,
    "CPU or CUDA": devices,
    "CUDA, the same call again": again_on_cuda,
    "CUDA, with TF32 (`tf32=True`) or without": tf32,
}


def rows() -> Iterator[tuple[str, str, int, str]]:
    """Of the table: what differs, dtype, steps, and the bound."""
    text = (ROOT / "docs" / "bit_equality.md").read_text(encoding="utf-8")
    for what, dtype, steps, bound in re.findall(r"^\| (.+?) \| (float\d\d) \| (\d+) \| (\S+) \|$", text, re.MULTILINE):
        yield what, dtype, int(steps), bound


ROWS = list(rows())


def test_the_table_has_all_that_is_checked() -> None:
    assert {row[0] for row in ROWS} == PAIRS.keys()


@pytest.mark.parametrize(("what", "dtype", "steps", "bound"), ROWS, ids=lambda part: re.sub(r"\W+", "_", str(part)))
def test_the_table(model: FeatureModel, what: str, dtype: str, steps: int, bound: str, tmp_path: Path) -> None:
    if "CUDA" in what and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")
    network = copy.deepcopy(model).double() if dtype == "float64" else model
    settings = AscentSettings(steps=max(1, steps), candidates=1)
    one, other = PAIRS[what](network, settings, tmp_path)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(b).any()
        if bound == "equal":
            np.testing.assert_array_equal(a, b)
        else:
            scale = max(1.0, float(np.nanmax(np.abs(a))))
            assert float(np.nanmax(np.abs(a.astype(np.float64) - b))) <= float(bound) * scale


# NaN and infinity


class Net(nn.Module):
    """Four convolutions; the third one overflows in float32, which the end hides if it is told to."""

    def __init__(self, scale: float = 1e30, *, hidden: bool = False, clipped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4, 4))
        self.hidden, self.last = hidden, nn.ReLU() if clipped else nn.Identity()
        self.set(scale)

    def set(self, scale: float) -> None:
        with torch.no_grad():
            self.second.weight.mul_(scale)
            self.third.weight.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.first(x).relu()).relu())
        return torch.sigmoid(x) if self.hidden else self.fourth(self.last(x))


DOMAIN = oip.Domain()


@pytest.fixture
def overflowing() -> FeatureModel:
    """Wrapped while it was sound; its weights have grown since."""
    model = oip.wrap(Net(1.0), (1, 8, 8), domain=DOMAIN)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("second.weight", "third.weight")):
                parameter.mul_(1e30)
    return model


NAMED = r"layer 'third' \(Conv2d\) gives NaN or infinite values .* and the layers before it do not"


def test_wrap_names_the_layer() -> None:
    with pytest.raises(InputError, match=r"infinite values for noise: .*the first to do so is 'third' \(Conv2d\)"):
        oip.wrap(Net(), (1, 8, 8), domain=DOMAIN)
    with pytest.raises(InputError, match=r"(not finite throughout|no finite gradient) on noise: .*'third' \(Conv2d\)"):
        oip.wrap(Net(hidden=True), (1, 8, 8), domain=DOMAIN)


def test_capture_and_calibrate_name_the_layer(overflowing: FeatureModel) -> None:
    with pytest.raises(InputError, match=NAMED), oip.capture(overflowing, "fourth"):
        overflowing(torch.randn(2, 1, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), np.uint8)
    with pytest.raises(InputError, match=NAMED):
        oip.calibrate(overflowing, images, "fourth", progress=False)
    assert overflowing.double()(torch.randn(2, 1, 8, 8, dtype=torch.float64)).isfinite().all()


def test_ascend_names_the_layer(overflowing: FeatureModel) -> None:
    settings = AscentSettings(steps=2, candidates=1)
    with pytest.raises(OipError, match=rf"left the finite numbers: .*for noise already {NAMED}"):
        oip.ascend(overflowing, "fourth", 0, settings=settings)
    assert len(oip.ascend(overflowing, "first", 0, settings=settings)) == 1  # what comes before it is sound


def test_nan_behind_a_relu_is_noticed() -> None:
    """The kernels of an ascent make 0 of NaN in a ReLU, and the map would be called dead: the final scores tell."""
    model = oip.wrap(Net(1.0, clipped=True), (1, 8, 8), domain=DOMAIN)
    with torch.no_grad():
        parameters = {name.removeprefix("graph_module."): values for name, values in model.named_parameters()}
        parameters["first.bias"].fill_(10)
        parameters["second.weight"].fill_(1e38)  # which gives infinity, and the next layer takes infinity from it
        parameters["third.weight"].copy_(torch.tensor([1, 1, -1, -1])[:, None, None].expand(4, 4, 3, 3))
    settings = AscentSettings.article(steps=2)
    with pytest.raises(OipError, match=r"left the finite numbers: .*for noise already layer 'second' "):
        oip.ascend(model, "fourth", [0, 1], settings=settings)


def test_load_names_the_layer(tmp_path: Path) -> None:
    """The last convolution's kernel is so large that its outputs overflow: in a file with a digest that fits."""
    import onnx
    from hostile.onnx_graph import written
    from onnx import numpy_helper

    proto = onnx.load(ROOT / "tests" / "data" / "rgb.onnx")
    for number in (0, 6):  # of the first and the second convolution
        tensor = proto.graph.initializer[number]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e25), tensor.name))
    path = written(tmp_path / "x.onnx", proto)
    with pytest.raises(InputError, match=r"x\.onnx: layer '\w+' \(\w+\) gives NaN or infinite values"):
        oip.load(path, device="cpu")


def test_images_that_are_not_finite_are_told_from_layers(model: FeatureModel) -> None:
    images = torch.full((1, 1, 28, 28), torch.nan)
    with pytest.raises(InputError, match="the images hold NaN or infinite values"):
        model(images)


def test_masks_of_minus_infinity_are_taken() -> None:
    class Masked(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return torch.softmax(x.masked_fill(torch.tensor([True, False] * 4), -torch.inf), -1)

    model = oip.wrap(Masked(1.0), (1, 8, 8), domain=DOMAIN)
    assert model(torch.randn(2, 1, 8, 8)).isfinite().all()
