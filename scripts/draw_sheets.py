"""Every map of a layer in the three ways of looking, the weakest twenty, and sixteen others: pictures of the docs.

    python scripts/draw_sheets.py models/mnist_cnn.onnx --data mnist.npz [--layer Conv2D_3] [-o docs/pictures]

The data is a file in the layout of Keras' mnist.npz: x_train gives the limits of `strokes`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import oip_torch as oip
from oip_torch.base.drawing import Figure, contact_sheet, shade, shade_note
from oip_torch.base.files import replacing

WEAKEST = 20
SOME = [0, 3, 10, 12, 14, 17, 20, 29, 37, 46, 49, 56, 62, 67, 88, 99]  # some of the maps of Conv2D_3 that draw well


def rows_of(ways: list[oip.Oips], title: str) -> Figure:
    """A row for each way, the same maps in each."""
    notes = dict.fromkeys(note for oips in ways for note in oips.notes)
    return contact_sheet(
        np.concatenate([shade(oips.images, oips.ends) for oips in ways]),
        [label for oips in ways for label in oips.labels],
        [status for oips in ways for status in oips.status.tolist()],
        columns=len(ways[0]),
        title=title,
        legend=" ".join(["Map: score.", *notes, shade_note(ways[0].ends)]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, metavar="FILE.onnx")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz")
    parser.add_argument("--layer", default="Conv2D_3")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/pictures"), metavar="FOLDER")
    options = parser.parse_args()
    model, layer = oip.load(options.network), options.layer
    with np.load(options.data) as arrays:
        limits = oip.calibrate(model, arrays["x_train"], layer).limits
    make = oip.AscentSettings
    ways = {"default": make(), "legible": make.legible(), "strokes": make.strokes(limits or "data")}
    made = {name: oip.ascend(model, layer, settings=settings) for name, settings in ways.items()}
    figures = {}
    for name, oips in made.items():
        ending = "" if name == "default" else f"_{name}"
        figures[f"every_map_of_{layer}{ending}"] = oip.plots.sheet(oips, title=f"{oips.title}, {name}")
    weakest = made["default"].maps[np.argsort(made["default"].scores)[:WEAKEST]].tolist()
    title = f"{layer}: the {WEAKEST} maps of the least scores in three ways: {', '.join(made)}"
    figures[f"weakest_maps_of_{layer}"] = rows_of([oips.select(maps=weakest) for oips in made.values()], title)
    if layer == "Conv2D_3":
        some = [oip.ascend(model, layer, SOME, settings=make.article()), *(oips.select(SOME) for oips in made.values())]
        title = f"Sixteen maps of {layer} in four ways: the article's, {', '.join(made)}"
        figures["ways_of_looking"] = rows_of(some, title)
    for name, figure in figures.items():
        with replacing(options.output / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=100)
        print(options.output / f"{name}.png")


if __name__ == "__main__":
    main()
