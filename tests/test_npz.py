"""Images of others in .npz files: names, types and sizes are looked at before anything is unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from oip_torch import InputError
from oip_torch.base import npz
from oip_torch.base.image_files import read_data, read_images

GOOD = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)


def head(shape: str, kind: str = "|u1") -> bytes:
    """Of an array in NumPy's format 1.0."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return str(path)


def test_arrays_of_every_layout_come_back(tmp_path: Path) -> None:
    labels = np.arange(6)
    np.savez_compressed(
        tmp_path / "x.npz", x_test=np.asfortranarray(GOOD), y_test=labels, x_train=GOOD[:2].astype(">f4")
    )
    images, found, training, _ = read_data(tmp_path / "x.npz")
    np.testing.assert_array_equal(images, GOOD)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(training, GOOD[:2])


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    content = head("(100000, 32, 32)") + bytes(100_000 * 1024)
    path = zipped(tmp_path / "x.npz", {"x_test.npy": content})
    assert Path(path).stat().st_size < 1 << 20
    with pytest.raises(InputError, match=r"unpacks to 0\.0954 GiB, and for a file of its size at most .*_UNPACKED_GIB"):
        read_images(path)


CASES = {
    "more than there is": (
        {"x_test.npy": head("(99999, 28, 28)") + bytes(100)},
        r"has the shape .* and only \d+ bytes",
    ),
    "two of one size": ({"x_test.npy": head("(0, 28, 28)"), "x_test": head("(1, 2, 2)")}, "holds 2 arrays of 1 names"),
    "object": ({"x_test.npy": head("(1, 2, 2)", "|O") + bytes(32)}, "x_test is of type object"),
    "long double": ({"x_test.npy": head("(1, 2, 2)", "<f16") + bytes(64)}, "x_test is of type (float128|longdouble)"),
    "record": ({"x_test.npy": head("(1, 2, 2)", "|V99999") + bytes(400_000)}, r"x_test is of type"),
    "code": ({"x_test.npy": head("__import__('os').getpid()")}, "."),
    "long head": ({"x_test.npy": head("(" + "1," * 20_000 + ")")}, "."),
    "escape": ({"\x1b[31m.npy": b"", "a.npy": b""}, r"there are: \\x1b"),
    "many": ({f"{n}.npy": b"" for n in range(1001)}, "holds 1001 arrays"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_array_of_images(tmp_path: Path, name: str) -> None:
    members, match = CASES[name]
    path = zipped(tmp_path / "x.npz", members)
    with pytest.raises((InputError, ValueError, SyntaxError), match=match):
        npz.images(path, "x_test", [], "expected images")


def test_other_ways_of_packing_are_left_alone(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, GOOD)
    path = zipped(tmp_path / "x.npz", {"x_test.npy": buffer.getvalue()}, zipfile.ZIP_BZIP2)
    with pytest.raises(
        InputError, match=r"x\.npz is not readable as \.npz \(packed in a way that NumPy does not use\)"
    ):
        read_images(path)
