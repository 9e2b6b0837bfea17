"""Does a process that is waited for still get on?

What counts is the processor time that it takes: a process that is stopped, or waits for what never comes, takes none,
and one that works takes some, however slow the machine and however large the work. So no time limit has to be guessed.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from oip_torch.base.errors import InputError

__all__ = ["did_nothing", "patience", "watched"]

_VARIABLE = "OIP_PATIENCE"
_SECONDS = 120.0
_LOOK_EVERY = 1.0  # seconds


def patience() -> float:
    """Seconds that a process may do nothing: what OIP_PATIENCE says, or 120.

    Raises:
        InputError: it says something else than a number above 0.
    """
    told = os.environ.get(_VARIABLE, "")
    if not told:
        return _SECONDS
    try:
        seconds = float(told)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(f"{_VARIABLE} is {told!r}: expected a number of seconds above 0, or nothing (120)")
    return seconds


def did_nothing(seconds: float) -> str:
    """What is said of a process that was killed for it."""
    return (
        f"did nothing for {seconds:g} s, as a stopped process does, and was ended: look what stopped it, or give it "
        f"longer ({_VARIABLE}=SECONDS), and repeat"
    )


@contextlib.contextmanager
def watched(process: subprocess.Popen[Any], seconds: float) -> Iterator[threading.Event]:
    """Inside, a process that has taken no processor time for so long is killed; the event is set then.

    Args:
        process: a child of this one.
        seconds: of patience. The time in which this process itself is stopped, as after Ctrl-Z, does not count.
    """
    stuck, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=_watch, args=(process, seconds, stuck, over), daemon=True)
    thread.start()
    try:
        yield stuck
    finally:
        over.set()
        thread.join()


def _watch(process: subprocess.Popen[Any], seconds: float, stuck: threading.Event, over: threading.Event) -> None:
    taken, idle = -1.0, 0.0
    every = min(_LOOK_EVERY, seconds / 4)
    while True:
        began = time.monotonic()
        if over.wait(every):
            return
        try:
            now = sum(psutil.Process(process.pid).cpu_times()[:2])
        except psutil.Error:  # it has ended, or cannot be seen
            return
        idle = idle + min(time.monotonic() - began, 2 * every) if now == taken else 0.0
        taken = now
        if idle >= seconds:
            stuck.set()
            process.kill()
            return
