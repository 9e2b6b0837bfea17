"""Which images does a Keras network take, by what its configuration says of its inputs?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.keras.classes import CONTAINERS

__all__ = ["image_shape", "inputs_of"]


def image_shape(config: Any, path: Path, size: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """(height, width, channels) of the network's images; an `InputError` with a recipe where it takes others."""
    inputs = inputs_of(config)
    if inputs is None:
        return None
    if len(inputs) != 1:
        names = ", ".join(name for name, _ in inputs)
        raise InputError(
            f"{path} has {len(inputs)} inputs ({names}): expected one image input; recipe for the part that reads one "
            f"of them alone: model = keras.models.load_model({path.name!r}); part = keras.Model(model.inputs[0], "
            "model.get_layer('LAST LAYER OF THAT PART').output); part.save('part.keras')"
        )
    shape = inputs[0][1]
    load = f"model = keras.models.load_model({path.name!r})"
    if len(shape) == 2 and shape[1] is not None:
        side = round(shape[1] ** 0.5)
        image = (side, side, 1) if side * side == shape[1] else ("height", "width", "channels")
        raise InputError(
            f"{path} takes inputs of shape {shape}: expected images (batch, height, width, channels); recipe: {load}; "
            f"image = keras.Input({_bare(image)}); keras.Model(image, model(keras.layers.Flatten()(image)))"
            ".save('images.keras')"
        )
    if len(shape) == 3:
        raise InputError(
            f"{path} takes inputs of shape {shape}, thus is one-dimensional: expected images (batch, height, width, "
            f"channels); recipe for images of height 1: image = keras.Input((1, {shape[1]}, {shape[2]})); "
            "keras.layers.Conv2D(filters, (1, size)) in place of each Conv1D(filters, size); "
            "conv.set_weights([kernel[None], bias])"
        )
    if len(shape) != 4 or shape[3] is None:
        raise InputError(
            f"{path} takes inputs of shape {shape}: expected images (batch, height, width, channels), the number of "
            "channels fixed; rebuild it with keras.Input((height, width, channels)) and copy the weights"
        )
    height, width, channels = shape[1], shape[2], int(shape[3])
    if height is None or width is None:
        if size is None:
            raise InputError(
                f"{path} leaves height or width open (input {shape}): say which size the images have, as in "
                "--size 224 224 or oip.convert(…, size=(224, 224))"
            )
        if height not in (None, size[0]) or width not in (None, size[1]):
            raise InputError(f"{path} takes images of {height}×{width}: size {size} does not fit; give it accordingly")
        height, width = size
    elif size is not None and (height, width) != tuple(size):
        raise InputError(
            f"{path} takes images of {height}×{width}, and size is {size}: expected no size, since it is only for "
            "networks that leave height and width open"
        )
    if height * width == 1:
        raise InputError(f"{path} takes images of one pixel (input {shape}): expected larger ones")
    return height, width, channels


def _bare(values: tuple[Any, ...]) -> str:
    """(28, 28, 1), also of names."""
    return f"({', '.join(map(str, values))})"


def inputs_of(config: Any) -> list[tuple[str, tuple[int | None, ...]]] | None:
    """Name and shape of each input of a network, in its order; None where the configuration does not tell."""
    inner = config["config"]
    entries = inner.get("layers") or []
    if config["class_name"] == "Sequential":
        if entries and entries[0].get("class_name") in CONTAINERS and (found := inputs_of(entries[0])) is not None:
            return found
        shape = _shape(entries[0]) if entries else None
        shape = _shape(config) if shape is None else shape
        return None if shape is None else [(entries[0]["config"].get("name", "image") if entries else "image", shape)]
    names = _input_names(inner.get("input_layers"))
    found = []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("class_name") == "InputLayer":
            name, shape = entry.get("name", entry["config"].get("name")), _shape(entry)
            if shape is None:
                return None
            if not names or name in names:
                found.append((str(name), shape))
    return found or None


def _input_names(value: Any) -> list[str]:
    """Of `input_layers` in all its forms: [NAME, 0, 0], [[NAME, 0, 0], …], {KEY: [NAME, 0, 0]}."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    if len(value) == 3 and isinstance(value[0], str):
        return [value[0]]
    return [name for item in value for name in _input_names(item)]


def _shape(entry: dict[str, Any]) -> tuple[int | None, ...] | None:
    """What the entry of a layer or a network says of its input's shape."""
    for key in ("batch_shape", "batch_input_shape", "build_input_shape"):  # of Keras 3, of Keras 2, of a Sequential
        shape = entry["config"].get(key)
        if isinstance(shape, list):
            known = all(size is None or type(size) is int for size in shape)
            return tuple(shape) if known else None
    return None
