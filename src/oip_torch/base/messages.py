"""How does text of others (libraries, files, names in files) become part of one line of ours?

Whatever is shown goes through here: errors when they are made (`base.errors`), warnings and tables when they are
written (`cli`).
"""

from __future__ import annotations

import re

__all__ = ["MOST", "last_words", "one_line", "printable", "whole_line"]

MOST = 500
"""Characters of a message."""

_MOST = 400  # of what it repeats of others, so that there is room for ours
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, all but tab and newline
    "\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # directions, joiners, separators
    "\U000e0000-\U000e0fff"  # tags
    "\ud800-\udfff]"  # halves of characters, which no stream takes
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_WRAPPING = "Exception encountered: "  # after a layer's or model's whole configuration
_KERAS_CALL = re.compile(r"Exception encountered when calling [^\n]*\n+")  # the innermost one comes last
_KERAS_ARGUMENTS = re.compile(r"\n*Arguments received by ")  # of the calls, the innermost one first
_LOG_LINE = re.compile(r"[IW]\d{4} |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] |WARNING|\s*warnings\.warn\(")
_EXCEPTION_LINE = re.compile(r"^[\w.]+(?:Error|Exception|Interrupt)\b", re.MULTILINE)


def printable(text: str) -> str:
    """The text with what a terminal would obey, hide or refuse shown as its number, `\\x1b`; lines stay lines."""
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], text)


def whole_line(text: str, most: int = MOST) -> str:
    """The text in one printable line of at most so many characters; where it is longer, its middle is left out."""
    text = printable(" ".join(text.split()))
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - end - 3]} … {text[-end:]}"


def one_line(error: BaseException | str) -> str:
    """An error's reason in one line of at most 400 characters.

    Keras puts its reason behind whole configurations, or between the call's name and its arguments: the reason alone
    is kept. A message that is still too long loses what is nested in brackets, and then its middle, since the reason
    may stand at either end.
    """
    text = _ESCAPES.sub("", str(error)).rpartition(_KERAS_WRAPPING)[2]
    if len(parts := _KERAS_CALL.split(text)) > 1:
        text = _KERAS_ARGUMENTS.split(parts[-1])[0]
    text = " ".join(text.split())
    if len(text) > _MOST:
        text = _without_nested(text)
    if isinstance(error, LookupError) or (not text and isinstance(error, BaseException)):
        text = f"{type(error).__name__} {text}".strip()  # a KeyError says the key alone
    return whole_line(text, _MOST)


def _without_nested(text: str) -> str:
    """The text without what is in brackets within brackets: the bulk of configurations and arrays."""
    kept: list[str] = []
    depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            if depth == 2:
                kept.append("…")
        if depth < 2:
            kept.append(character)
        if character in "]}":
            depth -= 1
    return text if depth else "".join(kept)  # these brackets were none


def last_words(stderr: str) -> str:
    """The reason why a process ended, in one line: its last exception, or else its last lines that are no log."""
    if exceptions := list(_EXCEPTION_LINE.finditer(stderr)):
        return one_line(stderr[exceptions[-1].start() :])
    lines = [line for line in stderr.splitlines() if line.strip() and not _LOG_LINE.match(line)]
    return one_line("\n".join(lines[-3:])) or "it said nothing"
