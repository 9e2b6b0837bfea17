"""Sound files of every kind, small, from which the hostile ones are made by one change each."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np

__all__ = ["CONV", "IMAGE", "config_of", "keras_file", "layer", "make", "model_h5", "weights_h5"]

ROOT = Path(__file__).resolve().parent.parent.parent
Config = dict[str, Any]


def layer(kind: str, name: str, config: Config | None = None, **marks: Any) -> Config:
    """A layer's entry in a configuration of Keras 3."""
    entry = {"module": "keras.layers", "class_name": kind, "config": {"name": name, **(config or {})}}
    return {**entry, "registered_name": None, **marks}


IMAGE = layer("InputLayer", "image", {"batch_shape": [None, 8, 8, 1], "dtype": "float32"})
CONV = layer(
    "Conv2D", "conv", {"filters": 2, "kernel_size": [3, 3], "activation": "relu", "trainable": True, "dtype": "float32"}
)


def config_of(*layers: Any, image: Any = IMAGE, **marks: Any) -> Config:
    """The configuration of a Sequential network."""
    inner = {"name": "s", "trainable": True, "dtype": "float32", "layers": [image, *layers]}
    entry = {"module": "keras", "class_name": "Sequential", "config": inner, "registered_name": "Sequential"}
    return {**entry, **marks}


def weights_h5(kernel: Any = None) -> bytes:
    """The weights of `config_of(CONV)` as a .keras file holds them."""
    buffer = io.BytesIO()
    random = np.random.default_rng(0)
    with h5py.File(buffer, "w") as file:
        file["layers/conv2d/vars/0"] = random.normal(size=(3, 3, 1, 2)).astype("f4") if kernel is None else kernel
        file["layers/conv2d/vars/1"] = np.zeros(2, np.float32)
    return buffer.getvalue()


def keras_file(path: Path, config: Any = None, weights: bytes | None = None, **members: bytes) -> Path:
    """A .keras file; a configuration that is text is written as it is."""
    config = config_of(CONV) if config is None else config
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1", "date_saved": "2026-01-01@00:00:00"}))
        archive.writestr("config.json", config if isinstance(config, (str, bytes)) else json.dumps(config))
        archive.writestr("model.weights.h5", weights_h5() if weights is None else weights)
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def model_h5(path: Path, config: Any = None) -> Path:
    """The same network as one HDF5 file, as Keras 2 and 3 write it."""
    config = config_of(CONV) if config is None else config
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = config if isinstance(config, str) else json.dumps(config)
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "3.15.1"
        top = file.create_group("model_weights")
        top.attrs["layer_names"] = [b"conv"]
        top.attrs["backend"], top.attrs["keras_version"] = "tensorflow", "3.15.1"
        group = top.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel", b"conv/bias"]
        group["conv/kernel"] = random.normal(size=(3, 3, 1, 2)).astype("f4")
        group["conv/bias"] = np.zeros(2, np.float32)
    return path


def make(folder: Path) -> None:
    """net.onnx (of ours), foreign.onnx (without our metadata), oips.nc, calibration.nc, atlas.zarr, images.npz."""
    import onnx

    import oip_torch as oip

    (folder / "net.onnx").write_bytes((ROOT / "tests" / "data" / "rgb.onnx").read_bytes())
    proto = onnx.load(folder / "net.onnx")
    del proto.metadata_props[:]
    (folder / "foreign.onnx").write_bytes(proto.SerializeToString())
    model = oip.load(folder / "net.onnx", device="cpu")
    height, width, channels = model.network.input_shape
    images = np.random.default_rng(0).integers(0, 256, (12, height, width, channels), np.uint8)
    np.savez(folder / "images.npz", x_test=images)
    layer = next(one.name for one in model.layers if one.kind == "Conv2D")
    settings = oip.AscentSettings(steps=2, candidates=2, candidate_steps=2)
    oip.ascend(model, layer, [0, 1], starts=2, settings=settings).save(folder / "oips.nc")
    oip.calibrate(model, images, [layer], progress=False).save(folder / "calibration.nc")
    oip.make_atlas(model, layer, path=folder / "atlas.zarr", settings=settings, data=images)
