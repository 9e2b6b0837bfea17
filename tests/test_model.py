"""The torch module: its precision, what it takes, and its weights, which may change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from conftest import nchw

import oip_torch
from oip_torch import AscentSettings, FeatureModel, InputError, ascend, assess, calibrate, load
from oip_torch.optim.objectives import map_mean

LAYER = "Conv2D_3"


def test_a_copy_computes_in_float64(model: FeatureModel) -> None:
    images = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(3))
    model.up_to("Conv2D_3")(images)  # a truncated network exists before the copy is made
    double = copy.deepcopy(model).double()
    assert double.dtype == torch.float64
    for name in model.layers.names:
        for before in (False, True):
            wide = double.up_to(name, pre_activation=before)(images.double())
            assert wide.dtype == torch.float64
            torch.testing.assert_close(
                wide.float(), model.up_to(name, pre_activation=before)(images), rtol=0, atol=1e-4
            )
    assert model.dtype == torch.float32
    assert model.up_to("Conv2D_3")(images).dtype == torch.float32
    back = double.to("cpu", torch.float32)
    assert torch.equal(back.up_to("Dense_2")(images), model(images))


def test_the_parameters_are_frozen_and_the_model_in_eval_mode(model: FeatureModel) -> None:
    assert not model.training
    assert len(list(model.parameters())) > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_standardize_takes_the_layout_of_mnist_npz(
    model: FeatureModel, digits: tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
) -> None:
    images = digits[0][:3]
    expected = ((images.astype(np.float64) - 33.318421) / 78.567490)[:, None]
    for layout in (images, images[..., None]):
        np.testing.assert_allclose(model.standardize(layout).numpy(), expected, rtol=1e-6)
    with pytest.raises(oip_torch.InputError, match=r"shape \(3, 784\): expected \(batch, 28, 28\[, 1\]\)"):
        model.standardize(images.reshape(3, 784))


# Weights that change


def halve(model: FeatureModel) -> None:
    with torch.no_grad():
        model.module_of("Conv2D_1", pre_activation=True).weight.mul_(0.5)


def halve_data(model: FeatureModel) -> None:
    model.module_of("Conv2D_1", pre_activation=True).weight.data *= 0.5


def load_others(model: FeatureModel) -> None:
    state = {name: tensor * 0.5 if "weight" in name else tensor for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)


def assign_others(model: FeatureModel) -> None:
    state = {
        name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)


def replace(model: FeatureModel) -> None:
    convolution = model.module_of("Conv2D_2", pre_activation=True)
    convolution.weight = torch.nn.Parameter(convolution.weight.detach() * 0.7)


def fine_tune(model: FeatureModel) -> None:
    model.requires_grad_(True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("change", [halve, halve_data, load_others, assign_others, replace, fine_tune])
@pytest.mark.parametrize("settings", [AscentSettings.article(steps=5), AscentSettings.within(60)])
def test_the_weights_in_use_are_looked_at(
    model: FeatureModel, change: Callable[[FeatureModel], None], settings: AscentSettings
) -> None:
    own = copy.deepcopy(model)
    before = ascend(own, LAYER, [0, 3], settings=settings)
    assert before.provenance.weights == "as converted"
    assert before.provenance.fingerprint == own.fingerprint == own.network.graph_sha256
    change(own)
    after = ascend(own, LAYER, [0, 3], settings=settings)
    with torch.no_grad():
        said = map_mean(own.up_to(LAYER)(nchw(after.images)), torch.tensor([0, 3])).numpy()
        first = map_mean(own.up_to(LAYER)(nchw(after.snapshots[:, 0])), torch.tensor([0, 3])).numpy()
    assert after.scores == pytest.approx(said, rel=1e-4)
    assert after.traces[:, 0] == pytest.approx(first, rel=1e-4, abs=1e-6)
    assert not np.allclose(after.scores, before.scores, rtol=1e-2)
    assert after.provenance.weights == "changed since the conversion"
    assert after.provenance.fingerprint == own.fingerprint != own.network.graph_sha256
    calibration = calibrate(own, np.arange(784).reshape(1, 28, 28) % 250, LAYER, top=1)
    with pytest.raises(InputError, match="this calibration is of another network"):
        calibration.check(before)
    calibration.check(after)
    assess(own, after, calibration)
    with pytest.raises(InputError, match="made with another network"):
        assess(own, before)


def test_a_fingerprint_is_that_of_the_weights_wherever_they_are(model: FeatureModel, mnist_onnx: Path) -> None:
    own = load(mnist_onnx, device="cpu")
    assert own.fingerprint == model.fingerprint == own.network.graph_sha256
    assert copy.deepcopy(own).double().fingerprint == own.fingerprint
    halve(own)
    changed = own.fingerprint
    halve(own)
    with torch.no_grad():
        own.module_of("Conv2D_1", pre_activation=True).weight.mul_(4.0)  # exactly what they were
    assert own.fingerprint == model.fingerprint != changed


def test_an_unchecked_file_s_digest_is_that_of_what_it_holds(mnist_onnx: Path, tmp_path: Path) -> None:
    proto = onnx.load(mnist_onnx)
    weights = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * 0.5, weights.name))
    onnx.save(proto, tmp_path / "other.onnx")
    own, other = load(mnist_onnx, device="cpu"), load(tmp_path / "other.onnx", device="cpu", check=False)
    assert own.fingerprint != other.fingerprint


# What torch makes of modules


@pytest.fixture(scope="module")
def resnet18() -> FeatureModel:
    import torchvision

    torch.manual_seed(0)
    return oip_torch.wrap(torchvision.models.resnet18(weights=None), (3, 32, 32))


@pytest.mark.parametrize("name", ["model", pytest.param("resnet18", marks=pytest.mark.slow)])
def test_it_is_exported_and_compiled_with_an_open_batch(name: str, request: pytest.FixtureRequest) -> None:
    """Whole, without a break of the graph; "eager" runs what torch.compile traced."""
    network: FeatureModel = request.getfixturevalue(name)
    images = torch.randn(4, *network.input_shape, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    compiled = torch.compile(network, backend="eager", fullgraph=True, dynamic=True)
    for count in (4, 1, 2):
        expected = network(images[:count])
        torch.testing.assert_close(exported.module()(images[:count]), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(compiled(images[:count]), expected, rtol=0, atol=1e-6)
