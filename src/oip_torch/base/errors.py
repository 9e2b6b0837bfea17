"""What can go wrong.

    OipError
    ├── InputError         a file, an argument or the environment is wrong        exit code 2
    │   └── ConversionError    the network is sound, but not one we can convert   exit code 2
    ├── VerificationError  it ran, and torch does not compute what Keras does     exit code 1
    ├── CaptureError       a layer that was to be captured never ran
    └── RuntimeProcessError    a runtime of a comparison stopped, or could not answer

Messages say what is wrong, what was got, what was expected and what to do next, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from oip_torch.base.messages import whole_line

__all__ = [
    "CaptureError",
    "ConversionError",
    "InputError",
    "OipError",
    "RuntimeProcessError",
    "VerificationError",
    "unknown_name",
]


class OipError(Exception):
    """Base of every error that this package raises on purpose.

    Its message is one printable line of at most 500 characters, whatever names of files and layers it repeats.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(whole_line(message))


class InputError(OipError, ValueError):
    """A file, an argument or the environment is wrong; nothing was computed or written."""


class ConversionError(InputError):
    """The Keras network is valid, but cannot be brought to ONNX or torch."""


class VerificationError(OipError):
    """The torch module does not compute what the Keras network computes.

    `failed` names the layers; `layers` holds a row per layer (see `Layer.row`), as far as the verification got.
    """

    def __init__(self, message: str, *, failed: Sequence[str] = (), layers: Sequence[dict[str, Any]] = ()) -> None:
        super().__init__(message)
        self.failed = list(failed)
        self.layers = list(layers)


class RuntimeProcessError(OipError):
    """A runtime of a comparison stopped, or could not answer; the others go on."""


class CaptureError(OipError, RuntimeError):
    """A layer that was to be captured never ran inside the `with` block."""


def unknown_name(what: str, got: str, known: Iterable[str], most: int = 12) -> InputError:
    """An error for a name that is not there: offers the nearest ones first, then the others."""
    known = list(known)
    by_lower = {name.lower(): name for name in known}
    near = [by_lower[n] for n in difflib.get_close_matches(got.lower(), list(by_lower), n=3, cutoff=0.5)]
    rest = [name for name in known if name not in near]
    shown = (near + rest)[:most]
    more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"no {what} {got!r}: {hint}expected one of {', '.join(shown)}{more}")
