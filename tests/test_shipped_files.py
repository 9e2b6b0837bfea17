"""The ONNX files that lie in the project are what a conversion of their sources gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import oip_torch
from oip_torch.base.files import sha256


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/mnist_cnn.onnx", "mnist_cnn.keras"),
        ("tests/data/smooth.onnx", "smooth.keras"),
        ("tests/data/rgb.onnx", "rgb.keras"),
    ],
)
def test_a_file_of_the_project_is_its_source_converted(
    converted: Callable[[str], Path], file: str, source: str
) -> None:
    """Not byte by byte, since conversions count their nodes on; by the layers' table and by all that they compute."""
    ours, anew = (oip_torch.load(path, device="cpu") for path in (ROOT / file, converted(source)))
    images = torch.randn(4, *ours.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs, expected = ours.every_layer(images), anew.every_layer(images)
    assert list(outputs) == list(expected)
    for name, output in outputs.items():
        assert torch.allclose(output, expected[name], rtol=0, atol=1e-6 * float(expected[name].abs().max())), name
    for mine, fresh in zip(ours.layers, anew.layers, strict=True):
        assert {**mine.row(), "max_error": 0} == {**fresh.row(), "max_error": 0}
        assert mine.max_error is not None
        assert mine.max_error <= 1e-5
    assert ours.domain == anew.domain


def test_the_shipped_onnx_file_names_the_shipped_keras_file(shipped: Path, model: oip_torch.FeatureModel) -> None:
    assert model.network.source == shipped.name
    assert model.network.source_sha256 == sha256(shipped)
