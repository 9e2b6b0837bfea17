"""Which options do several commands have, and what do their values mean?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oip_torch.base.errors import InputError

if TYPE_CHECKING:
    from oip_torch.optim.settings import AscentSettings

__all__ = [
    "Before",
    "Device",
    "Json",
    "Kind",
    "Mean",
    "OnnxFile",
    "Quiet",
    "Range",
    "Std",
    "domain_options",
    "map_numbers",
    "numbers",
    "settings_of",
]

_MOST_MAPS = 1 << 20  # more than any layer has: a range beyond that is not to fill the memory

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else there.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA when present), cpu or cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Before = Annotated[
    bool | None,
    typer.Option(
        "--before-activation/--after-activation",
        help="Maximise what goes into the layer's activation, or what comes out. Default: what comes out, but of a "
        "softmax or a sigmoid what goes in.",
    ),
]
Mean = Annotated[
    str | None, typer.Option(help="Mean that was subtracted from the inputs (0–255 scale); M or M,M,M for channels.")
]
Std = Annotated[str | None, typer.Option(help="Standard deviation the inputs were divided by; S or S,S,S.")]
Kind = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Images of the network's kind (x_test): their mean and std are measured."),
]
Range = Annotated[
    str | None, typer.Option("--range", metavar="LOW,HIGH", help="Least and largest value of an input, as in 0,1.")
]
OnnxFile = Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Made by `oip convert` or `oip import`.")]


def domain_options(mean: str | None, std: str | None, data: Path | None, value_range: str | None) -> dict[str, Any]:
    """What is said of the inputs, as keywords of `convert` and `import_onnx`."""
    from oip_torch.base.image_files import read_images

    return {
        "mean": numbers("--mean", mean),
        "std": numbers("--std", std),
        "data": None if data is None else read_images(data),
        "value_range": None if value_range is None else tuple(numbers("--range", value_range) or ()),
    }


def numbers(option: str, text: str | None) -> list[float] | None:
    """ "1.5" or "1,2,3" to numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected a number, or one per channel as in 103.9,116.8,123.7") from None


def settings_of(
    name: str, steps: int | None, epsilon: float | None, limits: tuple[float, float] | None
) -> AscentSettings:
    """Of one of the four ways of looking, within so many image-steps; `limits`: of real images, if they are known."""
    from oip_torch.optim.settings import AscentSettings

    if name not in ("article", "default", "legible", "strokes"):
        raise InputError(f"--settings {name}: expected article, default, legible or strokes")
    changes: dict[str, Any] = {} if epsilon is None else {"epsilon": epsilon}
    if name == "article":
        return AscentSettings.article(**(changes if steps is None else changes | {"steps": steps}))
    if steps is not None:
        split = AscentSettings.within(steps)
        changes |= {"candidates": split.screening.candidates, "candidate_steps": split.screening.steps}
        changes |= {"survivors": split.screening.survivors, "steps": split.schedule.steps}
        if name == "strokes":
            changes |= {"survivors": 1, "steps": split.steps_left}
    if name == "legible":
        return AscentSettings.legible(**changes)
    if name == "strokes":
        return AscentSettings.strokes("data" if limits is None else limits, **changes)
    return AscentSettings(**changes)


def map_numbers(name: str, texts: Sequence[str]) -> list[int]:
    """ "3" and "0-5,9" to map numbers, in the order given; `name` is what the message calls them."""
    numbers: list[int] = []
    for part in ",".join(texts).split(",") if texts else []:
        ends = re.fullmatch(r"\s*(?:(-?[0-9]{1,18})|([0-9]{1,18})-([0-9]{1,18}))\s*", part)
        if ends is None:
            raise InputError(f"{name} {part!r}: expected map numbers and ranges, as in 3 or 0-5,9")
        if ends[1] is not None:
            numbers.append(int(ends[1]))
            continue
        first, last = int(ends[2]), int(ends[3])
        if not first <= last < first + _MOST_MAPS:
            why = "its end is below its start" if last < first else f"it has {last - first + 1} maps"
            raise InputError(f"{name} {part!r}: {why}; expected a range of the layer's maps, as in 0-5")
        numbers.extend(range(first, last + 1))
    return numbers
