"""How is the JSON of an untrusted file read: only what JSON itself has, finite, not too deep, and writable again?"""

from __future__ import annotations

import math
from typing import Any

from oip_torch.base.plain_json import parse_json

__all__ = ["check_plain", "strict_json"]

_DEEPEST = 16
"""Of what we write nothing is deeper than six; what is deeper than a thousand makes Python's own writer fail."""


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text; see `check_plain`.

    Raises:
        ValueError: it is no JSON or too much of it, or holds what `check_plain` refuses, such as NaN, or a number as
            large as 1e999.
    """
    value = parse_json(text, parse_constant=_refuse, parse_float=_finite)
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """Raise a `ValueError` where a value that came of JSON is nested too deeply, not finite, or no text that UTF-8 has.

    A lone surrogate, "\\ud800", is a character to JSON, and can be neither printed nor written to a file.
    """
    at_hand, depth = [value], 0
    while at_hand:
        if (depth := depth + 1) > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} brackets")
        inner: list[Any] = []
        for item in at_hand:
            if isinstance(item, str):
                _check_text(item)
            elif isinstance(item, float):
                if not math.isfinite(item):
                    _refuse(str(item))
            elif isinstance(item, dict):
                for key in item:
                    _check_text(key)
                inner.extend(item.values())
            elif isinstance(item, (list, tuple)):
                inner.extend(item)
        at_hand = inner


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the text {ascii(text)[:80]} has half a character (a lone surrogate)") from None


def _refuse(name: str) -> float:
    raise ValueError(f"{name} stands where a finite number is expected")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:20])
