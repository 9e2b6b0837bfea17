"""How does long work show that it goes on?

In a terminal by a line on stderr, in a notebook by a line below the cell; elsewhere not at all unless asked for, so
that logs and pipes stay clean. Either line is gone when the work has ended, well or not.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

__all__ = ["bar", "stages"]

_SECONDS = 0.2  # between two updates of a notebook, each of which is a message to the browser


def _in_notebook() -> bool:
    """Whether an IPython kernel runs this; one that does has imported IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _shown(show: bool | None) -> bool:
    return sys.stderr.isatty() if show is None else show


@contextlib.contextmanager
def bar(description: str, total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it, from any thread.

    `show`: None for "in a terminal or a notebook only".
    """
    if show is not False and _in_notebook():
        with _line() as say:
            counter = _Counter(description, total, say)
            counter.advance(0)
            yield counter.advance
        return
    if not _shown(show):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # Where it was asked for without a terminal, in a log, its last state stays: rich shows no other there.
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def stages(show: bool | None = None) -> Iterator[Callable[[str], None]]:
    """A line with the name of the stage; yields the function that names the next one. `show`: see `bar`."""
    if show is not False and _in_notebook():
        with _line() as say:
            say("starting …", None)
            yield lambda stage: say(f"{stage} …", None)
        return
    if not _shown(show):
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting …") as status:
        yield lambda stage: status.update(f"{stage} …")


@contextlib.contextmanager
def _line() -> Iterator[Callable[[str, float | None], None]]:
    """A line below the cell; yields the function that sets its text and how much is done, 0 to 1.

    It needs nothing but IPython. rich and tqdm draw with ipywidgets, and warn in the cell where that is missing.
    """
    from IPython.display import display

    def bundle(text: str, done: float | None) -> dict[str, Any]:
        picture = "" if done is None else f'<progress value="{done:.3f}" style="width: 20em"></progress> '
        return {"text/plain": text, "text/html": f"{picture}{escape(text)}" if text else ""}

    handle = display(bundle("", None), raw=True, display_id=True)  # type: ignore[no-untyped-call]
    try:
        yield lambda text, done: handle.update(bundle(text, done), raw=True)
    finally:
        handle.update(bundle("", None), raw=True)


class _Counter:
    """Counts, and says from time to time how far it is and how long the rest will take."""

    def __init__(self, description: str, total: int, say: Callable[[str, float | None], None]) -> None:
        self._description, self._total, self._say = description, total, say
        self._count = 0
        self._began, self._said = time.monotonic(), -math.inf
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        """So many more are done."""
        with self._lock:
            self._count += count
            now = time.monotonic()
            if now - self._said < _SECONDS:
                return
            self._said = now
            elapsed = now - self._began
            text = f"{self._description}: {self._count} of {self._total}, {elapsed:.0f} s"
            if self._count > 0:
                text += f", about {elapsed * (self._total / self._count - 1):.0f} s left"
            self._say(text, self._count / self._total)
