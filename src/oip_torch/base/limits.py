"""What may a process of ours take of the machine, and what may it see of its parent's environment?

Standard library alone, and soon imported: a child applies its limits before it imports anything else.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MOST_UNPACKED", "Limits", "most_unpacked", "physical_memory", "plain_environment", "raised"]

MOST_UNPACKED = "OIP_MAX_UNPACKED_GIB"
"""The environment variable that raises what a small file may unpack to."""
_SLACK = 64 << 20  # bytes that any file may unpack to
_RATIO = 50  # of unpacked to packed bytes: images and weights have 1 to 10, a gzip bomb up to 1032


_NAMES = frozenset(
    # What finds programs, libraries and packages, and what says how text and time are written.
    "PATH HOME USER LOGNAME USERNAME SHELL LANG LANGUAGE TZ LD_LIBRARY_PATH LD_PRELOAD PYTHONPATH PYTHONHOME "
    "PYTHONUSERBASE PYTHONHASHSEED PYTHONNOUSERSITE PYTHONDONTWRITEBYTECODE PYTHONWARNINGS VIRTUAL_ENV CONDA_PREFIX "
    "XDG_CACHE_HOME".split()
)
_BEGINNINGS = (  # what says on which devices, with how many threads and with which kernels is computed
    *("LC_", "CUDA_", "NVIDIA_", "CUBLAS_", "CUDNN_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_"),
    *("ONEDNN_", "DNNL_", "TF_", "TF2_", "XLA_", "JAX_", "KERAS_", "TORCH_", "PYTORCH_", "ORT_", "MALLOC_", "OIP_"),
)
try:
    _START = os.getcwd()
except OSError:  # it was removed
    _START = os.sep
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH|PRIVATE|COOKIE|(^|_)KEY|^TF_VAR_")  # the last: Terraform's


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a process; None: none of ours.

    What is in force already stays in force where it is lower, as after `ulimit -f`. On systems without the `resource`
    module nothing is limited but the time that the parent waits.

    Attributes:
        memory: bytes of data (RLIMIT_DATA: on Linux all that is private and writable).
        processor_seconds: of all threads together (RLIMIT_CPU).
        seconds: by the clock, from the child's start on; it is ended by SIGALRM then.
        file_bytes: that a file may grow to (RLIMIT_FSIZE).
        open_files: at one time (RLIMIT_NOFILE).
        processes: and threads, of the user's as a whole (RLIMIT_NPROC); the superuser is not limited by it.
    """

    memory: int | None = None
    processor_seconds: int | None = None
    seconds: float | None = None
    file_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None

    def apply(self) -> None:
        """Limit this process, for good; it leaves no core dump either."""
        try:
            import resource
        except ImportError:  # not on Windows
            return
        ours = {
            "RLIMIT_CORE": 0,
            "RLIMIT_DATA": self.memory,
            "RLIMIT_CPU": self.processor_seconds,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.processes,
        }
        for name, most in ours.items():
            kind = getattr(resource, name, None)
            if most is None or kind is None:
                continue
            # Where both are alike, SIGKILL ends the process, and not SIGXCPU, which says why.
            ends = most, most + (name == "RLIMIT_CPU")
            in_force = resource.getrlimit(kind)
            soft, hard = (
                end if one == resource.RLIM_INFINITY else min(end, one) for end, one in zip(ends, in_force, strict=True)
            )
            resource.setrlimit(kind, (soft, hard))
        if self.seconds is not None:
            # What is blocked or ignored by the parent is inherited.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
            signal.setitimer(signal.ITIMER_REAL, self.seconds)


def raised(name: str, default: float) -> float:
    """A bound that an environment variable may set otherwise; what is no number above 0 there changes nothing."""
    try:
        value = float(os.environ.get(name, ""))
    except ValueError:
        return default
    return value if 0 < value < 2**60 else default


def most_unpacked(size: int) -> int:
    """Bytes that an untrusted file of so many bytes may unpack to.

    50 times its size and 64 MiB, and no more than 1 GiB (or what `MOST_UNPACKED` says) or four times its size: the
    large files that we and Keras write hold images and weights, which hardly get smaller.
    """
    return int(min(_SLACK + _RATIO * size, max(raised(MOST_UNPACKED, 1.0) * 2**30, 4 * size)))


def physical_memory() -> int:
    """Bytes of the machine's memory; 16 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 16 << 30


def plain_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a closed list: paths, language, devices, threads; nothing that is named like a secret.

    Relative folders of PYTHONPATH are made absolute, as they were meant when this process began.
    """
    windows = {"SYSTEMROOT", "COMSPEC", "PATHEXT", "WINDIR", "APPDATA", "LOCALAPPDATA", "USERPROFILE"}
    names = _NAMES | windows if os.name == "nt" else _NAMES
    plain = {
        name: value
        for name, value in environment.items()
        if (name in names or name.startswith(_BEGINNINGS)) and not _SECRET.search(name)
    }
    if folders := [os.path.join(_START, folder) for folder in plain.pop("PYTHONPATH", "").split(os.pathsep) if folder]:
        plain["PYTHONPATH"] = os.pathsep.join(folders)
    return plain
