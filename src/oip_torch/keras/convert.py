"""Does the torch module compute what the Keras layers compute?

`convert` drives the export (`keras_export`, in a process of its own), builds the torch module from the ONNX file and
proves every layer against TensorFlow's own activations before anything is written.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from oip_torch.base.errors import ConversionError, InputError, ProofError
from oip_torch.base.files import check_output_folder, sha256
from oip_torch.base.messages import last_words
from oip_torch.base.platform import matmul_precision, recorded_gradients
from oip_torch.base.progress import stages
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.keras.file import check_keras_file, input_shape
from oip_torch.network.capture import capture
from oip_torch.network.model import FeatureModel, figures, resolve_device
from oip_torch.network.onnx_file import Layer, Network, graph_sha256, write
from oip_torch.network.probes import MNIST_MEAN, MNIST_STD

__all__ = ["MAX_LAYER_ERROR", "MIN_GRADIENT_COSINE", "convert", "prove"]

MAX_LAYER_ERROR = 1e-5
"""Largest |torch - Keras| over the largest |Keras| of a layer; networks of keras.applications stay below 1e-6."""
MIN_GRADIENT_COSINE = 0.9999
_NOISE, _DIGITS = 4, 8  # probes of each kind
_TIMEOUT_SECONDS = 1800

_Activations = dict[str, npt.NDArray[Any]]  # by layer

logger = logging.getLogger("oip_torch")


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> FeatureModel:
    """Convert a Keras CNN to ONNX and torch, and prove every layer.

    Args:
        source: the Keras network, .keras or .h5.
        output: where the ONNX file goes; by default beside the source, with the ending .onnx.
        mean: what was subtracted from the network's inputs, on the 0–255 scale, one number or one per channel. For
            28x28x1 inputs MNIST's figures are taken if none are given.
        std: what they were divided by then, likewise.
        device: where the returned model is put; the proof runs on the CPU.
        progress: show the stages on stderr; None: only on a terminal or in a notebook.

    Returns:
        The proven model; `model.layers` holds each layer's error.

    Raises:
        InputError: a file or argument that is wrong, or TensorFlow missing. Nothing is written.
        ConversionError: a valid network that cannot be brought to ONNX or torch.
        ProofError: a layer differs by more than `MAX_LAYER_ERROR`, the input gradient's cosine is below
            `MIN_GRADIENT_COSINE`, the predicted classes differ, or a value is not finite. Nothing is written.
    """
    chosen = resolve_device(device)
    source = check_keras_file(source)
    if output is not None and not isinstance(output, (str, os.PathLike)):
        raise InputError(f"output is a {type(output).__name__}: expected the path of the ONNX file to write")
    target = Path(output) if output is not None else source.with_suffix(".onnx")
    if os.path.isdir(target):
        raise InputError(f"the output {target} is a directory: expected the name of an ONNX file to write")
    if target.suffix.lower() != ".onnx":
        raise InputError(f"the output {target} ends in {target.suffix or 'nothing'}: expected a name ending in .onnx")
    check_output_folder(target.parent)
    scale = _given_scale(mean, std)
    shape = input_shape(source)
    if scale is not None and shape is not None and len(shape) == 4 and shape[3] is not None:
        _check_channels(scale, shape[3])  # before TensorFlow starts
    _check_tensorflow()
    with tempfile.TemporaryDirectory(prefix="oip-convert-") as name, stages(progress) as say:
        folder = Path(name)
        job = {"model": str(source.resolve()), "noise": _NOISE, "digits": _DIGITS, "mean": None, "std": None}
        if scale is not None:
            job |= {"mean": scale[0], "std": scale[1]}
        (folder / "job.json").write_text(json.dumps(job))
        _export(folder, source, say)
        say("building the torch module")
        description = json.loads((folder / "layers.json").read_text())
        with np.load(folder / "reference.npz", allow_pickle=False) as reference:
            proto = onnx.load(folder / "model.onnx")
            network = _network(description, source, proto, reference, scale)
            model = FeatureModel(proto, network)
            say("proving every layer")
            with recorded_gradients(), matmul_precision():  # whatever the caller has switched off or on
                layers, proof = prove(model, reference)
        network = dataclasses.replace(network, layers=layers, proof=proof)
        say("writing the ONNX file")
        write(proto, network, target)
    return FeatureModel(proto, network).to(chosen)


def prove(model: FeatureModel, reference: Mapping[str, npt.NDArray[Any]]) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """Compare every layer of the model, and a gradient, with what TensorFlow computed.

    Args:
        model: on the CPU.
        reference: see `keras_export._reference`: images, activations before and after each layer's activation (NHWC),
            a gradient and what it is the gradient of.

    Returns:
        The layers with their `max_error`, and the proof's other figures.

    Raises:
        ProofError: see `convert`.
    """
    images = reference["images"]
    layers, failed = [], {}
    # Two batch sizes: a graph that froze the batch, or that mixes its images, shows with the second one.
    batches = [slice(0, len(images)), slice(0, 1), slice(_NOISE, _NOISE + 1)]
    after, before = zip(*(_run(model, images[part]) for part in batches), strict=True)
    for index, layer in enumerate(model.layers):
        error = _error(after, reference[f"{index}"], batches, layer.name)
        if f"before:{index}" in reference:
            error = max(error, _error(before, reference[f"before:{index}"], batches, layer.name))
        layers.append(dataclasses.replace(layer, max_error=error))
        if not error <= MAX_LAYER_ERROR:
            failed[layer.name] = f"differs by {error:.1e} of its maximum (at most {MAX_LAYER_ERROR:.0e} is allowed)"

    target, map_index, silent = (int(n) for n in reference["gradient_target"])
    gradient_layer = model.layers[target].name
    cosine = _gradient_cosine(model, gradient_layer, map_index, bool(silent), images, reference["gradient"])
    if not cosine >= MIN_GRADIENT_COSINE:
        failed.setdefault(
            gradient_layer, f"has an input gradient of cosine {cosine:.6f} (at least {MIN_GRADIENT_COSINE} is needed)"
        )
    output = model.layers.names.index(model.network.output)
    if not _same_classes(after[0][model.network.output], reference[f"{output}"]):
        failed.setdefault(model.network.output, "predicts other classes than Keras")
    if failed:
        first, why = next(iter(failed.items()))
        others = f"; so do {', '.join(list(failed)[1:6])}" if len(failed) > 1 else ""
        raise ProofError(
            f"torch does not compute what Keras computes: layer {first!r} {why}{others}; nothing was written",
            failed=list(failed),
            layers=[_finite(layer.row()) for layer in layers],
        )
    proof = {
        "probes": {"noise": _NOISE, "digits": len(images) - _NOISE},
        "batch_sizes": [len(images), 1],
        "max_error": max(layer.max_error or 0.0 for layer in layers),
        "gradient": {"layer": gradient_layer, "map": map_index, "before_activation": bool(silent), "cosine": cosine},
    }
    return tuple(layers), proof


def _run(model: FeatureModel, images: npt.NDArray[np.float32]) -> tuple[_Activations, _Activations]:
    """Every layer's output after and before its activation, for NHWC images, in Keras' layout."""
    with torch.no_grad(), capture(model, *model.layers.names, before_activation=True) as maps:
        after = model.every_layer(to_tensor(images))
    to_arrays = [{name: to_array(tensor) for name, tensor in side.items()} for side in (after, maps)]
    return to_arrays[0], to_arrays[1]


def _error(runs: Sequence[_Activations], expected: npt.NDArray[Any], batches: list[slice], name: str) -> float:
    """Largest |got - expected| over the largest |expected|; infinite where a shape differs or a value is not finite."""
    if not np.isfinite(expected).all():
        return math.inf
    worst = 0.0
    for run, part in zip(runs, batches, strict=True):
        got = run[name]
        if got.shape != expected[part].shape or not np.isfinite(got).all():
            return math.inf
        worst = max(worst, float(np.abs(got - expected[part]).max()))
    scale = float(np.abs(expected).max())
    return worst / scale if scale > 0 else (0.0 if worst == 0 else math.inf)


def _gradient_cosine(
    model: FeatureModel,
    layer: str,
    map_index: int,
    before: bool,
    images: npt.NDArray[np.float32],
    expected: npt.NDArray[np.float32],
) -> float:
    """Smallest cosine, over the images, between torch's and Keras' gradient of a map's mean."""
    x = to_tensor(images).requires_grad_()
    maps = model.up_to(layer, before_activation=before)(x)
    (gradient,) = torch.autograd.grad(maps[:, map_index].mean((1, 2)).sum(), x)
    got = to_array(gradient).reshape(len(images), -1).astype(np.float64)
    want = expected.reshape(len(images), -1).astype(np.float64)
    norms = np.linalg.norm(got, axis=1), np.linalg.norm(want, axis=1)
    cosines = (got * want).sum(1) / np.maximum(norms[0] * norms[1], 1e-300)
    # Where the map is silent both gradients are 0 and have no direction; if only one is 0, that is a difference.
    both_zero = (norms[0] == 0) & (norms[1] == 0)
    return float(np.where(both_zero, 1.0, cosines).min())


def _same_classes(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    """Equal argmax; where two classes tie within the layer's own tolerance, either will do."""
    if got.shape != expected.shape:
        return False
    rows = got.reshape(len(got), -1), expected.reshape(len(expected), -1)
    chosen = np.take_along_axis(rows[1], rows[0].argmax(1)[:, None], axis=1)[:, 0]
    return bool((chosen >= rows[1].max(1) - 2 * MAX_LAYER_ERROR * np.abs(expected).max()).all())


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    error = row["max_error"]
    return row | {"max_error": error if error is not None and math.isfinite(error) else None}


def _check_tensorflow() -> None:
    missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, but needed to convert: run "
            '`pip install ".[convert]"` in the folder of oip_torch (an ONNX file once made needs neither)'
        )


def _export(folder: Path, source: Path, say: Callable[[str], None]) -> None:
    """Run `keras_export` on the folder; its progress goes to `say`, its failure becomes one error."""
    environment = os.environ | {
        "KERAS_BACKEND": "tensorflow",
        "CUDA_VISIBLE_DEVICES": "-1",  # the reference is the CPU's: exact float32, no TF32
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PYTHONIOENCODING": "utf-8",
        "TMPDIR": str(folder),  # what the process leaves when it is killed goes with the folder
    }
    command = [sys.executable, "-m", "oip_torch.keras.export", str(folder)]
    say("starting TensorFlow")
    with (
        (folder / "stderr.txt").open("wb") as errors,
        subprocess.Popen(  # cwd: `-m` puts it on the path, and a stranger's folder may hold a tensorflow.py
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        timer = threading.Timer(_TIMEOUT_SECONDS, process.kill)
        timer.daemon = True
        try:
            timer.start()
            assert process.stdout is not None
            for line in process.stdout:
                say(line.decode(errors="replace").strip())
            code = process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            process.kill()
            process.wait()  # after Ctrl-C Popen itself waits a quarter of a second at most
    if timed_out:
        raise ConversionError(f"exporting {source.name} took more than {_TIMEOUT_SECONDS} s, and was given up")
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text())
        if error["kind"] == "Exception":
            raise ConversionError(f"TensorFlow or tf2onnx could not export {source.name}: {error['message']}")
        raise (ConversionError if error["kind"] == "ConversionError" else InputError)(error["message"])
    if code != 0:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        reason = last_words((folder / "stderr.txt").read_text(errors="replace"))
        raise ConversionError(f"the TensorFlow process could not export {source.name} ({how}): {reason}")


def _network(
    description: dict[str, Any],
    source: Path,
    proto: onnx.ModelProto,
    reference: Mapping[str, npt.NDArray[Any]],
    scale: tuple[list[float], list[float]] | None,
) -> Network:
    height, width, channels = (int(n) for n in description["input_shape"])
    if scale is None and (height, width, channels) == (28, 28, 1):
        scale = [MNIST_MEAN], [MNIST_STD]
        logger.warning(
            "note: the input is 28×28×1, so MNIST's standardisation is assumed: mean %s, standard deviation %s "
            "(--mean and --std, or mean= and std=, to say otherwise)",
            *(MNIST_MEAN, MNIST_STD),
        )
    if scale is not None:
        _check_channels(scale, channels)
    layers = []
    for index, row in enumerate(description["layers"]):
        layers.append(
            Layer(
                **{key: row[key] for key in ("name", "kind", "maps", "height", "width", "activation", "tensor")},
                tensor_before=row["tensor_before"] or row["tensor"],
                figures=figures(reference[f"{index}"][:1]),
            )
        )
    ours = {name: version(name) for name in ("oip_torch", "torch", "onnx2torch", "numpy")}
    return Network(
        layers=tuple(layers),
        output=layers[description["output"]].name,
        input_shape=(height, width, channels),
        mean=None if scale is None else tuple(scale[0]),
        std=None if scale is None else tuple(scale[1]),
        source=source.name,
        source_sha256=sha256(source),
        graph_sha256=graph_sha256(proto),
        versions=description["versions"] | ours,
        proof={},
    )


def _given_scale(
    mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[list[float], list[float]] | None:
    if (mean is None) != (std is None):
        raise InputError("only one of mean and std was given: expected both, or neither")
    if mean is None or std is None:
        return None
    means, stds = _numbers("mean", mean), _numbers("std", std)
    if not all(map(math.isfinite, means + stds)) or min(stds) <= 0:
        raise InputError(f"mean {means}, std {stds}: expected finite numbers, and each std above 0")
    return means, stds


def _numbers(name: str, value: Any) -> list[float]:
    """One number or several, as a list; neither text nor truth values are taken for numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf" or array.ndim > 1 or array.size == 0:
        got = " ".join(repr(value).split())[:60]
        raise InputError(
            f"{name} is {got}: expected a number, or a list of one per channel, such as [103.9, 116.8, 123.7]"
        )
    return [float(number) for number in np.atleast_1d(array)]


def _check_channels(scale: tuple[list[float], list[float]], channels: int) -> None:
    if {len(scale[0]), len(scale[1])} - {1, channels}:
        raise InputError(
            f"mean and std have {len(scale[0])} and {len(scale[1])} numbers: expected 1, or one for each of the "
            f"{channels} channels"
        )
