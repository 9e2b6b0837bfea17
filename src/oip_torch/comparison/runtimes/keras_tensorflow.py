"""How does the network run in TensorFlow?

The ascent is written in three ways, which are also the baselines of the benchmarks: as in the article, eagerly, map by
map; the same under `tf.function`; and all maps in one batch under `tf.function`, the best that a TensorFlow user would
write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from oip_torch.comparison.runtimes import Array, Dtype, one_hot
from oip_torch.comparison.runtimes.keras_runtime import KerasRuntime

__all__ = ["TensorFlow"]


class TensorFlow(KerasRuntime):
    """Keras on TensorFlow, differentiated by a GradientTape."""

    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        scores, gradients = self._gradient(layer, channels, dtype)(tf.constant(images, dtype))
        return scores.numpy(), gradients.numpy()

    def run_ascent(
        self,
        layer: str,
        channels: Array,
        images: Array,
        dtype: Dtype,
        *,
        steps: int,
        epsilon: float,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        way: Literal["batched", "graph", "eager"] = "batched",
    ) -> tuple[Array, Array]:
        """As `Runtime.run_ascent`; `way`: all maps in one `tf.function`, one map at a time in one, or eagerly."""
        parts = [slice(None)] if way == "batched" else [slice(index, index + 1) for index in range(len(channels))]
        traces, finals = [], []
        for part in parts:
            step = self.step(layer, np.asarray(channels)[part], dtype, epsilon, mean, std)
            if way != "eager":
                step = tf.function(step)
            x, scores = tf.constant(images[part], dtype), []
            for _ in range(steps):
                x, score = step(x)
                scores.append(score)
            traces.append(tf.stack(scores, 1).numpy())
            finals.append(x.numpy())
        return np.concatenate(traces), np.concatenate(finals)

    def _gradient(self, layer: str, channels: Array, dtype: Dtype) -> Callable[[Any], Any]:
        network = self.up_to(layer, dtype)

        def gradient(x: Any) -> tuple[Any, Any]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                activations = network(x)
                means = tf.reduce_mean(activations, self.spatial_axes(activations))
                scores = tf.reduce_sum(means * one_hot(channels, means.shape[-1], dtype), 1)
            return scores, tape.gradient(scores, x)

        return gradient

    def step(
        self,
        layer: str,
        channels: Array,
        dtype: Dtype,
        epsilon: float,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> Callable[[Any], Any]:
        """One step of the loop, not traced yet: images → the next images, and the scores (batch,) of these."""
        gradient = self._gradient(layer, channels, dtype)
        moved = set(mean) != {0.0} or set(std) != {1.0}  # what does nothing is not to cost the benchmarks time either
        shift, scale = tf.constant(mean, dtype), tf.constant(std, dtype)

        def step(x: Any) -> tuple[Any, Any]:
            score, g = gradient(shift + scale * x if moved else x)
            g = scale * g if moved else g
            g /= tf.sqrt(tf.reduce_mean(g**2, (1, 2, 3), keepdims=True)) + 1e-7
            return _standardize(x + epsilon * g), score

        return step


def _standardize(x: Any) -> Any:
    """`tf.image.per_image_standardization` in the dtype of its input (TensorFlow's own always computes in float32)."""
    centred = x - tf.reduce_mean(x, (1, 2, 3), keepdims=True)
    deviation = tf.sqrt(tf.reduce_mean(centred**2, (1, 2, 3), keepdims=True))
    return centred / tf.maximum(deviation, tf.constant(1 / np.sqrt(np.prod(x.shape[1:])), x.dtype))
