"""HDF5 files: links out of the file, sizes that are not there, loops, and structure that the C library follows.

Each fault is made in all four kinds of file that hold HDF5: a model (.h5), the weights in a .keras file, OIPs and a
calibration (.nc).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from hostile import Cases, Place
from hostile.keras_config import pickled
from hostile.sound import keras_file, model_h5, weights_h5

CASES = Cases("hdf5")
Spoil = Callable[[h5py.File, str, Place], object]
KINDS = {  # how it is opened, and one array in it
    "h5": (["convert", "x.h5"], "model_weights/conv/conv/kernel"),
    "keras": (["convert", "x.keras"], "layers/conv2d/vars/0"),
    "oips": (["Oips.load", "oips.nc"], "scores"),
    "calibration": (["Calibration.load", "calibration.nc"], "wide/maximum"),
}


def _sound_file(kind: str, place: Place) -> Path:
    if kind == "h5":
        return model_h5(place.folder / "x.h5")
    if kind == "keras":
        return place.write("w.h5", weights_h5())
    name = "oips.nc" if kind == "oips" else "calibration.nc"
    return place.write(name, (place.sound / name).read_bytes())


def _packed(kind: str, path: Path, place: Place) -> None:
    """Weights go into their archive."""
    if kind == "keras":
        keras_file(place.folder / "x.keras", weights=path.read_bytes())
        path.unlink()


def _spoiled(name: str, spoil: Spoil, kinds: str = "h5 keras oips calibration", match: str = "") -> None:
    for kind in kinds.split():

        def make(place: Place, kind: str = kind) -> list[str]:
            path = _sound_file(kind, place)
            words, array = KINDS[kind]
            with h5py.File(path, "a") as file:
                if array not in file:  # a calibration's arrays are named otherwise
                    array = next(iter(_arrays(file)))
                spoil(file, array, place)
            _packed(kind, path, place)
            return words

        CASES.add(f"{name}.{kind}", make, match=match)


def _arrays(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) and item.ndim else None)
    return found


def _bytes(name: str, change: Callable[[bytearray], object], kinds: str = "h5 keras oips calibration") -> None:
    for kind in kinds.split():

        def make(place: Place, kind: str = kind) -> list[str]:
            path = _sound_file(kind, place)
            data = bytearray(path.read_bytes())
            change(data)
            path.write_bytes(data)
            _packed(kind, path, place)
            return KINDS[kind][0]

        CASES.add(f"{name}.{kind}", make)


def _replaced(file: h5py.File, array: str, **how: object) -> None:
    shape, kind = file[array].shape, file[array].dtype
    del file[array]
    file.create_dataset(array, **({"shape": shape, "dtype": kind} | how))


for kind in KINDS:

    def _as_it_is(place: Place, kind: str = kind) -> list[str]:
        _packed(kind, _sound_file(kind, place), place)
        return KINDS[kind][0]

    if kind in ("oips", "calibration"):  # of the others config-sound
        CASES.add(f"sound.{kind}", _as_it_is, code=0)


# Out of the file (CVE-2026-1669 and what preceded it)
def _external_link(file: h5py.File, array: str, place: Place) -> None:
    with h5py.File(place.folder.parent / "other.h5", "w") as other:
        other["x"] = file[array][()]
    del file[array]
    file[array] = h5py.ExternalLink("../other.h5", "/x")


def _soft_link(file: h5py.File, array: str, place: Place) -> None:
    file["moved"] = file[array]
    del file[array]
    file[array] = h5py.SoftLink("/moved")


def _dangling_link(file: h5py.File, array: str, place: Place) -> None:
    file["dangling"] = h5py.SoftLink("/nowhere")


def _raw_storage(file: h5py.File, array: str, place: Place) -> None:
    size = file[array].dtype.itemsize * max(1, file[array].size)
    _replaced(file, array, external=[(str(place.secret), 0, size)])


def _relative_storage(file: h5py.File, array: str, place: Place) -> None:
    size = file[array].dtype.itemsize * max(1, file[array].size)
    _replaced(file, array, external=[("../../secret", 0, size)])


def _virtual(file: h5py.File, array: str, place: Place) -> None:
    shape, kind = file[array].shape, file[array].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[...] = h5py.VirtualSource("../other.h5", "x", shape)
    del file[array]
    file.create_virtual_dataset(array, layout)


_spoiled("external_link", _external_link)
_spoiled("soft_link", _soft_link)
_spoiled("dangling_link", _dangling_link)
_spoiled("raw_storage", _raw_storage)
_spoiled("relative_storage", _relative_storage)
_spoiled("virtual", _virtual)


# Sizes that are not there (CVE-2026-0897)
def _fill_value(file: h5py.File, array: str, place: Place) -> None:
    _replaced(file, array, shape=(1 << 30,), fillvalue=0)


def _unlimited(file: h5py.File, array: str, place: Place) -> None:
    _replaced(file, array, shape=(1 << 50,), maxshape=(None,), chunks=(1 << 20,))


def _gzip(file: h5py.File, array: str, place: Place) -> None:
    """4 GB of zeros in chunks of 256 MB, all with the same compressed bytes."""
    rows, chunk = 16, 1 << 28
    kind = file[array].dtype
    del file[array]
    made = file.create_dataset(array, (rows, chunk // 8), np.float64, chunks=(1, chunk // 8), compression="gzip")
    compressor = zlib.compressobj(9)
    block = bytes(1 << 20)
    data = b"".join(compressor.compress(block) for _ in range(chunk >> 20)) + compressor.flush()
    for row in range(rows):
        made.id.write_direct_chunk((row, 0), data)
    assert kind is not None


def _extra_fill(file: h5py.File, array: str, place: Place) -> None:
    file.create_dataset("more", (1 << 34,), np.float64)


def _long_attribute(file: h5py.File, array: str, place: Place) -> None:
    file[array].attrs.create("note", "x" * 60_000)
    for number in range(2000):
        file.attrs[f"a{number}"] = "x" * 4000


_spoiled("fill_value", _fill_value)
_spoiled("unlimited", _unlimited)
_spoiled("gzip", _gzip, kinds="h5 oips")
_spoiled("fill_value_in_more", _extra_fill)
_spoiled("other_shape", lambda f, a, p: _replaced(f, a, shape=(7, 7, 7, 7)))
_spoiled("empty_array", lambda f, a, p: _replaced(f, a, shape=(0,)))
_spoiled("scalar", lambda f, a, p: _replaced(f, a, shape=()))
_spoiled("array_is_gone", lambda f, a, p: f.__delitem__(a))


def _group_instead(file: h5py.File, array: str, place: Place) -> None:
    del file[array]
    file.create_group(array)


_spoiled("group_instead", _group_instead)


# Graphs of groups
def _doubled(file: h5py.File, array: str, place: Place) -> None:
    """24 groups, each twice in the one above: whoever visits paths visits 2²⁴."""
    group = file.create_group("doubled")
    for _ in range(24):
        inner = group.create_group("a")
        group["b"] = inner
        group = inner


def _loop(file: h5py.File, array: str, place: Place) -> None:
    group = file.create_group("loop")
    group["again"] = group


def _deep(file: h5py.File, array: str, place: Place) -> None:
    group = file.create_group("deep")
    for _ in range(3000):
        group = group.create_group("d")


def _wide(file: h5py.File, array: str, place: Place) -> None:
    group = file.create_group("wide_group", track_order=False)
    for number in range(30_000):
        group.create_group(f"g{number}")


_spoiled("doubled_links", _doubled)
_spoiled("loop", _loop)
_spoiled("deep_groups", _deep, kinds="h5 oips")
_spoiled("many_groups", _wide, kinds="h5 oips")


# Other types of data
def _typed(kind: object) -> Spoil:
    return lambda f, a, p: _replaced(f, a, dtype=kind)


def _pickle_as_text(file: h5py.File, array: str, place: Place) -> None:
    shape = file[array].shape
    del file[array]
    file.create_dataset(array, shape, h5py.string_dtype(), fillvalue=str(pickled(place)))


_spoiled("compound", _typed(np.dtype([("a", "f4"), ("b", "i8")])))
_spoiled("references", _typed(h5py.ref_dtype))
_spoiled("text", _typed(h5py.string_dtype()))
_spoiled("opaque", _typed(h5py.opaque_dtype(np.dtype("V16"))))
_spoiled("long_double", _typed(np.longdouble))
_spoiled("pickle_as_text", _pickle_as_text, kinds="h5 oips")
for kind_of in ("complex64", "bool", "int64"):
    _spoiled(f"weights_{kind_of}", _typed(kind_of), kinds="h5")


def _unknown_filter(file: h5py.File, array: str, place: Place) -> None:
    """A filter that would be a plug-in: HDF5 looks for those on the disk, and runs them."""
    shape, kind = file[array].shape, file[array].id.get_type()
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(32_000, h5py.h5z.FLAG_OPTIONAL, ())
    del file[array]
    made = h5py.h5d.create(file[array.rpartition("/")[0] or "/"].id, array.rpartition("/")[2].encode(), kind,
                           h5py.h5s.create_simple(shape), properties)  # fmt: skip
    made.write_direct_chunk((0,) * len(shape), bytes(64))


_spoiled("unknown_filter", _unknown_filter)
_spoiled("lzf", lambda f, a, p: _replaced(f, a, compression="lzf", chunks=True))

# The configuration of an .h5 file as other things than text
for name, value in {
    "number": 3, "array": np.zeros(9), "text_array": np.array([b"{}", b"{}"]), "bytes": np.void(b"\0\1"), "empty": "",
    "null": h5py.Empty("S1"), "not_utf8": np.bytes_(b"\xff\xfe{}"),
}.items():  # fmt: skip
    _spoiled(f"config_{name}", lambda f, a, p, value=value: f.attrs.__setitem__("model_config", value), kinds="h5")
_spoiled("config_missing", lambda f, a, p: f.attrs.__delitem__("model_config"), kinds="h5")
_spoiled("config_reference", lambda f, a, p: f.attrs.__setitem__("model_config", f[a].ref), kinds="h5")


# Structure
def _after(signature: bytes, shift: int, value: bytes) -> Callable[[bytearray], object]:
    def change(data: bytearray) -> None:
        at = data.find(signature)
        assert at >= 0, f"no {signature!r} in this file"
        data[at + shift : at + shift + len(value)] = value

    return change


def _cut(share: float) -> Callable[[bytearray], object]:
    return lambda data: data.__delitem__(slice(int(share * len(data)), None))


def _own_child(data: bytearray) -> None:
    """A B-tree whose level is not 0, and whose first child is itself."""
    at = data.find(b"TREE")
    data[at + 5] = 1
    data[at + 32 : at + 40] = at.to_bytes(8, "little")


for share in (0.01, 0.2, 0.5, 0.9):
    _bytes(f"cut_{share}", _cut(share))
_bytes("superblock_version", lambda data: data.__setitem__(8, 99))
_bytes("offsets_of_3_bytes", lambda data: data.__setitem__(13 if data[8] < 2 else 9, 3))
_bytes("end_beyond", lambda data: data.__setitem__(slice(40, 48), b"\xff" * 8), kinds="h5 keras")
_bytes("tree_is_its_child", _own_child, kinds="h5 keras")
_bytes("tree_level", _after(b"TREE", 5, b"\xff"), kinds="h5 keras")
_bytes("tree_entries", _after(b"TREE", 6, b"\xff\xff"), kinds="h5 keras")
_bytes("symbols", _after(b"SNOD", 6, b"\xff\xff"), kinds="h5 keras")
_bytes("symbol_offset", _after(b"SNOD", 8, b"\xff" * 8), kinds="h5 keras")
_bytes("heap_size", _after(b"HEAP", 8, b"\xff" * 7), kinds="h5 keras")
_bytes("heap_place", _after(b"HEAP", 24, b"\1" * 8), kinds="h5 keras")
_bytes("header_flags", _after(b"OHDR", 5, b"\xff"), kinds="oips calibration")
_bytes("header_size", _after(b"OHDR", 6, b"\xff" * 4), kinds="oips calibration")
