"""Atlases of strangers: what leads out of the folder, unpacks to too much, or is in other codecs is refused unread."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import oip_torch as oip
from oip_torch.atlas.checked_store import CheckedStore
from oip_torch.base.errors import InputError


@pytest.fixture
def copy(small_atlas: oip.Atlas, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_atlas.path, tmp_path / "atlas.zarr"))


def described(array: Path, **changes: Any) -> None:
    """Change what describes an array."""
    path = array / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def first_chunk(array: Path) -> Path:
    return next(path for path in sorted(array.rglob("*")) if path.is_file() and path.name != "zarr.json")


def frame(size: int) -> bytes:
    """The head of a frame of Zstandard that says that it unpacks to so much."""
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\x00\x00"


def link_to_a_file(array: Path, outside: Path) -> None:
    first_chunk(array).unlink()
    first = array / "c/0/0/0/0/0"
    first.unlink(missing_ok=True)
    first.symlink_to(outside)


def link_to_a_folder(array: Path, outside: Path) -> None:
    shutil.rmtree(array / "c")
    (array / "c").symlink_to(outside.parent, target_is_directory=True)


def linked_description(array: Path, outside: Path) -> None:
    (array / "zarr.json").rename(outside)
    (array / "zarr.json").symlink_to(outside)


def bomb(array: Path, outside: Path) -> None:
    first_chunk(array).write_bytes(frame(1 << 40))


def of_unknown_size(array: Path, outside: Path) -> None:
    first_chunk(array).write_bytes(b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00")


def large_file(array: Path, outside: Path) -> None:
    with first_chunk(array).open("r+b") as file:
        file.truncate((1 << 30) + 1)  # sparse: takes no room on the disk


def large_description(array: Path, outside: Path) -> None:
    with (array / "zarr.json").open("r+b") as file:
        file.truncate((16 << 20) + 1)


def large_chunks(array: Path, outside: Path) -> None:
    described(array, chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**12, 1, 28, 28, 1]}})


def other_codec(array: Path, outside: Path) -> None:
    described(
        array,
        codecs=[
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "gzip", "configuration": {"level": 1}},
        ],
    )


def pickles(array: Path, outside: Path) -> None:
    described(array, codecs=[{"name": "numcodecs.pickle", "configuration": {}}])


def text(array: Path, outside: Path) -> None:
    described(array, data_type="string", fill_value="", codecs=[{"name": "vlen-utf8", "configuration": {}}])


HOSTILE: dict[Callable[[Path, Path], None], str] = {
    link_to_a_file: r"c/0/0/0/0/0 is a link, or no regular file: expected files and folders of the atlas alone",
    link_to_a_folder: r"images/c is a link, or no regular file",
    linked_description: r"images/zarr\.json is a link, or no regular file",
    bomb: r"has 1099511627776 bytes: expected at most 1073741824",
    of_unknown_size: r"has 1073741825 bytes: expected at most 1073741824",
    large_file: r"has 1073741825 bytes: expected at most 1073741824",
    large_description: r"zarr\.json has 16777217 bytes: expected at most 16777216",
    large_chunks: r"is in chunks of \d+ bytes: expected at most 1073741824",
    other_codec: r"holds float32 in BytesCodec, GzipCodec: expected numbers",
    pickles: r"cannot be read: .*pickle",
    text: r"images (holds|is|cannot)|cannot be read",
}


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_arrays_of_a_stranger(copy: Path, tmp_path: Path, spoil: Callable[[Path, Path], None]) -> None:
    (outside := tmp_path / "outside").write_bytes(b"secret")
    spoil(next(copy.glob("layer_*")) / "images", outside)
    with pytest.raises(InputError, match=HOSTILE[spoil]) as raised:
        oip.open_atlas(copy)["Conv2D_1"]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "1e999", "[" * 40 + "]" * 40, "[" * 30_000 + "]" * 30_000, '"\\ud800"'],
    ids=["nan", "infinity", "beyond", "deep", "deeper", "surrogate"],
)
def test_attributes_of_a_stranger(copy: Path, value: str) -> None:
    root = copy / "zarr.json"
    root.write_text(root.read_text().replace('"attributes": {', f'"attributes": {{"more": {value}, ', 1))
    with pytest.raises(InputError, match=r"atlas\.zarr cannot be (opened|read)"):
        oip.open_atlas(copy)


def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path) -> None:
    (outside := tmp_path / "outside").mkdir()
    (kept := outside / "kept").write_bytes(b"kept")
    (inside := tmp_path / "atlas.zarr").mkdir()
    (inside / "layer").symlink_to(outside, target_is_directory=True)
    store = CheckedStore(zarr.storage.LocalStore(inside))
    for work in (
        lambda: zarr.create_array(store, name="layer/new", data=np.zeros(3)),
        lambda: zarr.create_group(store, path="layer", overwrite=True),
        lambda: zarr.open_group(store, path="layer", mode="r"),
        lambda: zarr.create_array(store, name="../new", data=np.zeros(3)),
    ):
        with pytest.raises((InputError, ValueError), match=r"is a link|leads out|'\.\.'|\.\."):
            work()
    assert kept.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["atlas.zarr", "kept", "layer", "outside"]
