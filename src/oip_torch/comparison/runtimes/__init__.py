"""Which programs can run the network, and what does each have to answer?

A runtime is a class in a small module of its own, with the three methods of `Runtime`, and an entry in `RUNTIMES`; the
comparison needs no more. Runtimes run in processes of their own (see `process`), since TensorFlow and torch crash in
one, and only when they are asked for. docs/runtimes.md shows how to add one.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from oip_torch.base.errors import InputError, unknown_name
from oip_torch.network.probes import BEFORE

__all__ = ["BEFORE", "OURS", "RUNTIMES", "Array", "Dtype", "Runtime", "Spec", "one_hot", "select_runtimes"]

Array = npt.NDArray[Any]
Dtype = Literal["float32", "float64"]


class Runtime(ABC):
    """One way to run the network. Images and activations are channels-last, as in Keras.

    Args:
        keras_file: the Keras network; checked before, so that it can be loaded.
        onnx_file: the same network as `convert` wrote it; checked before.
        options: of the runtime's `Spec`.
    """

    @abstractmethod
    def __init__(self, keras_file: Path, onnx_file: Path, **options: Any) -> None: ...

    @abstractmethod
    def layers(self, images: Array, dtype: Dtype) -> dict[str, Array]:
        """Images (batch, height, width, channels) → each layer's output, (batch, …, channels), by the layer's name.

        Where a layer has an activation, what goes into it as well, by `BEFORE` + the name: an error that a ReLU hides
        on these images shows there.
        """

    def gradients(self, layer: str, channels: Array, images: Array, dtype: Dtype) -> tuple[Array, Array]:
        """For each image the mean of its map, (batch,), and that mean's gradient with respect to the image.

        `layer`: a name, or `BEFORE` + the name for what goes into the layer's activation. `channels`: (batch,) the
        index of each image's map. Both likewise in `run_ascent`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradients")

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
        """The article's loop, written in the framework's own words: traces (batch, steps), and the final images.

        At each step, for every image x by itself: the network sees mean + std · x (one number each, or one per
        channel); the score, which is the mean of its map; its gradient g with respect to x, divided by the RMS of
        g + 1e-7; x + epsilon · g, brought to mean 0 and divided by max(standard deviation, 1/√N). A trace holds the
        scores before each step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradients")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How a runtime is started, and what is asked of it.

    Attributes:
        title: for people.
        home: "module:class" inside this package.
        packages: what must be installed, import name → what pip calls it.
        options: handed to the class.
        environment: variables of the process.
        reads: "keras" or "onnx": which file the network comes from.
        dtypes: those that it can compute in, float32 first.
        differentiates: whether it has gradients.
        counted: whether it has to agree; others are there to show something.
        companions: runtimes that run along whenever this one does.
    """

    title: str
    home: str
    packages: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    reads: Literal["keras", "onnx"]
    dtypes: tuple[Dtype, ...] = ("float32", "float64")
    differentiates: bool = True
    counted: bool = True
    companions: tuple[str, ...] = ()

    def versions(self) -> dict[str, str]:
        """Of its packages, by the name that pip calls them."""
        return {pip: version(pip) for pip in self.packages.values()}

    def missing(self) -> list[str]:
        """The pip names of those of its packages that are not installed."""
        return [pip for name, pip in self.packages.items() if importlib.util.find_spec(name) is None]


OURS = "torch"
"""The runtime that is always there: the module that `load` gives."""

RUNTIMES: dict[str, Spec] = {
    "tensorflow": Spec(
        title="Keras on TensorFlow",
        home="keras_tensorflow:TensorFlow",
        packages={"tensorflow": "tensorflow", "keras": "keras"},
        environment={"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
        reads="keras",
    ),
    "jax": Spec(
        title="Keras on JAX",
        home="keras_jax:Jax",
        packages={"jax": "jax", "keras": "keras"},
        # Keras' JAX backend imports TensorFlow when it is there, for its own data pipelines.
        environment={
            "KERAS_BACKEND": "jax",
            "JAX_ENABLE_X64": "1",
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        reads="keras",
    ),
    "keras-torch": Spec(
        title="Keras on torch",
        home="keras_torch:KerasTorch",
        packages={"keras": "keras", "torch": "torch"},
        environment={"KERAS_BACKEND": "torch"},
        reads="keras",
    ),
    "onnxruntime": Spec(
        title="ONNX Runtime, optimisations off",
        home="onnx_runtime:OnnxRuntime",
        packages={"onnxruntime": "onnxruntime"},
        reads="onnx",
        dtypes=("float32",),
        differentiates=False,
        companions=("onnxruntime-optimised",),
    ),
    "onnxruntime-optimised": Spec(
        title="ONNX Runtime as it comes, with its default optimisations",
        home="onnx_runtime:OnnxRuntime",
        packages={"onnxruntime": "onnxruntime"},
        options={"optimised": True},
        reads="onnx",
        dtypes=("float32",),
        differentiates=False,
        counted=False,
    ),
    OURS: Spec(
        title="the imported torch module",
        home="torch_module:TorchModule",
        packages={"torch": "torch"},
        reads="onnx",
        companions=("torch-plain", "torch-cuda", "torch-cuda-tf32"),
    ),
    "torch-plain": Spec(
        title="the imported torch module in a plain loop, and so in another memory layout",
        home="torch_module:TorchModule",
        packages={"torch": "torch"},
        options={"plain": True},
        reads="onnx",
    ),
    "torch-cuda": Spec(
        title="the imported torch module on CUDA",
        home="torch_module:TorchModule",
        packages={"torch": "torch"},
        options={"device": "cuda"},
        reads="onnx",
    ),
    "torch-cuda-tf32": Spec(
        title="the imported torch module on CUDA with TF32",
        home="torch_module:TorchModule",
        packages={"torch": "torch"},
        options={"device": "cuda", "tf32": True},
        reads="onnx",
        dtypes=("float32",),
        counted=False,
    ),
}
"""By the name that the command line and the report use."""


def one_hot(channels: Array, count: int, dtype: Dtype) -> Array:
    """(batch,) indices → (batch, count), 1 at each image's own: picks channels in a batch by a product and a sum."""
    return np.asarray(np.arange(count) == np.asarray(channels)[:, None], dtype)


def select_runtimes(wanted: list[str], *, cuda: bool) -> tuple[list[str], dict[str, str]]:
    """The runtimes to start, ours and companions among them, and the command that installs each missing one.

    Raises:
        InputError: a name that is not in `RUNTIMES`, or no runtime that can read the Keras file.
    """
    names: list[str] = []
    missing: dict[str, str] = {}
    for name in dict.fromkeys([*wanted, OURS]):
        if name not in RUNTIMES:
            raise unknown_name("runtime", name, RUNTIMES)
        if packages := RUNTIMES[name].missing():
            missing[name] = f"pip install {' '.join(packages)}"
            continue
        usable = [each for each in (name, *RUNTIMES[name].companions) if cuda or "device" not in RUNTIMES[each].options]
        names += [each for each in usable if each not in names]
    if not any(RUNTIMES[name].reads == "keras" for name in names):
        hint = "; ".join(f"`{command}`" for command in missing.values()) or "add tensorflow, jax or keras-torch"
        raise InputError(f"none of the runtimes {', '.join(wanted)} can read the Keras file here: {hint}")
    return names, missing
