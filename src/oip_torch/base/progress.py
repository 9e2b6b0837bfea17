"""How does long work show that it goes on?

In a terminal by a line on stderr, in a notebook by a bar below the cell; elsewhere not at all unless asked for, so that
logs and pipes stay clean. Either is gone when the work has ended, well or not. tqdm draws it; its TQDM_DISABLE=1 hides
what was not asked for, as in notebooks that are run to be stored.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["bar", "stages"]


@contextlib.contextmanager
def bar(description: str, total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it, from any thread.

    `show`: None for "in a terminal or a notebook only".
    """
    lock = threading.Lock()  # tqdm has one for what it draws, not for what it counts
    with _line(show, desc=description, total=total) as line:

        def advance(count: int) -> None:
            if line is not None:
                with lock:
                    line.update(count)

        yield advance


@contextlib.contextmanager
def stages(show: bool | None = None) -> Iterator[Callable[[str], None]]:
    """A line with the name of the stage; yields the function that names the next one. `show`: see `bar`."""
    with _line(show, desc="starting …", bar_format="{desc}") as line:
        yield lambda stage: None if line is None else line.set_description_str(f"{stage} …")


@contextlib.contextmanager
def _line(show: bool | None, **options: Any) -> Iterator[Any]:
    """What tqdm draws, with these options; None where nothing is to be shown."""
    passing = _in_notebook() or sys.stderr.isatty()
    wanted = passing and not os.environ.get("TQDM_DISABLE")  # which tqdm itself does not look for in a notebook
    if not (wanted if show is None else show):
        yield None
        return
    with warnings.catch_warnings():  # without ipywidgets tqdm types its line into a notebook, and warns of it
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    line = tqdm(leave=not passing, **options)
    try:
        yield line
    finally:
        if passing:
            line.total = line.n  # a bar that is not full would stay in a notebook, in red
        line.close()


def _in_notebook() -> bool:
    """Whether an IPython kernel runs this; one that does has imported IPython."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
