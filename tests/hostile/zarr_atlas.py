"""Atlases: zarr stores whose arrays and descriptions are not what we wrote."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

from hostile import Cases, Place
from hostile.keras_config import pickled

CASES = Cases("zarr")
GALLERY = ["gallery", "atlas.zarr"]
Json = dict[str, Any]


def _spoiled(name: str, spoil: Callable[[Place], object], *, code: int = 2, words: list[str] = GALLERY) -> None:
    def make(place: Place) -> list[str]:
        shutil.copytree(place.sound / "atlas.zarr", place.folder / "atlas.zarr")
        spoil(place)
        return words

    CASES.add(name, make, code=code)


def _described(name: str, at: str, change: Callable[[Json], Any], code: int = 2) -> None:
    """A change of one of the files zarr.json."""

    def spoil(place: Place) -> None:
        path = place.folder / "atlas.zarr" / at / "zarr.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    _spoiled(name, spoil, code=code)


def _text(name: str, at: str, text: bytes) -> None:
    _spoiled(name, lambda p: (p.folder / "atlas.zarr" / at / "zarr.json").write_bytes(text))


IMAGES = "layer_000/images"
_spoiled("sound", lambda p: None, code=0)
for at in ("", "layer_000", IMAGES):
    short = at.rpartition("/")[2] or "root"
    _text(f"{short}_empty", at, b"")
    _text(f"{short}_no_json", at, b"{")
    _text(f"{short}_deep", at, b"[" * 30_000)
    _text(f"{short}_list", at, b"[1]")
    _text(f"{short}_no_utf8", at, b"\xff\xfe{}")
    _described(f"{short}_format_9", at, lambda d: d | {"zarr_format": 9})
    _described(f"{short}_node_type", at, lambda d: d | {"node_type": "canary_module"})
for name, change in {
    "object": {"data_type": "object"},
    "text": {"data_type": "string"},
    "structured": {"data_type": [["a", "|O"]]},
    "named_elsewhere": {"data_type": {"name": "canary_module.Type", "configuration": {}}},
    "complex": {"data_type": "complex128"},
    "shape_huge": {"shape": [1 << 40, 1 << 20, 20, 32, 3]},
    "shape_negative": {"shape": [-8, 1, 20, 32, 3]},
    "shape_other": {"shape": [8, 1, 99, 32, 3]},
    "shape_text": {"shape": "big"},
    "chunks_huge": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 40, 1, 20, 32, 3]}}},
    "chunks_zero": {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 0, 0, 0, 0]}}},
    "grid_elsewhere": {"chunk_grid": {"name": "canary_module.Grid", "configuration": {}}},
    "codec_pickle": {"codecs": [{"name": "numcodecs.pickle", "configuration": {}}]},
    "codec_elsewhere": {"codecs": [{"name": "canary_module.Codec", "configuration": {}}]},
    "codec_gzip": {
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": 1}},
        ]
    },
    "codec_sharding": {
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, 1, 1, 1, 1],
                    "codecs": [{"name": "bytes"}],
                    "index_codecs": [{"name": "bytes"}],
                },
            }
        ]
    },
    "no_codecs": {"codecs": []},
    "transformers": {"storage_transformers": [{"name": "canary_module.T", "configuration": {}}]},
    "keys_out_of_it": {"chunk_key_encoding": {"name": "canary_module", "configuration": {"separator": "/../../"}}},
    "fill_infinite": {"fill_value": [1] * 1000},
    "surplus": {"must_understand_this": {"name": "x", "must_understand": True}},
}.items():
    # A transformer that nobody knows is passed over by zarr, and the arrays are compared with their digests.
    _described(f"images_{name}", IMAGES, lambda d, change=change: d | change, code=0 if name == "transformers" else 2)


def _attributes(name: str, change: Callable[[Json], Any], at: str = "") -> None:
    _described(name, at, lambda d: d | {"attributes": change(d["attributes"])})


def _network(name: str, **changes: Any) -> None:
    _attributes(f"network_{name}", lambda a: a | {"network": a["network"] | changes})


_attributes("no_format", lambda a: {key: value for key, value in a.items() if key != "oip_torch_atlas_format"})
_attributes("format_99", lambda a: a | {"oip_torch_atlas_format": 99})
_attributes("format_infinite", lambda a: a | {"oip_torch_atlas_format": float("inf")})
_attributes("none", lambda a: {})
_attributes("no_network", lambda a: a | {"network": None})
_attributes("attributes_list", lambda a: [a])
_network("layers_object", layers={})
_network("layers_numbers", layers=[1, 2])
_network("shape_huge", input_shape=[3, 1 << 40, 1 << 40])
_network("shape_text", input_shape="abc")
_network("domain_text", domain={"mean": "x"})
_attributes("layer_none", lambda a: {}, at="layer_000")
_attributes("layer_numbers", lambda a: dict.fromkeys(a, 3), at="layer_000")
_attributes("layer_nan", lambda a: {key: float("nan") for key in a}, at="layer_000")
_attributes("layer_paths", lambda a: dict.fromkeys(a, "../../../secret"), at="layer_000")


def _symlinked_group(place: Place) -> None:
    folder = place.folder / "atlas.zarr" / "layer_000"
    shutil.move(folder, place.folder.parent / "elsewhere")
    folder.symlink_to(place.folder.parent / "elsewhere")


def _chunk(name: str, content: Callable[[Place], bytes] | None) -> None:
    def spoil(place: Place) -> None:
        folder = place.folder / "atlas.zarr" / IMAGES / "c"
        path = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        path.unlink()
        if content is None:
            path.symlink_to(place.secret)
        else:
            path.write_bytes(content(place))

    _spoiled(f"chunk_{name}", spoil)


def _only_a_file(place: Place) -> None:
    shutil.rmtree(place.folder / "atlas.zarr")
    place.write("atlas.zarr", b"x")


def _pipe_in_it(place: Place) -> None:
    path = place.folder / "atlas.zarr" / "zarr.json"
    path.unlink()
    os.mkfifo(path)


def _of_version_2(place: Place) -> None:
    """The older format, whose arrays of objects are pickled."""
    folder = place.folder / "atlas.zarr"
    shutil.rmtree(folder)
    (folder / "images").mkdir(parents=True)
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    described = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "fill_value": None, "order": "C"}
    described |= {"compressor": None, "filters": [{"id": "pickle", "protocol": 5}]}
    (folder / "images" / ".zarray").write_text(json.dumps(described))
    (folder / "images" / "0").write_bytes(pickled(place))
    (folder / ".zattrs").write_text('{"oip_torch_atlas_format": 1}')


_chunk("pickle", pickled)
_spoiled("is_a_file", _only_a_file)
_spoiled("of_version_2", _of_version_2)
_spoiled("empty_folder", lambda p: (shutil.rmtree(p.folder / "atlas.zarr"), (p.folder / "atlas.zarr").mkdir()))
_spoiled("no_layer", lambda p: shutil.rmtree(p.folder / "atlas.zarr" / "layer_000"))
_spoiled("no_images", lambda p: shutil.rmtree(p.folder / "atlas.zarr" / IMAGES))
_spoiled("images_are_cut", lambda p: shutil.rmtree(p.folder / "atlas.zarr" / IMAGES / "c"))
_spoiled("export_of_pickles", _of_version_2, words=["export-atlas", "atlas.zarr", "-o", "out"])
