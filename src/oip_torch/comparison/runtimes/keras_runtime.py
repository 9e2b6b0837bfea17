"""What do the runtimes that read the Keras file have in common?"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras

from oip_torch.comparison.runtimes import BEFORE, Array, Dtype, Runtime
from oip_torch.keras.network import Recorder, in_dtype, load_network, up_to
from oip_torch.network.onnx_file import read

__all__ = ["KerasRuntime"]


class KerasRuntime(Runtime):
    """The Keras file under whatever backend `KERAS_BACKEND` names."""

    def __init__(self, keras_file: Path, onnx_file: Path) -> None:
        # On JAX and torch Keras turns float64 into float32 inside some operations, such as a dense layer's product
        # (keras#23704): where this table is no more, the bounds in float64 tell.
        with contextlib.suppress(AttributeError, ImportError):
            importlib.import_module("keras.src.backend.common.dtypes").BIT64_TO_BIT32_DTYPE["float64"] = "float64"
        height, width, _ = read(onnx_file, check_digest=False)[1].input_shape  # the Keras file may leave them open
        self.network = load_network(keras_file, (height, width))

    def layers(self, images: Array, dtype: Dtype) -> dict[str, Array]:
        """As the network runs: every leaf layer that it calls."""
        calls, _ = Recorder(in_dtype(self.network, dtype)).run(keras.ops.convert_to_tensor(images, dtype))
        outputs = {call["id"]: call["after"] for call in calls}
        outputs |= {BEFORE + call["id"]: call["before"] for call in calls if call["before"] is not None}
        return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}

    @cache  # noqa: B019 - the process ends with the runtime
    def up_to(self, layer: str, dtype: Dtype) -> Callable[[Any], Any]:
        """Images → the layer's output, or with `BEFORE` what goes into its activation, in `dtype`."""
        name = layer.removeprefix(BEFORE)
        return up_to(in_dtype(self.network, dtype), name, pre_activation=name != layer)

    @staticmethod
    def spatial_axes(activations: Any) -> tuple[int, ...]:
        """The axes to take the mean over: all but batch and channels."""
        return tuple(range(1, len(activations.shape) - 1))
