"""How does the command `oip` begin and end: its streams, and its exit code?

stdout holds results: a table, or with --json one JSON object and nothing else. Everything else goes to stderr.
Exit codes: 0 done; 1 ran, but a verification or comparison failed; 2 the input or the call is wrong; 130 interrupted
(Ctrl-C), 143 terminated (SIGTERM), 129 hung up (SIGHUP). Each but 0 comes with one line `error: …`, and with --json
with the same message under the key `error` of the object.

What the commands do is in `commands`. It is imported late, as is all else that takes time: until `main` runs, a signal
ends the process as Python or the system has it.
"""

from __future__ import annotations

import os
import sys

from oip_torch.cli.interrupts import Interrupts

TYPE_CHECKING = False  # typing takes as long as all that is imported here
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code.

    Args:
        arguments: after the program's name. None: the process's own; the process is then taken to be the command's, and
            signals, closed streams and matplotlib's backend are seen to as well.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        return _own_process(words)
    lines: list[str] = []
    try:
        code, error = _outcome(words, lines)
    except KeyboardInterrupt:
        lines, code, error = [], 130, "interrupted"
    return _tell(words, lines, code, error)


def _own_process(words: list[str]) -> int:
    """Run the command in the process that is its own."""
    interrupts = Interrupts(lambda reason: _answer(words, [], reason))
    lines: list[str] = []
    try:
        _prepare_process()
        interrupts.answer()
        code, error = _outcome(words, lines)
        code = _tell(words, lines, code, error)
        _remove_empty_cache()
        interrupts.settle(code)
        return code
    except KeyboardInterrupt:
        interrupts.claim()
        _end(words, interrupts)


def _end(words: list[str], interrupts: Interrupts) -> NoReturn:
    """Nothing is left to clear up.

    Python itself would wait for threads that still compute, and would take another exit code where the interrupt has
    passed through an `exec`, as namedtuple has one.
    """
    try:
        _remove_empty_cache()
        _tell(words, [], interrupts.code, interrupts.reason)
    finally:
        os._exit(interrupts.code)


def _tell(words: list[str], lines: list[str], code: int, error: str | None) -> int:
    """Write what the command has to say to stdout and stderr; returns the exit code."""
    problem = _write(sys.stdout, _answer(words, lines, error))
    if problem is not None and error is None:
        code, error = 2, f"cannot write to stdout: {problem}; free some space, or send it elsewhere"
    if error is not None:
        from oip_torch.base.messages import whole_line

        _write(sys.stderr, f"error: {whole_line(error)}\n")
    return code


def _remove_empty_cache() -> None:
    """The folder that torch makes for its compiler's cache whenever torchvision is imported, if it is empty."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if folder is not None and "torch" in sys.modules:
        import contextlib

        with contextlib.suppress(OSError):  # it is in use, as it may be in another process
            os.rmdir(folder)


def _outcome(arguments: list[str], lines: list[str]) -> tuple[int, str | None]:
    """Run the command, which appends what is for stdout to the lines; returns the exit code and the error, if any."""
    import typer

    from oip_torch.base.errors import InputError, OipError
    from oip_torch.base.temporary import remove_leftovers
    from oip_torch.cli.commands import app

    _log_to_stderr()
    remove_leftovers()
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
    except ImportError as error:  # damaged, or there is too little memory for it
        reason: BaseException = error
        while reason.__cause__ is not None:  # NumPy wraps it in advice of many lines
            reason = reason.__cause__
        return 2, f"a library cannot be imported: {reason}; free memory, or install oip_torch anew, and repeat"
    except Exception as error:
        # Typer's own usage errors: several lines by default, here one.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return 2, f"{error.format_message()} (see `oip --help`)"
        if _is_lack_of_memory(error):
            return 2, f"memory ran out: {error or 'none is left'}; free some, or give the command less to do"
        raise
    return 0, None


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether Python or torch found none."""
    said = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def _log_to_stderr() -> None:
    """Notes and warnings, each in one printable line."""
    import logging

    from oip_torch.base.messages import whole_line

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return whole_line(super().format(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)


def _answer(arguments: list[str], lines: list[str], error: str | None) -> str:
    """What goes to stdout. With --json that is one object: the command's own one, or one that holds the error."""
    words = arguments[: arguments.index("--")] if "--" in arguments else arguments
    from oip_torch.base.messages import printable, whole_line

    if error is not None and not lines and "--json" in words:
        import json

        lines = [json.dumps({"error": whole_line(error)})]
    return printable("".join(f"{line}\n" for line in lines))


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
    """See to what the process was started with: its streams, matplotlib's backend, and how threads wait."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its place, and be written to by mistake
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, "r" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # × and – in an ASCII terminal
    # Read when torch is loaded. Threads that wait for others hold their cores for about a millisecond; where another
    # program wants one, those that are waited for get none, and a step took up to 20 times as long. A hundredth of that
    # is as fast on a machine that does nothing else.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ["MPLBACKEND"] = "agg"  # no window is shown, and matplotlib cannot be imported with an unknown backend
