"""Is this JSON text one that may be parsed, and what does it say?

Python's parser takes 60 times the bytes of `[],[],…` in memory, and its stack for what is nested; both are counted
before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

__all__ = ["MOST_BYTES", "parse_json"]

MOST_BYTES = 16 << 20
"""Of a text; the configuration of a network of a thousand layers takes less than two MiB."""
_MOST_VALUES = 1_000_000
_MOST_DEPTH = 200
_TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[{]+|[\]}]+")


def parse_json(
    text: str | bytes,
    parse_constant: Callable[[str], Any] | None = None,
    parse_float: Callable[[str], Any] | None = None,
) -> Any:
    """The value of a text in UTF-8.

    Args:
        text: of the file.
        parse_constant: of `json.loads`.
        parse_float: likewise.

    Raises:
        ValueError: no JSON, or more than 16 MiB, a million values or 200 levels of nesting; in one line.
    """
    if len(text) > MOST_BYTES:
        raise ValueError(f"{len(text) >> 20} MiB of text: expected at most {MOST_BYTES >> 20}")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if (values := text.count(",") + text.count("[") + text.count("{")) > _MOST_VALUES:
        raise ValueError(f"{values} values: expected at most {_MOST_VALUES}")
    depth = 0
    for run in _BRACKETS.findall(_TEXT.sub("", text)):
        depth += len(run) if run[0] in "[{" else -len(run)
        if depth > _MOST_DEPTH:
            raise ValueError(f"nested more than {_MOST_DEPTH} levels deep")
    try:
        return json.loads(text, parse_constant=parse_constant, parse_float=parse_float)
    except RecursionError:  # text whose quotes do not pair may hide its brackets
        raise ValueError("nested too deeply") from None
