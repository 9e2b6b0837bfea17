"""Networks as plain PyTorch: what is written computes the same, can be read and trained, and runs nobody's code."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import oip_torch
from oip_torch import ConversionError, FeatureModel, InputError, VerificationError, export_torch, wrap
from oip_torch.cli import main
from oip_torch.plain import code as plain_code
from oip_torch.plain import export as plain_export

FILES = ["model.py", "weights.safetensors"]


def read_back(folder: Path, name: str) -> nn.Module:
    """As a user does who has torch and safetensors alone."""
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    module: nn.Module = getattr(made, name)()
    module.load_state_dict(load_file(folder / "weights.safetensors"))
    return module.eval()


@pytest.fixture(scope="module")
def written(model: FeatureModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    errors = export_torch(model, folder)
    assert list(errors) == model.layers.names
    assert max(errors.values()) <= 1e-5
    return folder


SHIPPED = """
class MnistCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.Conv2D_1 = nn.Conv2d(1, 32, 3)
        self.Max_Pool_1 = nn.MaxPool2d(2)
        self.Conv2D_2 = nn.Conv2d(32, 64, 3)
        self.Max_Pool_2 = nn.MaxPool2d(2)
        self.Conv2D_3 = nn.Conv2d(64, 128, 3)
        self.Dense_1 = nn.Linear(1152, 100)
        self.Dense_2 = nn.Linear(100, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (batch, 1, 28, 28)
        x = self.Conv2D_1(x)  # (batch, 32, 26, 26)
        x = F.relu(x)  # Conv2D_1: (batch, 32, 26, 26)
        x = self.Max_Pool_1(x)  # Max_Pool_1: (batch, 32, 13, 13)
        x = self.Conv2D_2(x)  # (batch, 64, 11, 11)
        x = F.relu(x)  # Conv2D_2: (batch, 64, 11, 11)
        x = self.Max_Pool_2(x)  # Max_Pool_2: (batch, 64, 5, 5)
        x = self.Conv2D_3(x)  # (batch, 128, 3, 3)
        x = F.relu(x)  # Conv2D_3: (batch, 128, 3, 3)
        x = x.permute(0, 2, 3, 1)  # (batch, 3, 3, 128)
        x = x.flatten(1)  # Flatten: (batch, 1152)
        x = self.Dense_1(x)  # (batch, 100)
        x = F.relu(x)  # Dense_1: (batch, 100)
        x = self.Dense_2(x)  # (batch, 10)
        x = F.softmax(x, dim=-1)  # Dense_2: (batch, 10)
        return x
"""


def test_the_shipped_network_reads_as_one_would_write_it(model: FeatureModel, written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == FILES
    text = (written / "model.py").read_text()
    assert text.endswith(SHIPPED)
    assert "go in as (pixel - 33.31842) / 78.56749" in text
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {ast.unparse(node) for node in imports} == {
        "import torch",
        "import torch.nn.functional as F",
        "from torch import nn",
    }
    images = torch.randn(7, 1, 28, 28, generator=torch.Generator().manual_seed(5))
    module = read_back(written, "MnistCnn")
    torch.testing.assert_close(module(images), model(images), rtol=0, atol=1e-6)
    convolution = model.module_of("Conv2D_3", pre_activation=True)
    assert torch.equal(module.Conv2D_3.weight, convolution.weight)


def test_it_is_exported_with_an_open_batch_and_trained(written: Path) -> None:
    module = read_back(written, "MnistCnn")
    images = torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    exported = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for count in (1, 5):
        torch.testing.assert_close(exported.module()(images[:count]), module(images[:count]), rtol=0, atol=1e-6)
    module.train()
    classes = torch.arange(16) % 10
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        loss = F.nll_loss(module(images).clamp_min(1e-9).log(), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_it_is_compiled(written: Path) -> None:
    module = read_back(written, "MnistCnn")
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for count in (3, 2):
        torch.testing.assert_close(compiled(images[:count]), module(images[:count]), rtol=0, atol=1e-5)


# Operations


class Net(nn.Module):
    """What CNNs of torchvision's kind are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8, eps=1e-3))
        self.grouped = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=4, dilation=(1, 1))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.mean = nn.AvgPool2d(2, stride=1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)
        self.prelu = nn.PReLU(6)
        self.norm = nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(0.3)
        self.classes = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.hardswish(self.grouped(x))
        x = self.pool(x + y)
        x = F.silu(x * self.gate(x))
        x = F.gelu(self.mean(x))
        x = self.norm(self.prelu(self.up(x)))
        x = torch.cat([F.leaky_relu(x, 0.2), F.elu(x)], 1)
        x = torch.flatten(F.adaptive_avg_pool2d(F.relu6(x), (1, 1)), 1)
        return F.log_softmax(self.classes(self.drop(x)), dim=1)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    module = Net()
    with torch.no_grad():
        for norm in (module.stem[1], module.norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        module.stem[1].running_mean.uniform_(-0.5, 0.5)
        module.stem[1].running_var.uniform_(0.5, 2.0)
    return module.eval()


def by_wrap(net: Net, folder: Path) -> FeatureModel:
    return wrap(net, (3, 17, 20), mean=0.5, std=0.25)


def by_file(net: Net, folder: Path) -> FeatureModel:
    pytest.importorskip("onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(1, 3, 17, 20),), str(folder / "net.onnx"), dynamo=False, opset_version=15)
    return oip_torch.import_onnx(folder / "net.onnx", mean=0, std=255, device="cpu")


@pytest.mark.parametrize("taken", [by_wrap, by_file])
def test_a_network_of_torch_comes_back(net: Net, taken: Callable[[Net, Path], FeatureModel], tmp_path: Path) -> None:
    model = taken(net, tmp_path)
    errors = export_torch(model, tmp_path / "plain")
    assert list(errors) == model.layers.names
    text = (tmp_path / "plain" / "model.py").read_text()
    module = read_back(tmp_path / "plain", "Net" if "class Net(" in text else "Network")
    images = torch.randn(5, 3, 17, 20, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(module(images), net(images), rtol=1e-4, atol=1e-5)
    for line in (
        "self.gate_1 = nn.Conv2d(8, 8, 1)",
        "self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1)",
        "groups=4",
        "nn.MaxPool2d(3, stride=2, padding=1)",
        "F.leaky_relu(",
    ):
        assert line in text, line


def test_batch_norms_and_dropout_are_as_the_network_has_them(net: Net, tmp_path: Path) -> None:
    export_torch(by_wrap(net, tmp_path), tmp_path)
    module = read_back(tmp_path, "Net")
    norm = module.stem_1
    assert isinstance(norm, nn.BatchNorm2d)
    assert (norm.eps, norm.num_features) == (1e-3, 8)
    assert module.drop.p == pytest.approx(0.3)
    before = norm.running_mean.clone()
    images = torch.randn(8, 3, 17, 20)
    module.train()
    assert not torch.equal(module(images), module(images))  # the dropout
    assert not torch.equal(norm.running_mean, before)
    module.eval()
    assert torch.equal(module(images), module(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rgb.keras", ["self.pixelwise = nn.Linear(6, 7)"]),
        ("tokens.keras", ["self.wider = nn.Linear(8, 12)", "= F.gelu(", "self.back = nn.Linear(12, 8)", ".mean((2,)"]),
    ],
)
def test_dense_layers_along_the_last_axis(
    name: str, lines: list[str], converted: Callable[[str], Path], tmp_path: Path
) -> None:
    model = oip_torch.load(converted(name), device="cpu")
    export_torch(model, tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert [line for line in lines if line not in text] == []
    module = read_back(tmp_path, text.split("class ")[1].split("(")[0]).train()
    module(torch.randn(2, *model.input_shape)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121"])
def test_networks_of_torchvision_come_back(name: str, tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    own = getattr(torchvision.models, name)(weights=None).eval()
    model = wrap(own, (3, 64, 64))
    errors = export_torch(model, tmp_path)
    assert max(errors.values()) <= 1e-5
    images = torch.randn(2, 3, 64, 64)
    module = read_back(tmp_path, type(own).__name__)
    torch.testing.assert_close(module(images), own(images), rtol=1e-4, atol=1e-5)


# Untrusted files


HOSTILE = {
    "Conv2D_1": 'x"\nimport sys; sys.ran_code = True #',
    "Max_Pool_1": "forward",
    "Conv2D_2": "class",
    "Max_Pool_2": "2 words",
    "Conv2D_3": "\u202eэто\r\n__import__('sys').ran_code = True",
    "Flatten": '"""\nimport sys\nsys.ran_code = True\n"""',
    "Dense_1": "__init__",
    "Dense_2": "x\x0cdel self",
}


@pytest.fixture
def hostile(mnist_onnx: Path, tmp_path: Path) -> Path:
    """The shipped network under names that would be code if they were written as they are."""
    proto = onnx.load(mnist_onnx)
    data = json.loads(proto.metadata_props[0].value)
    for layer in data["layers"]:
        layer["name"] = HOSTILE[layer["name"]]
        layer["kind"] = "Dropout\nimport sys\nsys.ran_code = True"
    data["output"], data["source"] = HOSTILE[data["output"]], '"""\nimport sys\nsys.ran_code = True # coding: utf-7'
    onnx.helper.set_model_props(proto, {"oip_torch": json.dumps(data)})
    onnx.save(proto, tmp_path / "hostile.onnx")
    return tmp_path / "hostile.onnx"


def test_no_name_of_a_file_becomes_code(hostile: Path, tmp_path: Path) -> None:
    errors = export_torch(hostile, tmp_path / "plain")
    assert list(errors) == list(HOSTILE.values())
    tree = ast.parse((tmp_path / "plain" / "model.py").read_text(encoding="utf-8"))
    kinds = [type(node).__name__ for node in tree.body]
    assert kinds == ["Expr", "Import", "Import", "ImportFrom", "ClassDef"]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert names == {"torch", "nn", "F", "self", "super", "x"}
    made = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    assert [node.name for node in made.body if isinstance(node, ast.FunctionDef)] == ["__init__", "forward"]
    module = read_back(tmp_path / "plain", made.name)
    assert not hasattr(sys, "ran_code")
    attributes = [name for name, _ in module.named_children()]
    assert attributes[1:4] == ["forward_2", "class_2", "layer_2_words"]


# What cannot be


class Other(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.conv(x), 2)


def test_an_operation_that_is_not_covered_is_named_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="the operation cumsum cannot be written as plain PyTorch yet") as caught:
        export_torch(wrap(Other(), (3, 8, 8)), tmp_path / "plain")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_computes_something_else_is_not_left(
    mnist_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = plain_code.write_source

    def wrong(*arguments: Any) -> plain_code.Source:
        source = right(*arguments)
        weights = {**source.weights, "Dense_1.bias": source.weights["Dense_1.bias"] + 1e-3}
        return dataclasses.replace(source, weights=weights)

    (tmp_path / "model.py").write_text("mine")
    monkeypatch.setattr(plain_export, "write_source", wrong)
    with pytest.raises(VerificationError, match=r"layer 'Dense_1' differs by .* nothing was written") as caught:
        export_torch(mnist_onnx, tmp_path)
    assert caught.value.failed[0] == "Dense_1"
    assert main(["export-torch", str(mnist_onnx), "-o", str(tmp_path), "--json"]) == 1
    assert "Dense_1" in json.loads(capsys.readouterr().out)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]
    assert (tmp_path / "model.py").read_text() == "mine"


def test_the_command(mnist_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-torch", str(mnist_onnx), "-o", str(tmp_path / "plain"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "plain" / name) for name in FILES]
    assert set(told["layers"]) >= {"Conv2D_1", "Dense_2"}
    assert main(["export-torch", str(mnist_onnx), "-o", str(tmp_path / "plain")]) == 0
    assert "differ by at most" in capsys.readouterr().out
    assert main(["export-torch", str(tmp_path / "none.onnx"), "-o", str(tmp_path / "plain")]) == 2
    assert "does not exist" in capsys.readouterr().err
    with pytest.raises(InputError, match="model is 3: expected a FeatureModel"):
        export_torch(3, tmp_path)  # type: ignore[arg-type]
