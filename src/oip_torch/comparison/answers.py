"""What does a runtime answer, and how far are its layers and gradients from the reference's?

Layers and gradients are large, and so are compared as soon as they are there; ascents and scores are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from oip_torch.base.errors import InputError, OipError
from oip_torch.comparison.differences import GradientDifference, Worst, gradient_difference, layer_error
from oip_torch.comparison.questions import Questions
from oip_torch.comparison.runtimes import BEFORE, RUNTIMES, Array, Dtype
from oip_torch.comparison.runtimes.pool import RuntimePool
from oip_torch.comparison.runtimes.process import RuntimeProcess

__all__ = [
    "Answers",
    "Ascents",
    "Errors",
    "Gradients",
    "count_progress",
    "find_reference",
    "measure_errors",
    "run_ascents",
    "score_images",
]

_WEIGHTS: dict[Dtype, int] = {"float32": 1, "float64": 2}  # of an ascent in the progress bar: about its time


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Of one channel's mean for each image.

    Attributes:
        scores: (images,) the means.
        gradients: (images, height, width, channels) their gradients.
    """

    scores: Array
    gradients: Array


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one runtime computes in one dtype on the images of the questions.

    Attributes:
        layers: layer, or `BEFORE` + layer → (images, …, channels).
        gradients: the same names → gradients there; none where the runtime does not differentiate.
    """

    layers: Mapping[str, Array]
    gradients: Mapping[str, Gradients]


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far one runtime is from the reference in its layers and gradients.

    Attributes:
        layers: dtype → kind of images → layer → the worse of before and after its activation.
        gradients: dtype → layer, or `BEFORE` + layer → the difference; empty where there are no gradients.
    """

    layers: Mapping[Dtype, Mapping[str, Mapping[str, Worst]]]
    gradients: Mapping[Dtype, Mapping[str, GradientDifference]]


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


def find_reference(pool: RuntimePool, questions: Questions) -> tuple[str, Answers]:
    """The first runtime that reads the Keras file and runs it, and what it answers in float64.

    Raises:
        InputError: its layers are not those of the ONNX file.
        OipError: no such runtime could answer.
    """
    for name, process in pool.processes.items():
        if process.spec.reads == "keras" and "float64" in process.spec.dtypes:
            with pool.noting_failure(name):
                names = {layer.removeprefix(BEFORE) for layer in process.layers(questions.all_images[:1], "float64")}
                if alone := sorted(names ^ set(questions.layers)):
                    raise InputError(
                        f"the two files hold different networks: only one of them has a layer {alone[0]!r}; "
                        "convert the Keras file again, or name the file that it was made from"
                    )
                return name, _answers(process, questions, "float64")
    raise OipError("; ".join(pool.failed.values()))


def measure_errors(
    process: RuntimeProcess, questions: Questions, expected: Answers, advance: Callable[[int], None]
) -> Errors:
    """How far the layers and gradients of a runtime are from these, in each dtype that it can compute in."""
    kinds = questions.kinds
    layers: dict[Dtype, dict[str, dict[str, Worst]]] = {}
    gradients: dict[Dtype, dict[str, GradientDifference]] = {}
    for dtype in process.spec.dtypes:
        answers = _answers(process, questions, dtype)
        layers[dtype] = {kind: _layer_errors(answers, expected, rows) for kind, rows in kinds.items()}
        if answers.gradients:
            gradients[dtype] = {
                name: gradient_difference(
                    got=got.gradients,
                    want=expected.gradients[name].gradients,
                    scores=expected.gradients[name].scores,
                    channels=questions.gradient_channels[name],
                    images=questions.gradient_images,
                    dtype=dtype,
                )
                for name, got in answers.gradients.items()
            }
    advance(1)
    return Errors(layers=layers, gradients=gradients)


def run_ascents(process: RuntimeProcess, questions: Questions, advance: Callable[[int], None]) -> dict[Dtype, Ascents]:
    """Whole ascents in each dtype that the runtime can compute in; none where it does not differentiate."""
    found: dict[Dtype, Ascents] = {}
    if process.spec.differentiates:
        for dtype in process.spec.dtypes:
            traces, images = process.run_ascent(
                *(questions.tap, questions.channels, questions.starts, dtype),
                steps=questions.steps,
                epsilon=questions.epsilon,
                mean=questions.domain.mean,
                std=questions.domain.std,
            )
            found[dtype] = Ascents(traces=traces, images=images)
            advance(_WEIGHTS[dtype])
    return found


def score_images(process: RuntimeProcess, questions: Questions, made: Mapping[str, Array]) -> dict[str, Array]:
    """What a runtime scores in float32, where others made the images.

    Args:
        process: which scores.
        questions: whose channels are scored, each in its own image.
        made: maker → (ascents, height, width, channels) final images.

    Returns:
        Maker → (ascents,) scores, NaN if the runtime has none.
    """
    indices = questions.channels
    scores = {}
    for maker, images in made.items():
        outputs = process.layers(questions.domain.to_input(images), "float32").get(questions.tap, np.empty(0))
        scores[maker] = np.full(len(indices), np.nan)
        if outputs.ndim > 1 and (len(outputs), outputs.shape[-1]) == (len(images), questions.channel_count):
            means = outputs.mean(tuple(range(1, outputs.ndim - 1))) if outputs.ndim > 2 else outputs
            scores[maker] = means[np.arange(len(indices)), indices]
    return scores


def count_progress(names: list[str]) -> int:
    """How far `measure_errors` and `run_ascents` advance in all these runtimes together."""
    specs = [RUNTIMES[name] for name in names]
    return len(specs) + sum(_WEIGHTS[dtype] for spec in specs if spec.differentiates for dtype in spec.dtypes)


def _answers(process: RuntimeProcess, questions: Questions, dtype: Dtype) -> Answers:
    layers = process.layers(questions.all_images, dtype)
    gradients = {}
    if process.spec.differentiates:
        for name, channels in questions.gradient_channels.items():
            scores, found = process.gradients(name, channels, questions.gradient_images, dtype)
            gradients[name] = Gradients(scores=scores, gradients=found)
    return Answers(layers=layers, gradients=gradients)


def _layer_errors(answers: Answers, expected: Answers, rows: slice) -> dict[str, Worst]:
    """Layer → its error on these images."""
    found: dict[str, Worst] = {}
    for name, want in expected.layers.items():
        error = layer_error(answers.layers[name][rows] if name in answers.layers else None, want[rows])
        layer = name.removeprefix(BEFORE)  # the worse of before and after the activation stands for the layer
        found[layer] = max(found.get(layer, error), error)
    return found
