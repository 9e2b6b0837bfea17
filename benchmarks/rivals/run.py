"""Times another package at making all maps of Conv2D_3, in an environment that has it.

    python run.py xplique|tf-keras-vis|lucent KERAS_FILE ONNX_FILE FOLDER [--steps 600] [--warmup]

FOLDER/starts-128.npy → FOLDER/images.npy, and a JSON line on stdout. A function for each package loads the network and
returns the job: steps → final images. Packages are imported in there, after TensorFlow and torch are kept off the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import timeit
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

LAYER, EPSILON = "Conv2D_3", 0.01  # how far a pixel moves in a step, roughly: the article's epsilon

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclass
class Job:
    """What is asked for."""

    keras_file: Path
    onnx_file: Path
    starts: np.ndarray  # (maps, height, width, channels), one start a map, standardised
    warmup: bool


def xplique(job: Job) -> Callable[[int], Any]:
    """All maps as one list of channels.

    `optimize` takes no start images, but a function from its pixels to the image: the start image, and a thousandth of
    xplique's noise. With --warmup a tenth of the steps goes to its warm-up, which lets gradients pass every ReLU.
    """
    import tensorflow as tf
    from xplique.features_visualizations import Objective, optimize

    scale = 1e-3  # of its pixels, which begin as noise of deviation 1; Adam's steps are the larger for it
    model = tf.keras.models.load_model(job.keras_file, compile=False)
    maps = list(range(len(job.starts)))
    # Without the multiplier gradients would be as small as the 1e-7 that Adam adds to their size.
    objective = Objective.channel(model, LAYER, maps, multiplier=len(maps) / scale)
    starts = tf.constant(job.starts)

    def work(steps: int) -> Any:
        warmup = steps // 10 if job.warmup else 0
        images, _ = optimize(
            objective,
            optimizer=tf.keras.optimizers.Adam(EPSILON / scale),
            nb_steps=steps - warmup,
            use_fft=False,
            image_normalizer=lambda pixels: starts + scale * pixels,
            transformations=tf.image.per_image_standardization,
            warmup_steps=warmup,
            custom_shape=None,
        )
        return images[-1]

    return work


def tf_keras_vis(job: Job) -> Callable[[int], Any]:
    """All maps in one batch, by the article's very ascent.

    What `ActivationMaximization` lets a caller hand over is enough for it: it takes start images, `input_modifiers`
    standardise, `gradient_modifier` divides by the RMS, and the optimiser is SGD.
    """
    import tensorflow as tf
    from tf_keras_vis.activation_maximization import ActivationMaximization
    from tf_keras_vis.utils.model_modifiers import ExtractIntermediateLayer

    model = tf.keras.models.load_model(job.keras_file, compile=False)
    maximization = ActivationMaximization(model, model_modifier=ExtractIntermediateLayer(LAYER), clone=False)
    chosen = tf.eye(len(job.starts), maximization.model.output_shape[-1])

    # The package's CategoricalScore slices the batch image by image and takes half as long again for a step.
    def score(activations: Any) -> Any:
        return tf.reduce_sum(tf.reduce_mean(activations, (1, 2)) * chosen, 1)

    def of_unit_rms(gradient: Any) -> Any:
        return gradient / (tf.sqrt(tf.reduce_mean(gradient**2, (1, 2, 3), keepdims=True)) + 1e-7)

    def work(steps: int) -> Any:
        return maximization(
            score,
            seed_input=job.starts,
            input_range=None,
            input_modifiers=[tf.image.per_image_standardization],
            regularizers=[],
            steps=steps,
            optimizer=tf.keras.optimizers.SGD(EPSILON),
            gradient_modifier=of_unit_rms,
        )

    return work


def lucent(job: Job) -> Callable[[int], Any]:
    """All maps in one batch, on the converted network, cut at the layer and read by onnx2torch.

    `param_f` hands lucent the start images themselves as its parameters.
    """
    import onnx
    import torch
    from lucent.optvis.render import render_vis
    from onnx2torch import convert

    whole = onnx.load(job.onnx_file)
    cut = onnx.utils.Extractor(whole).extract_model([whole.graph.input[0].name], [LAYER])
    model = torch.nn.Sequential(OrderedDict({LAYER: convert(cut)}))  # lucent finds layers by their modules' names
    model = model.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # saves a fifth of the time
    starts = torch.from_numpy(job.starts.transpose(0, 3, 1, 2)).contiguous()
    every = torch.arange(len(starts))

    # A sum of lucent's own objectives, one channel and image each, is the same and takes a tenth longer.
    def objective(layer: Callable[[str], Any]) -> Any:
        return -layer(LAYER)[every, every].mean((1, 2)).sum()

    def standardize(images: Any) -> Any:
        deviation, mean = torch.std_mean(images, (1, 2, 3), correction=0, keepdim=True)
        return (images - mean) / deviation.clamp_min(images[0].numel() ** -0.5)

    def work(steps: int) -> Any:
        images = starts.clone().requires_grad_()
        return render_vis(
            model,
            objective,
            param_f=lambda: ([images], lambda: images),
            optimizer=lambda parameters: torch.optim.Adam(parameters, EPSILON),
            transforms=[standardize],
            thresholds=(steps,),
            preprocess=False,
            progress=False,
            show_image=False,
            fixed_image_size=False,  # None would scale small images up to 224, and 28 to 28
        )[-1]

    return work


def standardized(images: np.ndarray) -> np.ndarray:
    """Each image with mean 0 and deviation 1, as the scorer wants them."""
    axes = (1, 2, 3)
    deviation = np.maximum(images.std(axes, keepdims=True), np.prod(images.shape[1:]) ** -0.5)
    return ((images - images.mean(axes, keepdims=True)) / deviation).astype(np.float32)


RIVALS = {  # the job, and what of the environment is told
    "xplique": (xplique, ("xplique", "tensorflow", "keras", "numpy")),
    "tf-keras-vis": (tf_keras_vis, ("tf-keras-vis", "tensorflow", "keras", "numpy")),
    "lucent": (lucent, ("torch-lucent", "torch", "torchvision", "onnx2torch", "numpy")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=RIVALS)
    parser.add_argument("keras_file", type=Path, metavar="KERAS_FILE")
    parser.add_argument("onnx_file", type=Path, metavar="ONNX_FILE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="holds starts-128.npy, receives images.npy")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--warmup", action="store_true", help="xplique's")
    options = parser.parse_args()
    prepare, packages = RIVALS[options.rival]
    starts = np.load(options.folder / "starts-128.npy").astype(np.float32)
    work = prepare(Job(options.keras_file, options.onnx_file, starts, options.warmup))

    images: list[np.ndarray] = []
    # The second of two runs counts, as of all contestants, and garbage is collected, which timeit would switch off.
    setup, names = "import gc; gc.enable()", {"images": images, "array": np.asarray, "work": work}
    call = f"images.append(array(work({options.steps})))"
    seconds = timeit.repeat(call, setup, globals=names, repeat=2, number=1)[1]
    np.save(options.folder / "images.npy", standardized(images[-1].reshape(starts.shape)))
    versions = {name: version(name) for name in packages}
    print(json.dumps({"seconds": seconds, "image_steps": len(starts) * options.steps, "versions": versions}))


if __name__ == "__main__":
    main()
