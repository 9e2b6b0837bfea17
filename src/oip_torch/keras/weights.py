"""Are these the weights of this network? What a file of weights alone tells before TensorFlow starts.

Keras has two forms of such files, both HDF5: that of Keras 2 (`layer_names`, in the order of the network) and that of
Keras 3 (`layers/CLASS_NUMBER/vars/0`). A weight's shape follows from its layer's configuration but for the channels
that come in: these are compared by Keras itself, when it loads the weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line
from oip_torch.keras.classes import CONTAINERS

__all__ = ["check_weights", "is_of_keras_2"]

Shape = tuple[int | None, ...] | None  # None: not told, of a size or of the whole
Weights = list[tuple[str, Shape]]


def check_weights(path: Path, config: dict[str, Any], architecture: Path) -> None:
    """Compare numbers and shapes of the weights in a file with what the layers of a configuration have.

    Raises:
        InputError: no weights of Keras in the file, or other layers or shapes, named.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            problem = _of_keras_2(file, config) if is_of_keras_2(file) else _of_keras_3(file, config)
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # of damage, in either
        raise InputError(
            f"{path} cannot be compared with {architecture} ({one_line(error)}): expected what "
            "model.save_weights and model.to_json write; save both again"
        ) from None
    if problem is not None:
        raise InputError(
            f"{path} does not fit {architecture}: {problem}; give the configuration of the network that the weights "
            "were saved from"
        )


def is_of_keras_2(file: Any) -> bool:
    """Of an open HDF5 file of weights; an `InputError` where it is of neither form."""
    if any(name.startswith("layer_names") for name in file.attrs):
        return True
    if "layers" in file or "_layer_checkpoint_dependencies" in file:
        return False
    raise InputError(
        f"{file.filename} holds no weights of a Keras network: expected what model.save_weights writes; save them again"
    )


def _of_keras_2(file: Any, config: dict[str, Any]) -> str | None:
    saved = [(name, _shapes_of_keras_2(file[name])) for name in _attribute(file, "layer_names") if name in file]
    saved = [(name, shapes) for name, shapes in saved if shapes]
    wanted = [entry for entry in _layers(config) if _weights(entry) != []]
    for (name, shapes), entry in zip(saved, wanted, strict=False):
        if (problem := _difference(entry, shapes, f" (there {name!r})" if name != _name(entry) else "")) is not None:
            return problem
    if len(saved) != len(wanted):
        more = [_name(entry) for entry in wanted[len(saved) :]] or [name for name, _ in saved[len(wanted) :]]
        return (
            f"it holds weights of {len(saved)} layers: expected {len(wanted)} "
            f"({'without' if len(saved) < len(wanted) else 'it has also'} {more[0]!r})"
        )
    return None


def _shapes_of_keras_2(group: Any) -> list[tuple[int, ...]]:
    return [group[name].shape for name in _attribute(group, "weight_names")]


def _attribute(group: Any, name: str) -> list[str]:
    """A list of names, which is cut into NAME0, NAME1 … where it is long."""
    keys = [name] if name in group.attrs else [key for key in group.attrs if re.fullmatch(name + r"\d+", key)]
    values = [value for key in sorted(keys, key=lambda key: int(key[len(name) :] or 0)) for value in group.attrs[key]]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _of_keras_3(file: Any, config: dict[str, Any]) -> str | None:
    if "layers" not in file:  # of the first months of this form: left to Keras
        return None
    groups = {}
    for entry, place in _places(config):
        groups[place] = entry
        expected = _weights(entry)
        if entry["class_name"] in CONTAINERS or expected is None:
            continue
        shapes = _shapes_of_keras_3(file.get(f"{place}/vars"))
        if (problem := _difference(entry, shapes, f" (there {place!r})")) is not None:
            return problem
    for place in _with_variables(file["layers"], "layers"):
        if not any(place == known or place.startswith(f"{known}/") for known in groups):
            return f"it holds weights of {place!r}, for which there is no layer"
    return None


def _places(config: dict[str, Any], place: str = "") -> Iterator[tuple[dict[str, Any], str]]:
    """Every layer of a network and where its weights lie: layers are counted for each class, operations not at all."""
    seen: dict[str, int] = {}
    for entry in _layers(config):
        kind = entry["class_name"]
        if str(entry.get("module")).startswith("keras.src.ops"):
            continue
        if kind in CONTAINERS and kind != "Sequential":
            kind = "Functional"
        name = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        count = seen[name] = seen.get(name, -1) + 1
        inner = f"{place}layers/{name}{f'_{count}' if count else ''}"
        yield entry, inner
        if entry["class_name"] in CONTAINERS:
            yield from _places(entry, f"{inner}/")


def _with_variables(group: Any, place: str) -> Iterator[str]:
    for name, child in group.items():
        if name == "vars" and len(child):
            yield place
        elif hasattr(child, "items"):
            yield from _with_variables(child, f"{place}/{name}")


def _shapes_of_keras_3(group: Any) -> list[tuple[int, ...]]:
    return [] if group is None else [group[key].shape for key in sorted(group, key=lambda key: int(key))]


def _difference(entry: dict[str, Any], shapes: list[tuple[int, ...]], where: str) -> str | None:
    """How the weights of one layer are others than its configuration says."""
    expected = _weights(entry)
    if expected is None:
        return None
    if len(expected) != len(shapes):
        told = ", ".join(map(str, shapes)) or "none"
        return (
            f"layer {_name(entry)!r} ({entry['class_name']}) has {len(shapes)} weights in the file{where}, {told}: "
            f"expected {len(expected)}{', ' if expected else ''}{', '.join(name for name, _ in expected)}"
        )
    for (name, wanted), shape in zip(expected, shapes, strict=True):
        if wanted is not None and not (
            len(wanted) == len(shape) and all(a in (None, b) for a, b in zip(wanted, shape, strict=True))
        ):
            sizes = ", ".join("any" if size is None else str(size) for size in wanted)
            return (
                f"the {name} of layer {_name(entry)!r} has the shape {shape} in the file{where}: expected "
                f"({sizes}{',' if len(wanted) == 1 else ''})"
            )
    return None


def _layers(config: dict[str, Any]) -> list[dict[str, Any]]:
    return list(config["config"]["layers"])


def _name(entry: dict[str, Any]) -> str:
    return str(entry["config"].get("name", entry.get("name")))


def _weights(entry: dict[str, Any]) -> Weights | None:
    """The weights that a layer has by its configuration, in Keras' order; None: not told."""
    kind, options = entry["class_name"], entry["config"]
    if kind in CONTAINERS:
        return None if any(_weights(layer) != [] for layer in _layers(entry)) else []
    if kind in _UNTOLD or options.get("renorm"):
        return None
    return _WEIGHTS[kind](options) if kind in _WEIGHTS else []


def _with_bias(options: dict[str, Any], filters: int | None, *kernels: tuple[str, Shape]) -> Weights:
    return [*kernels, *([("bias", (filters,))] if options.get("use_bias", True) else [])]


def _sides(options: dict[str, Any]) -> tuple[int, int]:
    size = options["kernel_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _conv(options: dict[str, Any]) -> Weights:
    filters = options["filters"]
    return _with_bias(options, filters, ("kernel", (*_sides(options), None, filters)))


def _transposed(options: dict[str, Any]) -> Weights:
    filters = options["filters"]
    return _with_bias(options, filters, ("kernel", (*_sides(options), filters, None)))


def _depthwise(options: dict[str, Any]) -> Weights:
    return _with_bias(options, None, ("kernel", (*_sides(options), None, options.get("depth_multiplier", 1))))


def _separable(options: dict[str, Any]) -> Weights:
    depthwise = ("depthwise kernel", (*_sides(options), None, options.get("depth_multiplier", 1)))
    return _with_bias(options, options["filters"], depthwise, ("pointwise kernel", (1, 1, None, options["filters"])))


def _dense(options: dict[str, Any]) -> Weights:
    return _with_bias(options, options["units"], ("kernel", (None, options["units"])))


def _scaled(options: dict[str, Any]) -> Weights:
    return [(name, None) for name, key in (("gamma", "scale"), ("beta", "center")) if options.get(key, True)]


def _batch_norm(options: dict[str, Any]) -> Weights:
    names = [name for name, _ in _scaled(options)]
    return [(name, (None,)) for name in (*names, "moving mean", "moving variance")]


_WEIGHTS: dict[str, Callable[[dict[str, Any]], Weights]] = {
    "Conv2D": _conv,
    "Conv2DTranspose": _transposed,
    "DepthwiseConv2D": _depthwise,
    "SeparableConv2D": _separable,
    "Dense": _dense,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _scaled,
    "GroupNormalization": _scaled,
    "PReLU": lambda options: [("alpha", None)],
}
_UNTOLD = frozenset({"MultiHeadAttention", "Normalization", "RMSNormalization", "LayerScale"})
