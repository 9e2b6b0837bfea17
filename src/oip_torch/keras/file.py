"""Is this Keras file one that we may open, and what does it hold?

Runs before TensorFlow starts, and reads the file as data only: Keras' own `safe_mode` was bypassed again and again
(CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-9906), so a file gets no further than here
unless every class in its configuration is on the lists of `keras.classes`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oip_torch.base.bounded import BoundedError, reading_limits, run_bounded
from oip_torch.base.checks import shown, whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.files import existing_file
from oip_torch.base.limits import most_unpacked
from oip_torch.base.messages import one_line
from oip_torch.base.plain_json import MOST_BYTES, parse_json
from oip_torch.keras import unpack
from oip_torch.keras.classes import CONTAINERS, CONVOLUTIONS, PLAIN, refusal, refused_value
from oip_torch.keras.formats import is_saved_model, other_format
from oip_torch.keras.inputs import image_shape, inputs_of
from oip_torch.keras.rewrite import rewrite, with_input_shape
from oip_torch.keras.sizes import check_sizes
from oip_torch.keras.weights import check_weights, rounded_weights

__all__ = ["KerasFile", "check_size", "read_keras_file"]

_MOST_LAYERS = 5000
_NO_CONFIG = object()  # of a file that holds weights alone


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """A Keras file that was read as data and admitted.

    Attributes:
        path: of the file.
        config: the network's configuration in the form in which it is loaded.
        rewritten: what had to be changed in it for that, in words.
        rounded: what is said of weights that are stored in float64, in words.
        input_shape: (height, width, channels); None where the configuration does not tell.
        architecture: the JSON file with the configuration, where the file holds weights alone.
    """

    path: Path
    config: dict[str, Any]
    rewritten: tuple[str, ...]
    rounded: tuple[str, ...]
    input_shape: tuple[int, int, int] | None
    architecture: Path | None = None

    def for_keras(self, folder: Path) -> Path:
        """A file in `folder` that Keras 3 loads: a link, or a copy with the configuration as it is here."""
        target = folder / f"{self.path.stem}{'.keras' if self.path.suffix.lower() == '.keras' else '.h5'}"
        if self.architecture is not None:
            return self._assembled(target)
        if not self.rewritten:
            target.symlink_to(self.path.resolve())
            return target
        text = json.dumps(self.config)
        if target.suffix == ".keras":
            with zipfile.ZipFile(self.path) as old, zipfile.ZipFile(target, "w") as new:
                new.writestr("metadata.json", old.read("metadata.json") if "metadata.json" in old.namelist() else "{}")
                new.writestr("config.json", text)
                with old.open("model.weights.h5") as source, new.open("model.weights.h5", "w", force_zip64=True) as out:
                    shutil.copyfileobj(source, out)
            return target
        import h5py

        shutil.copyfile(self.path, target)
        with h5py.File(target, "r+") as file:
            del file.attrs["model_config"]
            file.attrs["model_config"] = text.encode()
        return target

    def _assembled(self, target: Path) -> Path:
        """Configuration and weights in one file, in the form that the weights have."""
        import h5py

        with h5py.File(self.path, "r") as weights:
            if any(name.startswith("layer_names") for name in weights.attrs):  # as Keras 2 writes them
                with h5py.File(target, "w") as file:
                    file.attrs["model_config"] = json.dumps(self.config).encode()
                    weights.copy(weights["/"], file, name="model_weights")
                return target
        target = target.with_suffix(".keras")
        kind = self.config["class_name"]
        own = {"module": f"keras.src.models.{kind.lower()}", "registered_name": kind}  # Keras 2 leaves it out in JSON
        with zipfile.ZipFile(target, "w") as file:
            file.writestr("metadata.json", "{}")
            file.writestr("config.json", json.dumps(own | self.config))
            file.write(self.path, "model.weights.h5")
        return target


def read_keras_file(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    architecture: str | os.PathLike[str] | None = None,
    *,
    contained: bool = False,
) -> KerasFile:
    """Read a Keras CNN as data, and check, without running any of it, that it is made of known layers.

    Args:
        path: .keras or HDF5.
        size: (height, width) of the images, for a network that leaves them open.
        architecture: the JSON file with the configuration, where `path` holds weights alone.
        contained: this process is a child with limits itself, and needs no other one to unpack the file in.

    Raises:
        InputError: no path, missing or damaged file, weights without a model or of another one, an unknown or custom
            class (named), links out of the file, no convolution, inputs that are no images of one known size.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(
            f"the Keras model is given as a {type(path).__name__}: expected the path of a file, .keras or .h5; "
            "save the model with model.save('model.keras') and give that path"
        )
    if is_saved_model(Path(path)):
        raise other_format(Path(path))
    path = existing_file(path, "a Keras model saved as .keras or .h5")
    suffix = path.suffix.lower()
    weights: dict[str, Any]
    if architecture is not None:
        architecture = existing_file(architecture, "the network's configuration, as model.to_json() writes it")
        weights = _weights_alone(path, contained=contained)
        config = _json_config(architecture)
    elif suffix == ".keras":
        config, weights = _contents(path, "zip", contained=contained)
    elif suffix in {".h5", ".hdf5"} or _is_hdf5(path):
        config, weights = _contents(path, "hdf5", contained=contained)
        if config is _NO_CONFIG:
            raise _alone(path)
    else:
        raise other_format(path)
    told = path if architecture is None else architecture  # which file a message is about
    try:
        _check_network(config, told)
        _check_layers(config, told)
        config, rewritten = rewrite(config)
        _admit(config, told)
        check_weights(weights, config, path, architecture)
        shape = image_shape(config, told, size)
        check_sizes(config, shape, told)
        if shape is not None and size is not None and None in (inputs_of(config) or [("", ())])[0][1][1:]:
            with_input_shape(config, (None, *shape))
            rewritten = (*rewritten, f"images of {shape[0]}×{shape[1]}, where height and width were open")
    except RecursionError:
        raise InputError(f"{told} has a configuration that is nested too deeply: expected a network's") from None
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:  # of a damaged configuration
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{told} has a damaged configuration ({reason}); save the model again") from None
    return KerasFile(
        path=path,
        config=config,
        rewritten=rewritten,
        rounded=rounded_weights(weights),
        input_shape=shape,
        architecture=architecture,
    )


def check_size(size: Any) -> tuple[int, int] | None:
    """(height, width) as whole numbers, or None."""
    if size is None:
        return None
    numbers = whole_numbers("size", size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise InputError(f"size is {shown(size)}: expected (height, width) in pixels, as in (224, 224)")
    return numbers[0], numbers[1]


def _contents(path: Path, kind: str, *, contained: bool) -> tuple[Any, dict[str, Any]]:
    """The configuration in a file ("zip" or "hdf5"), or `_NO_CONFIG`, and the tree of its weights."""
    if contained:
        with tempfile.TemporaryDirectory(prefix="oip-load-") as folder:
            told, _ = unpack.of_zip(str(path), folder) if kind == "zip" else unpack.of_hdf5(str(path))
    else:
        limits = reading_limits(most_unpacked(path.stat().st_size))
        try:
            told, _ = run_bounded(f"{unpack.__name__}:of_{kind}", {"path": os.path.abspath(path)}, limits)
        except BoundedError as error:
            raise _unreadable(path, kind, error) from None
    try:
        return _NO_CONFIG if told["config"] is None else parse_json(told["config"]), told["weights"]
    except ValueError as error:
        if kind == "zip":
            raise _unreadable(path, kind, error) from None
        raise InputError(f"{path} has an unreadable model_config ({one_line(error)}); save the model again") from None


def _unreadable(path: Path, kind: str, error: Exception) -> InputError:
    if kind == "zip":
        return InputError(
            f"{path} is not a readable .keras file ({one_line(error)}): expected the zip file that model.save writes; "
            "fetch or save it again"
        )
    return InputError(
        f"{path} is not readable as HDF5 ({one_line(error)}): expected a model that Keras saved; fetch or save it again"
    )


def _alone(path: Path) -> InputError:
    return InputError(
        f"{path} holds weights without their network: expected the whole network; recipe, where the network is "
        f"built: model.load_weights({path.name!r}); model.save('model.keras'); or give its configuration beside "
        f"them: open('network.json', 'w').write(model.to_json()), then oip convert {path.name} --architecture "
        "network.json"
    )


def _weights_alone(path: Path, *, contained: bool) -> dict[str, Any]:
    """The tree of a file of weights alone."""
    found = _contents(path, "hdf5", contained=contained) if _is_hdf5(path) else None
    if path.suffix.lower() == ".keras" or (found is not None and found[0] is not _NO_CONFIG):
        raise InputError(f"{path} holds its network beside the weights: expected no architecture; give the file alone")
    if found is None:
        raise InputError(
            f"{path} is not HDF5: expected weights that model.save_weights('NAME.weights.h5') wrote; save them so"
        )
    return found[1]


def _json_config(path: Path) -> Any:
    """The architecture in a JSON file, as model.to_json() writes it."""
    expected = "expected what open('network.json', 'w').write(model.to_json()) writes"
    if path.stat().st_size > MOST_BYTES:
        raise InputError(f"{path} holds {path.stat().st_size >> 20} MiB: {expected}, at most {MOST_BYTES >> 20}")
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"))
        if isinstance(value, str):  # json.dump(model.to_json(), file)
            value = parse_json(value)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON ({one_line(error)}): {expected}") from None
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InputError(
            f"{path} holds no network's configuration: {expected}; model.get_config() alone lacks its class"
        )
    # What model.to_json() of Keras 2 says of itself is no part of the network.
    return {key: item for key, item in value.items() if key not in ("keras_version", "backend")}


def _is_hdf5(path: Path) -> bool:
    """Whether a file of another ending is HDF5 by its first bytes, as many `.model` files are."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _check_network(config: Any, path: Path) -> None:
    if not isinstance(config, dict) or not isinstance(config.get("config"), (dict, list)):
        raise InputError(f"{path} holds no network configuration; save the model again")
    if not isinstance(config.get("class_name"), str) or config["class_name"] not in CONTAINERS:
        raise InputError(
            f"{path} holds a {config.get('class_name')!r}: expected a Sequential or Functional model of Keras' own "
            "layers; recipe: image = keras.Input(shape); functional = keras.Model(image, model.call(image)); "
            "functional.save('model.keras')"
        )


def _admit(config: Any, path: Path) -> None:
    """Refuse every class that is not on the lists, by name; refuse a network without a convolution."""
    classes = set()
    inputs = inputs_of(config)
    image = inputs[0][1] if inputs is not None and len(inputs) == 1 else None
    for entry, layer in _entries(config, "model"):
        name = entry["class_name"]
        classes.add(name)
        if (what := refusal(entry)) is not None:
            raise InputError(f"{path}: layer {layer!r} uses {what}; replace the layer and save the model again")
        options = entry.get("config")
        for key, value in options.items() if isinstance(options, dict) else ():
            if (what := refused_value(key, value)) is not None:
                raise InputError(f"{path}: layer {layer!r} uses {what}; replace the layer and save the model again")
        if name == "RandomCrop":
            _check_crop(path, layer, options, image)
        if isinstance(options, dict) and options.get("data_format", "channels_last") == "channels_first":
            raise InputError(
                f"{path}: layer {layer!r} is channels_first: expected channels_last throughout; recipe: "
                "keras.config.set_image_data_format('channels_last'); build the network anew with keras.Input((height, "
                "width, channels)); new.set_weights(old.get_weights()), since kernels are stored alike"
            )
    if not classes & CONVOLUTIONS:
        raise InputError(f"{path} has no convolution: expected a CNN with at least one Conv2D layer")


def _check_layers(config: dict[str, Any], path: Path) -> None:
    """Refuse layers that are no entries: Keras looks a mere name up among all that it has, and calls it."""
    waiting, count = [config], 0
    while waiting:
        inner = waiting.pop()["config"]
        layers = inner.get("layers") if isinstance(inner, dict) else inner  # a list in files of an early Keras 2
        for entry in layers if isinstance(layers, list) else [] if layers is None else [layers]:
            if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
                raise InputError(f"{path} has a layer {shown(entry)}: expected a class and its configuration")
            network = entry["class_name"] in CONTAINERS
            if not isinstance(entry.get("config"), (dict, list) if network else dict):
                raise InputError(
                    f"{path}: a layer {entry['class_name'][:60]!r} has the configuration {shown(entry.get('config'))}: "
                    "expected its arguments by name"
                )
            if network:
                waiting.append(entry)
            count += 1
    if count > _MOST_LAYERS:
        raise InputError(f"{path} has {count} layers: expected at most {_MOST_LAYERS}")


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
            if isinstance(inner, dict) and isinstance(inner.get("name"), str) and value["class_name"] not in PLAIN:
                layer = inner["name"]
            yield value, layer
        for item in value.values():
            yield from _entries(item, layer)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item, layer)
