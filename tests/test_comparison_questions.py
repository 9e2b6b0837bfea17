"""What every runtime is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import oip_torch
from oip_torch.base.tensors import to_tensor
from oip_torch.comparison.answers import count_progress
from oip_torch.comparison.questions import default_layer, prepare_questions, spread_channels
from oip_torch.comparison.runtimes import BEFORE


def test_channels_are_spread_over_a_large_layer() -> None:
    assert spread_channels(5) == [0, 1, 2, 3, 4]
    many = spread_channels(1000)
    assert len(many) == 64
    assert (many[0], many[-1]) == (0, 999)


def test_the_last_convolution_is_ascended_by_default(model: oip_torch.FeatureModel) -> None:
    assert default_layer(model) == "Conv2D_3"


def test_the_questions_are_the_same_again_and_ask_for_strong_channels(mnist_onnx: Path) -> None:
    model = oip_torch.load(mnist_onnx, device="cpu")
    asked, again = (prepare_questions(model, "Dense_2", [1, 4], pre_activation=True, steps=7, seed=3) for _ in range(2))
    assert list(asked.images) == ["noise", "digits", "OIPs"]
    for kind, rows in asked.kinds.items():
        np.testing.assert_array_equal(asked.all_images[rows], asked.images[kind])
        np.testing.assert_array_equal(asked.images[kind], again.images[kind])
    assert asked.kinds["OIPs"].stop == len(asked.all_images)
    np.testing.assert_array_equal(asked.starts, again.starts)
    assert asked.starts.shape == (2, 28, 28, 1)
    assert asked.starts.dtype == asked.all_images.dtype == np.float64
    assert asked.tap == f"{BEFORE}Dense_2"
    assert list(asked.gradient_channels) == [*model.layers.names, asked.tap]
    np.testing.assert_array_equal(asked.gradient_images, again.gradient_images)
    grain = asked.gradient_images - asked.all_images
    np.testing.assert_allclose(grain.std((1, 2, 3)), 0.01 * asked.all_images.std((1, 2, 3)), rtol=1e-5)
    outputs = model.every_layer(to_tensor(asked.gradient_images.astype(np.float32)))
    means = outputs["Conv2D_3"].mean((2, 3)).detach().numpy()
    own = means[np.arange(len(means)), asked.gradient_channels["Conv2D_3"]]
    assert ((means > own[:, None]).sum(1) < 4).all()  # one of the four strongest
    assert len(set(asked.gradient_channels["Conv2D_3"].tolist())) > 4


def test_no_neighbours_are_equal_where_gradients_are_taken(mnist_onnx: Path) -> None:
    """A max pooling hands the gradient to one of them; on a flat ground which one it is would be chance."""
    model = oip_torch.load(mnist_onnx, device="cpu")
    asked = prepare_questions(model, "Conv2D_1", [0], pre_activation=False, steps=2, seed=0)
    model.double()

    def gaps(images: np.ndarray) -> np.ndarray:
        """Of the two largest in each window of the first pooling, over the largest of all; of those that respond."""
        maps = model.every_layer(to_tensor(images, dtype=torch.float64))["Conv2D_2"].detach()[:, :, :10, :10]
        windows = maps.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).sort(4).values
        return ((windows[..., 3] - windows[..., 2])[windows[..., 3] > 0] / maps.max()).numpy()

    assert (gaps(asked.all_images) < 1e-13).any()
    assert (gaps(asked.gradient_images) > 1e-13).all()


def test_the_progress_counts_a_float64_ascent_twice() -> None:
    assert count_progress(["onnxruntime"]) == 1
    assert count_progress(["torch", "onnxruntime", "torch-cuda-tf32"]) == (1 + 3) + 1 + (1 + 1)
