"""Do the frameworks agree: layers, gradients, whole ascents?

The same network runs in several runtimes, each in a process of its own, on the same images and from the same starts.
The yardstick is the Keras file in float64, in the first Keras runtime that is there. What agrees with it in float64 is
the same function; what parts from it in float32 alone is rounding, and is told as that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from oip_torch.base.checks import whole
from oip_torch.base.errors import InputError, OipError, RuntimeProcessError, unknown_name
from oip_torch.base.files import as_path, check_output_folder, replacing, saved_in, sha256
from oip_torch.base.progress import bar
from oip_torch.base.tensors import to_array, to_tensor
from oip_torch.comparison.runtimes import BEFORE, OURS, RUNTIMES, Array, Dtype
from oip_torch.comparison.runtimes.process import RuntimeProcess
from oip_torch.keras.convert import MAX_LAYER_ERROR
from oip_torch.keras.file import CONVOLUTIONS, check_keras_file
from oip_torch.network.model import FeatureModel, load, resolve_device
from oip_torch.network.onnx_file import Layer, graph_sha256, read
from oip_torch.network.probes import digits, noise
from oip_torch.optim.ascent import AscentSettings
from oip_torch.optim.starts import start_images
from oip_torch.search.search import ascend, chosen_maps

__all__ = ["BOUNDS", "Ascents", "Comparison", "Disagreement", "compare"]

BOUNDS = {
    "layer_error": MAX_LAYER_ERROR,
    "layer_error_float64": 1e-10,
    "gradient_cosine": 0.99999,
    "trace_error_float64": 1e-9,
    "image_correlation_float64": 0.999999,
    "cross_score_error": MAX_LAYER_ERROR,
}
"""What has to hold for `agree`: errors at most, cosines and correlations at least these. Ascents are bound in float64
alone, since in float32 they are chaotic in places; layers and cross-scores in both or in float32."""

_EPSILON = 0.01  # of the article
_MOST_MAPS, _MOST_GRADIENT_LAYERS = 64, 8
_MOST_IMAGES, _MOST_PIXELS = 16, 1 << 17  # of each kind
_FLOOR = 1e-3  # scores are compared relative to themselves, but not to less than this part of the trace's largest
_RESOLUTION: dict[Dtype, float] = {
    "float32": 1e-3,
    "float64": 1e-12,
}  # some ten thousand times the rounding of a number
_UNDERFLOW: dict[Dtype, float] = {"float32": 1e-30, "float64": 1e-140}
"""Where numbers of a gradient are so small that some lose digits and others become 0, in float64 their squares. A
softmax is there for every class that an image speaks against strongly enough."""
_WEIGHTS: dict[Dtype, int] = {"float32": 1, "float64": 2}  # of an ascent in the progress bar: about its time
_PARTED = 1e-3  # float32 traces that end further apart than this are counted


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """One bound that does not hold: where, in which runtime, and by how much."""

    runtime: str
    what: str
    got: float
    bound: float
    layer: str
    map: int | None = None

    def __str__(self) -> str:
        where = f"layer {self.layer!r}" + ("" if self.map is None else f", map {self.map}")
        allowed = f"at least {self.bound}" if self.bound > 0.5 else f"at most {self.bound:.0e}"
        return f"{where}: {self.runtime} has a {self.what} of {self.got:.6g}, but {allowed} is allowed"


@dataclass(frozen=True, kw_only=True)
class Ascents:
    """Whole ascents in one runtime and dtype.

    Attributes:
        traces: (maps, steps), the scores before each step.
        images: (maps, height, width, channels), the final ones.
    """

    traces: Array
    images: Array

    @property
    def dead(self) -> Array:
        """(maps,) True where the score is 0 in the end."""
        return np.asarray(self.traces[:, -1] == 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` found.

    Attributes:
        layer: whose maps were ascended.
        maps: (maps,) their numbers.
        reference: the runtime that the others are compared with.
        report: everything in numbers, ready for JSON; `runtimes` holds an entry for each runtime.
        disagreements: the bounds that do not hold, the first layer first.
        ascents: runtime → dtype → the ascents.
    """

    layer: str
    maps: Array
    reference: str
    report: dict[str, Any]
    disagreements: tuple[Disagreement, ...]
    ascents: Mapping[str, Mapping[Dtype, Ascents]] = field(repr=False)

    @property
    def place(self) -> str:
        """What was ascended, in words: "Conv2D_3", or "Dense_2 before its activation"."""
        return f"{self.layer} before its activation" if self.report["before_activation"] else self.layer

    @property
    def agree(self) -> bool:
        """Whether every bound holds for every runtime that counts, and none failed."""
        return bool(self.report["agree"])

    @property
    def verdict(self) -> str:
        """One sentence: who agrees, or the first disagreement."""
        counted = [name for name, entry in self.report["runtimes"].items() if entry["counted"]]
        if self.agree:
            return f"{len(counted)} runtimes agree: {', '.join(counted)}"
        failed = self.report["failed"]
        if not self.disagreements:
            return "; ".join(failed.values())
        first = self.disagreements[0]
        others = list(dict.fromkeys(entry.runtime for entry in self.disagreements if entry.runtime != first.runtime))
        also = f"; {', '.join(others)} {'disagrees' if len(others) == 1 else 'disagree'} as well" if others else ""
        return f"{first}{also} ({len(self.disagreements)} bounds are broken in all)"

    def __repr__(self) -> str:
        lines = [*self.report["notes"], self.report["float32"], f"{self.verdict.rstrip('.')}."]
        return "\n".join([*_table(self.report), "", *(textwrap.fill(line, 118) for line in lines)])

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json and then report.html (which needs no other file) into a folder; returns their paths.

        Raises:
            InputError: the folder cannot be written to.
            OipError: the page cannot be made; report.json is there.
        """
        data, page = (check_output_folder(folder) / name for name in ("report.json", "report.html"))
        with replacing(data) as temporary:
            temporary.write_text(json.dumps(self.report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        with saved_in(data, str(page)), replacing(page) as temporary:
            from oip_torch.comparison import report  # and matplotlib with it, which may fail as well

            page.unlink(missing_ok=True)  # an earlier one is not to stand beside these results
            temporary.write_text(report.page(self), encoding="utf-8")
        return [data, page]


def compare(
    keras_file: str | os.PathLike[str],
    onnx_file: str | os.PathLike[str],
    *,
    runtimes: str | Iterable[str] = ("tensorflow", "jax", "keras-torch", "onnxruntime"),
    layer: str | Layer | None = None,
    maps: int | Iterable[int] | None = None,
    steps: int = 600,
    seed: int = 0,
    before_activation: bool | None = None,
    device: str | torch.device = "auto",
    progress: bool | None = None,
) -> Comparison:
    """Run a network in several runtimes, and compare layers, gradients and whole ascents.

        comparison = oip.compare("mnist_cnn.keras", "mnist_cnn.onnx")
        comparison.agree

    Args:
        keras_file: the Keras network.
        onnx_file: what `convert` made of it.
        runtimes: names of `runtimes.RUNTIMES`, or one text with commas between them. The imported torch module is
            always among them; one that is not installed is noted and left out.
        layer: whose maps are ascended; default: the last one whose maps are larger than one pixel.
        maps: which of its maps; default: 64 of them, spread evenly.
        steps: of each ascent, which is the article's (epsilon 0.01).
        seed: of the start images.
        before_activation: ascend what goes into the layer's activation; None: where that is a softmax or a sigmoid, as
            in `ascend`.
        device: "auto": the torch module on CUDA as well, when present; "cpu": not; "cuda": it has to be there.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Raises:
        InputError: a wrong file, name or number; or no runtime that reads the Keras file is installed.
        OipError: none of the runtimes that read the Keras file could run it.
    """
    keras_file, onnx_file = check_keras_file(keras_file), as_path(onnx_file, "an ONNX file")
    proto, network = read(onnx_file, check_digest=False)
    asked = runtimes.split(",") if isinstance(runtimes, str) else list(runtimes)
    names, missing = _present(asked, cuda=resolve_device(device).type == "cuda")
    notes = [f"{name} is not installed: run `{command}` to compare with it" for name, command in missing.items()]
    steps, seed = whole("steps", steps, 1), whole("seed", seed, 0)
    model = load(onnx_file, device="cpu", check=False)
    layer = model.layer(layer).name if layer is not None else _last_with_maps(model)
    chosen = chosen_maps(model, layer, _spread(model.layers[layer].maps) if maps is None else maps)
    if sha256(keras_file) != network.source_sha256:
        notes.append(f"{onnx_file} was made from another file than {keras_file}")
    if graph_sha256(proto) != network.graph_sha256:
        notes.append(f"{onnx_file} was changed after its conversion")

    began = time.perf_counter()
    before = model.before_activation(layer, before_activation)
    work = _work(model, layer, before, chosen, steps, seed)
    # Runtimes beside each other, each on its own cores, waste less than one after another on all.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(names))
    total = len(names) + sum(
        _WEIGHTS[dtype] for name in names if RUNTIMES[name].differentiates for dtype in RUNTIMES[name].dtypes
    )
    with contextlib.ExitStack() as stack:
        processes = {
            name: stack.enter_context(RuntimeProcess(name, keras_file, onnx_file, cores // workers)) for name in names
        }
        advance = stack.enter_context(bar("comparing", total, progress))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        stack.enter_context(_stopped_on_failure(processes))
        failed: dict[str, str] = {}

        def everywhere(job: Callable[[RuntimeProcess], Any]) -> dict[str, Any]:
            """The job's answer from each runtime; one that fails is not asked again."""

            def attempt(name: str) -> Any:
                try:
                    return job(processes[name])
                except RuntimeProcessError as failure:
                    failed[name] = str(failure)

            asked = [name for name in names if name not in failed]
            answers = dict(zip(asked, pool.map(attempt, asked), strict=True))
            return {name: answer for name, answer in answers.items() if name not in failed}

        reference, expected = _reference(processes, work, failed)
        errors = everywhere(lambda process: _errors(process, work, expected, advance))
        ascents = everywhere(lambda process: _ascents(process, work, advance))
        made = {name: done["float32"].images for name, done in ascents.items() if done}
        scores = everywhere(lambda process: _scores(process, work, made))
    if reference in failed:
        raise OipError(failed[reference])
    disagreements: list[Disagreement] = []
    entries = {}
    for name in names:
        if name not in failed:
            entries[name], wrong = _entry(name, work, errors[name], ascents, reference, scores)
            entries[name]["seconds"] = round(processes[name].seconds, 1)
            disagreements += wrong
    order = model.layers.names
    disagreements.sort(key=lambda entry: order.index(entry.layer))  # stable: layers, then gradients, then ascents
    return Comparison(
        layer=layer,
        maps=np.array(chosen),
        reference=reference,
        report={
            "agree": not disagreements and not failed,
            "reference": f"{reference}, float64",
            "keras": str(keras_file),
            "onnx": str(onnx_file),
            "layer": layer,
            "before_activation": before,
            "maps": chosen,
            "steps": steps,
            "epsilon": _EPSILON,
            "seed": seed,
            "images": {kind: len(images) for kind, images in work.images.items()},
            "bounds": BOUNDS,
            "runtimes": entries,
            "missing": missing,
            "failed": failed,
            "disagreements": [
                dataclasses.asdict(entry) | {"got": _number(entry.got), "message": str(entry)}
                for entry in disagreements
            ],
            "layouts": _layouts(ascents),
            "float32": _float32_sentence(entries, _layouts(ascents), reference, len(chosen)),
            "notes": notes,
            "seconds": round(time.perf_counter() - began, 1),
        },
        disagreements=tuple(disagreements),
        ascents=ascents,
    )


@contextlib.contextmanager
def _stopped_on_failure(processes: Mapping[str, RuntimeProcess]) -> Iterator[None]:
    """Ctrl-C above all: the threads of the pool wait for their runtimes' answers, and the pool for its threads."""
    try:
        yield
    except BaseException:
        for process in processes.values():
            process.stop()
        raise


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What every runtime is asked, (…, height, width, channels) in float64."""

    layers: list[str]  # of the ONNX file
    images: dict[str, Array]  # by kind
    gradient_maps: dict[str, Array]  # layer → a map for each image
    layer: str
    tap: str  # the layer's name, or with BEFORE what goes into its activation: what is ascended
    width: int  # of the layer: how many maps it has
    maps: Array
    starts: Array
    steps: int

    @property
    def all_images(self) -> Array:
        return np.concatenate(list(self.images.values()))


_LayerErrors = dict[str, dict[str, tuple[float, int]]]  # kind of image → layer → (error, map)
_GradientErrors = dict[str, tuple[float, float, int, int]]  # layer → (cosine, relative error, map, left out)
_Answers = tuple[dict[str, Array], dict[str, tuple[Array, Array]]]  # layers' outputs; scores and gradients by layer


@dataclass(frozen=True, kw_only=True)
class _Errors:
    """How far one runtime is from the reference, by dtype."""

    layers: dict[Dtype, _LayerErrors] = field(default_factory=dict)
    gradients: dict[Dtype, _GradientErrors] = field(default_factory=dict)


def _present(asked: list[str], cuda: bool) -> tuple[list[str], dict[str, str]]:
    """The runtimes to start, ours and companions among them, and how to install those that are missing."""
    names: list[str] = []
    missing: dict[str, str] = {}
    for name in dict.fromkeys([*asked, OURS]):
        if name not in RUNTIMES:
            raise unknown_name("runtime", name, RUNTIMES)
        if packages := RUNTIMES[name].missing():
            missing[name] = f"pip install {' '.join(packages)}"
            continue
        there = [
            entry for entry in (name, *RUNTIMES[name].companions) if cuda or "device" not in RUNTIMES[entry].options
        ]
        names += [entry for entry in there if entry not in names]
    if not any(RUNTIMES[name].reads == "keras" for name in names):
        hint = "; ".join(f"`{command}`" for command in missing.values()) or "add tensorflow, jax or keras-torch"
        raise InputError(f"none of the runtimes {', '.join(asked)} can read the Keras file here: {hint}")
    return names, missing


def _last_with_maps(model: FeatureModel) -> str:
    large = [layer.name for layer in model.layers if (layer.height or 1) * (layer.width or 1) > 1]
    if not large:
        raise InputError("no layer has maps larger than one pixel: name the layer to ascend")
    convolutions = [name for name in large if model.layers[name].kind in CONVOLUTIONS]
    return (convolutions or large)[-1]


def _spread(count: int) -> list[int]:
    """At most `_MOST_MAPS` of so many maps, evenly."""
    return sorted(set(np.linspace(0, count - 1, min(count, _MOST_MAPS)).round().astype(int).tolist()))


def _work(model: FeatureModel, layer: str, before: bool, maps: list[int], steps: int, seed: int) -> _Work:
    network = model.network
    count = max(2, min(_MOST_IMAGES, _MOST_PIXELS // math.prod(network.input_shape)))
    scale = {} if network.mean is None or network.std is None else {"mean": network.mean, "std": network.std}
    some = [maps[index] for index in range(0, len(maps), -(-len(maps) // count))]
    starts = start_images(model.input_shape, [(number, 0) for number in maps], layer=layer, seed=seed)
    images = {
        "noise": noise(count, network.input_shape),
        "digits": digits(count, network.input_shape, **scale),
    }
    settings = AscentSettings.within(100)
    try:
        images["OIPs"] = ascend(
            model, layer, some, seed=seed, settings=settings, before_activation=before, progress=False
        ).images
    except InputError:
        raise
    except OipError:  # no finite numbers come from this ONNX file: the layers will say where that begins
        pass
    work = _Work(
        layers=model.layers.names,
        images={kind: array.astype(np.float64) for kind, array in images.items()},
        gradient_maps={},
        layer=layer,
        tap=BEFORE + layer if before else layer,
        width=model.layers[layer].maps,
        maps=np.array(maps),
        starts=to_array(starts).astype(np.float64),
        steps=steps,
    )
    x = to_tensor(work.all_images, dtype=torch.float32)
    with torch.no_grad():
        outputs = model.every_layer(x)
        if before:
            outputs[work.tap] = model.up_to(layer, before_activation=True)(x)
    names = model.layers.names
    spread = np.linspace(0, len(names) - 1, min(len(names), _MOST_GRADIENT_LAYERS)).round().astype(int)
    for name in dict.fromkeys([*(names[index] for index in spread), work.tap]):
        means = outputs[name].flatten(2).mean(2) if outputs[name].ndim > 2 else outputs[name]
        # Each image with one of its strongest maps: not always the very strongest, so that several have their turn.
        strongest = means.argsort(1, descending=True)[:, :4]
        rows = np.arange(len(x))
        work.gradient_maps[name] = strongest.numpy()[rows, rows % strongest.shape[1]]
    return work


def _reference(processes: dict[str, RuntimeProcess], work: _Work, failed: dict[str, str]) -> tuple[str, _Answers]:
    """The first runtime that reads the Keras file and runs it, and what it says in float64."""
    for name, process in processes.items():
        if process.spec.reads == "keras" and "float64" in process.spec.dtypes:
            try:
                names = {layer.removeprefix(BEFORE) for layer in process.layers(work.all_images[:1], "float64")}
                if alone := sorted(names ^ set(work.layers)):
                    raise InputError(
                        f"the two files hold different networks: only one of them has a layer {alone[0]!r}; "
                        "convert the Keras file again, or name the file that it was made from"
                    )
                return name, _answers(process, work, "float64")
            except RuntimeProcessError as failure:
                failed[name] = str(failure)
    raise OipError("; ".join(failed.values()))


def _answers(process: RuntimeProcess, work: _Work, dtype: Dtype) -> _Answers:
    """Each layer's output, and for each image one map's mean with its gradient."""
    images = work.all_images
    layers = process.layers(images, dtype)
    gradients = {}
    if process.spec.differentiates:
        for layer, maps in work.gradient_maps.items():
            gradients[layer] = process.gradients(layer, maps, images, dtype)
    return layers, gradients


def _errors(
    process: RuntimeProcess,
    work: _Work,
    expected: _Answers,
    advance: Callable[[int], None],
) -> _Errors:
    found = _Errors()
    ends = np.cumsum([len(images) for images in work.images.values()])
    parts = {kind: slice(end - len(work.images[kind]), end) for kind, end in zip(work.images, ends, strict=True)}
    for dtype in process.spec.dtypes:
        layers, gradients = _answers(process, work, dtype)
        found.layers[dtype] = {}
        for kind, part in parts.items():
            by_layer = found.layers[dtype][kind] = {}
            for name, want in expected[0].items():
                error = _layer_error(layers[name][part] if name in layers else None, want[part])
                layer = name.removeprefix(BEFORE)  # the worse of before and after the activation stands for the layer
                by_layer[layer] = max(by_layer.get(layer, error), error)
        if gradients:
            found.gradients[dtype] = {
                name: _gradient_error(got, expected[1][name], work.gradient_maps[name], work.all_images, dtype)
                for name, (_, got) in gradients.items()
            }
    advance(1)
    return found


def _ascents(process: RuntimeProcess, work: _Work, advance: Callable[[int], None]) -> dict[Dtype, Ascents]:
    found: dict[Dtype, Ascents] = {}
    if process.spec.differentiates:
        for dtype in process.spec.dtypes:
            traces, images = process.run_ascent(
                work.tap, work.maps, work.starts, dtype, steps=work.steps, epsilon=_EPSILON
            )
            found[dtype] = Ascents(traces=traces, images=images)
            advance(_WEIGHTS[dtype])
    return found


def _scores(process: RuntimeProcess, work: _Work, made: dict[str, Array]) -> dict[str, Array]:
    """What this runtime says, in float32, to the images that each of them made: maker → (maps,), NaN if it cannot."""
    scores = {}
    for maker, images in made.items():
        outputs = process.layers(images, "float32").get(work.tap, np.empty(0))
        scores[maker] = np.full(len(work.maps), np.nan)
        if outputs.ndim > 1 and (len(outputs), outputs.shape[-1]) == (len(images), work.width):
            means = outputs.mean(tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs
            scores[maker] = means[np.arange(len(work.maps)), work.maps]
    return scores


def _layer_error(got: Array | None, want: Array) -> tuple[float, int]:
    """Largest |Δ| over the largest |reference|, and the map where it is; infinite where shapes or numbers are wrong."""
    if got is None or got.shape != want.shape or not np.isfinite(got).all():
        return math.inf, 0
    by_map = np.abs(got - want).reshape(-1, want.shape[-1]).max(0)
    scale = np.abs(want).max()
    worst = int(by_map.argmax())
    return float(by_map[worst] / scale) if scale > 0 else (0.0 if by_map[worst] == 0 else math.inf), worst


def _gradient_error(
    got: Array, want: tuple[Array, Array], maps: Array, images: Array, dtype: Dtype
) -> tuple[float, float, int, int]:
    """Over the images: the smallest cosine, the largest |Δ| over the largest |reference|, the map of the former.

    Images whose map is saturated are left out, and counted: where the whole image could not move the score by more than
    `_RESOLUTION` of it (a softmax at 1, say), the gradient is a difference of numbers that are equal in this dtype; and
    where both could move it by no more than `_UNDERFLOW` (a softmax at 0), they are of numbers that it cannot hold.
    """
    scores, gradients = want
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (got, gradients, images)]
    norms = [np.linalg.norm(row, axis=1) for row in rows]
    saturated = (norms[1] > 0) & (norms[1] * norms[2] <= _RESOLUTION[dtype] * np.abs(scores))
    saturated |= (norms[1] > 0) & (np.maximum(norms[0], norms[1]) * norms[2] <= _UNDERFLOW[dtype])
    # Where the map is silent both gradients are 0 and have no direction; if only one is 0, that is a difference.
    silent = (norms[0] == 0) & (norms[1] == 0)
    cosines = (rows[0] * rows[1]).sum(1) / np.maximum(norms[0] * norms[1], 1e-300)
    errors = np.abs(rows[0] - rows[1]).max(1) / np.maximum(np.abs(rows[1]).max(1), 1e-300)
    cosines = np.where(saturated | silent, 1.0, np.nan_to_num(cosines, nan=-1.0))
    errors = np.where(saturated | silent, 0.0, np.nan_to_num(errors, nan=np.inf))
    worst = int(cosines.argmin())
    return float(cosines[worst]), float(errors.max()), int(maps[worst]), int(saturated.sum())


def _trace_errors(got: Array, want: Array) -> Array:
    """(maps, steps) |Δ| over the reference's score, or over `_FLOOR` of its largest one where that is more."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    scale = np.maximum(np.abs(want), _FLOOR * np.abs(want).max(1, keepdims=True))
    # A trace of zeros alone: the map is dead there, and whether it is dead here too is what counts.
    return np.where(scale > 0, np.abs(got - want) / np.maximum(scale, 1e-300), np.where(got != want, np.inf, 0.0))


def _correlations(got: Array, want: Array) -> Array:
    """(maps,) Pearson's correlation of two runtimes' images of the same map."""
    rows = [array.reshape(len(array), -1).astype(np.float64) for array in (got, want)]
    rows = [row - row.mean(1, keepdims=True) for row in rows]
    norms = [np.linalg.norm(row, axis=1) for row in rows]
    return np.asarray((rows[0] * rows[1]).sum(1) / np.maximum(norms[0] * norms[1], 1e-300))


def _rank_correlation(a: Array, b: Array) -> float | None:
    """Spearman's: of the order in which the maps score. None where one side has no order."""
    if len(a) < 2:  # pandas 2 warns
        return None
    value = float(pd.Series(a).rank().corr(pd.Series(b).rank()))
    return value if math.isfinite(value) else None


def _entry(
    name: str,
    work: _Work,
    errors: _Errors,
    ascents: Mapping[str, Mapping[Dtype, Ascents]],
    reference: str,
    scores: dict[str, dict[str, Array]],
) -> tuple[dict[str, Any], list[Disagreement]]:
    """The report's entry of one runtime, and the bounds that do not hold in it."""
    spec = RUNTIMES[name]
    wrong: list[Disagreement] = []

    def check(what: str, got: float, bound: str, layer: str, map: int | None = None) -> None:
        limit = BOUNDS[bound]
        holds = got >= limit if limit > 0.5 else got <= limit
        if spec.counted and not holds:
            wrong.append(Disagreement(runtime=name, what=what, got=got, bound=limit, layer=layer, map=map))

    worst: dict[str, dict[str, float]] = {}
    for dtype, by_kind in errors.layers.items():
        worst[dtype] = {}
        for layer in next(iter(by_kind.values())):
            error, number = max(by_layer[layer] for by_layer in by_kind.values())
            worst[dtype][layer] = error
            bound = "layer_error" if dtype == "float32" else "layer_error_float64"
            check(f"relative error in {dtype}", error, bound, layer, number)
    for dtype, gradients in errors.gradients.items():
        for layer, (cosine, _, number, _) in gradients.items():
            check(f"gradient cosine in {dtype}", cosine, "gradient_cosine", layer.removeprefix(BEFORE), number)
    entry: dict[str, Any] = {
        "title": spec.title,
        "counted": spec.counted,
        "versions": spec.versions(),
        "layers": _finite(worst["float32"]),
        "layers_float64": _finite(worst["float64"]) if "float64" in worst else None,
        "layers_by_images": {
            kind: _finite({layer: error for layer, (error, _) in by_layer.items()})
            for kind, by_layer in errors.layers["float32"].items()
        },
        "gradient_cosine": None,
        "gradients": None,
        "trace_max_relative_error": None,
        "image_correlation": None,
        "dead_maps": None,
        "float32": None,
        "scores": None,
    }
    if errors.gradients:
        entry["gradient_cosine"] = min(
            found[0] for by_layer in errors.gradients.values() for found in by_layer.values()
        )
        entry["gradients"] = {
            dtype: {
                layer: {"cosine": cosine, "relative_error": _number(error), "saturated": left_out}
                for layer, (cosine, error, _, left_out) in by_layer.items()
            }
            for dtype, by_layer in errors.gradients.items()
        }
    own, theirs = ascents[name], ascents[reference]
    if "float64" in own:
        got, want = own["float64"], theirs["float64"]
        trace_errors = _trace_errors(got.traces, want.traces).max(1)
        index = int(trace_errors.argmax())
        check(
            "trace's relative error in float64",
            float(trace_errors[index]), "trace_error_float64", work.layer, int(work.maps[index]),
        )  # fmt: skip
        entry["trace_max_relative_error"] = _number(trace_errors[index])
        live = np.flatnonzero(~want.dead)
        if len(live):
            correlations = _correlations(got.images, want.images)[live]
            index = int(correlations.argmin())
            check(
                "final image's correlation in float64",
                float(correlations[index]), "image_correlation_float64", work.layer, int(work.maps[live[index]]),
            )  # fmt: skip
            entry["image_correlation"] = float(correlations[index])
        entry["dead_maps"] = {
            dtype: {
                "dead": work.maps[made.dead].tolist(),
                "other_than_reference": work.maps[made.dead != theirs[dtype].dead].tolist(),
            }
            for dtype, made in own.items()
        }
    if "float32" in own:
        entry["float32"] = _divergence(own["float32"], theirs["float32"])
    if scores:
        entry["scores"] = {}
        for maker, said in scores[name].items():
            expected = scores[reference][maker].astype(np.float64)
            differences = np.abs(said - expected) / max(float(np.abs(expected).max()), 1e-300)
            index = int(differences.argmax())
            check(
                f"relative error in scoring {maker}'s OIPs",
                float(differences[index]), "cross_score_error", work.layer, int(work.maps[index]),
            )  # fmt: skip
            entry["scores"][maker] = {
                "max_relative_error": _number(differences[index]),
                "rank_correlation": _rank_correlation(said, expected),
            }
    return entry, wrong


def _divergence(got: Ascents, want: Ascents) -> dict[str, Any]:
    """How two float32 ascents from the same starts part: by step, and in the final images."""
    errors = _trace_errors(got.traces, want.traces)
    live = ~want.dead | ~got.dead
    if not live.any():
        return {"steps": {}, "image_correlation": None, "parted": 0}
    steps = [step for step in (1, 10, 100) if step < errors.shape[1]] + [errors.shape[1]]
    correlations = _correlations(got.images, want.images)[live]
    return {
        "steps": {
            str(step): {
                "median": _number(np.median(errors[live, step - 1])),
                "max": _number(errors[live, step - 1].max()),
            }
            for step in dict.fromkeys(steps)
        },
        "image_correlation": {"median": float(np.median(correlations)), "least": float(correlations.min())},
        "parted": int((errors[:, -1] > _PARTED).sum()),
    }


def _layouts(ascents: Mapping[str, Mapping[Dtype, Ascents]]) -> dict[str, Any] | None:
    """How far torch parts from itself in float32, when a plain loop has the numbers in another order in memory."""
    if OURS not in ascents or "torch-plain" not in ascents:
        return None
    return _divergence(ascents["torch-plain"]["float32"], ascents[OURS]["float32"])


def _float32_sentence(
    entries: dict[str, dict[str, Any]], layouts: dict[str, Any] | None, reference: str, maps: int
) -> str:
    """What the float32 ascents show, and whether float64 proves that it is rounding."""
    parted = {
        name: entry["float32"]["parted"]
        for name, entry in entries.items()
        if entry["float32"] is not None and name != reference and entry["counted"]
    }
    text = (
        f"In float32, ascents of the same map that start alike end more than {_PARTED:.1%} apart in score from "
        f"{reference}'s for " + ", ".join(f"{count} of {maps} maps in {name}" for name, count in parted.items())
    )
    if layouts is not None:
        text += f"; torch parts so from itself, in another memory layout, for {layouts['parted']}"
    errors = [
        entry["trace_max_relative_error"] if entry["trace_max_relative_error"] is not None else math.inf
        for entry in entries.values()
        if entry["dead_maps"] is not None
    ]
    if max(errors, default=math.inf) <= BOUNDS["trace_error_float64"]:
        return f"{text}. In float64 all traces agree to {max(errors):.1e}: the difference is rounding."
    return f"{text}. In float64 they part as well: this is not rounding alone."


def _number(value: float) -> float | None:
    """JSON knows no infinity."""
    return float(value) if math.isfinite(value) else None


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _table(report: dict[str, Any]) -> list[str]:
    """A line for each runtime."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    head = ["runtime", "layers", "layers 64", "gradients", "traces 64", "images 64", "images 32"]
    rows = [head]
    for name, entry in report["runtimes"].items():
        errors = [entry["layers"], entry["layers_float64"]]
        worst = [None if by is None or None in by.values() else max(by.values()) for by in errors]
        cosine, correlation = entry["gradient_cosine"], entry["image_correlation"]
        single = entry["float32"] and entry["float32"]["image_correlation"]
        rows.append(
            [
                name + ("" if entry["counted"] else " *"),
                *(shown(value, ".1e") for value in worst),
                shown(cosine, ".9f"),
                shown(entry["trace_max_relative_error"], ".1e"),
                shown(correlation, ".9f"),
                shown(single and single["median"], ".6f"),
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown_only = any(not entry["counted"] for entry in report["runtimes"].values())
    return [*lines, "* shown, but not counted"] if shown_only else lines
