"""How does the command `oip` begin and end: its streams, Ctrl-C, and its exit code?

stdout holds results: a table, or with --json one JSON object and nothing else. Everything else goes to stderr.
Exit codes: 0 done; 1 ran, but a verification or comparison failed; 2 the input or the call is wrong; 130 interrupted.
Each but 0 comes with one line `error: …`, and with --json with the same message under the key `error` of the object.

What the commands do is in `commands`. It is imported late, as is all else that takes time: until `main` runs, Ctrl-C
ends in a traceback.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # typing takes as long as all that is imported here
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn, TextIO

__all__ = ["main"]

_PATIENCE = 1.5
"""Seconds in which an interrupted command clears up; after that it ends as it is."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: after the program's name. None: the process's own; the process is then taken to be the command's, and
            Ctrl-C, closed streams and matplotlib's backend are seen to as well.
    """
    own = arguments is None
    if own and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started it wants none
        signal.signal(signal.SIGINT, _interrupt)
    words = sys.argv[1:] if arguments is None else arguments
    lines: list[str] = []
    try:
        if own:
            _prepare_process()
        code, error = _outcome(words, lines)
        problem = _write(sys.stdout, _answer(words, lines, error))
        if problem is not None and error is None:
            code, error = 2, f"cannot write to stdout: {problem}; free some space, or send it elsewhere"
        if own:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python is about to end, and would show a traceback
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
        _write(sys.stdout, _answer(words, [], error))
    if error is not None:
        _write(sys.stderr, f"error: {_one_line(error)}\n")
    if own and code == 130:
        # Nothing is left to clear up. Python itself would wait for threads that still compute, and would take another
        # exit code where the interrupt has passed through an `exec`, as namedtuple has one.
        os._exit(code)
    return code


def _outcome(arguments: list[str], lines: list[str]) -> tuple[int, str | None]:
    """Run the command, which appends what is for stdout to the lines; returns the exit code and the error, if any."""
    import logging

    import typer

    from oip_torch.base.errors import InputError, OipError
    from oip_torch.cli.commands import app

    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=logging.WARNING)
    command = typer.main.get_command(app)
    try:
        # Not `app()`: what Typer makes of KeyboardInterrupt and of a closed pipe differs from version to version.
        with command.make_context("oip", arguments or ["--help"], obj=lines) as context:
            command.invoke(context)
    except OipError as error:
        return 2 if isinstance(error, InputError) else 1, str(error)
    except typer.Exit as exit_:
        return exit_.exit_code, None
    except BrokenPipeError:  # of the help, which Typer itself writes
        _silence(sys.stdout)
    except OSError as error:
        where = "" if error.filename is None else f" ({error.filename})"
        return 2, f"the operating system stopped the command{where}: {error.strerror or error}; mend that, and repeat"
    except Exception as error:
        # Typer's own usage errors: several lines by default, here one.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return 2, f"{error.format_message()} (see `oip --help`)"
        raise
    return 0, None


def _answer(arguments: list[str], lines: list[str], error: str | None) -> str:
    """What goes to stdout. With --json that is one object: the command's own one, or one that holds the error."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if error is not None and not lines and "--json" in words:
        import json

        lines = [json.dumps({"error": _one_line(error)})]
    return "".join(f"{line}\n" for line in lines)


def _one_line(message: str) -> str:
    return " ".join(message.split())


def _write(stream: TextIO, text: str) -> str | None:
    """Write and flush; returns what went wrong, unless it is only that the reader has gone, as `head` does."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        _silence(stream)
        return None if isinstance(error, BrokenPipeError) else error.strerror or str(error)
    return None


def _silence(stream: TextIO) -> None:
    """What the stream still holds goes nowhere: Python flushes it when it ends, and would show a traceback."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _prepare_process() -> None:
    """See to what the process was started with: its streams, and matplotlib's backend."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its place, and be written to by mistake
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # × and – in an ASCII terminal
    os.environ["MPLBACKEND"] = "agg"  # no window is shown, and matplotlib cannot be imported with an unknown backend


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """The first Ctrl-C. A second one does not disturb the clearing up, which has its time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
    sys.unraisablehook = lambda _: None  # where Python cannot raise it, in a destructor, it would show a traceback
    raise KeyboardInterrupt


def _give_up(number: int, frame: FrameType | None) -> NoReturn:
    """Something holds the command up, or the interrupt was lost in somebody's `except:`."""
    try:
        if os.isatty(2):
            os.write(2, b"\r\x1b[2K")  # the progress bar goes
        os.write(2, b"error: interrupted\n")
        os.set_blocking(1, False)  # perhaps it is a reader that does not read who holds it up
        os.write(1, _answer(sys.argv[1:], [], "interrupted").encode())
    finally:
        os._exit(130)
