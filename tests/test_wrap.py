"""Torch modules of the user's own: their layers, the same values as theirs, and OIPs as a plain loop makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import nchw
from torch import Tensor, nn

import oip_torch
import oip_torch.analysis.calibration as calibration_module
from oip_torch import AscentSettings, ConversionError, Domain, FeatureModel, InputError, Oips, capture, wrap

STEPS = 6
NATURAL = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
OWN = {"mean": (0.5, 0.25, 0.5), "std": (0.5, 0.2, 0.25)}

# name, keywords, image size, a layer in the middle of it
NETWORKS = [
    pytest.param("resnet18", {}, 32, "layer3.1.conv2", id="resnet18"),
    pytest.param("vgg11", {}, 32, "features.8", id="vgg11", marks=pytest.mark.slow),
    pytest.param("mobilenet_v3_small", {}, 32, "features.4.block.1.0", id="mobilenet", marks=pytest.mark.slow),
    pytest.param(
        "densenet121", {}, 32, "features.denseblock3.denselayer2.conv2", id="densenet", marks=pytest.mark.slow
    ),
    pytest.param("convnext_tiny", {}, 32, "features.3.1.block.3", id="convnext_tiny", marks=pytest.mark.slow),
    pytest.param("swin_t", {}, 32, "features.3.0.mlp.0", id="swin_t", marks=pytest.mark.slow),
    pytest.param(
        "vit_b_16", {"image_size": 32}, 32, "encoder.layers.encoder_layer_3.mlp.0", id="vit", marks=pytest.mark.slow
    ),
]


def hooked(module: nn.Module, path: str, images: Tensor) -> Any:
    """What a module's submodule gives, by a hook on the module itself."""
    caught = []
    part = module.get_submodule(path)
    handle = part.register_forward_hook(lambda _, __, output: caught.append(output.clone()))
    try:
        module(images)
    finally:
        handle.remove()
    return caught[-1]


def as_maps(output: Tensor) -> Tensor:
    """Transformers' channels come last."""
    return output.movedim(-1, 1).flatten(2)


def plain_loop(
    module: nn.Module, path: str, x: Tensor, channels: Tensor, steps: int, *, last: bool, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """The article's ascent by hand on the module itself: traces (n, steps), and the scores of the final images (n,)."""

    def score(images: Tensor) -> Tensor:
        maps = hooked(module, path, mean + std * images)
        maps = as_maps(maps) if last else maps.flatten(2)
        return maps[torch.arange(len(images)), channels].mean(1)

    traces = []
    for _ in range(steps):
        x = x.detach().requires_grad_()
        scores = score(x)
        traces.append(scores.detach())
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        x = x.detach() + 0.01 * gradient / (gradient.square().mean((1, 2, 3), keepdim=True).sqrt() + 1e-7)
        x = x - x.mean((1, 2, 3), keepdim=True)
        x = x / x.square().mean((1, 2, 3), keepdim=True).sqrt()
    with torch.no_grad():
        return torch.stack(traces, 1), score(x)


@pytest.mark.parametrize(("name", "keywords", "size", "layer"), NETWORKS)
def test_torchvision_s_networks(name: str, keywords: dict[str, Any], size: int, layer: str) -> None:
    import torchvision

    torch.manual_seed(0)
    module = getattr(torchvision.models, name)(weights=None, **keywords).eval()
    model = wrap(module, (3, size, size), **OWN)
    assert model.network.verification["max_error"] <= 1e-6

    names = [name for name in model.layers.names if "@" not in name]
    assert len(set(names)) == len(names) > 15
    paths = {path for path, part in module.named_modules() if not list(part.children()) and path in names}
    own = [
        path
        for path, part in module.named_modules()
        if isinstance(part, (nn.Conv2d, nn.Linear)) and "self_attention" not in path and "attn" not in path
    ]
    assert set(own) <= paths  # every convolution and dense layer that is not inside an attention

    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    chosen = [*sorted(paths)[:: max(1, len(paths) // 8)], layer]
    with torch.no_grad(), capture(model, *chosen) as maps:
        output = model(images)
        assert torch.equal(output, module(images))
        for path in dict.fromkeys(chosen):
            expected, got = hooked(module, path, images), maps[path]
            assert got.shape[1] == model.layers[path].maps
            if got.shape != expected.shape:  # channels last, or tokens
                expected, got = as_maps(expected), got.flatten(2)
            assert torch.equal(got, expected), path

    settings = AscentSettings.article(steps=STEPS, snapshots=(0,))
    oips = oip_torch.ascend(model, layer, range(8), settings=settings)
    last = isinstance(module.get_submodule(layer), nn.Linear)
    mean, std = (torch.tensor(OWN[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    data_mean, data_std = (
        (torch.tensor(v) / 255).view(1, 3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    domain = torch.tensor(model.domain.mean).view(1, -1, 1, 1), torch.tensor(model.domain.std).view(1, -1, 1, 1)
    torch.testing.assert_close(domain[0], ((data_mean - mean) / std).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(domain[1], (data_std / std).float(), rtol=1e-5, atol=1e-6)
    traces, scores = plain_loop(
        module, layer, nchw(oips.snapshots[:, 0]), torch.arange(8), STEPS, last=last, mean=domain[0], std=domain[1]
    )
    scale = float(traces.abs().max())
    torch.testing.assert_close(torch.from_numpy(oips.traces), traces, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(torch.from_numpy(oips.scores), scores, rtol=1e-5, atol=1e-6 * scale)
    assert (oips.scores > oips.traces[:, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keywords", "layer"),
    [
        ("resnet18", {}, "layer3.1.conv2"),
        ("mobilenetv3_small_100", {}, "blocks.2.0.conv_dw"),
        ("convnext_atto", {}, "stages.2.blocks.1.mlp.fc1"),
        ("vit_tiny_patch16_224", {"img_size": 32}, "blocks.3.mlp.fc1"),
    ],
)
def test_timm_s_networks(name: str, keywords: dict[str, Any], layer: str) -> None:
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, **keywords).eval()
    model = wrap(module, (3, 32, 32), **OWN)
    own = {path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    assert own <= set(model.layers.names)
    oips = oip_torch.ascend(model, layer, range(4), settings=AscentSettings.article(steps=STEPS, snapshots=(0,)))
    last = isinstance(module.get_submodule(layer), nn.Linear)
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in (model.domain.mean, model.domain.std))
    x, channels = nchw(oips.snapshots[:, 0]), torch.arange(4)
    traces, scores = plain_loop(module, layer, x, channels, STEPS, last=last, mean=mean, std=std)
    scale = float(traces.abs().max())
    torch.testing.assert_close(torch.from_numpy(oips.traces), traces, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(torch.from_numpy(oips.scores), scores, rtol=1e-5, atol=1e-6 * scale)


class WithDefaults(nn.Module):
    """Arguments that have a default are not inputs of the network, as a vision transformer's mask."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, factor: float = 2.0, square: bool = False) -> Tensor:
        x = self.conv(x) if mask is None else self.conv(x) * mask
        return F.relu(x * factor if not square else x.square())


def test_arguments_keep_their_defaults() -> None:
    module = WithDefaults()
    model = wrap(module, (3, 8, 8), **NATURAL)
    assert model.network.verification["traced_by"] == "torch.fx"
    assert [node.op for node in model.graph_module.graph.nodes].count("placeholder") == 1
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model(x), module(x))
    oips = oip_torch.ascend(model, "relu", [0], settings=AscentSettings.within(20))
    assert oips.scores[0] > 0


class Net(nn.Module):
    """What people write: a ReLU for all, in place and as a function, a residual, dropout, and control flow by sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)

    def body(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv1(x)))
        z = self.conv2(y)
        z.mul_(2.0)
        z += y
        self.relu(z)
        return F.max_pool2d(F.relu(z - 0.2, inplace=True), 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.fc(self.drop(self.body(x).mean((2, 3)))), dim=1)


class BySize(Net):
    """torch.fx cannot trace this one."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 8:
            x = x * 1.0
        x = x.clone()
        x[:, 0] = x[:, 0] * 0.5
        return super().forward(x)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        module.bn.running_mean.uniform_(-0.5, 0.5)
        module.bn.running_var.uniform_(0.5, 2.0)
        module.bn.weight.uniform_(0.5, 1.5)
    return module


@pytest.fixture(scope="module")
def wrapped(net: Net) -> FeatureModel:
    return wrap(net, (3, 12, 10), **NATURAL)


LAYERS = ["conv1", "bn", "relu@1", "conv2", "mul", "add", "relu@2", "sub", "relu@3", "max_pool2d", "mean", "fc"]


def test_a_shared_relu_has_two_layers_and_a_function_one(net: Net, wrapped: FeatureModel) -> None:
    assert [name for name in wrapped.layers.names if name != "softmax"] == LAYERS
    x = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    own = Net().eval()
    own.load_state_dict(net.state_dict())
    with torch.no_grad():
        conv1 = own.conv1(x)
        first = own.bn(conv1).relu()
        summed = 2 * own.conv2(first) + first
        third = (summed.relu() - 0.2).relu()
        expected = {
            "conv1": conv1,
            "bn": own.bn(conv1),
            "relu@1": first,
            "conv2": own.conv2(first),
            "mul": 2 * own.conv2(first),
            "add": summed,
            "relu@2": summed.relu(),
            "relu@3": third,
        }
        with capture(wrapped, *expected) as maps, capture(wrapped, "relu@2", pre_activation=True) as before:
            output = wrapped(x)
    assert torch.equal(output, own(x))
    for name, values in expected.items():
        torch.testing.assert_close(maps[name], values, rtol=0, atol=1e-6)
    torch.testing.assert_close(before["relu@2"], summed, rtol=0, atol=1e-6)
    assert wrapped.layers["relu@2"].activation == "relu"
    assert wrapped.layers["max_pool2d"].size == "6×5"
    leaking = oip_torch.ascend(wrapped, "add", [0], settings=AscentSettings.within(20)).provenance.leaking
    assert leaking == {"relu@1": "relu"}


def test_a_leak_recovers_a_map_that_is_silent_on_its_start() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    with torch.no_grad():
        module[0].bias.fill_(-1.2)
    model = wrap(module, (1, 14, 14), mean=0.0, std=1.0, data=np.arange(196).reshape(1, 14, 14))
    for layer in ("1", "2"):
        plain = oip_torch.ascend(model, layer, settings=AscentSettings.article(steps=40, snapshots=()))
        ours = oip_torch.ascend(model, layer, settings=AscentSettings.within(100))
        assert (plain.scores == 0).any()
        assert (ours.scores > 0).all()
        assert ours.provenance.leaking == {"1": "relu"}


def test_what_fx_cannot_trace_torch_export_does(net: Net) -> None:
    module = BySize()
    module.load_state_dict(net.state_dict())
    model = wrap(module, (3, 12, 10), **NATURAL)
    assert model.network.verification["traced_by"] == "torch.export"
    assert {"conv1", "bn", "relu@1", "conv2", "relu@2", "fc"} < set(model.layers.names)
    x = torch.randn(1, 3, 12, 10)
    module.eval()
    with torch.no_grad(), capture(model, "bn", "conv2") as maps:
        assert torch.allclose(model(x), module(x), atol=1e-6)
        assert torch.allclose(maps["conv2"], hooked(module, "conv2", x), atol=1e-6)
    oips = oip_torch.ascend(model, "conv2", [0, 1], settings=AscentSettings.within(40))
    assert (oips.scores > oips.traces[:, 0]).all()


def test_the_module_stays_as_it_is(net: Net) -> None:
    calls: list[int] = []
    net.train()
    net.bn.eval()
    net.conv1.weight.requires_grad_(False)
    handle = net.conv2.register_forward_hook(lambda *_: calls.append(1))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [part.training for part in net.modules()]
    try:
        model = wrap(net, (3, 12, 10), **NATURAL)
        oip_torch.ascend(model, "conv2", [0], settings=AscentSettings.article(steps=2))
        assert calls == []
        assert len(net.conv2._forward_hooks) == 1
    finally:
        handle.remove()
        net.conv1.weight.requires_grad_(True)
    assert [part.training for part in net.modules()] == modes
    assert net.relu.inplace
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model.graph_module.conv1.weight.mul_(2)
    assert torch.equal(net.conv1.weight, state["conv1.weight"])


def test_everything_else_works_on_it_as_well(wrapped: FeatureModel, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 10, 3), np.uint8)
    calibration = oip_torch.calibrate(wrapped, images, ["conv2", "relu@2", "softmax"])
    oips = oip_torch.ascend(wrapped, "relu@2", [1, 4], starts=2, settings=AscentSettings.within(40))
    quality = oip_torch.assess(wrapped, oips, calibration)
    assert len(quality.to_xarray()["image"]) == 4
    control = oip_torch.noise_control(wrapped, oips, draws=2)
    assert "2" in control.summary or control.summary
    oips.save(tmp_path / "oips.nc")
    again = Oips.load(tmp_path / "oips.nc")
    assert np.array_equal(again.images, oips.images)
    assert again.provenance.source == "Net"
    assert again.provenance.weights == "as wrapped"
    assert again.provenance.domain == wrapped.domain
    calibration.save(tmp_path / "calibration.nc")
    oip_torch.Calibration.load(tmp_path / "calibration.nc").check(wrapped)
    figure = oip_torch.plots.sheet(oips)
    assert figure is not None
    classes = oip_torch.ascend(wrapped, "softmax", [0], settings=AscentSettings.within(20))
    assert classes.pre_activation
    assert classes.noun == "class"
    assert "max error" not in repr(wrapped.layers)


def test_a_block_is_scored_once_with_its_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    means = calibration_module.map_means
    monkeypatch.setattr(calibration_module, "map_means", lambda maps: scored.append(1) or means(maps))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 5, 3)))
    model = wrap(module, (3, 12, 10), **NATURAL)
    images = np.random.default_rng(0).integers(0, 256, (30, 12, 10, 3), np.uint8)
    found = oip_torch.calibrate(model, images)
    assert list(found.layers) == model.layers.names == ["0.0", "0.1", "0", "1.0", "1"]
    assert len(scored) == 3
    for block, last in (("0", "0.1"), ("1", "1.0")):
        assert found[block].maximum is found[last].maximum
    assert (found["0"].maximum != found["0.0"].maximum).any()
    before = oip_torch.calibrate(model, images, pre_activation=True)
    assert np.array_equal(before["0"].maximum, found["0.0"].maximum)
    assert [layer.pre_activation for layer in before.layers.values()] == [False, True, True, False, False]


def test_a_fingerprint_tells_of_graph_and_weights(net: Net, wrapped: FeatureModel) -> None:
    again = wrap(net, (3, 12, 10), **NATURAL)
    assert again.fingerprint == wrapped.fingerprint == wrapped.network.graph_sha256
    assert again.double().fingerprint == wrapped.fingerprint
    other = wrap(nn.Sequential(net, nn.Identity()), (3, 12, 10), **NATURAL)
    assert other.fingerprint != wrapped.fingerprint
    with torch.no_grad():
        again.graph_module.fc.bias.add_(1)
    assert again.fingerprint != wrapped.fingerprint
    oips = oip_torch.ascend(again, "fc", [0], settings=AscentSettings.article(steps=2))
    assert oips.provenance.weights == "changed since it was wrapped"


class Blocks(nn.Module):
    """Tokens, an attention, channels last, and several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, 8, 4, 4)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Sequential(nn.Linear(8, 12), nn.GELU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        weights = (tokens @ tokens.transpose(1, 2)).softmax(-1)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0] + weights @ tokens
        return {"tokens": self.last(tokens), "mean": tokens.mean(1)}


def test_tokens_are_positions_of_a_map() -> None:
    torch.manual_seed(0)
    module = Blocks().eval()
    model = wrap(module, (2, 12, 8), mean=0.5, std=0.5)
    x = torch.randn(2, 2, 12, 8)
    with torch.no_grad(), capture(model, "norm", "last.0", "last") as maps, capture(model, "attention") as attention:
        model(x)
        grid = module.patch(x)
        normed = F.layer_norm(grid.movedim(1, -1), (8,), module.norm.weight, module.norm.bias).movedim(-1, 1)
        tokens = module(x)["tokens"]
    torch.testing.assert_close(maps["norm"], normed)
    assert maps["last.0"].shape == (2, 12, 3, 2)
    torch.testing.assert_close(maps["last"].flatten(2).transpose(1, 2), tokens)
    assert attention["attention"].shape == (2, 8, 3, 2)
    assert model.layers["last.1"].activation == "gelu"
    with pytest.raises(
        InputError, match=r"layer 'softmax' cannot be looked at: its output is \(batch, 6, 6\), and the"
    ):
        model.layer("softmax")
    with pytest.raises(InputError, match=r"a transpose only passes on or rearranges what comes in"):
        model.layer("transpose@1")
    oips = oip_torch.ascend(model, "last", [0, 5], settings=AscentSettings.within(30))
    assert (oips.scores > oips.traces[:, 0]).all()


def test_the_domain_is_given_or_assumed_aloud(caplog: pytest.LogCaptureFixture) -> None:
    colour, grey = (nn.Sequential(nn.Conv2d(channels, 2, 3), nn.ReLU()) for channels in (3, 1))
    with caplog.at_level(logging.WARNING, logger="oip_torch"):
        assumed = wrap(colour, (3, 8, 8))
    assert "natural images' figures are assumed, mean 0.485, 0.456, 0.406 and standard deviation 0.229" in caplog.text
    assert assumed.domain.is_like(wrap(colour, (3, 8, 8), **NATURAL).domain)
    assert assumed.domain.is_standard
    assert "natural" in wrap(grey, (1, 8, 8)).domain.source
    assert "MNIST" in wrap(grey, (1, 28, 28)).domain.source
    pixels = np.full((1, 8, 8, 3), 255)
    unit = wrap(colour, (3, 8, 8), mean=0, std=1)
    assert float(unit.standardize(pixels).max()) == pytest.approx(1.0)
    assert unit.domain.mean == pytest.approx((0.485, 0.456, 0.406))
    raw = wrap(colour, (3, 8, 8), mean=0, std=1 / 255)
    assert float(raw.standardize(pixels).max()) == pytest.approx(255.0)
    own = Domain(mean=(0.1, 0.2, 0.3), std=(1.0,), source="mine")
    assert wrap(colour, (3, 8, 8), domain=own).domain == own


def data_dependent() -> nn.Module:
    class ByValue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.mean() > 0 else self.conv(-x)

    return ByValue()


def random_module() -> nn.Module:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.conv(x), 0.5)

    return Always()


def not_finite() -> nn.Module:
    module = nn.Conv2d(3, 2, 3)
    with torch.no_grad():
        module.bias[0] = float("nan")
    return module


def conv() -> nn.Module:
    return nn.Conv2d(3, 2, 3)


def batch_statistics() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))


@pytest.mark.parametrize(
    ("make", "arguments", "keywords", "message"),
    [
        (data_dependent, ((3, 8, 8),), {}, "cannot be traced .* does not depend on the values of an image"),
        (random_module, ((3, 8, 8),), {}, "gives other values for the same images each time"),
        (batch_statistics, ((3, 8, 8),), {}, "answers an image otherwise when others are in its batch"),
        (not_finite, ((3, 8, 8),), {}, "weights 'bias' hold NaN"),
        (conv, ((4, 8, 8),), {"mean": 0, "std": 1}, r"does not run on images \(3, 4, 8, 8\).*is input_shape right"),
        (conv, ((3, 2, 2),), {}, "does not run on images"),
        (conv, ((5, 8, 8),), {}, "the input has 5 channels, and nothing was said"),
        (conv, ((8, 8),), {}, r"input_shape is \(8, 8\): expected \(channels, height, width\)"),
        (conv, ((3, 8, 0),), {}, "width of input_shape is 0: expected a whole number, 1 or more"),
        (conv, ((3, 8.5, 8),), {}, "height of input_shape is 8.5"),
        (conv, ("388",), {}, "input_shape is '388'"),
        (conv, ((3, 8, 8),), {"mean": 0.5}, "only one of mean and std"),
        (conv, ((3, 8, 8),), {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "divide what is on the 0–255"),
        (conv, ((3, 8, 8),), {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "expected 1, or one for each of the 3 channels"),
        (conv, ((3, 8, 8),), {"mean": 0.5, "std": 0}, "std is .*: expected numbers above 0"),
        (conv, ((3, 8, 8),), {"mean": float("nan"), "std": 1}, "mean is nan: expected a finite number"),
        (conv, ((3, 8, 8),), {"mean": "a", "std": 1}, "mean is 'a'"),
        (conv, ((3, 8, 8),), {"domain": "natural"}, "domain is 'natural'"),
        (conv, ((3, 8, 8),), {"domain": Domain(), "mean": 0, "std": 1}, "domain was given, and mean, std or data"),
        (conv, ((3, 8, 8),), {"data": np.zeros((4, 8, 8))}, "values from 0 to 0"),
        (conv, ((3, 8, 8),), {"data": np.arange(64).reshape(1, 8, 8)}, "the data have 1 channels: expected 3"),
        (lambda: "resnet18", ((3, 8, 8),), {}, "module is 'resnet18': expected a torch.nn.Module"),
        (lambda: nn.LazyConv2d(2, 3), ((3, 8, 8),), {}, "lazy layers"),
        (lambda: nn.DataParallel(conv()), ((3, 8, 8),), {}, r"wrap\(module.module"),
        (lambda: torch.compile(conv()), ((3, 8, 8),), {}, "_orig_mod"),
        (lambda: nn.Conv2d(3, 2, 3, device="meta"), ((3, 8, 8),), {}, "meta device"),
        (lambda: wrap(conv(), (3, 8, 8)), ((3, 8, 8),), {}, "FeatureModel already"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    make: Callable[[], Any], arguments: tuple[Any, ...], keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises((InputError, ConversionError), match=message) as caught:
        wrap(make(), *arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_nearest_names_and_the_comparison(wrapped: FeatureModel) -> None:
    with pytest.raises(InputError, match="no layer 'conv3': did you mean 'conv"):
        oip_torch.ascend(wrapped, "conv3")
    with pytest.raises(InputError, match="layer 'drop' cannot be looked at: a Dropout only passes on"):
        oip_torch.ascend(wrapped, "drop")
    with pytest.raises(InputError, match="compare got a model: expected a Keras file"):
        oip_torch.compare(wrapped, wrapped)  # type: ignore[arg-type]
