"""How does what another library says become part of one line of ours?"""

from __future__ import annotations

import re

__all__ = ["last_words", "one_line"]

_MOST = 400  # characters, so that a whole message stays near 500
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_KERAS_WRAPPING = "Exception encountered: "  # after a layer's or model's whole configuration
_KERAS_CALL = re.compile(r"Exception encountered when calling [^\n]*\n+(.+?)\n+Arguments received by ", re.DOTALL)
_LOG_LINE = re.compile(r"[IW]\d{4} |\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] |WARNING|\s*warnings\.warn\(")
_EXCEPTION_LINE = re.compile(r"^[\w.]+(?:Error|Exception|Interrupt)\b", re.MULTILINE)


def one_line(error: BaseException | str) -> str:
    """An error's reason in one line of at most 400 characters.

    Keras puts its reason behind whole configurations, or between the call's name and its arguments: the reason alone
    is kept. A message that is still too long loses its middle, since the reason may stand at either end.
    """
    text = _ESCAPES.sub("", str(error)).rpartition(_KERAS_WRAPPING)[2]
    if (call := _KERAS_CALL.search(text)) is not None:
        text = call[1]
    text = " ".join(text.split())
    if isinstance(error, LookupError) or (not text and isinstance(error, BaseException)):
        text = f"{type(error).__name__} {text}".strip()  # a KeyError says the key alone
    if len(text) <= _MOST:
        return text
    end = _MOST // 2
    return f"{text[: _MOST - end - 3]} … {text[-end:]}"


def last_words(stderr: str) -> str:
    """The reason why a process ended, in one line: its last exception, or else its last lines that are no log."""
    if exceptions := list(_EXCEPTION_LINE.finditer(stderr)):
        return one_line(stderr[exceptions[-1].start() :])
    lines = [line for line in stderr.splitlines() if line.strip() and not _LOG_LINE.match(line)]
    return one_line("\n".join(lines[-3:])) or "it said nothing"
