"""How large do the activations and weights of a network become, by its configuration alone?

Worked out by arithmetic, before TensorFlow starts and takes memory for them: convolutions, pooling, dense layers,
padding, enlarging and flattening. What another layer gives is unknown, and so is what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.base.limits import raised
from oip_torch.keras.classes import AUGMENTATIONS, CONTAINERS

__all__ = ["MOST_ELEMENTS", "check_sizes"]

MOST_ELEMENTS = "OIP_MAX_ELEMENTS"
"""The environment variable that raises how many numbers an activation or a weight may have."""
_MOST_ELEMENTS = float(1 << 28)  # 1 GiB in float32; VGG16's largest weight has 2^27, and of an image 2^22

Shape = tuple[int, ...] | None  # of one image; None: unknown
Entry = dict[str, Any]


def check_sizes(config: Entry, image: tuple[int, int, int] | None, path: Path) -> None:
    """Refuse a network of which one activation, for one image, or one weight has more than 2^28 elements.

    Args:
        config: the network's configuration.
        image: (height, width, channels), where it is known.
        path: of the file, for the message.

    Raises:
        InputError: which layer, how many, and how the bound is raised.
    """
    most = int(raised(MOST_ELEMENTS, _MOST_ELEMENTS))

    def measure(entry: Entry, what: str, sizes: Sequence[int]) -> None:
        if math.prod(sizes) > most:
            told = "×".join(str(size) if size < 10**12 else f"{str(size)[:6]}…" for size in sizes)
            layer = f"layer {str(entry['config'].get('name'))[:100]!r} ({entry['class_name']})"
            raise InputError(
                f"{path}: {what} of {layer} has {told} elements: expected at most {most}; set {MOST_ELEMENTS} higher "
                "if the network is sound"
            )

    _network(config, image, measure)


def _network(network: Entry, image: Shape, measure: Callable[[Entry, str, Sequence[int]], None]) -> Shape:
    """The shape of a network's output, all of it measured on the way."""
    inner = network["config"]
    shapes: dict[str, Shape] = {}
    before, names = image, _names(inner.get("input_layers"))
    for entry in inner["layers"]:
        options = entry["config"]
        name = str(options.get("name", entry.get("name")))
        if network["class_name"] == "Sequential":
            given = [before]
        else:
            given = [shapes.get(source) for source in _names(entry.get("inbound_nodes"))]
        if entry["class_name"] == "InputLayer":
            mine = image is not None and (not names or name in names)
            shape = image if mine else _whole(options.get("batch_shape"), 1)
        elif entry["class_name"] in CONTAINERS:
            shape = _network(entry, given[0] if len(given) == 1 else None, measure)
        else:
            try:
                shape = _shape(entry, given, measure)
            except InputError:
                raise
            except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError):  # what Keras will refuse, too
                shape = None
        if shape is not None:
            measure(entry, "the output", shape)
        shapes[name] = before = shape
    ends = _names(inner.get("output_layers"))
    return before if network["class_name"] == "Sequential" or len(ends) != 1 else shapes.get(ends[0])


def _names(value: Any) -> list[str]:
    """Of the layers that a node, or a network's end, refers to, in the forms of Keras 2 and 3; of all nodes of a layer.

    More than one call of a layer makes it one with several inputs, whose shape is unknown.
    """
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            return [str(value["config"]["keras_history"][0])]
        return [name for item in value.values() for name in _names(item)]
    if isinstance(value, list):
        if len(value) >= 3 and isinstance(value[0], str) and type(value[1]) is int:
            return [value[0], *(name for item in value[3:] for name in _names(item))]
        return [name for item in value for name in _names(item)]
    return []


def _whole(sizes: Any, skipped: int = 0) -> Shape:
    sizes = tuple(sizes[skipped:]) if isinstance(sizes, (list, tuple)) else (None,)
    return sizes if all(type(size) is int and size > 0 for size in sizes) else None


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if type(value) is int else value
    if type(first) is not int or type(second) is not int or min(first, second) < 1:
        raise ValueError(value)
    return first, second


def _margins(value: Any) -> tuple[int, int]:
    """What is added or taken in height and in width, of n, (n, m) or ((a, b), (c, d))."""
    sides: Any = (value, value) if type(value) is int else value
    rows, columns = (2 * side if type(side) is int else side[0] + side[1] for side in sides)
    return rows, columns


def _windows(options: Entry, key: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """So many windows fit, of a convolution or a pooling."""
    kernel = _pair(options[key])
    strides = options.get("strides")
    strides = (kernel if key == "pool_size" else (1, 1)) if strides is None else _pair(strides)
    dilation = _pair(options.get("dilation_rate", 1))
    if options.get("padding", "valid") == "same":
        return -(-shape[0] // strides[0]), -(-shape[1] // strides[1])
    rows, columns = (
        max(0, (size - (n - 1) * d - 1) // s + 1)
        for size, n, d, s in zip(shape, kernel, dilation, strides, strict=False)
    )
    return rows, columns


_ALIKE = AUGMENTATIONS | frozenset(
    "Activation ReLU LeakyReLU PReLU ELU Softmax Dropout SpatialDropout2D GaussianDropout GaussianNoise AlphaDropout "
    "ActivityRegularization BatchNormalization LayerNormalization GroupNormalization UnitNormalization "
    "RMSNormalization Rescaling Normalization Identity LayerScale StochasticDepth".split()
)
_MERGING = frozenset("Add Subtract Multiply Average Maximum Minimum".split())


def _shape(entry: Entry, given: list[Shape], measure: Callable[[Entry, str, Sequence[int]], None]) -> Shape:
    """What a layer gives for what it is given, its weights measured; None: unknown."""
    kind, options = entry["class_name"], entry["config"]
    if not given or any(shape is None for shape in given):
        _measure_without_input(entry, measure)
        return None
    shapes = [shape for shape in given if shape is not None]
    if kind in _MERGING and str(entry.get("module")).startswith(("None", "keras.layers", "keras.src.layers")):
        return _broadcast(shapes)
    if kind == "Concatenate" and "axis" in options and len({len(shape) for shape in shapes}) == 1:
        axis = options["axis"] if options["axis"] < 0 else options["axis"] - 1
        joined = list(shapes[0])
        joined[axis] = sum(shape[axis] for shape in shapes)
        return tuple(joined)
    if len(shapes) != 1:
        return None
    shape = shapes[0]
    if kind in _ALIKE:
        return shape
    if kind == "Dense":
        measure(entry, "the kernel", (shape[-1], options["units"]))
        return (*shape[:-1], options["units"])
    if kind == "Flatten":
        return (math.prod(shape),)
    if kind == "Reshape":
        target = list(options["target_shape"])
        if -1 in target:
            target[target.index(-1)] = math.prod(shape) // -math.prod(target)
        return _whole(target)
    if kind == "Permute":
        return tuple(shape[place - 1] for place in options["dims"])
    if kind == "RepeatVector":
        return (options["n"], *shape)
    return _of_images(entry, shape, measure) if len(shape) == 3 else None


def _broadcast(shapes: list[tuple[int, ...]]) -> Shape:
    sizes = [set(sides) - {1} for sides in zip(*shapes, strict=True)]
    return tuple(max(side, default=1) for side in sizes) if all(len(side) <= 1 for side in sizes) else None


def _measure_without_input(entry: Entry, measure: Callable[[Entry, str, Sequence[int]], None]) -> None:
    """What a layer's weights have at least."""
    options = entry["config"]
    if entry["class_name"] in ("Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "SeparableConv2D"):
        measure(entry, "the kernel", (*_pair(options["kernel_size"]), options.get("filters", 1)))
    elif entry["class_name"] == "Dense":
        measure(entry, "the bias", (options["units"],))


def _of_images(entry: Entry, shape: tuple[int, ...], measure: Callable[[Entry, str, Sequence[int]], None]) -> Shape:
    """Of layers that take (height, width, channels)."""
    kind, options, channels = entry["class_name"], entry["config"], shape[2]
    if kind in ("Conv2D", "SeparableConv2D", "DepthwiseConv2D"):
        kernel = _pair(options["kernel_size"])
        multiplier = options.get("depth_multiplier", 1)
        filters = channels * multiplier if kind == "DepthwiseConv2D" else options["filters"]
        if kind == "Conv2D":
            measure(entry, "the kernel", (*kernel, channels // (options.get("groups") or 1), filters))
        else:
            measure(entry, "the kernel", (*kernel, channels, multiplier))
        return (*_windows(options, "kernel_size", shape), filters)
    if kind == "Conv2DTranspose":
        kernel, strides = _pair(options["kernel_size"]), _pair(options.get("strides", 1))
        measure(entry, "the kernel", (*kernel, options["filters"], channels))
        if options.get("output_padding") is not None or _pair(options.get("dilation_rate", 1)) != (1, 1):
            return None
        more = (
            (0, 0)
            if options.get("padding") == "same"
            else [max(0, n - s) for n, s in zip(kernel, strides, strict=True)]
        )
        return (shape[0] * strides[0] + more[0], shape[1] * strides[1] + more[1], options["filters"])
    if kind in ("MaxPooling2D", "AveragePooling2D"):
        return (*_windows(options, "pool_size", shape), channels)
    if kind in ("GlobalMaxPooling2D", "GlobalAveragePooling2D"):
        return (1, 1, channels) if options.get("keepdims") else (channels,)
    if kind in ("ZeroPadding2D", "Cropping2D"):
        rows, columns = _margins(options["padding" if kind == "ZeroPadding2D" else "cropping"])
        sign = 1 if kind == "ZeroPadding2D" else -1
        return (max(0, shape[0] + sign * rows), max(0, shape[1] + sign * columns), channels)
    if kind == "UpSampling2D":
        rows, columns = _pair(options["size"])
        return (shape[0] * rows, shape[1] * columns, channels)
    if kind in ("Resizing", "CenterCrop"):
        return (*_pair([options["height"], options["width"]]), channels)
    return None
