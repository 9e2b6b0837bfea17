"""Are these the weights of this network? What a file tells before TensorFlow starts.

Keras has two forms of weights in HDF5: that of Keras 2 (`layer_names`, in the order of the network) and that of
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

__all__ = ["check_weights", "rounded_weights"]

Shape = tuple[int | None, ...] | None  # None: not told, of a size or of the whole
Weights = list[tuple[str, Shape]]
Tree = dict[str, Any]  # see `base.hdf5.contents`
Array = dict[str, Any]

_MOST_STATE = 64  # bytes of what may be of whole numbers: the state of a generator, a count


def check_weights(tree: Tree, config: dict[str, Any], path: Path, architecture: Path | None) -> None:
    """Compare numbers, shapes and types of the weights in a file with what the layers of a configuration have.

    Args:
        tree: the weights, as `base.hdf5.contents` gives them.
        config: the network's configuration.
        path: of the file.
        architecture: the file of the configuration, where that is another one: then the weights have to be there for
            every layer, and for no other one.

    Raises:
        InputError: no weights of Keras in the file; other layers, shapes or types, named.
    """
    beside = "its configuration" if architecture is None else str(architecture)
    try:
        of_keras_2 = _is_of_keras_2(tree)
        if of_keras_2 is None:
            if architecture is None:
                return  # of the first months of Keras 3: left to Keras
            raise InputError(
                f"{path} holds no weights of a Keras network: expected what model.save_weights writes; save them again"
            )
        whole = architecture is not None
        problem = _of_keras_2(tree, config, whole) if of_keras_2 else _of_keras_3(tree, config, whole)
        problem = problem or _of_types(tree)
    except InputError:
        raise
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:  # of damage, in either
        if architecture is None:
            return  # what is wrong with it Keras says better
        raise InputError(
            f"{path} cannot be compared with {beside} ({one_line(error)}): expected what "
            "model.save_weights and model.to_json write; save both again"
        ) from None
    if problem is not None:
        remedy = (
            "save the model again"
            if architecture is None
            else "give the configuration of the network that the weights were saved from"
        )
        raise InputError(f"{path} does not fit {beside}: {problem}; {remedy}")


def rounded_weights(tree: Tree) -> tuple[str, ...]:
    """What is said of weights that the file stores in float64, since Keras rounds them to float32; () without such."""
    waiting = [{**tree, "groups": {name: group for name, group in tree["groups"].items() if name != "optimizer"}}]
    count = 0
    while waiting:
        group = waiting.pop()
        count += sum(str(array["kind"])[1:] == "f8" for array in group["arrays"].values())
        waiting += group["groups"].values()
    return (f"weights of float64 became float32{f' ({count}×)' if count > 1 else ''}",) if count else ()


def _is_of_keras_2(tree: Tree) -> bool | None:
    """Of the weights in an HDF5 file; None where they are of neither form."""
    if any(name.startswith("layer_names") for name in tree["attributes"]):
        return True
    if "layers" in tree["groups"] or "_layer_checkpoint_dependencies" in tree["groups"]:
        return False
    return None


def _of_keras_2(tree: Tree, config: dict[str, Any], whole: bool) -> str | None:
    names = [name for name in _attribute(tree, "layer_names") if name in tree["groups"]]
    saved = [(name, _arrays_of_keras_2(tree["groups"][name])) for name in names]
    saved = [(name, arrays) for name, arrays in saved if arrays]
    wanted = [entry for entry in _layers(config) if _weights(entry) != []]
    if not whole and len(saved) != len(wanted):
        return None  # Keras says it
    for (name, arrays), entry in zip(saved, wanted, strict=False):
        if (problem := _difference(entry, arrays, f" (there {name!r})" if name != _name(entry) else "")) is not None:
            return problem
    if len(saved) != len(wanted):
        more = [_name(entry) for entry in wanted[len(saved) :]] or [name for name, _ in saved[len(wanted) :]]
        return (
            f"it holds weights of {len(saved)} layers: expected {len(wanted)} "
            f"({'without' if len(saved) < len(wanted) else 'it has also'} {more[0]!r})"
        )
    return None


def _arrays_of_keras_2(group: Tree) -> list[Array]:
    found = []
    for name in _attribute(group, "weight_names"):
        *folders, last = name.strip("/").split("/")
        place = group
        for folder in folders:
            place = place["groups"][folder]
        found.append(place["arrays"][last])
    return found


def _attribute(group: Tree, name: str) -> list[str]:
    """A list of names, which is cut into NAME0, NAME1 … where it is long."""
    attributes = group["attributes"]
    keys = [name] if name in attributes else [key for key in attributes if re.fullmatch(name + r"\d{1,6}", key)]
    values: list[str] = []
    for key in sorted(keys, key=lambda key: int(key[len(name) :] or 0)):
        values += [str(value) for value in attributes[key]]
    return values


def _of_keras_3(tree: Tree, config: dict[str, Any], whole: bool) -> str | None:
    if "layers" not in tree["groups"]:  # of the first months of this form: left to Keras
        return None
    groups = {}
    for entry, place in _places(config):
        groups[place] = entry
        expected = _weights(entry)
        if entry["class_name"] in CONTAINERS or expected is None:
            continue
        found = tree
        for folder in (*place.split("/"), "vars"):
            found = found["groups"].get(folder) or {"groups": {}, "arrays": {}}
        arrays = [found["arrays"][key] for key in sorted(found["arrays"], key=lambda key: int(key))]
        if not whole and not arrays:
            continue  # Keras says it
        if (problem := _difference(entry, arrays, f" (there {place!r})")) is not None:
            return problem
    for place in _with_variables(tree["groups"]["layers"], "layers") if whole else ():
        if not any(place == known or place.startswith(f"{known}/") for known in groups):
            return f"it holds weights of {place!r}, for which there is no layer"
    return None


def _of_types(tree: Tree, place: str = "") -> str | None:
    """Weights that are no numbers with a fraction, but for small ones that are no weights."""
    for name, array in tree["arrays"].items():
        kind = str(array["kind"])
        half = kind[1:] in ("u2", "V2") and array["attributes"].get("dtype") == "bfloat16"  # as Keras writes it
        state = kind[1:2] in ("i", "u") and array["bytes"] <= _MOST_STATE
        if not ((kind[1:2] == "f" and kind[2:] in ("2", "4", "8")) or half or state):
            return _of_type(f"{place}{name}", array)
    for name, group in tree["groups"].items():
        if (problem := _of_types(group, f"{place}{name}/")) is not None:
            return problem
    return None


def _of_type(what: str, array: Array) -> str:
    return f"{what[:100]!r} is of type {array['kind'] or 'neither number nor text'}: expected float32"


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


def _with_variables(group: Tree, place: str) -> Iterator[str]:
    for name, child in group["groups"].items():
        if name == "vars" and (child["groups"] or child["arrays"]):
            yield place
        else:
            yield from _with_variables(child, f"{place}/{name}")


def _difference(entry: dict[str, Any], arrays: list[Array], where: str) -> str | None:
    """How the weights of one layer are others than its configuration says."""
    expected = _weights(entry)
    if expected is None:
        return None
    shapes = [tuple(array["shape"] or ()) for array in arrays]
    if len(expected) != len(shapes):
        told = ", ".join(map(str, shapes[:20])) or "none"
        return (
            f"layer {_name(entry)!r} ({entry['class_name']}) has {len(shapes)} weights in the file{where}, {told}: "
            f"expected {len(expected)}{', ' if expected else ''}{', '.join(name for name, _ in expected)}"
        )
    for (name, wanted), shape, array in zip(expected, shapes, arrays, strict=True):
        if wanted is not None and not (
            len(wanted) == len(shape) and all(a in (None, b) for a, b in zip(wanted, shape, strict=True))
        ):
            sizes = ", ".join("any" if size is None else str(size) for size in wanted)
            return (
                f"the {name} of layer {_name(entry)!r} has the shape {shape} in the file{where}: expected "
                f"({sizes}{',' if len(wanted) == 1 else ''})"
            )
        if str(array["kind"])[1:2] in ("i", "u", "b") and array["attributes"].get("dtype") != "bfloat16":
            return _of_type(f"{_name(entry)}, {name}", array)
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
