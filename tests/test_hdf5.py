"""HDF5 files of others: nothing of them is read from elsewhere, filled in, visited twice or larger than it may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from oip_torch import InputError
from oip_torch.base import hdf5
from oip_torch.base.files import read_netcdf, write_netcdf


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "images": (("image", "y", "channel"), np.arange(24, dtype=np.float32).reshape(2, 4, 3)),
            "status": (("image",), np.array(["dead", "é" * 40], object)),
            "tied": (("image",), np.array([True, False])),
            "count": ((), np.int64(7)),
            "nothing": (("none",), np.zeros(0, np.float64)),
            "map": (("image",), np.array([1, 2])),
        },
        attrs={"format": 2, "text": "é", "limits": [0.5, 1.5], "one": [3]},
    ).set_coords("map")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_netcdf(dataset(), tmp_path / "x.nc", ["images"])


def test_a_child_reads_what_xarray_reads(sound: Path) -> None:
    with xr.open_dataset(sound, engine="h5netcdf") as expected:
        xr.testing.assert_identical(read_netcdf(sound, "us"), expected.load())
    read = read_netcdf(sound, "us")
    xr.testing.assert_equal(read, dataset())
    assert read.attrs["format"] == 2
    assert list(read.attrs["limits"]) == [0.5, 1.5]
    assert {name: read[name].dtype.kind for name in read.variables} == {
        "images": "f",
        "status": "O",
        "tied": "b",
        "count": "i",
        "nothing": "f",
        "map": "i",
    }


def test_what_is_written_is_read_by_xarray_and_packed(sound: Path, tmp_path: Path) -> None:
    with xr.open_dataset(sound, engine="h5netcdf") as read:
        xr.testing.assert_equal(read.load(), dataset())
        assert read["images"].encoding["zlib"]
    assert dataset()["images"].encoding == {}
    assert [path.name for path in tmp_path.iterdir()] == ["x.nc"]


# Files of others


def doubled(file: h5py.File) -> None:
    """Each group twice in the one above: 2²⁴ ways through 24 of them."""
    for depth in range(24):
        group = file.create_group(f"deep{depth}")
        for name in ("a", "b") if depth else ():
            file[f"deep{depth - 1}"][name] = group


def deep(file: h5py.File) -> None:
    file.create_group("/".join("abcd" * 10))


def many(file: h5py.File) -> None:
    group = file.create_group("many")
    for number in range(2001):
        group[str(number)] = h5py.SoftLink("/")


def filled(file: h5py.File) -> None:
    file.create_dataset("weights", (60_000, 60_000), np.float32, fillvalue=0.5)


def filled_in_part(file: h5py.File) -> None:
    file.create_dataset("weights", (1 << 32,), np.float32, chunks=(1 << 10,), fillvalue=0.5)[:9] = 1


def bomb(file: h5py.File) -> None:
    file.create_dataset("weights", data=np.zeros(30 << 20, np.float32), compression="gzip", compression_opts=9)


def outside(file: h5py.File) -> None:
    file.create_dataset("secret", (8,), np.uint8, external=[("/etc/passwd", 0, 8)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((2,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset("secret", layout)


def packed_otherwise(file: h5py.File) -> None:
    file.create_dataset("weights", data=np.zeros(99, np.float32), compression="lzf")


def objects(file: h5py.File) -> None:
    file["thing"] = np.zeros(2, [("a", "f4"), ("b", "f4")])


def many_attributes(file: h5py.File) -> None:
    for number in range(201):
        file.attrs[str(number)] = number


def long_attributes(file: h5py.File) -> None:
    for number in range(5):
        file.attrs[str(number)] = "x" * (15 << 20)


HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "doubled": (doubled, "holds '/deep.*' a second time: expected each group and weight in one place"),
    "loop": (lambda file: file.__setitem__("again", file["/"]), "holds '/again' a second time"),
    "deep": (deep, "is nested more than 32 groups deep"),
    "many": (many, "holds more than 2000 groups and arrays"),
    "filled": (filled, r"stores 0 bytes of '/weights', an array \(60000, 60000\) of 14400000000 bytes"),
    "filled in part": (filled_in_part, "stores 4096 bytes of '/weights', an array"),
    "bomb": (bomb, r"unpacks to more than 0\.\d+ GiB, too much for a file of its size: .* set OIP_MAX_UNPACKED_GIB"),
    "outside": (outside, "links its data 'secret' to another place: expected all weights inside the file"),
    "virtual": (virtual, "links its data 'secret' to another place"),
    "soft link": (lambda file: file.__setitem__("s", h5py.SoftLink("/")), "links its data 's' to another place"),
    "link": (lambda file: file.__setitem__("s", h5py.ExternalLink("b.h5", "/")), "links its data 's' to another place"),
    "filter": (packed_otherwise, "packs '/weights' with the filter 32000: expected gzip or none"),
    "attributes": (many_attributes, "has more than 200 attributes in one place"),
    "text": (long_attributes, "has attributes of more than 64 MiB"),
    "objects": (objects, "the variable 'thing' holds .*: expected numbers or text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_of_others_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the process of the tests: these files are whole, and of what they would do nothing is begun."""
    monkeypatch.setattr(hdf5, "_MOST_OBJECTS", 2000)
    monkeypatch.setattr("oip_torch.base.limits._SLACK", 100 << 20)
    make, match = HOSTILE[name]
    path = tmp_path / "x.nc"
    with h5py.File(path, "w", libver="latest") as file:
        make(file)
    with pytest.raises(InputError, match=rf"x\.nc:? {match}") as caught:
        hdf5.netcdf(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["doubled", "filled", "outside"])
def test_a_child_refuses_them_with_the_same_line(tmp_path: Path, name: str) -> None:
    make, match = HOSTILE[name]
    with h5py.File(tmp_path / "x.nc", "w") as file:
        make(file)
    with pytest.raises(InputError, match=rf"x\.nc {match}"):
        read_netcdf(tmp_path / "x.nc", "us")


def test_a_reader_that_crashes_or_runs_for_ever_is_one_line(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the library does on damage: feigned, since where it does depends on its version."""
    content = bytearray(sound.read_bytes())
    content[8:60] = bytes(52)
    sound.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.nc is not readable as NetCDF \(.*\): expected a file that us wrote"):
        read_netcdf(sound, "us")


def test_a_variable_with_dimensions_that_do_not_fit(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.nc", "w") as file:
        file["a"], file["b"] = np.zeros(3), np.zeros(2)
        file["a"].make_scale("a")
        file["b"].dims[0].attach_scale(file["a"])
    with pytest.raises(InputError, match=r"x\.nc is not readable as NetCDF \(conflicting sizes"):
        read_netcdf(tmp_path / "x.nc", "us")


def test_the_tree_of_a_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.attrs["names"] = np.array([b"a", b"b"])
        file.attrs["none"] = np.zeros(0, "S1")
        file["group/array"] = np.zeros((2, 3), np.float16)
        file["group/array"].attrs["kind"] = "x"
        file["type"] = np.dtype("f8")
        file["empty"] = h5py.Empty("f4")
    found: dict[str, Any] = hdf5.contents(str(tmp_path / "x.h5"), "x.h5", 4000)
    array = {"shape": [2, 3], "kind": "<f2", "bytes": 12, "attributes": {"kind": "x"}}
    assert found["attributes"] == {"names": ["a", "b"], "none": []}
    assert found["groups"] == {"group": {"attributes": {}, "groups": {}, "arrays": {"array": array}}}
    assert found["arrays"] == {"empty": {"shape": None, "kind": "<f4", "bytes": 0, "attributes": {}}}
