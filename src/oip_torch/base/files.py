"""How is a file written whole or not at all, and a file of ours read back?"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oip_torch.base.bounded import reading_limits, run_bounded
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.limits import most_unpacked
from oip_torch.base.messages import one_line
from oip_torch.base.temporary import folder_beside

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = [
    "as_path",
    "check_output_folder",
    "existing_file",
    "is_our_picture",
    "read_netcdf",
    "replacing",
    "replacing_in",
    "saved_in",
    "sha256",
    "write_netcdf",
    "write_picture",
]

_SOFTWARE = "oip_torch"
_HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins


def as_path(path: str | os.PathLike[str], what: str) -> Path:
    """The path; an `InputError` where it is something else."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"the path is given as {shown(path)}: expected that of {what}")
    return Path(path)


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, if a readable, non-empty file is there; otherwise an `InputError` that says what is there instead."""
    path = as_path(path, what)
    # os.path, since Path's own tests raise on names that are too long instead of saying no.
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected {what}; name the file itself")
    if not os.path.exists(path):
        raise InputError(f"{path} does not exist: expected {what}; check the path")
    if not os.path.isfile(path):
        raise InputError(f"{path} is no regular file: expected {what}")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission denied; check its access rights")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty (0 bytes): expected {what}; fetch or save it again")
    return path


def check_output_folder(path: str | os.PathLike[str], names: Iterable[str] = ()) -> Path:
    """The path, if files of these names can be written there; the folder is not made yet, in case the work fails."""
    path = Path(path)
    nearest = path
    while not os.path.exists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(path)  # a name that is too long, or that leads through a file
        # The access bits mislead (root, read-only mounts): what counts is whether a file can be made.
        with tempfile.TemporaryFile(dir=nearest):  # without a name, so that nothing stays of it
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another output folder"
        ) from None
    for name in names:
        _refuse_directory(path / name)
    return path


def _refuse_directory(path: Path) -> None:
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: expected the name of a file to write; choose another output")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes `path`'s place at once, on failure it is removed.

    The temporary name keeps the ending, since some writers choose the format by it. A folder may be written too.
    """
    path = Path(path)
    with replacing_in(path.parent, [path.name]) as temporary:
        yield temporary / path.name


@contextlib.contextmanager
def replacing_in(folder: str | os.PathLike[str], names: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder; on success what has these names in it goes into `folder`, on failure nothing does."""
    folder = Path(folder)
    target = folder / names[0] if len(names) == 1 else folder
    check_output_folder(folder, names)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_beside(folder) as temporary:
            yield temporary
            for name in names:
                os.replace(temporary / name, folder / name)
    except BaseException as error:
        for each in missing:
            with contextlib.suppress(OSError):  # something else was written there
                each.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"cannot write {target}: {error.strerror or error}; choose another output") from error
        raise


def write_netcdf(dataset: xr.Dataset, path: str | os.PathLike[str], compressed: Iterable[str]) -> Path:
    """Write a dataset to one NetCDF file, whole or not at all; returns the path.

    Args:
        dataset: of numbers and text.
        path: with the ending .nc; missing folders are made.
        compressed: the names of the large variables.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    path = as_path(path, "a NetCDF file, with the ending .nc")
    if path.suffix != ".nc":
        raise InputError(f"{path} ends in {path.suffix or 'nothing'}: expected a NetCDF file, with the ending .nc")
    with replacing(path) as temporary:
        temporary.write_bytes(_as_netcdf(dataset, compressed))
    return path


def _as_netcdf(dataset: xr.Dataset, compressed: Iterable[str]) -> memoryview:
    """The bytes of the file: the HDF5 library, which takes a full disk badly, writes into memory."""
    import h5netcdf
    from xarray.backends import H5NetCDFStore

    dataset = dataset.copy()
    for name in compressed:
        dataset[name].encoding = {"zlib": True, "complevel": 4}
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        dataset.dump_to_store(H5NetCDFStore(file))
    return buffer.getbuffer()


def read_netcdf(path: str | os.PathLike[str], writer: str) -> xr.Dataset:
    """All of a NetCDF file, in memory; what is in it remains to be checked.

    A child process reads it (`base.hdf5`), since it may come from anyone.

    Args:
        path: of the file.
        writer: what writes such files, for the messages: "Oips.save".

    Raises:
        InputError: missing or damaged file, or one that unpacks to more than `limits.most_unpacked` says.
    """
    import numpy as np  # not above, since the command line imports this module, and is to start at once
    import xarray as xr

    path = existing_file(path, f"a NetCDF file that {writer} wrote")
    expected = f"expected a file that {writer} wrote"
    with path.open("rb") as file:
        if file.read(len(_HDF5)) != _HDF5:
            raise InputError(f"{path} is not readable as NetCDF (it does not begin as HDF5 does): {expected}")
    try:
        told, arrays = run_bounded(
            "oip_torch.base.hdf5:netcdf",
            {"path": os.path.abspath(path)},
            reading_limits(most_unpacked(path.stat().st_size)),
        )
        variables = {}
        for name, variable in told["variables"].items():
            values = arrays.get(name)
            if values is None:
                values = np.empty(len(variable["text"]), object)
                values[:] = variable["text"]
            values = values.reshape(variable["shape"])
            variables[name] = xr.Variable(variable["dimensions"], values, variable["attributes"])
        raw = xr.Dataset(variables, attrs=told["attributes"])
        return xr.decode_cf(raw, decode_times=False, decode_timedelta=False).load()
    except InputError:
        raise
    except Exception as error:  # of damaged files, also what xarray throws at dimensions that do not fit
        raise InputError(f"{path} is not readable as NetCDF ({one_line(error)}): {expected}") from None


@contextlib.contextmanager
def saved_in(results: Path, what: str) -> Iterator[None]:
    """In this block the results are shown that were saved before: whatever fails, the error says where they are.

    Args:
        results: the file that holds them.
        what: is shown: the path of a picture or page.

    Raises:
        InputError: the file cannot be written, or what draws it cannot be imported.
        OipError: it cannot be drawn.
    """
    try:
        yield
    except Exception as error:  # matplotlib alone raises whatever it likes
        kind = InputError if isinstance(error, (InputError, OSError, ImportError)) else OipError
        reason = str(error).rstrip(".") or type(error).__name__
        raise kind(f"{what} was not made: {reason}; the results are safe in {results}") from error


def write_picture(draw: Callable[[], Figure], path: Path, results: Path) -> None:
    """Write a picture of results that are saved already, marked as ours; see `saved_in`."""
    with saved_in(results, str(path)), replacing(path) as temporary:
        draw().savefig(temporary, dpi=110, metadata={"Software": _SOFTWARE})


def is_our_picture(path: Path) -> bool:
    """Whether `write_picture` made it; not where it cannot be read."""
    try:
        with path.open("rb") as file:
            return f"Software\0{_SOFTWARE}".encode() in file.read(512)  # a PNG file begins with its text
    except OSError:
        return False


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
