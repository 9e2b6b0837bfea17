"""Times tf-keras-vis: all maps of Conv2D_3 in one batch.

    python run_tf_keras_vis.py KERAS_FILE ONNX_FILE FOLDER [--steps 600]

It takes start images, and what `ActivationMaximization` lets a caller hand over is enough for the article's very
ascent: `input_modifiers` standardise, `gradient_modifier` divides by the RMS, and the optimiser is SGD.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import EPSILON, LAYER, Job, run


def prepare(job: Job) -> Callable[[int], Any]:
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


if __name__ == "__main__":
    run(prepare, ("tf-keras-vis", "tensorflow", "keras", "numpy"), __doc__)
