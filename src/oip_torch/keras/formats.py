"""What is said of a file that is no Keras file: how does its network become one that we take?"""

from __future__ import annotations

import os
from pathlib import Path

from oip_torch.base.errors import InputError

__all__ = ["is_saved_model", "other_format"]

_VIA_TF2ONNX = "recipe: python -m tf2onnx.convert {option} {{name}} --output model.onnx; oip import model.onnx"
_WAYS = {  # from files of other programs to one that we take
    ".onnx": "import it with: oip import {name}",
    ".tflite": _VIA_TF2ONNX.format(option="--tflite"),
    ".pb": "a graph alone: recipe, with the names of its tensors: python -m tf2onnx.convert --graphdef {name} --inputs "
    "IN:0 --outputs OUT:0 --output model.onnx; oip import model.onnx",
    ".json": "a configuration without weights; with weights beside it: oip convert WEIGHTS.h5 --architecture {name}",
    **dict.fromkeys(
        (".pt", ".pth", ".ckpt", ".safetensors"),
        "for a network of PyTorch: load it into its module, then oip_torch.wrap(module, input_shape=(3, height, "
        "width)), or torch.onnx.export and oip import",
    ),
    ".index": "weights of a TensorFlow checkpoint; recipe, where the network is built: model.load_weights"
    "(NAME without .index); model.save('model.h5')",
}


def is_saved_model(path: Path) -> bool:
    """Whether it is a folder of TensorFlow's SavedModel."""
    return os.path.isdir(path) and os.path.exists(path / "saved_model.pb")


def other_format(path: Path) -> InputError:
    """The error for a file of another ending than Keras', or for a SavedModel, with the way to one that we take."""
    expected = "expected a Keras model saved as .keras or .h5"
    if is_saved_model(path):
        if os.path.exists(path / "keras_metadata.pb"):
            way = (
                "recipe, after pip install tf-keras: import tf_keras; "
                f"tf_keras.models.load_model({path.name!r}).save('model.h5')"
            )
        else:
            way = _VIA_TF2ONNX.format(option="--saved-model").format(name=path.name)
        return InputError(f"{path} is a SavedModel of TensorFlow: {expected}; {way}")
    suffix = path.suffix.lower()
    way = _WAYS.get(suffix, "save it with model.save('model.keras')").format(name=path.name)
    return InputError(f"{path} ends in {suffix or 'nothing'}: {expected}; {way}")
