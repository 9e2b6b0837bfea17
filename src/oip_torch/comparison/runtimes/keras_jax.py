"""How does the network run in JAX?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from oip_torch.comparison.runtimes import Array, Dtype, one_hot
from oip_torch.comparison.runtimes.keras_runtime import KerasRuntime

__all__ = ["Jax"]


class Jax(KerasRuntime):
    """Keras on JAX, differentiated by `jax.grad` and compiled by `jax.jit`."""

    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        scores, gradients = jax.jit(self._gradient(layer, channels, dtype))(jnp.asarray(images, dtype))
        return np.asarray(scores), np.asarray(gradients)

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
    ) -> tuple[Array, Array]:
        gradient = self._gradient(layer, channels, dtype)
        shift, scale = np.asarray(mean, dtype), np.asarray(std, dtype)
        least = float(1 / np.sqrt(images[0].size))  # a number of NumPy would turn float32 into float64

        def step(x: Any) -> tuple[Any, Any]:
            score, g = gradient(shift + scale * x)
            g = scale * g
            g /= jnp.sqrt((g**2).mean((1, 2, 3), keepdims=True)) + 1e-7
            x = x + epsilon * g
            centred = x - x.mean((1, 2, 3), keepdims=True)
            deviation = jnp.sqrt((centred**2).mean((1, 2, 3), keepdims=True))
            return centred / jnp.maximum(deviation, least), score

        compiled = jax.jit(step)
        x, scores = jnp.asarray(images, dtype), []
        for _ in range(steps):
            x, score = compiled(x)
            scores.append(score)
        return np.stack(jax.device_get(scores), 1), np.asarray(x)

    def _gradient(self, layer: str, channels: Array, dtype: Dtype) -> Callable[[Any], Any]:
        network = self.up_to(layer, dtype)

        def score(x: Any) -> tuple[Any, Any]:
            activations = network(x)
            means = activations.mean(self.spatial_axes(activations))
            scores = (means * one_hot(channels, means.shape[-1], dtype)).sum(1)
            return scores.sum(), scores

        def gradient(x: Any) -> tuple[Any, Any]:
            g, scores = jax.grad(score, has_aux=True)(x)
            return scores, g

        return gradient
