"""How does a Keras file become a verified ONNX file?

`convert` drives the export (`keras.export`, in a process of its own), builds the torch module from the ONNX file and
has every layer verified (`keras.verify`) before anything is written.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
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

from oip_torch.base.child import Child
from oip_torch.base.errors import ConversionError, InputError
from oip_torch.base.files import check_output_folder, sha256
from oip_torch.base.image_files import check_pixels, pixel_statistics
from oip_torch.base.platform import matmul_precision, recorded_gradients
from oip_torch.base.progress import stages
from oip_torch.keras.file import check_keras_file, input_shape
from oip_torch.keras.verify import DIGIT_PROBES, NOISE_PROBES, verify
from oip_torch.network.domain import Domain, find_domain
from oip_torch.network.load import resolve_device
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer, Network, graph_sha256, write
from oip_torch.network.probes import fingerprint

__all__ = ["convert", "given_domain", "output_file"]

_TIMEOUT_SECONDS = 1800

logger = logging.getLogger("oip_torch")


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: npt.ArrayLike | None = None,
    value_range: tuple[float, float] | None = None,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> FeatureModel:
    """Convert a Keras CNN to ONNX and torch, and verify every layer.

    Args:
        source: the Keras network, .keras or .h5.
        output: where the ONNX file goes; by default beside the source, with the ending .onnx.
        mean: what was subtracted from the pixels outside the network, on the 0–255 scale, one number or one per
            channel. Where it is not given, what the network begins with tells how pixels go in; for a 28x28x1 input
            that begins with nothing of the kind MNIST's figures are taken.
        std: what they were divided by then, likewise.
        data: images of the kind that the network was trained on, (N, height, width) or (N, height, width, channels),
            pixel values 0–255: their mean and standard deviation become part of the model's domain. None: MNIST's are
            assumed for a 28x28x1 input, natural images' for others.
        value_range: the least and the largest value that an input can have, where that is not what pixels of 0 and
            255 become.
        device: where the returned model is put; the verification runs on the CPU.
        progress: show the stages on stderr; None: only on a terminal or in a notebook.

    Returns:
        The verified model; `model.layers` holds each layer's error.

    Raises:
        InputError: a file or argument that is wrong, or TensorFlow missing. Nothing is written.
        ConversionError: a valid network that cannot be brought to ONNX or torch.
        VerificationError: a layer differs by more than `verify.MAX_LAYER_ERROR`, the input gradient's cosine is below
            `verify.MIN_GRADIENT_COSINE`, the predicted classes differ, or a value is not finite. Nothing is written.
    """
    chosen = resolve_device(device)
    source = check_keras_file(source)
    target = output_file(output, source)
    given = given_domain(mean, std, data, value_range)
    shape = input_shape(source)
    if shape is not None and len(shape) == 4 and None not in shape[1:]:
        find_domain((shape[1] or 0, shape[2] or 0, shape[3] or 0), **given)  # refuses before TensorFlow starts
    _check_tensorflow()
    with tempfile.TemporaryDirectory(prefix="oip-convert-") as name, stages(progress) as say:
        folder = Path(name)
        job = {"model": str(source.resolve()), "noise": NOISE_PROBES, "digits": DIGIT_PROBES, "domain": given}
        (folder / "job.json").write_text(json.dumps(job))
        _export(folder, source, say)
        say("building the torch module")
        description = json.loads((folder / "layers.json").read_text())
        with np.load(folder / "reference.npz", allow_pickle=False) as reference:
            proto = onnx.load(folder / "model.onnx")
            network = _network(description, source, proto, reference)
            model = FeatureModel.of_onnx(proto, network)
            say("verifying every layer")
            with recorded_gradients(), matmul_precision():  # whatever the caller has switched off or on
                layers, verification = verify(model, reference)
        network = dataclasses.replace(network, layers=layers, verification=verification)
        say("writing the ONNX file")
        write(proto, network, target)
    return FeatureModel.of_onnx(proto, network).to(chosen)


def output_file(output: str | os.PathLike[str] | None, source: Path) -> Path:
    """The ONNX file to write, if it can be written."""
    if output is not None and not isinstance(output, (str, os.PathLike)):
        raise InputError(f"output is a {type(output).__name__}: expected the path of the ONNX file to write")
    target = Path(output) if output is not None else source.with_suffix(".onnx")
    if os.path.isdir(target):
        raise InputError(f"the output {target} is a directory: expected the name of an ONNX file to write")
    if target.suffix.lower() != ".onnx":
        raise InputError(f"the output {target} ends in {target.suffix or 'nothing'}: expected a name ending in .onnx")
    check_output_folder(target.parent)
    return target


def _check_tensorflow() -> None:
    missing = [name for name in ("tensorflow", "tf2onnx") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed, but needed to convert: run "
            '`pip install ".[convert]"` in the folder of oip_torch (an ONNX file once made needs neither)'
        )


def _export(folder: Path, source: Path, say: Callable[[str], None]) -> None:
    """Run `keras.export` on the folder; its progress goes to `say`, its failure becomes one error."""
    say("starting TensorFlow")
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with Child("oip_torch.keras.export", str(folder), folder=folder, environment=environment) as child:
        timer = threading.Timer(_TIMEOUT_SECONDS, child.kill)
        timer.daemon = True
        try:
            timer.start()
            assert child.process.stdout is not None
            for line in child.process.stdout:
                say(line.strip())
            code = child.process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
    if timed_out:
        raise ConversionError(f"exporting {source.name} took more than {_TIMEOUT_SECONDS} s, and was given up")
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text())
        if error["kind"] == "Exception":
            raise ConversionError(f"TensorFlow or tf2onnx could not export {source.name}: {error['message']}")
        raise (ConversionError if error["kind"] == "ConversionError" else InputError)(error["message"])
    if code != 0:
        raise ConversionError(f"the TensorFlow process could not export {source.name} {child.why_it_ended()}")


def _network(
    description: dict[str, Any],
    source: Path,
    proto: onnx.ModelProto,
    reference: Mapping[str, npt.NDArray[Any]],
) -> Network:
    height, width, channels = (int(n) for n in description["input_shape"])
    domain = Domain.from_dict(description["domain"])
    logger.warning("note: %s (--mean, --std, --data and --range say otherwise)", domain.source)
    layers = []
    for index, row in enumerate(description["layers"]):
        layers.append(
            Layer(
                **{key: row[key] for key in ("name", "kind", "maps", "height", "width", "activation", "tensor")},
                tensor_before=row["tensor_before"] or row["tensor"],
                fingerprint=fingerprint(reference[f"{index}"][:1]),
            )
        )
    ours = {name: version(name) for name in ("oip_torch", "torch", "onnx2torch", "numpy")}
    return Network(
        layers=tuple(layers),
        output=layers[description["output"]].name,
        input_shape=(height, width, channels),
        domain=domain,
        source=source.name,
        source_sha256=sha256(source),
        graph_sha256=graph_sha256(proto),
        versions=description["versions"] | ours,
        verification={},
    )


def given_domain(
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    data: npt.ArrayLike | None,
    value_range: tuple[float, float] | None,
) -> dict[str, Any]:
    """What is known of the domain before the network is looked at: keywords of `find_domain`."""
    given: dict[str, Any] = {}
    if (mean is None) != (std is None):
        raise InputError("only one of mean and std was given: expected both, or neither")
    if mean is not None and std is not None:
        means, stds = _floats("mean", mean), _floats("std", std)
        if not all(map(math.isfinite, means + stds)) or min(stds) <= 0:
            raise InputError(f"mean {means}, std {stds}: expected finite numbers, and each std above 0")
        given["scale"] = means, stds
    if value_range is not None:
        ends = _floats("value_range", value_range)
        if len(ends) != 2 or not all(map(math.isfinite, ends)):
            raise InputError(f"value_range is {value_range}: expected two finite numbers, as in (0, 1)")
        given["limits"] = ends
    if data is not None:
        given["data"] = pixel_statistics(check_pixels(np.asarray(data), "the data"))
    return given


def _floats(name: str, value: Any) -> list[float]:
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
