"""How does long work show that it goes on?

Everything goes to stderr, and only to a terminal unless asked for, so that logs and pipes stay clean.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["bar", "stages"]


def _shown(show: bool | None) -> bool:
    return sys.stderr.isatty() if show is None else show


@contextlib.contextmanager
def bar(description: str, total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar; yields the function that advances it. `show`: None for "on a terminal only"."""
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
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda count: progress.advance(task, count)


@contextlib.contextmanager
def stages(show: bool | None = None) -> Iterator[Callable[[str], None]]:
    """A spinner with the name of the stage; yields the function that names the next one."""
    if not _shown(show):
        yield lambda stage: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting …") as status:
        yield lambda stage: status.update(f"{stage} …")
