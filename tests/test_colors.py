"""Decorrelated colours: the channels of what is optimised are mixed as those of the data are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from oip_torch import AscentSettings, Decorrelated, FeatureModel, Fourier, InputError, ascend, start_images
from oip_torch.optim.decoder import Decoder


def correlations(x: Any) -> Any:
    """Of the channels, over all places of all images (N, C, H, W)."""
    return np.corrcoef(np.asarray(x).transpose(1, 0, 2, 3).reshape(x.shape[1], -1))


def of(colors: Decorrelated) -> Any:
    """The correlation that a matrix stands for."""
    covariance = np.array(colors.matrix) @ np.array(colors.matrix).T
    return covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))


@pytest.mark.parametrize("image", [None, Fourier()])
def test_a_start_has_the_data_s_correlations_of_colours(image: Any) -> None:
    noise = start_images((3, 16, 20), [(map, 0) for map in range(400)])
    natural = Decorrelated.natural()
    decoder = Decoder(colors=natural) if image is None else Decoder(image=image, colors=natural)
    x = decoder.decode(decoder.settle(decoder.of_noise(noise)))
    assert np.abs(correlations(noise) - np.eye(3)).max() < 0.15
    assert correlations(x) == pytest.approx(of(natural), abs=0.06)
    assert of(natural)[0, 1] > 0.9  # red and green of natural images


def test_in_an_ascent(rgb: FeatureModel) -> None:
    snapshots = {}
    for colors in (None, Decorrelated.natural()):
        settings = AscentSettings(steps=2, candidates=1, snapshots=(0,), colors=colors)
        oips = ascend(rgb, "wide", starts=8, settings=settings)
        snapshots[colors] = oips.snapshots[:, 0].transpose(0, 3, 1, 2)
    assert np.abs(correlations(snapshots[None])[np.triu_indices(3, 1)]).max() < 0.3
    assert correlations(snapshots[Decorrelated.natural()])[0, 1] > 0.8


def test_the_matrix_of_images_is_the_root_of_their_correlation() -> None:
    stream = np.random.default_rng(0)
    grey, own = stream.uniform(50, 150, (20, 6, 7, 1)), stream.uniform(0, 60, (20, 6, 7, 3))
    images = grey + own * [1.0, 0.3, 1.5]
    colors = Decorrelated.of(images)
    assert of(colors) == pytest.approx(np.corrcoef(images.reshape(-1, 3).T), abs=1e-9)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    assert torch.allclose(colors.separate(colors.mix(x)), x)
    wide = Decorrelated(matrix=np.array(colors.matrix) * 7)  # type: ignore[arg-type]
    assert torch.allclose(wide.mix(x), colors.mix(x))
    assert colors.mix(torch.randn(4000, 3, 2, 2)).square().mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decorrelated(matrix=((1.0, 0.0),)), "matrix is .*: expected as many rows as columns"),  # type: ignore[arg-type]
        (lambda: Decorrelated(matrix=3), "matrix is 3"),  # type: ignore[arg-type]
        (lambda: Decorrelated(matrix=((1.0, 1.0), (1.0, 1.0))), "expected one that can be inverted"),
        (lambda: Decorrelated(matrix=((0.0,),)), "expected one that can be inverted"),
        (lambda: Decorrelated(matrix=((1.0, float("nan")), (0.0, 1.0))), "a number of the matrix is nan"),
        (lambda: Decorrelated.of(np.full((4, 5, 6, 1), 9)), "expected two channels or more"),
        (lambda: Decorrelated.of(np.full((4, 5, 6, 3), 9)), "a channel of the images is of one value"),
        (lambda: Decorrelated.of("photos"), "expected images"),  # type: ignore[arg-type]
        (lambda: AscentSettings(colors="natural"), r"colors is 'natural': expected Decorrelated\(…\), or None"),  # type: ignore[arg-type]
    ],
)
def test_wrong_values(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_another_number_of_channels_is_refused(model: FeatureModel) -> None:
    with pytest.raises(InputError, match="the colours are of 3 channels: expected 1, as the network's images have"):
        ascend(model, "Conv2D_3", 0, settings=AscentSettings(colors=Decorrelated.natural()))
