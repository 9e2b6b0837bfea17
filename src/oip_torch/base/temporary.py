"""Where do temporary files lie, and who removes them, whatever ends the process that made them?

Each temporary folder is locked by its process (`flock` on the folder itself), and the operating system lets go of the
lock when that process ends, however it does. So a folder of ours that nobody locks is left over from a process that
was killed, and whoever comes next removes it; numbers of processes, which are used again and differ between
containers, decide nothing. Where a file system knows no such locks, leftovers stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oip_torch.base.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["folder_beside", "remove_leftovers", "remove_own", "temporary_folder"]

_OURS = "oip_torch-"
_BESIDE = ".oip-"  # hidden, since they lie among what the user keeps
_own: dict[Path, int] = {}  # of this process: each folder, and the descriptor that locks it (-1: none)


@contextlib.contextmanager
def temporary_folder(what: str) -> Iterator[Path]:
    """Yield a new folder where temporary files go, `oip_torch-WHAT-PROCESS-…`, which is gone after the block.

    Raises:
        InputError: none can be made there, as where TMPDIR names a folder that does not exist or is full.
    """
    # Not tempfile's own choice where TMPDIR is set: it would fall back to another disk without a word.
    parent = Path(os.environ.get("TMPDIR") or _default())
    try:
        remove_leftovers(parent)
        folder = _locked_folder(parent, f"{_OURS}{what}-")
    except OSError as error:
        raise InputError(
            f"no temporary folder can be made in {parent}: {error.strerror or error}; expected a folder that can be "
            "written to; set TMPDIR to one"
        ) from None
    with _removed(folder):
        yield folder


@contextlib.contextmanager
def folder_beside(parent: Path) -> Iterator[Path]:
    """Yield a new hidden folder in this one, which is gone after the block; an OSError where none can be made."""
    remove_leftovers(parent, _BESIDE)
    with _removed(_locked_folder(parent, _BESIDE)) as folder:
        yield folder


def remove_leftovers(parent: Path | None = None, prefix: str = _OURS) -> None:
    """Remove the folders of this user's that processes of ours left there when they were killed.

    Args:
        parent: where to look; None: where temporary files go.
        prefix: what their names begin with.
    """
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(parent or os.environ.get("TMPDIR") or _default()) as entries:
        for entry in entries:
            if entry.name.startswith(prefix):
                _remove_if_left(Path(entry.path))


def remove_own() -> None:
    """Remove every temporary folder of this process, since it is about to end where it stands."""
    for _ in range(3):  # who still writes there may be in the way
        for folder in list(_own):
            shutil.rmtree(folder, ignore_errors=True)


def _default() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:  # there is none, not even /tmp
        raise InputError(f"{error.strerror or error}: set TMPDIR to a folder that can be written to") from None


def _locked_folder(parent: Path, prefix: str) -> Path:
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{prefix}{os.getpid()}-"))
        _own[folder] = -1
        if fcntl is None:
            return folder
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            _forget(folder)
            if isinstance(error, FileNotFoundError):  # who looks for leftovers came in between
                continue
            raise
        _own[folder] = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(folder):
                return folder
        except BlockingIOError:  # likewise: it is about to remove it
            pass
        except OSError:  # no locks here
            return folder
        _forget(folder)


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[Path]:
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _forget(folder)


def _forget(folder: Path) -> None:
    descriptor = _own.pop(folder, -1)
    if descriptor >= 0:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_if_left(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # no folder, or not one that we may see into
        return
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # its process lives, or there are no locks here
        pass
    finally:
        os.close(descriptor)
