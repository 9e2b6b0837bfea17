"""Every map of a layer in the three ways of looking, and the weakest twenty side by side: the pictures of the docs.

    python scripts/draw_sheets.py models/mnist_cnn.onnx --data mnist.npz [--layer Conv2D_3] [-o docs/pictures]

The data is a file in the layout of Keras' mnist.npz: x_train gives the limits of `strokes`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import oip_torch as oip
from oip_torch.base.drawing import contact_sheet, shade, shade_note
from oip_torch.base.files import replacing

WEAKEST = 20


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
    rows = [oips.select(maps=weakest) for oips in made.values()]
    first = rows[0]
    notes = dict.fromkeys(note for row in rows for note in row.notes)
    figures[f"weakest_maps_of_{layer}"] = contact_sheet(
        np.concatenate([shade(row.images, row.ends) for row in rows]),
        [label for row in rows for label in row.labels],
        [status for row in rows for status in row.status.tolist()],
        columns=WEAKEST,
        title=f"{layer}: the {WEAKEST} maps of the least scores in three ways: {', '.join(made)}",
        legend=" ".join(["Map: score.", *notes, shade_note(first.ends)]),
    )
    for name, figure in figures.items():
        with replacing(options.output / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=100)
        print(options.output / f"{name}.png")


if __name__ == "__main__":
    main()
