"""Is this Keras file one that we may open, and what does it hold?

Runs before TensorFlow starts, and reads the file as data only: Keras' own `safe_mode` was bypassed again and again
(CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-9906), so a file gets no further than here
unless every class in its configuration is a built-in one on the list below.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.base.files import existing_file
from oip_torch.base.messages import one_line

__all__ = ["AUGMENTATIONS", "CONVOLUTIONS", "check_keras_file", "input_shape"]

CONVOLUTIONS = frozenset({"Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"})
"""Keras layer classes that make feature maps."""

AUGMENTATIONS = frozenset(  # Keras' own, which hand their input on at inference: measured with Keras 3.15.1
    "RandomFlip RandomRotation RandomZoom RandomTranslation RandomShear RandomPerspective RandomElasticTransform "
    "RandomCrop RandomContrast RandomBrightness RandomHue RandomSaturation RandomSharpness RandomColorJitter "
    "RandomColorDegeneration RandomGrayscale RandomInvert RandomPosterization RandomGaussianBlur RandomErasing "
    "Solarization AugMix RandAugment CutMix MixUp".split()
)
"""Keras layer classes that hand their input on at inference."""
_LAYERS = (
    CONVOLUTIONS
    | AUGMENTATIONS
    | frozenset(
        "InputLayer Dense MaxPooling2D AveragePooling2D GlobalMaxPooling2D GlobalAveragePooling2D BatchNormalization "
        "LayerNormalization GroupNormalization UnitNormalization Activation ReLU LeakyReLU PReLU ELU Softmax Dropout "
        "SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout ActivityRegularization Flatten Reshape Permute "
        "ZeroPadding2D Cropping2D UpSampling2D Add Subtract Multiply Average Maximum Minimum Concatenate Rescaling "
        "Normalization Identity".split()
    )
)
_CONTAINERS = frozenset({"Sequential", "Functional", "Model"})
_PLAIN = frozenset(  # initialisers, regularisers, constraints, dtype policies and Keras' own marks: no code in them
    "DTypePolicy Policy __keras_tensor__ __tuple__ Zeros Ones Constant RandomNormal RandomUniform TruncatedNormal "
    "VarianceScaling Orthogonal Identity GlorotNormal GlorotUniform HeNormal HeUniform LecunNormal LecunUniform "
    "L1 L2 L1L2 OrthogonalRegularizer MaxNorm NonNeg UnitNorm MinMaxNorm".split()
)
_ACTIVATIONS = frozenset(
    "linear relu relu6 leaky_relu elu selu celu gelu silu swish sigmoid hard_sigmoid hard_silu hard_swish tanh "
    "hard_tanh softmax log_softmax softplus softsign exponential mish log_sigmoid squareplus".split()
)
_NOT_YET = frozenset(  # Keras' own as well; an HDF5 file names no module that would tell them from other code
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D "
    "AdaptiveMaxPooling2D AdaptiveMaxPooling3D AdditiveAttention Attention AutoContrast AveragePooling1D "
    "AveragePooling3D Bidirectional CategoryEncoding CenterCrop ContrastLimitedAdaptiveHistogramEqualization Conv1D "
    "Conv1DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D Cropping1D Cropping3D DepthwiseConv1D "
    "Discretization Dot EinsumDense Embedding Equalization GRU GRUCell GlobalAveragePooling1D GlobalAveragePooling3D "
    "GlobalMaxPooling1D GlobalMaxPooling3D GroupQueryAttention HashedCrossing Hashing IntegerLookup LSTM LSTMCell "
    "Masking MaxNumBoundingBoxes MaxPooling1D MaxPooling3D MelSpectrogram MultiHeadAttention Pipeline "
    "RMSNormalization RNN RepeatVector Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SimpleRNN "
    "SimpleRNNCell SpatialDropout1D SpatialDropout3D SpectralNormalization StackedRNNCells "
    "StringLookup TextVectorization ThresholdedReLU TimeDistributed UpSampling1D UpSampling3D "
    "ZeroPadding1D ZeroPadding3D".split()
)
_OPERATIONS_OF_KERAS_2 = frozenset({"TFOpLambda", "SlicingOpLambda"})  # x + y, x / 255 and the like
_CODE = frozenset("Lambda TorchModuleWrapper JaxLayer FlaxLayer TFSMLayer".split())  # Keras' own, for other code
_SUPPORTED = "layers of convolution, pooling, normalisation, activation, augmentation, merging and Dense"
_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_MOST_BYTES = 8 << 30  # of a file, unpacked: far above any CNN, far below what would fill a machine


def check_keras_file(path: str | os.PathLike[str]) -> Path:
    """Check, without running any of it, that `path` is a Keras CNN made of known layers.

    Raises:
        InputError: no path, missing or damaged file, weights without a model, an unknown or custom class (named), links
            out of the file, no convolution.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"the Keras model is given as a {type(path).__name__}: expected the path of a file, .keras or .h5; "
            "save the model with model.save('model.keras') and give that path"
        )
    path = existing_file(path, "a Keras model saved as .keras or .h5")
    suffix = path.suffix.lower()
    if suffix == ".keras":
        config = _keras_config(path)
    elif suffix in {".h5", ".hdf5"}:
        config = _h5_config(path)
    else:
        raise InputError(
            f"{path} ends in {suffix or 'nothing'}: expected a Keras model saved as .keras or .h5; "
            "save it with model.save('model.keras')"
        )
    try:
        _admit(config, path)
    except RecursionError:
        raise InputError(f"{path} has a configuration that is nested too deeply: expected a network's") from None
    return path


def input_shape(path: Path) -> tuple[int | None, ...] | None:
    """The shape (batch, height, width, channels) of a network's input, as its configuration has it.

    Args:
        path: of a file that `check_keras_file` admitted.

    Returns:
        None for an open dimension; None for the whole where the configuration does not tell, or has several inputs.
    """
    if path.suffix.lower() == ".keras":
        with zipfile.ZipFile(path) as archive:
            return _input_shape(json.loads(archive.read("config.json")))
    return _input_shape(_h5_config(path))


def _input_shape(config: Any) -> tuple[int | None, ...] | None:
    """See `input_shape`; of the configuration of a network or a layer, whatever a damaged one holds."""
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        return None
    for key in ("batch_shape", "batch_input_shape", "build_input_shape"):  # of Keras 3, of Keras 2, of a Sequential
        shape = inner.get(key)
        if isinstance(shape, list):
            return tuple(shape) if all(size is None or type(size) is int for size in shape) else None
    entries = inner.get("layers")
    if not isinstance(entries, list) or not entries:
        return None
    if config.get("class_name") == "Sequential":
        return _input_shape(entries[0])
    inputs = [entry for entry in entries if isinstance(entry, dict) and entry.get("class_name") == "InputLayer"]
    return _input_shape(inputs[0]) if len(inputs) == 1 else None


def _keras_config(path: Path) -> Any:
    """The architecture in a .keras file (a zip of JSON and HDF5)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = {"config.json", "model.weights.h5"} - names
            if missing:
                raise InputError(f"{path} is a zip file, but no Keras model: it lacks {', '.join(sorted(missing))}")
            if foreign := names - _MEMBERS:
                raise InputError(
                    f"{path} holds {sorted(foreign)[0]!r}: expected {', '.join(sorted(_MEMBERS))} alone; "
                    "models with assets cannot be converted"
                )
            if sum(entry.file_size for entry in archive.infolist()) > _MOST_BYTES:
                raise InputError(f"{path} unpacks to more than {_MOST_BYTES >> 30} GiB: expected a CNN's weights")
            if (damaged := archive.testzip()) is not None:
                raise InputError(f"{path} is damaged: its part {damaged} fails its checksum; fetch or save it again")
            _check_h5_links(io.BytesIO(archive.read("model.weights.h5")), path)
            return json.loads(archive.read("config.json"))
    except InputError:
        raise
    except Exception as error:  # zipfile raises its own, and what zlib, lzma, bz2, struct and json throw at damage
        raise InputError(
            f"{path} is not a readable .keras file ({one_line(error)}): expected the zip file that model.save writes; "
            "fetch or save it again"
        ) from None


def _h5_config(path: Path) -> Any:
    """The architecture in an HDF5 file."""
    import h5py

    _check_h5_links(path, path)
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except Exception as error:  # as above
        raise _unreadable_h5(path, error) from None
    if text is None:
        raise InputError(
            f"{path} holds weights without a model: expected the whole network; "
            "load the weights into the network and save that with model.save('model.keras')"
        )
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} has an unreadable model_config ({error}); save the model again") from None


def _check_h5_links(source: Path | io.BytesIO, path: Path) -> None:
    """Refuse damaged HDF5, and data that lies outside the file (HDF5 can point anywhere on the disk)."""
    import h5py

    def visit(group: Any) -> Iterator[str]:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                yield name
                continue
            child = group[name]
            if isinstance(child, h5py.Group):
                yield from visit(child)
            elif isinstance(child, h5py.Dataset) and (child.external or child.is_virtual):
                yield name

    try:
        with h5py.File(source, "r") as file:
            outside = next(visit(file), None)
    except Exception as error:  # h5py lets through whatever the damage leads to
        raise _unreadable_h5(path, error) from None
    if outside is not None:
        raise InputError(f"{path} links its data {outside!r} to another place: expected all weights inside the file")


def _unreadable_h5(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is not readable as HDF5 ({one_line(error)}): expected a model that Keras saved; fetch or save it again"
    )


def _admit(config: Any, path: Path) -> None:
    """Refuse every class that is not on the lists, by name; refuse a network without a convolution."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise InputError(f"{path} holds no network configuration; save the model again")
    if not isinstance(config.get("class_name"), str) or config["class_name"] not in _CONTAINERS:
        raise InputError(
            f"{path} holds a {config.get('class_name')!r}: expected a Sequential or Functional model of Keras' own "
            "layers; rebuild it so"
        )
    classes = set()
    image = _input_shape(config)
    for entry, layer in _entries({key: value for key, value in config.items() if key != "compile_config"}, "model"):
        name = entry["class_name"]
        classes.add(name)
        if (what := _refused(entry)) is not None:
            raise InputError(f"{path}: layer {layer!r} uses {what}; replace the layer and save the model again")
        if name == "RandomCrop":
            _check_crop(path, layer, entry.get("config"), image)
    if not classes & CONVOLUTIONS:
        raise InputError(f"{path} has no convolution: expected a CNN with at least one Conv2D layer")


def _refused(entry: dict[str, Any]) -> str | None:
    """What is wrong with a class, and what was expected instead; None for one that is on the lists."""
    name, registered = entry["class_name"], entry.get("registered_name")
    module = entry.get("module") or "keras"
    expected = "expected Keras' built-in image layers only, since other code is never run"
    if name == "function" or module == "builtins":
        function = entry.get("config")
        known = isinstance(function, str) and function in _ACTIVATIONS
        if known and name == "function" and module == "builtins" and registered in (None, name, function):
            return None
        return f"the function {function!r}: {expected}"
    if name == "Lambda":
        return f"the Lambda code: {expected}"
    own = isinstance(module, str) and (module == "keras" or module.startswith("keras.")) and registered in (None, name)
    if own and (module.startswith("keras.src.ops") or name in _OPERATIONS_OF_KERAS_2):
        return (
            f"the operation {name!r} ({module}), which is Keras' own but not supported yet: expected layers alone, "
            "such as keras.layers.Add for + or keras.layers.Rescaling for / 255"
        )
    if own and name in _LAYERS | _CONTAINERS | _PLAIN:
        return None
    # Of a class that is on none of the lists the module tells whose it is, where the file names one.
    if own and name not in _CODE and (name in _NOT_YET or _is_layer_module(entry.get("module"))):
        return f"the class {name!r}, which is Keras' own but not supported yet: expected {_SUPPORTED}"
    return f"the class {registered or name!r}: {expected}"


def _is_layer_module(module: Any) -> bool:
    return isinstance(module, str) and (module == "keras.layers" or module.startswith("keras.src.layers."))


def _check_crop(path: Path, layer: str, options: Any, image: tuple[int | None, ...] | None) -> None:
    """Refuse a RandomCrop to another size than the network's images have.

    Keras documents that it resizes and crops at inference; Keras 3.15 hands its whole input on instead.
    """
    size = (options.get("height"), options.get("width")) if isinstance(options, dict) else None
    expected = image[1:3] if image is not None else "which the file does not tell"
    if size != expected:
        raise InputError(
            f"{path}: layer {layer!r} is a RandomCrop to {size}, and what that does at inference depends on Keras' "
            f"version: expected no cropping, thus the size of the network's images, {expected}; build the network "
            "without the layer, copy the weights and save that"
        )


def _entries(value: Any, layer: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every {"class_name": …} in a configuration, each with the name of the layer that it belongs to."""
    if isinstance(value, dict):
        if isinstance(value.get("class_name"), str):
            inner = value.get("config")
            if isinstance(inner, dict) and isinstance(inner.get("name"), str) and value["class_name"] not in _PLAIN:
                layer = inner["name"]
            yield value, layer
        for item in value.values():
            yield from _entries(item, layer)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, layer)
