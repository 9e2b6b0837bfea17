"""Archives: what a .keras file may be besides a zip of a configuration and its weights."""

from __future__ import annotations

import dataclasses
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable

import h5py
import numpy as np

from hostile import Cases, Place
from hostile.archives import Entry, bomb, write_zip
from hostile.keras_config import pickled
from hostile.sound import CONV, config_of, keras_file, weights_h5

CASES = Cases("zip")
CONFIG = json.dumps(config_of(CONV)).encode()


def _file(name: str, write: Callable[[Place], object], **options: str) -> None:
    def make(place: Place) -> list[str]:
        write(place)
        return ["convert", "x.keras"]

    CASES.add(name, make, **options)  # type: ignore[arg-type]


def _entries(**changed: Entry | None) -> list[Entry]:
    own = {
        "metadata.json": Entry.stored("metadata.json", b"{}"),
        "config.json": Entry.stored("config.json", CONFIG),
        "model.weights.h5": Entry.stored("model.weights.h5", weights_h5()),
    }
    return [entry for entry in (own | changed).values() if entry is not None]


def _zip(name: str, *more: Entry, **changed: Entry | None) -> None:
    _file(name, lambda p: write_zip(p.folder / "x.keras", [*_entries(**changed), *more]))


def _is_admitted(place: Place) -> list[str]:
    """The archives by hand would pass without their fault; the whole conversion is config-sound."""
    from oip_torch.keras.file import read_keras_file

    read_keras_file(write_zip(place.folder / "x.keras", _entries()))
    return ["--version"]


CASES.add("sound", _is_admitted, code=0)
for share in (1, 10, 50, 90, 99):
    _file(
        f"cut_{share}",
        lambda p, share=share: p.write(
            "x.keras", (data := keras_file(p.folder / "x.keras").read_bytes())[: len(data) * share // 100]
        ),
    )
for position in (0.2, 0.4, 0.6, 0.8, 0.9, 0.95):

    def _flipped(place: Place, position: float = position) -> None:
        data = bytearray(keras_file(place.folder / "x.keras").read_bytes())
        at = int(position * len(data))
        data[at : at + 4] = bytes(255 - byte for byte in data[at : at + 4])
        place.write("x.keras", data)

    _file(f"flipped_{position}", _flipped)
for name, content in {
    "empty": b"",
    "text": b"hello\n",
    "zip_start": b"PK\x03\x04" + bytes(range(256)) * 9,
    "empty_zip": b"PK\5\6" + bytes(18),
    "zeros": bytes(5000),
    "pickle": b"\x80\x04" + b"cos\nsystem\n(S'true'\ntR.",
    "html": b"<script>alert(1)</script>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}.items():
    _file(f"is_{name}", lambda p, content=content: p.write("x.keras", content))
for name, inner in {
    "parent": "../x",
    "absolute": "/x",
    "windows": "..\\x",
    "assets": "assets/vocabulary.txt",
    "slash": "a/",
    "dot": "./config.json",
    "capital": "CONFIG.JSON",
    "pickle": "model.pkl",
    "npz": "model.weights.npz",
    "zero": "config.json\0x",
    "long": "n" * 60_000,
    "escape": "\x1b[31mx",
    "lines": "a\nb\nerror: c",
}.items():
    _zip(f"member_{name}", Entry.stored(inner, b"x"))


def _tar(place: Place) -> None:
    """As those that Keras unpacks (CVE-2025-12060, CVE-2024-5187): a path out of the archive."""
    with tarfile.open(place.folder / "x.keras", "w") as archive:
        entry = tarfile.TarInfo("../canary")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))


_file("tar", _tar)
_file("pickle_inside", lambda p: keras_file(p.folder / "x.keras", **{"model.pkl": pickled(p)}))
_zip("config_twice", Entry.stored("config.json", CONFIG))
_zip("config_twice_with_lambda", Entry.stored("config.json", CONFIG.replace(b"Conv2D", b"Lambda")))
_zip("weights_twice", Entry.stored("model.weights.h5", weights_h5()))
_zip("no_config", **{"config.json": None})
_zip("no_weights", **{"model.weights.h5": None})
_zip("empty_config", **{"config.json": Entry.stored("config.json", b"")})
_zip("empty_weights", **{"model.weights.h5": Entry.stored("model.weights.h5", b"")})
_zip("weights_text", **{"model.weights.h5": Entry.stored("model.weights.h5", b"hello" * 100)})
_zip("weights_zip", **{"model.weights.h5": Entry.stored("model.weights.h5", b"PK\5\6" + bytes(18))})
_zip("config_latin1", **{"config.json": Entry.stored("config.json", CONFIG.replace(b'"s"', b'"\xe9"'))})
_zip(
    "config_symlink",
    **{"config.json": Entry.stored("config.json", b"/etc/passwd", attributes=(stat.S_IFLNK | 0o777) << 16)},
)
_zip("encrypted", **{"config.json": dataclasses.replace(Entry.stored("config.json", CONFIG), flags=1)})
for method in (1, 9, 12, 14, 93, 99):
    _zip(f"method_{method}", **{"config.json": dataclasses.replace(Entry.stored("config.json", CONFIG), method=method)})
for name, member in (("config", "config.json"), ("weights", "model.weights.h5")):
    content = CONFIG if name == "config" else weights_h5()
    _zip(f"wrong_checksum_{name}", **{member: Entry.stored(member, content, crc=1)})
    _zip(f"size_too_small_{name}", **{member: Entry.stored(member, content, size=10)})
    _zip(f"size_huge_{name}", **{member: Entry.stored(member, content, size=0xFFFFFFF0)})


def _bomb(member: str, unit: bytes, size: int, before: bytes = b"", after: bytes = b"") -> Callable[[Place], object]:
    def write(place: Place) -> object:
        data, length, crc = bomb(unit, size, before, after)
        entry = Entry(member.encode(), data, length, crc)
        return write_zip(place.folder / "x.keras", _entries(**{member: entry}))

    return write


_file("bomb_of_brackets", _bomb("config.json", b"[],", 126_000_000, b"[", b"[]]"))
_file("bomb_of_blanks", _bomb("config.json", b" ", 1_500_000_000, b"", CONFIG))
_file("bomb_of_metadata", _bomb("metadata.json", b" ", 1_500_000_000, b"{", b"}"))
_file("bomb_of_weights", _bomb("model.weights.h5", b"\0", 2_000_000_000, weights_h5()))
_file("bomb_of_text", _bomb("config.json", b"a", 60_000_000, CONFIG[:-1] + b', "x": "', b'"}'))


def _many(place: Place) -> None:
    write_zip(place.folder / "x.keras", [*_entries(), *(Entry.stored(f"{n:x}", b"") for n in range(100_000))])


def _overlapping(place: Place) -> None:
    """Members that share their compressed bytes, as in a bomb that needs no recursion."""
    data, size, crc = bomb(b"\0", 100_000_000)
    kernel = Entry(b"model.weights.h5", data, size, crc)
    with zipfile.ZipFile(keras_file(place.folder / "x.keras")) as archive:
        archive.namelist()
    entries = [*_entries(**{"model.weights.h5": None}), *[kernel] * 30]
    write_zip(place.folder / "x.keras", entries)


def _shifted(place: Place) -> None:
    write_zip(place.folder / "x.keras", _entries(), offset=1000)


def _directory_tells_otherwise(place: Place) -> None:
    """One name in the directory, another one before the data: readers that trust either see different files."""
    entries = _entries()
    told = [dataclasses.replace(entry, name=entry.name.replace(b"metadata", b"metadat_")) for entry in entries]
    write_zip(place.folder / "x.keras", entries, directory=told)


def _other_numbers(kind: str) -> Callable[[Place], object]:
    kernel = np.ones((3, 3, 1, 2)).astype(kind)
    return lambda p: keras_file(p.folder / "x.keras", weights=weights_h5(kernel))


def _flipped_signature(place: Place) -> None:
    data = bytearray(weights_h5())
    data[0] ^= 1
    keras_file(place.folder / "x.keras", weights=bytes(data))


def _weights_of_another(place: Place) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["layers/conv2d/vars/0"] = np.zeros((9, 9, 9, 9), np.float32)
        file["layers/conv2d/vars/1"] = np.zeros(2, np.float32)
    keras_file(place.folder / "x.keras", weights=buffer.getvalue())


_file("many_members", _many)
_file("overlapping", _overlapping)
_file("shifted", _shifted)
_file("directory_tells_otherwise", _directory_tells_otherwise)
_file("signature", _flipped_signature)
_file("weights_of_another", _weights_of_another)
for kind in ("complex64", "bool", "int32", "S4"):
    _file(f"weights_{kind}", _other_numbers(kind))
