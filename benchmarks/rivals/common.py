"""What the three scripts share: the call, the start images, the clock and the output.

Each script hands `run` a function that loads the network and returns the job: steps → final images. Packages are
imported in there, after this module has kept TensorFlow and torch off the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["EPSILON", "LAYER", "Job", "run", "standardized"]

LAYER, EPSILON = "Conv2D_3", 0.01  # how far a pixel moves in a step, roughly: the article's epsilon
WARM_UP = 3  # steps that are not timed

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclass
class Job:
    """What is asked for."""

    keras_file: Path
    onnx_file: Path
    starts: np.ndarray  # (maps, height, width, channels), one start a map, standardised
    options: argparse.Namespace


def run(
    prepare: Callable[[Job], Callable[[int], Any]],
    packages: tuple[str, ...],
    doc: str | None,
    switches: tuple[str, ...] = (),
) -> None:
    """Time `prepare(job)(steps)` and print the result as JSON; `switches` are further options of the script."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("keras_file", type=Path, metavar="KERAS_FILE")
    parser.add_argument("onnx_file", type=Path, metavar="ONNX_FILE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds starts.npy, receives images.npy")
    parser.add_argument("--steps", type=int, default=600)
    for switch in switches:
        parser.add_argument(switch, action="store_true")
    options = parser.parse_args()

    starts = np.load(options.folder / "starts.npy").astype(np.float32)
    work = prepare(Job(options.keras_file, options.onnx_file, starts, options))
    work(WARM_UP)
    began = time.perf_counter()
    images = np.asarray(work(options.steps))
    seconds = time.perf_counter() - began
    np.save(options.folder / "images.npy", standardized(images.reshape(starts.shape)))
    versions = {name: version(name) for name in packages}
    print(json.dumps({"seconds": seconds, "image_steps": len(starts) * options.steps, "versions": versions}))


def standardized(images: np.ndarray) -> np.ndarray:
    """Each image with mean 0 and deviation 1, as the scorer wants them."""
    axes = (1, 2, 3)
    least = 1 / np.sqrt(np.prod(images.shape[1:]))
    deviation = np.maximum(images.std(axes, keepdims=True), least)
    return ((images - images.mean(axes, keepdims=True)) / deviation).astype(np.float32)
