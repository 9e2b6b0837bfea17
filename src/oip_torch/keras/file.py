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
from oip_torch.keras.formats import is_saved_model, other_format
from oip_torch.keras.inputs import image_shape, inputs_of
from oip_torch.keras.rewrite import rewrite, with_input_shape
from oip_torch.keras.weights import check_weights, is_of_keras_2

__all__ = ["KerasFile", "check_size", "read_keras_file"]

_MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}
_MOST_JSON_BYTES = 64 << 20  # networks of a thousand layers take less than one
_MOST_BYTES = 8 << 30  # of a file, unpacked: far above any CNN, far below what would fill a machine


@dataclass(frozen=True, kw_only=True)
class KerasFile:
    """A Keras file that was read as data and admitted.

    Attributes:
        path: of the file.
        config: the network's configuration in the form in which it is loaded.
        rewritten: what had to be changed in it for that, in words.
        input_shape: (height, width, channels); None where the configuration does not tell.
        architecture: the JSON file with the configuration, where the file holds weights alone.
    """

    path: Path
    config: dict[str, Any]
    rewritten: tuple[str, ...]
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
            if is_of_keras_2(weights):
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
) -> KerasFile:
    """Read a Keras CNN as data, and check, without running any of it, that it is made of known layers.

    Args:
        path: .keras or HDF5.
        size: (height, width) of the images, for a network that leaves them open.
        architecture: the JSON file with the configuration, where `path` holds weights alone.

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
    if architecture is not None:
        architecture = existing_file(architecture, "the network's configuration, as model.to_json() writes it")
        _check_weights_alone(path)
        config = _json_config(architecture)
    elif suffix == ".keras":
        config = _keras_config(path)
    elif suffix in {".h5", ".hdf5"} or _is_hdf5(path):
        config = _h5_config(path)
    else:
        raise other_format(path)
    told = path if architecture is None else architecture  # which file a message is about
    try:
        _check_network(config, told)
        config, rewritten = rewrite(config)
        _admit(config, told)
        if architecture is not None:
            check_weights(path, config, architecture)
        shape = image_shape(config, told, size)
        if shape is not None and size is not None and None in (inputs_of(config) or [("", ())])[0][1][1:]:
            with_input_shape(config, (None, *shape))
            rewritten = (*rewritten, f"images of {shape[0]}×{shape[1]}, where height and width were open")
    except RecursionError:
        raise InputError(f"{told} has a configuration that is nested too deeply: expected a network's") from None
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError) as error:  # of a damaged configuration
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{told} has a damaged configuration ({reason}); save the model again") from None
    return KerasFile(path=path, config=config, rewritten=rewritten, input_shape=shape, architecture=architecture)


def check_size(size: Any) -> tuple[int, int] | None:
    """(height, width) as whole numbers, or None."""
    if size is None:
        return None
    numbers = whole_numbers("size", size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise InputError(f"size is {shown(size)}: expected (height, width) in pixels, as in (224, 224)")
    return numbers[0], numbers[1]


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
    text = _model_config(path)
    if text is None:
        raise InputError(
            f"{path} holds weights without their network: expected the whole network; recipe, where the network is "
            f"built: model.load_weights({path.name!r}); model.save('model.keras'); or give its configuration beside "
            f"them: open('network.json', 'w').write(model.to_json()), then oip convert {path.name} --architecture "
            "network.json"
        )
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} has an unreadable model_config ({error}); save the model again") from None


def _model_config(path: Path) -> Any:
    """The text of the configuration in an HDF5 file; None where it holds weights alone."""
    import h5py

    _check_h5_links(path, path)
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("model_config")
    except Exception as error:  # as above
        raise _unreadable_h5(path, error) from None


def _check_weights_alone(path: Path) -> None:
    """Refuse what is not HDF5 with weights alone."""
    if path.suffix.lower() == ".keras" or (_is_hdf5(path) and _model_config(path) is not None):
        raise InputError(f"{path} holds its network beside the weights: expected no architecture; give the file alone")
    if not _is_hdf5(path):
        raise InputError(
            f"{path} is not HDF5: expected weights that model.save_weights('NAME.weights.h5') wrote; save them so"
        )


def _json_config(path: Path) -> Any:
    """The architecture in a JSON file, as model.to_json() writes it."""
    expected = "expected what open('network.json', 'w').write(model.to_json()) writes"
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise InputError(f"{path} holds {path.stat().st_size >> 20} MiB: {expected}, at most {_MOST_JSON_BYTES >> 20}")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(value, str):  # json.dump(model.to_json(), file)
            value = json.loads(value)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a network: {expected}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no JSON ({one_line(error)}): {expected}") from None
    if not isinstance(value, dict) or not isinstance(value.get("class_name"), str):
        raise InputError(
            f"{path} holds no network's configuration: {expected}; model.get_config() alone lacks its class"
        )
    # What model.to_json() of Keras 2 says of itself is no part of the network.
    return {key: item for key, item in value.items() if key not in ("keras_version", "backend")}


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
    inputs = inputs_of(config)
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
