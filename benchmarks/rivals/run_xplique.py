"""Times xplique: all maps of Conv2D_3 as one list of channels.

    python run_xplique.py KERAS_FILE ONNX_FILE FOLDER [--steps 600] [--waking]

`optimize` takes no start images, but a function from its pixels to the image: the start image, and a thousandth of
xplique's noise. With --waking a tenth of the steps goes to its warm-up, which lets gradients pass every ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import EPSILON, LAYER, Job, run

SCALE = 1e-3  # of xplique's pixels, which begin as noise of deviation 1; Adam's steps are the larger for it


def prepare(job: Job) -> Callable[[int], Any]:
    import tensorflow as tf
    from xplique.features_visualizations import Objective, optimize

    model = tf.keras.models.load_model(job.keras_file, compile=False)
    maps = list(range(len(job.starts)))
    # Without the multiplier gradients would be as small as the 1e-7 that Adam adds to their size.
    objective = Objective.channel(model, LAYER, maps, multiplier=len(maps) / SCALE)
    starts = tf.constant(job.starts)

    def work(steps: int) -> Any:
        waking = steps // 10 if job.options.waking else 0
        images, _ = optimize(
            objective,
            optimizer=tf.keras.optimizers.Adam(EPSILON / SCALE),
            nb_steps=steps - waking,
            use_fft=False,
            image_normalizer=lambda pixels: starts + SCALE * pixels,
            transformations=tf.image.per_image_standardization,
            warmup_steps=waking,
            custom_shape=None,
        )
        return images[-1]

    return work


if __name__ == "__main__":
    run(prepare, ("xplique", "tensorflow", "keras", "numpy"), __doc__, switches=("--waking",))
