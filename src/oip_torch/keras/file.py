"""Is this Keras file one that we may open, and what does it hold?

Runs before TensorFlow starts, and reads the file as data only: Keras' own `safe_mode` was bypassed again and again
(CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-9906), so a file gets no further than here
unless every class in its configuration is on the lists of `keras.classes`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from oip_torch.base.checks import shown, whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.base.files import existing_file
from oip_torch.base.messages import one_line
from oip_torch.keras.classes import CONTAINERS, CONVOLUTIONS, PLAIN, refusal, refused_string
from oip_torch.keras.rewrite import rewrite, with_input_shape

__all__ = ["KerasFile", "check_size", "read_keras_file"]

_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_MOST_BYTES = 8 << 30  # of a file, unpacked: far above any CNN, far below what would fill a machine


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """A Keras file that was read as data and admitted.

    Attributes:
        path: of the file.
        config: the network's configuration in the form in which it is loaded.
        rewritten: what had to be changed in it for that, in words.
        input_shape: (height, width, channels); None where the configuration does not tell.
    """

    path: Path
    config: dict[str, Any]
    rewritten: tuple[str, ...]
    input_shape: tuple[int, int, int] | None

    def for_keras(self, folder: Path) -> Path:
        """A file in `folder` that Keras 3 loads: a link, or a copy with the rewritten configuration."""
        target = folder / f"model{'.keras' if self.path.suffix.lower() == '.keras' else '.h5'}"
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


def read_keras_file(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> KerasFile:
    """Read a Keras CNN as data, and check, without running any of it, that it is made of known layers.

    Args:
        path: .keras or HDF5.
        size: (height, width) of the images, for a network that leaves them open.

    Raises:
        InputError: no path, missing or damaged file, weights without a model, an unknown or custom class (named), links
            out of the file, no convolution, inputs that are no images of one known size.
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
    elif suffix in {".h5", ".hdf5"} or _is_hdf5(path):
        config = _h5_config(path)
    else:
        raise InputError(
            f"{path} ends in {suffix or 'nothing'}: expected a Keras model saved as .keras or .h5; "
            "save it with model.save('model.keras')"
        )
    try:
        _check_network(config, path)
        config, rewritten = rewrite(config)
        _admit(config, path)
        shape = _images(config, path, size)
        if shape is not None and size is not None and None in (_inputs(config) or [("", ())])[0][1][1:]:
            with_input_shape(config, (None, *shape))
            rewritten = (*rewritten, f"images of {shape[0]}×{shape[1]}, where height and width were open")
    except RecursionError:
        raise InputError(f"{path} has a configuration that is nested too deeply: expected a network's") from None
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:  # of a damaged configuration
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} has a damaged configuration ({reason}); save the model again") from None
    return KerasFile(path=path, config=config, rewritten=rewritten, input_shape=shape)


def check_size(size: Any) -> tuple[int, int] | None:
    """(height, width) as whole numbers, or None."""
    if size is None:
        return None
    numbers = whole_numbers("size", size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise InputError(f"size is {shown(size)}: expected (height, width) in pixels, as in (224, 224)")
    return numbers[0], numbers[1]


def _images(config: Any, path: Path, size: tuple[int, int] | None) -> tuple[int, int, int] | None:
    """(height, width, channels) of the network's images; an `InputError` with a recipe where it takes others."""
    inputs = _inputs(config)
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


def _inputs(config: Any) -> list[tuple[str, tuple[int | None, ...]]] | None:
    """Name and shape of each input of a network, in its order; None where the configuration does not tell."""
    inner = config["config"]
    entries = inner.get("layers") or []
    if config["class_name"] == "Sequential":
        if entries and entries[0].get("class_name") in CONTAINERS and (found := _inputs(entries[0])) is not None:
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
            if archive.getinfo("model.weights.h5").compress_type == zipfile.ZIP_STORED:  # as Keras writes it
                with archive.open("model.weights.h5") as weights:
                    _check_h5_links(weights, path)
            else:
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


def _check_h5_links(source: Path | IO[bytes], path: Path) -> None:
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
    inputs = _inputs(config)
    image = inputs[0][1] if inputs is not None and len(inputs) == 1 else None
    for entry, layer in _entries(config, "model"):
        name = entry["class_name"]
        classes.add(name)
        if (what := refusal(entry)) is not None:
            raise InputError(f"{path}: layer {layer!r} uses {what}; replace the layer and save the model again")
        options = entry.get("config")
        for key, value in options.items() if isinstance(options, dict) else ():
            if isinstance(value, str) and (what := refused_string(key, value)) is not None:
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
