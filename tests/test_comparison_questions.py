"""What every runtime is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    np.testing.assert_array_equal(asked.gradient_images, np.concatenate([asked.images["noise"], asked.images["OIPs"]]))
    outputs = model.every_layer(to_tensor(asked.gradient_images.astype(np.float32)))
    means = outputs["Conv2D_3"].mean((2, 3)).detach().numpy()
    own = means[np.arange(len(means)), asked.gradient_channels["Conv2D_3"]]
    assert ((means > own[:, None]).sum(1) < 4).all()  # one of the four strongest
    assert len(set(asked.gradient_channels["Conv2D_3"].tolist())) > 4


def test_the_progress_counts_a_float64_ascent_twice() -> None:
    assert count_progress(["onnxruntime"]) == 1
    assert count_progress(["torch", "onnxruntime", "torch-cuda-tf32"]) == (1 + 3) + 1 + (1 + 1)
