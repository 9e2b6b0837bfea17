"""The same start images ascend alike in TensorFlow and in torch, to the last digits; so do resizing and standardising.

The TensorFlow side is written out by hand from the equations in docs/guide.md, and shares no code with oip_torch.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import nchw, run_tensorflow

import oip_torch
from oip_torch.base.tensors import standardize
from oip_torch.optim.starts import enlarge

pytestmark = pytest.mark.slow

LAYER = "Conv2D_3"
STEPS_64, STEPS_32 = 600, 50
SIZES = [
    *[((side, side), (28, 28)) for side in (3, 4, 7, 14, 28, 1, 27)],
    *[((5, 8), (20, 32)), ((2, 9), (20, 32)), ((56, 56), (28, 28)), ((40, 33), (17, 11))],
]
Arrays = dict[str, npt.NDArray[np.floating]]

TENSORFLOW = """
import sys
import keras
import numpy as np
import tensorflow as tf

model_file, folder, steps_64, steps_32 = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
given = np.load(f"{folder}/given.npz")
found = {}


def network(dtype):
    model = keras.models.load_model(model_file, compile=False)
    image = x = keras.Input((28, 28, 1), dtype=dtype)
    for layer in model.layers:
        again = type(layer).from_config({**layer.get_config(), "dtype": dtype})
        x = again(x)
        again.set_weights([weight.astype(dtype) for weight in layer.get_weights()])
        if layer.name == "Conv2D_3":
            return keras.Model(image, x)


def standardize_64(x):
    mean = tf.reduce_mean(x, (1, 2, 3), keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean((x - mean) ** 2, (1, 2, 3), keepdims=True))
    return (x - mean) / tf.maximum(deviation, 1 / np.sqrt(28 * 28))


def ascent(dtype, standardize, steps):
    model, maps = network(dtype), tf.constant(given["maps"])

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            activations = model(x, training=False)
            score = tf.gather(tf.reduce_mean(activations, (1, 2)), maps, batch_dims=1)
        gradient = tape.gradient(score, x)
        gradient /= tf.sqrt(tf.reduce_mean(gradient**2, (1, 2, 3), keepdims=True)) + 1e-7
        return standardize(x + 0.01 * gradient), score

    x, scores = tf.constant(given[f"starts_{dtype}"]), []
    assert x.dtype == dtype
    for _ in range(steps):
        x, score = step(x)
        assert score.dtype == dtype
        scores.append(score.numpy())
    found[f"traces_{dtype}"], found[f"images_{dtype}"] = np.stack(scores, 1), x.numpy()


ascent("float64", standardize_64, steps_64)
ascent("float32", tf.image.per_image_standardization, steps_32)
for name in given.files:
    if name.startswith("grid_"):
        size = given["size_" + name.removeprefix("grid_")]
        found[name] = tf.image.resize(given[name], size, method="bicubic", antialias=True).numpy()
    if name.startswith("image_"):
        found[name] = tf.image.per_image_standardization(given[name]).numpy()
np.savez(f"{folder}/found.npz", **found)
"""


@pytest.fixture(scope="module")
def ascents(model: oip_torch.FeatureModel) -> dict[str, oip_torch.Oips]:
    """Torch's, by dtype: of eight maps that respond to their start images, spread over the layer."""
    article = oip_torch.AscentSettings.article
    first = oip_torch.ascend(model, LAYER, settings=article(steps=10))
    live = first.maps[(first.traces[:, 0] > 0) & (first.scores > first.traces[:, 0])]
    assert len(live) >= 8
    maps = live[np.linspace(0, len(live) - 1, 8).astype(int)].tolist()
    return {
        "float64": oip_torch.ascend(copy.deepcopy(model).double(), LAYER, maps, settings=article(steps=STEPS_64)),
        "float32": oip_torch.ascend(model, LAYER, maps, settings=article(steps=STEPS_32)),
    }


@pytest.fixture(scope="module")
def given(model: oip_torch.FeatureModel, ascents: dict[str, oip_torch.Oips]) -> Arrays:
    rng = np.random.default_rng(0)
    maps = ascents["float64"].maps
    starts = oip_torch.start_images(model.input_shape, [(int(number), 0) for number in maps], layer=LAYER)
    arrays: Arrays = {"maps": maps}
    for dtype, oips in ascents.items():
        # The images of step 0, since each ascent standardises its start in its own dtype.
        arrays[f"starts_{dtype}"] = oips.snapshots[:, 0]
        np.testing.assert_allclose(nchw(oips.snapshots[:, 0]), starts, rtol=0, atol=1e-6)
    for index, (grid, size) in enumerate(SIZES):
        for channels in (1, 3):
            arrays[f"grid_{index}_{channels}"] = rng.uniform(-1, 1, (2, *grid, channels)).astype(np.float32)
            arrays[f"size_{index}_{channels}"] = np.array(size)
    arrays["image_noise"] = rng.normal(5, 3, (4, 28, 28, 1)).astype(np.float32)
    arrays["image_colour"] = rng.normal(-1, 0.5, (3, 20, 32, 3)).astype(np.float32)
    arrays["image_uniform"] = np.full((2, 28, 28, 1), 7, np.float32)
    arrays["image_nearly_uniform"] = 1 + rng.normal(0, 1e-3, (2, 28, 28, 1)).astype(np.float32)  # below the floor
    return arrays


@pytest.fixture(scope="module")
def tensorflow(given: Arrays, shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    """What TensorFlow makes of `given`, all in one process."""
    folder = tmp_path_factory.mktemp("tensorflow")
    np.savez(folder / "given.npz", **given)
    run_tensorflow(TENSORFLOW, shipped, folder, str(STEPS_64), str(STEPS_32))
    return dict(np.load(folder / "found.npz"))


def relative(got: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    assert got.shape == expected.shape
    assert (expected != 0).all()
    return float((np.abs(got - expected) / np.abs(expected)).max())


def test_ascents_agree_in_float64_over_all_steps(ascents: dict[str, oip_torch.Oips], tensorflow: Arrays) -> None:
    """Measured: 2.0e-15."""
    oips = ascents["float64"]
    assert oips.traces.dtype == tensorflow["traces_float64"].dtype == np.float64
    assert oips.traces.shape == (8, STEPS_64)
    assert (oips.traces[:, -1] > 2 * oips.traces[:, 0]).all()  # they do ascend
    assert relative(oips.traces, tensorflow["traces_float64"]) < 1e-9
    np.testing.assert_allclose(oips.images, tensorflow["images_float64"], rtol=0, atol=1e-9)


def test_ascents_agree_in_float32_over_the_first_steps(ascents: dict[str, oip_torch.Oips], tensorflow: Arrays) -> None:
    """Measured: 1.6e-6. Some maps diverge, where a ReLU switches one step earlier: by less than a step of 0.01.

    Of the pixels 12 of 6,272 were further apart than 1e-3, by 2.7e-3 at most; in float64 none is, over all 600 steps.
    """
    oips = ascents["float32"]
    assert oips.traces.dtype == tensorflow["traces_float32"].dtype == np.float32
    assert relative(oips.traces, tensorflow["traces_float32"]) < 1e-4
    apart = np.abs(oips.images - tensorflow["images_float32"])
    assert (apart < 1e-3).mean() > 0.99
    assert apart.max() < 1e-2


def test_the_comparison_would_notice_a_slightly_different_step(
    model: oip_torch.FeatureModel, ascents: dict[str, oip_torch.Oips], tensorflow: Arrays
) -> None:
    settings = oip_torch.AscentSettings.article(steps=STEPS_32, epsilon=0.0101)
    oips = oip_torch.ascend(model, LAYER, ascents["float32"].maps.tolist(), settings=settings)
    assert relative(oips.traces, tensorflow["traces_float32"]) > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("index", range(len(SIZES)), ids=[f"{a}-{b}" for a, b in SIZES])
def test_enlarging_is_the_bicubic_of_tensorflow(given: Arrays, tensorflow: Arrays, index: int, channels: int) -> None:
    """Measured: at most 2.0e-6, for values from -1 to 1; up and down, from any side."""
    name = f"grid_{index}_{channels}"
    got = enlarge(nchw(given[name]), *SIZES[index][1])
    expected = nchw(tensorflow[name])
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["image_noise", "image_colour", "image_uniform", "image_nearly_uniform"])
def test_standardizing_is_that_of_tensorflow(given: Arrays, tensorflow: Arrays, name: str) -> None:
    """Measured: at most 3.3e-6; a uniform image becomes 0, and is not divided by 0."""
    got = standardize(nchw(given[name]))
    torch.testing.assert_close(got, nchw(tensorflow[name]), rtol=0, atol=1e-5)
    if name == "image_uniform":
        assert not got.any()
