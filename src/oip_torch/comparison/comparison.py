"""Do the frameworks agree: layers, gradients, whole ascents?

The same network runs in several runtimes, each in a process of its own, on the same images and from the same starts.
The reference is the Keras file in float64, in the first Keras runtime that is installed. What agrees with it in float64
is the same function; what diverges from it in float32 alone is rounding, and is reported as rounding.
"""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from oip_torch.base.checks import whole
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.files import as_path, check_output_folder, replacing, saved_in, sha256
from oip_torch.base.progress import bar
from oip_torch.comparison.answers import (
    Ascents,
    count_progress,
    find_reference,
    measure_errors,
    run_ascents,
    score_images,
)
from oip_torch.comparison.bounds import BOUNDS, Disagreement, disagreements_of
from oip_torch.comparison.entries import disagreement_entry, divergence_entry, questions_entry, runtime_entry
from oip_torch.comparison.findings import layout_divergence, runtime_findings
from oip_torch.comparison.questions import default_layer, prepare_questions, spread_channels
from oip_torch.comparison.runtimes import Array, Dtype, select_runtimes
from oip_torch.comparison.runtimes.pool import runtime_pool
from oip_torch.comparison.summary import float32_sentence, table
from oip_torch.keras.file import read_keras_file
from oip_torch.network.domain import Domain
from oip_torch.network.load import load, resolve_device
from oip_torch.network.onnx_file import Layer, graph_sha256, read
from oip_torch.search.chosen import chosen_maps

__all__ = ["Comparison", "compare"]


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
        domain: how the network takes their images; None: not known.
    """

    layer: str
    maps: Array
    reference: str
    report: dict[str, Any]
    disagreements: tuple[Disagreement, ...]
    ascents: Mapping[str, Mapping[Dtype, Ascents]] = field(repr=False)
    domain: Domain | None = None

    @property
    def ends(self) -> tuple[Array, Array] | None:
        """Black and white of the data, in the units of the ascents' images; None: not known."""
        return None if self.domain is None else self.domain.ends

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
        return "\n".join([*table(self.report), "", *(textwrap.fill(line, 118) for line in lines)])

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
    pre_activation: bool | None = None,
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
        pre_activation: ascend what goes into the layer's activation; None: where that is a softmax or a sigmoid, as
            in `ascend`.
        device: "auto": the torch module on CUDA as well, when present; "cpu": not; "cuda": it has to be there.
        progress: show a bar on stderr; None: only on a terminal or in a notebook.

    Raises:
        InputError: a wrong file, name or number; or no runtime that reads the Keras file is installed.
        OipError: none of the runtimes that read the Keras file could run it.
    """
    if any(isinstance(given, torch.nn.Module) for given in (keras_file, onnx_file)):
        raise InputError(
            "compare got a model: expected a Keras file and what convert made of it; a wrapped module has no Keras "
            "file that other runtimes could run"
        )
    keras_file, onnx_file = as_path(keras_file, "a Keras model"), as_path(onnx_file, "an ONNX file")
    proto, network = read(onnx_file, check_digest=False)
    height, width, _ = network.input_shape  # the Keras file may leave them open
    keras_file = read_keras_file(keras_file, (height, width)).path
    wanted = runtimes.split(",") if isinstance(runtimes, str) else list(runtimes)
    names, missing = select_runtimes(wanted, cuda=resolve_device(device).type == "cuda")
    steps, seed = whole("steps", steps, 1), whole("seed", seed, 0)
    model = load(onnx_file, device="cpu", check=False)
    layer = default_layer(model) if layer is None else model.layer(layer).name
    channels = chosen_maps(model, layer, spread_channels(model.layers[layer].maps) if maps is None else maps)
    notes = [f"{name} is not installed: run `{command}` to compare with it" for name, command in missing.items()]
    if sha256(keras_file) != network.source_sha256:
        notes.append(f"{onnx_file} was made from another file than {keras_file}")
    if graph_sha256(proto) != network.graph_sha256:
        notes.append(f"{onnx_file} was changed after its conversion")

    began = time.perf_counter()
    before = model.wants_pre_activation(layer, pre_activation)
    questions = prepare_questions(model, layer, channels, pre_activation=before, steps=steps, seed=seed)
    total = count_progress(names)
    with bar("comparing", total, progress) as advance, runtime_pool(names, keras_file, onnx_file) as pool:
        reference, expected = find_reference(pool, questions)
        errors = pool.ask(lambda process: measure_errors(process, questions, expected, advance))
        ascents = pool.ask(lambda process: run_ascents(process, questions, advance))
        made = {name: by_dtype["float32"].images for name, by_dtype in ascents.items() if by_dtype}
        scores = pool.ask(lambda process: score_images(process, questions, made))
    if reference in pool.failed:
        raise OipError(pool.failed[reference])

    findings = {
        name: runtime_findings(
            *(name, questions, errors[name]),
            *(ascents[name], ascents[reference]),
            *(scores[name], scores[reference]),
        )
        for name in names
        if name not in pool.failed
    }
    order = model.layers.names
    disagreements = [each for found in findings.values() for each in disagreements_of(found)]
    disagreements.sort(key=lambda each: order.index(each.layer))  # stable: layers, then gradients, then ascents
    layouts = layout_divergence(ascents)
    return Comparison(
        layer=layer,
        maps=questions.channels,
        reference=reference,
        report={
            "agree": not disagreements and not pool.failed,
            "reference": f"{reference}, float64",
            "keras": str(keras_file),
            "onnx": str(onnx_file),
            **questions_entry(questions),
            "bounds": BOUNDS,
            "runtimes": {name: runtime_entry(found, pool.processes[name].seconds) for name, found in findings.items()},
            "missing": missing,
            "failed": pool.failed,
            "disagreements": [disagreement_entry(each) for each in disagreements],
            "layouts": divergence_entry(layouts),
            "float32": float32_sentence(findings, layouts, reference=reference, ascents=len(channels)),
            "notes": notes,
            "seconds": round(time.perf_counter() - began, 1),
        },
        disagreements=tuple(disagreements),
        ascents=ascents,
        domain=questions.domain,
    )
