"""Arrays of images: .npz files, which `--data` and `--probes` take."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from hostile import Cases, Place
from hostile.archives import Entry, bomb, write_zip
from hostile.keras_config import pickled
from hostile.sound import keras_file

CASES = Cases("npz")
ASCEND = ["ascend", "net.onnx", "wide", "0", "--steps", "2", "--data", "x.npz"]


def _file(name: str, write: Callable[[Place], object], *, code: int = 2) -> None:
    def make(place: Place) -> list[str]:
        (place.folder / "net.onnx").write_bytes((place.sound / "net.onnx").read_bytes())
        write(place)
        return ASCEND

    CASES.add(name, make, code=code)


def _array(name: str, make: Callable[[], Any], key: str = "x_test") -> None:
    _file(name, lambda p: np.savez(p.folder / "x.npz", **{key: make()}))


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """An .npy member with a header of one's own."""
    text = header.encode() + b"\n"
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def _member(name: str, content: Callable[[Place], bytes]) -> None:
    def write(place: Place) -> None:
        with zipfile.ZipFile(place.folder / "x.npz", "w") as archive:
            archive.writestr("x_test.npy", content(place))

    _file(name, write)


_file("sound", lambda p: p.write("x.npz", (p.sound / "images.npz").read_bytes()), code=0)
HEADER = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 20, 32, 3), }"
_member("pickle", lambda p: npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 20, 32, 3), }", pickled(p)))
_member("pickle_alone", pickled)
_member("header_code", lambda p: npy(f"{{'descr': {p.code}, 'fortran_order': False, 'shape': (1,), }}"))
_member("header_call", lambda p: npy("{'descr': __import__('canary_module'), 'fortran_order': False, 'shape': (1,)}"))
_member("header_brackets", lambda p: npy("(" * 60_000))
_member("header_long", lambda p: npy(HEADER + " " * 3_000_000, bytes(3840), b"\2\0"))
_member("header_cut", lambda p: npy(HEADER)[:40])
_member("header_length", lambda p: b"\x93NUMPY\2\0" + b"\xff" * 4)
_member("shape_huge", lambda p: npy(HEADER.replace("(2, ", "(1000000000, ")))
_member("shape_overflow", lambda p: npy(HEADER.replace("(2, ", "(4294967296, 4294967296, ")))
_member("shape_negative", lambda p: npy(HEADER.replace("(2, ", "(-2, "), bytes(3840)))
_member("shape_text", lambda p: npy(HEADER.replace("(2, ", "('2', "), bytes(3840)))
_member("too_little", lambda p: npy(HEADER, bytes(3)))
_member("descr_list", lambda p: npy(HEADER.replace("'|u1'", "[('a', '|u1'), ('b', '|O')]"), bytes(9000)))
_member("descr_subarray", lambda p: npy(HEADER.replace("'|u1'", "'(1000000000,)f8'"), bytes(9000)))
_member("descr_void", lambda p: npy(HEADER.replace("'|u1'", "'|V0'"), b""))
_member("version", lambda p: npy(HEADER, bytes(3840)).replace(b"NUMPY\1", b"NUMPY\x63"))
_array("long_double", lambda: np.ones((2, 20, 32, 3), np.longdouble))
_array("complex", lambda: np.full((2, 20, 32, 3), 9 + 1j))
_array("text", lambda: np.full((2, 20, 32, 3), "x"))
_array("dates", lambda: np.zeros((2, 20, 32, 3), "M8[s]"))
_array("structured", lambda: np.zeros((2, 20, 32, 3), [("a", "u1")]))
_array("booleans", lambda: np.ones((2, 20, 32, 3), bool))
_array("nan", lambda: np.full((2, 20, 32, 3), np.nan))
_array("infinite", lambda: np.full((2, 20, 32, 3), np.inf))
_array("huge_values", lambda: np.full((2, 20, 32, 3), 1e300))
_array("negative", lambda: np.full((2, 20, 32, 3), -5))
_array("between_0_and_1", lambda: np.random.default_rng(0).random((2, 20, 32, 3)))
_array("none", lambda: np.zeros((0, 20, 32, 3), np.uint8))
_array("no_width", lambda: np.zeros((2, 20, 0, 3), np.uint8))
_array("scalar", lambda: np.uint8(3))
_array("flat", lambda: np.zeros(99, np.uint8))
_array("six_dimensions", lambda: np.zeros((1,) * 6, np.uint8))
_array("other_size", lambda: np.full((2, 9, 9, 3), 100, np.uint8))
_array("other_channels", lambda: np.full((2, 20, 32, 5), 100, np.uint8))
_array("name_out_of_the_folder", lambda: np.zeros(9), key="../../x")
_file("two_others", lambda p: np.savez(p.folder / "x.npz", a=np.zeros(3), b=np.zeros(3)))
_file("npy", lambda p: p.write("x.npz", npy(HEADER, bytes(3840))))
_file(
    "npy_pickle", lambda p: p.write("x.npz", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickled(p)))
)
for share in (1, 50, 99):
    _file(
        f"cut_{share}",
        lambda p, share=share: p.write("x.npz", (d := (p.sound / "images.npz").read_bytes())[: len(d) * share // 100]),
    )
for name, content in {
    "empty": b"",
    "text": b"hello\n",
    "pickle_file": b"\x80\4N.",
    "empty_zip": b"PK\5\6" + bytes(18),
}.items():
    _file(f"is_{name}", lambda p, content=content: p.write("x.npz", content))


def _bomb(place: Place) -> None:
    """3.5 GB of images in 3.5 MB."""
    size = 3_500_000_000
    header = npy(HEADER.replace("(2, ", f"({size // 1920}, "))
    data, size, crc = bomb(b"\7", size, header)
    write_zip(place.folder / "x.npz", [Entry(b"x_test.npy", data, size, crc)])


def _probes(place: Place) -> list[str]:
    keras_file(place.folder / "x.keras")
    np.savez(place.folder / "x.npz", x_test=np.array([pickled(place)], object))
    return ["convert", "x.keras", "--probes", "x.npz"]


_file("bomb", _bomb)
CASES.add("probes_pickle", _probes)
