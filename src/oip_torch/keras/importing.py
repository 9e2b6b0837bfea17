"""How does an ONNX file that another program wrote become one of ours? (`import_onnx`)"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from oip_torch.base.errors import ConversionError, InputError, OipError, VerificationError
from oip_torch.base.files import sha256
from oip_torch.base.layouts import channels_first, channels_last
from oip_torch.base.messages import one_line
from oip_torch.base.platform import free_memory, in_words, matmul_precision
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.keras.convert import given_domain, output_file
from oip_torch.keras.file import check_size
from oip_torch.keras.reference import run_aside
from oip_torch.keras.verify import (
    DIGIT_PROBES,
    MAX_LAYER_ERROR,
    MAX_LAYER_ERROR_FLOAT64,
    NOISE_PROBES,
)
from oip_torch.network.capture import capture
from oip_torch.network.domain import find_domain
from oip_torch.network.foreign import TO_LAST, ForeignLayer, find_layers, fix_reshapes, prepare
from oip_torch.network.load import resolve_device, with_exact_fingerprints
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer, Network, graph_sha256, is_ours, read_graph, write
from oip_torch.network.probes import digits, fingerprint, noise
from oip_torch.network.rewrites import rewrite_graph
from oip_torch.network.safety import check_conversion, check_sizes
from oip_torch.network.shapes import Shapes

__all__ = ["import_onnx"]

Array = npt.NDArray[Any]
_FLOAT64_PROBES = slice(NOISE_PROBES - 1, NOISE_PROBES + 1)  # one of noise, one digit: the reference is slow

logger = logging.getLogger("oip_torch")


def import_onnx(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: npt.ArrayLike | None = None,
    value_range: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    device: str | int | torch.device | None = "auto",
) -> FeatureModel:
    """Take in the ONNX file of a CNN that another program wrote, and verify every layer against ONNX Runtime.

    Layers are found from the graph: convolutions, dense layers, batch norms, activations, poolings, sums and
    concatenations, named by their weights or by the path in the node's name where these tell. A batch of 1 is opened,
    other opsets (7 and later) are converted to 17. What misses its bound in float32 is compared in float64, with onnx's
    reference implementation. Needs onnxruntime (the extra `compare`), and no TensorFlow.

    Args:
        source: the file: one input of float32 images of fixed size, channels first or last, as the graph shows.
        output: where our file goes; by default beside the source, with the ending .oip.onnx.
        mean: what was subtracted from the pixels before the network, on the 0–255 scale, as in `convert`.
        std: what they were divided by then, likewise.
        data: images of the kind that the network was trained on, as in `convert`.
        value_range: the least and the largest value that an input can have, as in `convert`.
        size: (height, width) of the images, for a file that leaves them open.
        device: where the returned model is put; the verification runs on the CPU.

    Raises:
        InputError: a file or argument that is wrong, or onnxruntime missing. Nothing is written.
        ConversionError: a valid graph that is not a CNN's, or that onnx2torch cannot convert.
        VerificationError: a layer differs from ONNX Runtime's by more than 1e-5 of its maximum, and in float64 from
            that of onnx by more than 1e-10. Nothing is written.
    """
    chosen = resolve_device(device)
    proto, path = read_graph(source)
    if is_ours(proto):
        raise InputError(f"{path} was made by oip_torch already: load it with oip_torch.load")
    target = output_file(path.with_suffix(".oip.onnx") if output is None else output, path)
    if os.path.exists(target) and os.path.samefile(target, path):
        raise InputError(f"the output {target} is the file itself: expected another name")
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError('onnxruntime is not installed, but needed to import: run `pip install ".[compare]"`')
    given = given_domain(mean, std, data, value_range)
    check_conversion(proto, path)
    with _told(path):
        return _imported(proto, path, target, check_size(size), given).to(chosen)


def _imported(
    proto: onnx.ModelProto, path: Path, target: Path, size: tuple[int, int] | None, given: dict[str, Any]
) -> FeatureModel:
    """Of a graph that is safe and valid, the network, verified and written to `target`."""
    ready, shape = prepare(proto, size)
    domain = find_domain(shape, **given)
    logger.warning("note: %s (mean, std, data and range say otherwise)", domain.source)
    shown = np.concatenate([domain.to_input(noise(NOISE_PROBES, shape)), digits(DIGIT_PROBES, shape, domain)])
    images = np.asarray(shown, np.float32)
    rewritten = rewrite_graph(ready)
    shapes = _of_each_image(check_sizes(ready, path))
    fix_reshapes(ready, shapes)
    found, result = find_layers(ready, shapes)
    needed = _check_memory(found, len(images))
    _make_outputs(ready, found)
    tensors = {layer.tensor: None for layer in found}
    answers = run_aside(
        proto,
        ready,
        images,
        list(tensors | dict.fromkeys(layer.tensor_before for layer in found)),
        {name: new for name, new in _renamed(proto).items() if new in tensors},
        last=any(node.name == TO_LAST for node in ready.graph.node),
        most=2 * needed,
    )
    expected = answers.tensors
    _check_finite(found, expected)
    _check_as_before(answers.outputs)
    layers = tuple(_layer(layer, expected[layer.tensor]) for layer in found)
    names = ("oip_torch", "torch", "onnx2torch", "numpy", "onnx", "onnxruntime")
    network = Network(
        layers=layers,
        output=result,
        input_shape=shape,
        domain=domain,
        source=path.name,
        source_sha256=sha256(path),
        graph_sha256=graph_sha256(ready),
        versions={name: version(name) for name in names},
        rewritten={"graph": rewritten} if rewritten else {},
        verification={},
    )
    model = FeatureModel.of_onnx(ready, network)
    layers = _verified(
        model, images, expected, lambda tensors: _run_in_float64(ready, images[_FLOAT64_PROBES], tensors)
    )
    verification = {
        "reference": "onnxruntime",
        "probes": {"noise": NOISE_PROBES, "digits": DIGIT_PROBES},
        "batch_sizes": [len(images), 1],
        "max_error": max(layer.max_error or 0.0 for layer in layers),
    }
    if checked := [layer.name for layer in layers if layer.error_float64 is not None]:
        verification["in_float64"] = checked
    network = dataclasses.replace(network, layers=layers, verification=verification)
    write(ready, network, target)
    return FeatureModel.of_onnx(ready, network)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever a reader of an untrusted graph raises is an `InputError`."""
    try:
        yield
    except OipError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be taken in ({one_line(error)[:200]}): expected the graph of a CNN; export it anew"
        ) from error


def _renamed(proto: onnx.ModelProto) -> dict[str, str]:
    """The file's outputs, and what `prepare` calls them."""
    return {value.name: "image_of_graph" if value.name == "image" else value.name for value in proto.graph.output}


def _check_memory(layers: Sequence[ForeignLayer], images: int) -> int:
    """What ONNX Runtime gives and what torch gives is held of all layers at one time, to be compared; in bytes."""
    needed = 2 * 4 * images * sum(math.prod(layer.size) for layer in layers)
    if needed > (most := free_memory()):
        raise InputError(
            f"the layers of {images} images take {in_words(needed)} to verify, and {in_words(most)} are free: expected "
            "a network that fits in memory; free some, or take one of smaller images"
        )
    return needed


def _check_finite(layers: Sequence[ForeignLayer], expected: Mapping[str, Array]) -> None:
    """Name the first layer, in the order of the graph, in which NaN or infinity arises."""
    for layer in layers:
        for tensor in (layer.tensor_before, layer.tensor):
            if not np.isfinite(expected[tensor]).all():
                raise InputError(
                    f"layer {layer.name!r} ({layer.kind}) gives NaN or infinite values in ONNX Runtime, and the layers "
                    "before it do not: expected finite numbers; look at its weights and their size"
                )


def _layer(layer: ForeignLayer, values: Array) -> Layer:
    flat = len(layer.size) == 1
    return Layer(
        name=layer.name,
        kind=layer.kind,
        maps=layer.size[0],
        height=1 if flat else layer.size[1],
        width=1 if flat else layer.size[2],
        activation=layer.activation,
        tensor=layer.tensor,
        tensor_before=layer.tensor_before,
        fingerprint=fingerprint(values[:1]),
    )


def _make_outputs(proto: onnx.ModelProto, layers: Sequence[ForeignLayer]) -> None:
    del proto.graph.output[:]
    for layer in layers:
        value = onnx.helper.make_tensor_value_info(layer.tensor, onnx.TensorProto.FLOAT, ["batch", *layer.size])
        proto.graph.output.append(value)
    kept = [value for value in proto.graph.value_info if value.name not in {layer.tensor for layer in layers}]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ConversionError(f"the rewritten graph is not valid: {' '.join(str(error).split())[:160]}") from error


def _of_each_image(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Tensor → its shape for one image, of all that have a row for each image."""
    return {
        name: one[1:]
        for name, (one, two) in shapes.items()
        if one is not None and two is not None and (one[:1], two[:1]) == ((1,), (2,)) and one[1:] == two[1:]
    }


def _check_as_before(outputs: Sequence[tuple[Array, Array]]) -> None:
    """The rewritten graph gives to images one by one what the file itself gives, of all outputs that are layers."""
    for old, new in outputs:
        if old.shape != new.shape or not _error(new, old) <= MAX_LAYER_ERROR:
            raise ConversionError("the rewritten graph does not give what the file gives: its batch cannot be opened")


def _error(got: Array, expected: Array, scale: float | None = None) -> float:
    """Largest |got - expected| over the largest |expected|, or over `scale`; infinite where a value is not finite."""
    if got.shape != expected.shape or not (np.isfinite(got).all() and np.isfinite(expected).all()):
        return math.inf
    apart = float(np.abs(got - expected).max())
    scale = float(np.abs(expected).max()) if scale is None else scale
    return apart / scale if scale > 0 else (0.0 if apart == 0 else math.inf)


def _verified(
    model: FeatureModel,
    images: Array,
    expected: dict[str, Array],
    in_float64: Callable[[list[str]], dict[str, Array]],
) -> tuple[Layer, ...]:
    """The layers with their errors; all images at once, and the first alone."""
    errors: dict[str, float] = {}
    for count in (len(images), 1):
        for name, error in _errors(model, images[:count], expected).items():
            errors[name] = max(errors.get(name, 0.0), error)
    layers = [dataclasses.replace(layer, max_error=errors[layer.name]) for layer in model.layers]
    failed = [layer for layer in layers if not errors[layer.name] <= MAX_LAYER_ERROR]
    allowed = MAX_LAYER_ERROR
    if failed and all(math.isfinite(errors[layer.name]) for layer in failed):
        logger.warning("note: float32 is too coarse to tell, so it is compared in float64")
        tensors = list(dict.fromkeys(t for layer in layers for t in (layer.tensor, layer.tensor_before)))
        if exact := in_float64(tensors):
            twin, names = copy.deepcopy(model).double(), {layer.name for layer in failed}
            errors |= {k: v for k, v in _errors(twin, images[_FLOAT64_PROBES], exact).items() if k in names}
            layers = [
                dataclasses.replace(layer, error_float64=errors[layer.name]) if layer.name in names else layer
                for layer in layers
            ]
            allowed = MAX_LAYER_ERROR_FLOAT64
            failed = [layer for layer in layers if layer.name in names and not errors[layer.name] <= allowed]
    if failed:
        kind = " in float64" if allowed < MAX_LAYER_ERROR else ""
        raise VerificationError(
            f"torch does not compute what {'onnx' if kind else 'ONNX Runtime'} computes: layer {failed[0].name!r} "
            f"differs by {errors[failed[0].name]:.1e} of its maximum{kind} (at most {allowed:.0e} is allowed); nothing "
            "was written",
            failed=[layer.name for layer in failed],
            layers=[layer.row() for layer in layers],
        )
    return with_exact_fingerprints(model, layers)


def _errors(model: FeatureModel, images: Array, expected: dict[str, Array]) -> dict[str, float]:
    """Of each layer, before and after its activation, as a part of its largest value."""
    x = to_tensor(images, dtype=model.dtype)
    with torch.no_grad(), matmul_precision(), capture(model, *model.layers.names, pre_activation=True) as before:
        after = model.every_layer(x)
    errors = {}
    for layer in model.layers:
        pairs = ((after[layer.name], layer.tensor), (before[layer.name], layer.tensor_before))
        errors[layer.name] = max(
            _error(to_array(got), expected[tensor][: len(images)], float(np.abs(expected[tensor]).max()))
            for got, tensor in pairs
        )
    return errors


def _run_in_float64(proto: onnx.ModelProto, images: Array, tensors: list[str]) -> dict[str, Array]:
    """Tensors of the graph, in Keras' layout, computed in float64 by onnx's reference; empty where it cannot do that.

    ONNX Runtime has no convolution in float64.
    """
    from onnx.reference import ReferenceEvaluator

    exact = _as_float64(proto)
    for tensor in tensors:
        if tensor not in {value.name for value in exact.graph.output}:
            exact.graph.output.add(name=tensor)
    try:
        outputs = ReferenceEvaluator(exact).run(tensors, {"image": np.asarray(channels_first(images), np.float64)})
    except Exception as error:  # of any operation
        logger.warning("note: onnx cannot compute this graph in float64: %s", " ".join(str(error).split())[:160])
        return {}
    return dict(zip(tensors, map(channels_last, outputs), strict=True))


def _as_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every float32 is a float64."""
    exact = type(proto).FromString(proto.SerializeToString())
    graph, single, double = exact.graph, onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE

    def widen(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == single:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                widen(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                attribute.i = double
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == single:
            value.type.tensor_type.elem_type = double
    del graph.value_info[:]
    return exact
