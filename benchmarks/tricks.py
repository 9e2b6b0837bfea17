"""What does each part of the engine bring?

    python benchmarks/tricks.py [--rounds 9]

One part at a time is left out, in turns, in one process: the article's loop on 64 images, one thread, every convolution
of the shipped network. Printed is the median time over that of the whole engine; above 1 the part pays.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import oip_torch as oip
from oip_torch.base import platform
from oip_torch.network import passes as engine
from oip_torch.optim import ascent
from oip_torch.optim.objectives import map_mean
from oip_torch.optim.starts import start_images

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("Conv2D_1", "Conv2D_2", "Conv2D_3")
STEPS, IMAGES = 20, 64


@contextlib.contextmanager
def without(part: str) -> Iterator[None]:
    """The engine without one of its parts."""
    nothing = {
        "identity reshapes left out": (engine, "_fix_reshapes", lambda network: None),
        "pooling before the ReLU": (engine, "_pool_first", lambda network: None),
        "no unread rows and columns": (engine, "_cut_unread", lambda network: None),
        "one map of the last convolution": (ascent, "is_of_one_map", lambda *_: False),
        "channels innermost": (engine, "_channels_last", lambda module: module),
        "gradient of the first convolution by a product": (engine, "_FEW", 0),
    }
    if part == "(whole engine)":
        yield
    else:
        with mock.patch.object(*nothing[part]):
            yield


PARTS = (
    "(whole engine)",
    "identity reshapes left out",
    "pooling before the ReLU",
    "no unread rows and columns",
    "one map of the last convolution",
    "channels innermost",
    "gradient of the first convolution by a product",
)


def responding(model: oip.FeatureModel, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and start images that they respond to: others would leave the batch after the first step."""
    count = model.layers[layer].maps
    keys = [(index % count, index // count) for index in range(8 * IMAGES)]
    x, maps = start_images(model.input_shape, keys, layer=layer), torch.tensor([key[0] for key in keys])
    with torch.no_grad():
        chosen = (map_mean(model.up_to(layer)(x), maps) > 0).nonzero().flatten()[:IMAGES]
    assert len(chosen) == IMAGES
    return maps[chosen], x[chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    platform.keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        model = oip.convert(ROOT / "models" / "mnist_cnn.keras", Path(name) / "network.onnx", device="cpu")
    print("| without | " + " | ".join(LAYERS) + " |\n|---|" + "---|" * len(LAYERS))
    found: dict[tuple[str, str], list[float]] = {(part, layer): [] for part in PARTS for layer in LAYERS}
    awake = {layer: responding(model, layer) for layer in LAYERS}
    for _ in range(rounds):
        for part, layer in found:
            maps, x = awake[layer]
            climbed = cache(partial(model.climbed, layer))  # the first ascent builds the network, the second is timed
            with without(part):
                for steps in (2, STEPS):
                    schedule = oip.AscentSettings.article(steps=steps).schedule
                    began = time.perf_counter()
                    ascent.climb(climbed, x, maps, schedule, map_mean)
            found[part, layer].append((time.perf_counter() - began) / STEPS / IMAGES * 1e6)
    for part in PARTS:
        cells = []
        for layer in LAYERS:
            ratio = np.array(found[part, layer]) / np.array(found["(whole engine)", layer])
            micros = np.median(found[part, layer])
            cells.append(f"{np.median(ratio):.2f} ({micros:.0f} µs)")
        print(f"| {part} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
