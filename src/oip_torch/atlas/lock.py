"""Who writes to the atlas in this folder? One process at a time, which a file beside the folder names.

The file is locked by the operating system (`flock`), which lets go of it whatever ends the process: a file that stays
after a kill locks nobody out, and nothing depends on numbers of processes, which are used again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from oip_torch.base.errors import InputError
from oip_torch.base.messages import one_line

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["locked"]

_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}

logger = logging.getLogger("oip_torch")


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """In this block no other process, and no other thread, gets as far as this for the same folder.

    Raises:
        InputError: another one is there already, which is named; or the file beside the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path = Path(f"{Path(folder).resolve()}.lock")
            missing = [parent for parent in path.parents if not parent.exists()]
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(_taken(path, folder))
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written to: {folder}.lock: {error.strerror or one_line(error)}; expected a folder "
                "whose parent can be written to"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # while it is locked: whoever opened it before sees that it has gone
            for parent in missing:  # nothing was written after all
                with contextlib.suppress(OSError):
                    parent.rmdir()


def _taken(path: Path, folder: str | os.PathLike[str]) -> IO[str]:
    """The file, which is ours until it is closed."""
    while True:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by whoever calls)
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "Windows")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = "".join(letter for letter in file.read(200) if letter.isprintable()) or "another process"
            file.close()
            raise InputError(
                f"{folder} is being written to by {holder}: expected one writer at a time; wait until it has "
                "ended, or stop it, and repeat"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            logger.warning("note: files cannot be locked here: see to it that nothing else writes to %s", folder)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its holder removed it in between
