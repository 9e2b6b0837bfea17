"""How does a Keras file become a verified ONNX file?

`convert` drives the export (`keras.export`, in a process of its own), builds the torch module from the ONNX file and
has every layer verified (`keras.verify`) before anything is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
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
from oip_torch.base.platform import matmul_precision, recorded_gradients, return_freed_memory
from oip_torch.base.progress import stages
from oip_torch.base.temporary import temporary_folder
from oip_torch.base.watchdog import did_nothing, patience, watched
from oip_torch.keras.file import KerasFile, check_size, read_keras_file
from oip_torch.keras.verify import DIGIT_PROBES, NOISE_PROBES, Answer, Doubt, verify
from oip_torch.network.domain import Domain, find_domain
from oip_torch.network.load import resolve_device, with_exact_fingerprints
from oip_torch.network.model import FeatureModel
from oip_torch.network.onnx_file import Layer, Network, graph_sha256, write

__all__ = ["convert", "given_domain", "output_file"]

_TIMES_PATIENCE = 15  # that an export may take in all, while it gets on: half an hour by default
_MOST_PROBES = 32  # that users give
_ANSWER = "\x1f"  # as `keras.export.ANSWER`, which this process does not import
_WEIGHTS = "weights.bin"  # as `keras.aside.FILE`, likewise
_LEAST_FREE = 1 << 16  # bytes, below which the disk is full
_MOST_ON_DISK = 4 << 30  # bytes of answers that wait until TensorFlow has ended; ResNet50 at 224 pixels gives 2 GiB

logger = logging.getLogger("oip_torch")


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    architecture: str | os.PathLike[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: npt.ArrayLike | None = None,
    value_range: tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    probes: npt.ArrayLike | None = None,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> FeatureModel:
    """Convert a Keras CNN to ONNX and torch, and verify every layer.

    Args:
        source: the Keras network, .keras or .h5, of Keras 3 or Keras 2.
        output: where the ONNX file goes; by default beside the source, with the ending .onnx.
        architecture: where the source holds weights alone (`model.save_weights`), the JSON file with the network's
            configuration (`model.to_json()`).
        mean: what was subtracted from the pixels outside the network, on the 0–255 scale, one number or one per
            channel. Where it is not given, what the network begins with tells how pixels go in; for a 28x28x1 input
            that begins with nothing of the kind MNIST's figures are taken.
        std: what they were divided by then, likewise.
        data: images of the kind that the network was trained on, (N, height, width) or (N, height, width, channels),
            pixel values 0–255: their mean and standard deviation become part of the model's domain. None: MNIST's are
            assumed for a 28x28x1 input, natural images' for others.
        value_range: the least and the largest value that an input can have, where that is not what pixels of 0 and
            255 become.
        size: (height, width) of the images, for a network that leaves them open.
        probes: images to verify the conversion on, in the place of digits and beside the noise, in the form of `data`;
            of more than 32 so many, spread evenly.
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
    file = read_keras_file(source, check_size(size), architecture)
    target = output_file(output, file.path)
    given = given_domain(mean, std, data, value_range)
    pixels = _given_probes(probes, file)
    if file.input_shape is not None:
        find_domain(file.input_shape, **given)  # refuses before TensorFlow starts
    _check_tensorflow()
    with temporary_folder("convert") as folder, stages(progress) as say:
        job: dict[str, Any] = {
            "model": str(file.path.resolve()),
            "architecture": None if file.architecture is None else str(file.architecture.resolve()),
            "size": None if size is None or file.input_shape is None else file.input_shape[:2],
            "noise": NOISE_PROBES,
            "digits": DIGIT_PROBES,
            "probes": None,
            "domain": given,
            "dtype": "float32",
        }
        if pixels is not None:
            np.save(folder / "probes.npy", pixels)
            job["probes"] = str(folder / "probes.npy")
        with contextlib.closing(_answers(folder, job, file.path, say)) as answers:
            next(answers)  # the graph is written
            say("building the torch module")
            description = json.loads((folder / "layers.json").read_text())
            # Its weights stay beside it: torch's are the only ones in memory while TensorFlow may run once more.
            proto = onnx.load(folder / "model.onnx", load_external_data=False)
            network = _network(description, file, graph_sha256(proto, folder / _WEIGHTS))
            model = FeatureModel.of_onnx(onnx.load(folder / "model.onnx"), network)

            def in_float64(doubt: Doubt) -> Iterator[Answer]:
                say("running it in float64, since float32 is too coarse to tell")
                return_freed_memory()  # TensorFlow needs it now
                again = job | {"dtype": "float64", "domain": network.domain.to_dict()}
                again |= {"doubtful": dict(doubt.layers), "target": doubt.gradient}
                return _answers(folder, again, file.path, say)

            with recorded_gradients(), matmul_precision():  # whatever the caller has switched off or on
                layers, verification = verify(model, answers, in_float64)
                layers = with_exact_fingerprints(model, layers)
        if pixels is not None:
            verification["probes"] = {"noise": NOISE_PROBES, "given": len(pixels)}
        network = dataclasses.replace(network, layers=layers, verification=verification)
        say("writing the ONNX file")
        write(proto, network, target, folder / _WEIGHTS)
    return FeatureModel(model.graph_module, model.taps, network).to(chosen)


def _given_probes(probes: npt.ArrayLike | None, file: KerasFile) -> npt.NDArray[Any] | None:
    """Images of the network's size, (N, height, width, channels), pixel values 0–255."""
    if probes is None:
        return None
    pixels = check_pixels(np.asarray(probes), "the probes")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if file.input_shape is not None and pixels.shape[1:] != file.input_shape:
        raise InputError(
            f"the probes have the shape {pixels.shape}: expected (N, {', '.join(map(str, file.input_shape))}), images "
            "of the network's size"
        )
    chosen: npt.NDArray[Any] = pixels[
        np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), _MOST_PROBES)).astype(int))
    ]
    return chosen


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


def _answers(folder: Path, job: Mapping[str, Any], source: Path, say: Callable[[str], None]) -> Generator[Answer]:
    """What `keras.export` hands over for the job, one by one; each is gone once the next one is asked for.

    They lie on the disk until then, so that the process of TensorFlow has ended and its memory is free when torch
    begins; of a network that is too large for that the process waits with the rest.
    """
    most = min(_MOST_ON_DISK, shutil.disk_usage(folder).free // 2)
    with contextlib.closing(_files(folder, job, source, say)) as files:
        ahead: list[Path] = []
        for path in files:
            ahead.append(path)
            if sum(one.stat().st_size for one in ahead) > most:
                break
        for path in itertools.chain(ahead, files):
            if path.suffix != ".npz":
                yield {}
                continue
            with np.load(path, allow_pickle=False) as arrays:
                yield arrays
            path.unlink()


def _files(folder: Path, job: Mapping[str, Any], source: Path, say: Callable[[str], None]) -> Generator[Path]:
    """The files that `keras.export` hands over.

    TensorFlow computes without oneDNN, some of whose kernels corrupt memory, and which gives none back that it once
    took. Where a fault of TensorFlow's own kills the process all the same, it is run once more with oneDNN: what it had
    to compute has a second way then.
    """
    given = 0
    for environment in ({"TF_ENABLE_ONEDNN_OPTS": "0"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}):
        try:
            for number, path in enumerate(_export(folder, job, source, say, environment)):
                if number >= given:  # what was handed over before the fault is not handed over again
                    given += 1
                    yield path
            return
        except _FaultError as error:
            if environment["TF_ENABLE_ONEDNN_OPTS"] == "1":
                raise
            say(f"TensorFlow crashed while {error.stage}: once more, with oneDNN")


class _FaultError(ConversionError):
    """The process was ended by a signal that tells of corrupted memory, while it was at `stage`."""

    stage = ""


def _export(
    folder: Path,
    job: Mapping[str, Any],
    source: Path,
    say: Callable[[str], None],
    more: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Run `keras.export` on the folder: the files that it hands over.

    Its progress goes to `say`, its failure becomes one error.
    """
    (folder / "job.json").write_text(json.dumps(job))
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", **(more or {})}
    stage = "starting TensorFlow"
    say(stage)
    limit = _TIMES_PATIENCE * patience()
    with Child(
        "oip_torch.keras.export", str(folder), folder=folder, environment=environment, stdin=subprocess.PIPE
    ) as child:
        timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), child.kill)
        timer.daemon = True
        try:
            timer.start()
            assert child.process.stdout is not None
            assert child.process.stdin is not None
            while True:
                with watched(child.process, limit / _TIMES_PATIENCE) as stuck:
                    line = child.process.stdout.readline()
                if not line:
                    break
                if not line.startswith(_ANSWER):
                    stage = line.strip()
                    say(stage)
                    continue
                yield folder / line.strip().removeprefix(_ANSWER)
                with contextlib.suppress(BrokenPipeError):  # it has died: the loop ends, and the code tells
                    child.process.stdin.write("\n")
                    child.process.stdin.flush()
            code = child.process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
    if stuck.is_set():
        raise ConversionError(f"the TensorFlow process that exports {source.name} {did_nothing(patience())}")
    if timed_out:
        raise ConversionError(
            f"exporting {source.name} took more than {limit:.0f} s, and was given up while {stage}; on a slow machine "
            "OIP_PATIENCE=SECONDS, a fifteenth of that, gives it longer"
        )
    if code != 0 and shutil.disk_usage(folder).free < _LEAST_FREE:  # what it had to say could not be written either
        raise ConversionError(
            f"exporting {source.name} filled the disk while {stage}: no space is left in {folder.parent}; free some, "
            "or set TMPDIR to a folder on another disk"
        )
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text())
        if error["kind"] == "Exception":
            raise ConversionError(
                f"TensorFlow or tf2onnx could not export {source.name} (while {stage}): {error['message']}"
            )
        raise (ConversionError if error["kind"] == "ConversionError" else InputError)(error["message"])
    if code != 0:
        kind = _FaultError if -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS) else ConversionError
        why = "; less memory is needed for smaller images (--size)" if -code == signal.SIGKILL else ""
        died = kind(
            f"the TensorFlow process could not export {source.name}: it died while {stage} {child.why_it_ended()}{why}"
        )
        if isinstance(died, _FaultError):
            died.stage = stage
        raise died


def _network(description: dict[str, Any], file: KerasFile, digest: str) -> Network:
    """The network as the child describes it; `digest`: of its graph."""
    height, width, channels = (int(n) for n in description["input_shape"])
    domain = Domain.from_dict(description["domain"])
    logger.warning("note: %s (--mean, --std, --data and --range say otherwise)", domain.source)
    rewritten = {"configuration": [*file.rewritten], "weights": [*file.rounded], "graph": description["rewrites"]}
    rewritten = {key: value for key, value in rewritten.items() if value}
    if file.rewritten:
        logger.warning(
            "note: the network is converted with changes to its configuration: %s", "; ".join(file.rewritten)
        )
    if file.rounded:
        logger.warning("note: as Keras loads them, %s", "; ".join(file.rounded))
    layers = []
    for row in description["layers"]:
        layers.append(
            Layer(
                **{key: row[key] for key in ("name", "kind", "maps", "height", "width", "activation", "tensor")},
                tensor_before=row["tensor_before"] or row["tensor"],
            )
        )
    ours = {name: version(name) for name in ("oip_torch", "torch", "onnx2torch", "numpy")}
    return Network(
        layers=tuple(layers),
        output=layers[description["output"]].name,
        input_shape=(height, width, channels),
        domain=domain,
        source=file.path.name,
        source_sha256=sha256(file.path),
        graph_sha256=digest,
        versions=description["versions"] | ours,
        verification={},
        rewritten=rewritten,
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
