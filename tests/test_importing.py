"""ONNX files that other programs wrote: their layers, verified against ONNX Runtime, and what cannot be taken in."""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from conftest import run_tensorflow
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import oip_torch
from oip_torch import AscentSettings, ConversionError, InputError, capture, import_onnx, load
from oip_torch.cli import main
from oip_torch.keras import importing

ORT = pytest.importorskip("onnxruntime")
UNIT = {"mean": 0, "std": 255}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.act = nn.ReLU6()
        self.pool = nn.MaxPool2d(2)
        self.classes = nn.Linear(6 * 5 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(self.act(self.block(x)) + x)
        return self.classes(x.view(x.shape[0], -1)).softmax(1)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module", params=[False, True], ids=["static", "open"])
def exported(net: Net, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By PyTorch's exporter."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    axes = {"dynamic_axes": {"x": {0: "n"}}} if request.param else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(1, 3, 12, 10),), str(path), input_names=["x"], dynamo=False, **axes)
    return path


def test_a_file_of_pytorch_s_exporter(net: Net, exported: Path) -> None:
    with pytest.raises(InputError, match=r"was not made by oip_torch: .*take it in with `oip import FILE\.onnx`"):
        load(exported)
    model = import_onnx(exported, **UNIT, device="cpu")
    assert model.layers.names == ["stem.0", "stem.2", "block", "act", "add", "pool", "classes", "softmax"]
    assert [layer.activation for layer in model.layers] == [None, "relu", None, "relu6", *[None] * 3, "softmax"]
    assert all(layer.max_error is not None and layer.max_error <= 1e-5 for layer in model.layers)
    again = load(exported.with_suffix(".oip.onnx"), device="cpu")
    x = torch.randn(5, 3, 12, 10)
    with torch.no_grad(), capture(again, "block", "stem.2", "pool") as maps:
        torch.testing.assert_close(again(x), net(x), rtol=1e-4, atol=1e-6)
        stem = net.stem(x)
        torch.testing.assert_close(maps["stem.2"], stem, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(maps["block"], net.block(stem), rtol=1e-4, atol=1e-5)
    oips = oip_torch.ascend(again, "block", [0, 3], settings=AscentSettings.within(30))
    assert (oips.scores > oips.traces[:, 0]).all()
    assert oips.provenance.weights == "as converted"
    with pytest.raises(InputError, match="was made by oip_torch already"):
        import_onnx(exported.with_suffix(".oip.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [None, torch.export.Dim("batch")], ids=["static", "open"])
def test_a_file_of_pytorch_s_default_exporter(net: Net, batch: Any, tmp_path: Path) -> None:
    x = torch.randn(3, 3, 12, 10)
    given = {} if batch is None else {"dynamic_shapes": ({0: batch},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it uses of torch is on its way out
        torch.onnx.export(
            *(net, (x if given else x[:1],), str(tmp_path / "net.onnx")),
            **{"dynamo": True, "external_data": False, "verbose": False, **given},
        )
    model = import_onnx(tmp_path / "net.onnx", **UNIT, device="cpu")
    assert model.layers.names == ["stem.0", "stem.2", "block", "act", "add", "pool", "classes", "softmax"]
    assert [layer.activation for layer in model.layers] == [None, "relu", None, "relu6", *[None] * 3, "softmax"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_weights_in_another_file_are_refused_with_the_way_to_have_them_inside(net: Net, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.randn(1, 3, 12, 10),), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    with pytest.raises(InputError, match=r"in another file; .*external_data=False.*onnx\.save\(onnx\.load") as refused:
        import_onnx(tmp_path / "net.onnx")
    whole = onnx.load(tmp_path / "net.onnx")  # as the message says
    onnx.save(whole, tmp_path / "whole.onnx")
    assert "'whole.onnx'" in str(refused.value)
    assert "block" in import_onnx(tmp_path / "whole.onnx", **UNIT, device="cpu").layers.names


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[Any],
    weights: dict[str, np.ndarray[Any, Any]],
    *,
    opset: int = 15,
    weights_as_inputs: bool = False,
    out: Sequence[Any] = ("n", 4),
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array.astype(array.dtype), name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)]
    if weights_as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, list(out))]
    made = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if opset < 9 else 8)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def cnn(shape: Sequence[Any] = ("n", 3, 8, 8), *, last: bool = False, **keywords: Any) -> onnx.ModelProto:
    weights = {"w": normal(5, 3, 3, 3), "b": normal(5), "d": normal(5, 4)}
    turn = [helper.make_node("Transpose", ["image"], ["t"], perm=[0, 3, 1, 2])] if last else []
    nodes = [
        *turn,
        helper.make_node("Conv", ["t" if last else "image", "w", "b"], ["c"], name="conv0_fwd", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["r"], name="relu0_fwd"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool0_fwd"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["m"], name="dense0_fwd"),
        helper.make_node("Softmax", ["m"], ["out"]),
    ]
    return graph(nodes, shape, weights, **keywords)


def reference(proto: onnx.ModelProto, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ORT.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["out"], {"image": images[i : i + 1]})[0] for i in range(len(images))])


@pytest.mark.parametrize(
    ("keywords", "last"),
    [
        ({}, False),
        ({"opset": 7, "weights_as_inputs": True}, False),
        ({"opset": 9, "shape": (1, 3, 8, 8), "out": (1, 4)}, False),
        ({"shape": (1, 8, 8, 3), "out": (1, 4), "last": True}, True),
        ({"shape": ("n", 8, 8, 3), "last": True, "opset": 11}, True),
    ],
)
def test_old_opsets_static_batches_and_channels_last(keywords: dict[str, Any], last: bool, tmp_path: Path) -> None:
    proto = cnn(**keywords)
    onnx.save(proto, tmp_path / "net.onnx")
    model = import_onnx(tmp_path / "net.onnx", tmp_path / "ours.onnx", **UNIT, device="cpu")
    assert model.input_shape == (3, 8, 8)
    kinds = [(layer.kind, layer.maps, layer.activation) for layer in model.layers]
    assert kinds == [
        ("Conv", 5, None),
        ("Relu", 5, "relu"),
        ("GlobalAveragePool", 5, None),
        ("MatMul", 4, None),
        ("Softmax", 4, "softmax"),
    ]
    assert model.layers.names[0] == "conv0_fwd"
    x = torch.randn(3, 3, 8, 8)
    given = x.permute(0, 2, 3, 1).contiguous() if last else x
    with torch.no_grad():
        np.testing.assert_allclose(model(x).numpy(), reference(proto, given.numpy()), rtol=1e-4, atol=1e-6)
    assert load(tmp_path / "ours.onnx", device="cpu").network.source == "net.onnx"


def of_mxnet(opset: int) -> onnx.ModelProto:
    """As MXNet's zoo was written: what are inputs today was attributes, dropout gives its mask, weights are inputs."""
    weights = {"w": normal(6, 3, 3, 3), "v": normal(6, 6, 3, 3), "d": normal(4, 96), "e": normal(4)}
    weights |= {name: np.abs(normal(6)) + 0.5 for name in ("scale", "bias", "mean", "variance")}
    weights["shape"] = np.array([0, -1], np.int64)
    norm = {"epsilon": 1e-5, "momentum": 0.9, **({"spatial": 1} if opset < 9 else {})}
    make = helper.make_node
    nodes = [
        make("Pad", ["image"], ["p"], name="pad0", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0),
        make("Conv", ["p", "w"], ["c"], name="conv0_fwd", kernel_shape=[3, 3], pads=[0] * 4),
        make("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["n"], name="batchnorm0_fwd", **norm),
        make("Clip", ["n"], ["r"], name="relu60_fwd", min=0.0, max=6.0),
        make("MaxPool", ["r"], ["m"], name="pool0_fwd", kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["m", "v"], ["k"], name="conv1_fwd", kernel_shape=[3, 3], pads=[1] * 4),
        make("Add", ["k", "m"], ["a"], name="plus0"),
        make("Dropout", ["a"], ["t", "mask"], name="dropout0_fwd", ratio=0.5),
        make("Reshape", ["t", "shape"], ["f"], name="flatten0"),
        make("Gemm", ["f", "d", "e"], ["g"], name="dense0_fwd", transB=1),
        make("Softmax", ["g"], ["out"], name="softmax0", axis=1),
    ]
    return graph(nodes, (1, 3, 8, 8), weights, opset=opset, weights_as_inputs=True, out=(1, 4))


@pytest.mark.parametrize("opset", [7, 8, 9])
def test_files_of_mxnet_s_time(opset: int, tmp_path: Path) -> None:
    proto = of_mxnet(opset)
    onnx.save(proto, tmp_path / "net.onnx")
    model = import_onnx(tmp_path / "net.onnx", tmp_path / "ours.onnx", **UNIT, device="cpu")
    names = ["conv0_fwd", "batchnorm0_fwd", "relu60_fwd", "pool0_fwd", "conv1_fwd", "plus0", "dense0_fwd", "softmax0"]
    assert model.layers.names == names
    assert model.layers["relu60_fwd"].activation == "relu6"
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(model(x).numpy(), reference(proto, x.numpy()), rtol=1e-4, atol=1e-6)
    oip_torch.export_torch(model, tmp_path / "plain")
    text = (tmp_path / "plain" / "model.py").read_text()
    assert "nn.BatchNorm2d(6" in text
    assert "nn.Dropout(0.5)" in text


def ambiguous() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["image"], ["r"]), helper.make_node("Flatten", ["r"], ["f"])]
    return graph([*nodes, helper.make_node("MatMul", ["f", "d"], ["out"])], ("n", 3, 8, 8), {"d": normal(192, 4)})


def frozen_batch() -> onnx.ModelProto:
    """Adds a row of its own to the only image's: another batch cannot be."""
    proto = cnn((1, 3, 8, 8), out=(2, 4))
    proto.graph.node.insert(5, helper.make_node("Concat", ["m", "row"], ["both"], axis=0))
    proto.graph.initializer.append(numpy_helper.from_array(normal(1, 4), "row"))
    softmax = next(node for node in proto.graph.node if node.op_type == "Softmax")
    softmax.input[0] = "both"
    return proto


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cnn((2, 3, 8, 8), out=(2, 4)), "takes 2 images at once: expected 1, or an open batch"),
        (lambda: cnn(("n", 3, "h", "w")), r"shape \[0, 3, 0, 0\] \(0: open\): expected float32 images"),
        (ambiguous, "does not show where the channels of 'image' lie"),
        (frozen_batch, "was written for one image alone.*dynamic_shapes="),
        (lambda: cnn(opset=6, weights_as_inputs=True), "opset 6: expected 7 or later"),
    ],
)
def test_what_the_graph_does_not_show_is_refused(
    make: Callable[[], onnx.ModelProto], message: str, tmp_path: Path
) -> None:
    onnx.save(make(), tmp_path / "net.onnx")
    with pytest.raises((InputError, ConversionError), match=message) as caught:
        import_onnx(tmp_path / "net.onnx", **UNIT)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_the_output_is_never_the_file_itself(tmp_path: Path) -> None:
    onnx.save(cnn(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="is the file itself: expected another name"):
        import_onnx(tmp_path / "net.onnx", tmp_path / "net.onnx", **UNIT)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(cnn(), tmp_path / "net.onnx")
    arguments = ["import", str(tmp_path / "net.onnx"), "--mean", "0", "--std", "255", "--device", "cpu"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "torch and ONNX Runtime differ by at most" in out
    assert "net.oip.onnx" in out
    assert main(["layers", str(tmp_path / "net.oip.onnx")]) == 0
    assert "conv0_fwd" in capsys.readouterr().out


KERAS = """
import sys
import keras
import tensorflow as tf
import tf2onnx

keras.utils.set_random_seed(0)
layers = keras.layers
model = keras.Sequential([
    keras.Input((12, 10, 3)),
    layers.Conv2D(6, 3, activation="relu", name="first"),
    layers.MaxPooling2D(2, name="pool"),
    layers.Conv2D(8, 3, padding="same", strides=2, name="second"),
    layers.BatchNormalization(name="norm"),
    layers.Activation("relu", name="act"),
    layers.Flatten(name="flat"),
    layers.Dense(5, activation="softmax", name="classes"),
])
model(tf.zeros((1, 12, 10, 3)))
folder = sys.argv[1]
model.export(f"{folder}/keras.onnx", format="onnx", verbose=False)
for name, batch, opset in (("open", None, 13), ("static", 1, 17)):
    signature = [tf.TensorSpec((batch, 12, 10, 3), tf.float32, name="x")]
    function = tf.function(lambda x: model(x))
    tf2onnx.convert.from_function(function, signature, opset=opset, output_path=f"{folder}/{name}.onnx")
"""


@pytest.mark.slow
def test_files_of_keras_and_tf2onnx(tmp_path: Path) -> None:
    run_tensorflow(KERAS, tmp_path)
    outputs = []
    x = torch.randn(3, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    for name in ("keras", "open", "static"):
        model = import_onnx(tmp_path / f"{name}.onnx", **UNIT, device="cpu")
        assert [layer.activation for layer in model.layers] == ["relu", None, None, "relu", "softmax"]
        assert [name.partition("_")[0] for name in model.layers.names] == ["first", "pool", "norm", "act", "classes"]
        assert model.network.output == model.layers.names[-1]
        oip_torch.ascend(model, model.layers.names[0], [0], settings=AscentSettings.within(20))
        with torch.no_grad():
            outputs.append(model(x))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-6)
    assert torch.allclose(outputs[0], outputs[2], atol=1e-6)


class Heads(nn.Module):
    """Maps and classes; nothing that depends on the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mask = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        self.classes = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.stem(x).relu()
        return self.classes(x.mean((2, 3))), self.mask(x) * 2, x.flatten(2)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """With height and width open, and three outputs, of which one is neither of units nor of maps."""
    torch.manual_seed(1)
    module, path = Heads().eval(), tmp_path_factory.mktemp("heads") / "heads.onnx"
    open_axes = {"x": {0: "n", 2: "h", 3: "w"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.randn(1, 3, 12, 10),),
            str(path),
            input_names=["x"],
            output_names=["logits", "doubled", "rows"],
            dynamo=False,
            dynamic_axes=open_axes,
        )
    return module, path


def test_every_output_of_units_or_maps_is_a_layer_and_a_size_can_be_said(
    heads: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    module, path = heads
    with pytest.raises(InputError, match=r"with a fixed height and width; say which \(--size HEIGHT WIDTH\) where"):
        import_onnx(path, tmp_path / "x.onnx", **UNIT)
    model = import_onnx(path, tmp_path / "x.onnx", size=(11, 9), **UNIT, device="cpu")
    assert model.network.input_shape == (11, 9, 3)
    assert model.network.output == "classes"
    assert model.layers.names == ["stem", "relu", "classes", "mask", "doubled"]
    x = torch.randn(2, 3, 11, 9)
    with torch.no_grad(), capture(model, "classes", "doubled") as maps:
        model.every_layer(x)
        logits, doubled, _ = module(x)
    torch.testing.assert_close(maps["classes"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps["doubled"], doubled, rtol=1e-4, atol=1e-5)


def test_a_size_for_a_fixed_input_is_refused(exported: Path, tmp_path: Path) -> None:
    for size in ((12, 10), (13, 10)):
        with pytest.raises(InputError, match=r"takes images of 12×10 .* expected a size for what it leaves open alone"):
            import_onnx(exported, tmp_path / "x.onnx", size=size, **UNIT)


def cancelling(tmp_path: Path, error: float = 0.0, size: float = 3e3) -> Path:
    """Sums of large numbers that nearly cancel: float32 keeps three digits of them, in whatever order it adds."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 1, (4, 32, 3, 3))
    wide = np.concatenate([kernel * size, -kernel * size + rng.normal(0, 1, kernel.shape)], 1).astype(np.float32)
    first = rng.normal(0, 1, (32, 3, 3, 3)).astype(np.float32)
    weights = {"first": np.concatenate([first, first + error * rng.normal(0, 1, first.shape)], 0), "second": wide}
    nodes = [helper.make_node("Conv", ["x", "first"], ["a"]), helper.make_node("Conv", ["a", "second"], ["y"])]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 11])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4, 8, 7])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [image], [out], tensors),
        opset_imports=[helper.make_opsetid("", 15)],
        ir_version=8,  # ONNX Runtime 1.20 takes 10 at most
    )
    path = tmp_path / "cancelling.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_what_float32_cannot_tell_is_decided_in_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cancelling(tmp_path)
    model = import_onnx(path, tmp_path / "x.onnx", **UNIT, device="cpu")
    (name,) = model.network.verification["in_float64"]
    layer = model.layers[name]
    assert layer.max_error is not None
    assert layer.error_float64 is not None
    assert layer.max_error > 1e-5
    assert layer.error_float64 < 1e-10
    far = import_onnx(cancelling(tmp_path, size=1e5), tmp_path / "far.onnx", **UNIT, device="cpu")
    assert far.layers[name].max_error > 1e-2  # which is no reason to take it for an error
    assert far.layers[name].error_float64 < 1e-10
    assert oip_torch.load(tmp_path / "far.onnx", device="cpu").layers[name] == far.layers[name]
    path = cancelling(tmp_path)
    real = importing._run_in_float64
    monkeypatch.setattr(importing, "_run_in_float64", lambda *args: {k: v * (1 + 1e-8) for k, v in real(*args).items()})
    with pytest.raises(
        oip_torch.VerificationError, match=r"what onnx computes: layer .* in float64 \(at most 1e-10 is"
    ):
        import_onnx(path, tmp_path / "y.onnx", **UNIT, device="cpu")
    monkeypatch.setattr(importing, "_run_in_float64", lambda *args: {})
    with pytest.raises(oip_torch.VerificationError, match=r"what ONNX Runtime computes: .* \(at most 1e-05 is"):
        import_onnx(path, tmp_path / "y.onnx", **UNIT, device="cpu")
    assert not (tmp_path / "y.onnx").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=str)
def test_the_layer_in_which_nan_or_infinity_arises_is_named(tmp_path: Path, value: float) -> None:
    images = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 9, 9])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, 5, 5])
    weights = [np.ones((4, 1, 3, 3), np.float32), np.ones((2, 4, 3, 3), np.float32)]
    weights[1][0, 0, 0] = value
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "v"], ["c"], "first"), helper.make_node("Conv", ["c", "w"], ["y"], "second")],
        "g", [images], [result], [numpy_helper.from_array(w, name) for w, name in zip(weights, "vw", strict=True)],
    )  # fmt: skip
    path = tmp_path / "net.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"^layer 'second' \(Conv\) gives NaN or infinite values in ONNX Runtime"):
        import_onnx(path, **UNIT)
    assert list(tmp_path.iterdir()) == [path]


FAKE = """
import os, signal
class SessionOptions: pass
class GraphOptimizationLevel: ORT_DISABLE_ALL = 0
class InferenceSession:
    def __init__(self, *_, **__): {work}
"""


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"the library that reads it crashed \(SIGSEGV\)"),
        ("os.kill(os.getpid(), signal.SIGSTOP)", "its process did nothing for 1 s, as a stopped process does"),
    ],
    ids=["crash", "stopped"],
)
def test_onnx_runtime_ends_a_process_of_its_own_and_no_other(
    work: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that parses a file is not in this process: what becomes of it is one line."""
    for name in ("code", "tmp", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "onnxruntime.py").write_text(FAKE.format(work=work))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("OIP_PATIENCE", "1" if "STOP" in work else "60")
    onnx.save(cnn(), tmp_path / "work" / "net.onnx")
    with pytest.raises(InputError, match=f"^ONNX Runtime could not run the graph: {message}") as refused:
        import_onnx(tmp_path / "work" / "net.onnx", **UNIT)
    assert "\n" not in str(refused.value)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["net.onnx"]
    assert not list((tmp_path / "tmp").iterdir())
    assert not [child for child in psutil.Process().children() if "oip_torch" in " ".join(child.cmdline())]


def test_no_room_for_the_graph_that_onnx_runtime_reads_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(cnn(), tmp_path / "net.onnx")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written to .* for ONNX Runtime \(File too large\): expected"):
            import_onnx(tmp_path / "net.onnx", **UNIT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
