"""How does a signal end the command? (Ctrl-C, SIGTERM, a terminal that is closed)

A signal becomes a KeyboardInterrupt, so that what is being made is cleared up on the way out. Python raises it in the
main thread, between two of its own instructions; where that takes longer than `_PATIENCE`, since a library computes
there or swallows it, a thread ends the process in its place: its children, its temporary folders, then itself.

All that is imported here is in Python already, so that signals are answered some milliseconds after Python has begun
with our code.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
    from typing import NoReturn
else:
    import _signal as signal  # what `signal` makes enumerations of, which takes four times as long as all the rest

__all__ = ["Interrupts"]

_PATIENCE = 1.0
"""Seconds in which an interrupted command clears up; after that it ends as it is."""
_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Interrupts:
    """The signals that end this process, and which of them came.

    Args:
        answer: what stdout gets of a process that ends for this reason.
    """

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._answer = answer
        self._number = int(signal.SIGINT)  # where a KeyboardInterrupt comes from elsewhere
        self._telling = _thread.allocate_lock()

    def answer(self) -> None:
        """From now on a signal ends this process within two seconds, by `KeyboardInterrupt` or without it."""
        answered = [number for number in _WORDS if _is_default(number)]
        if not answered:  # whoever started the process wants none
            return
        end, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)  # written to whatever the main thread does
        _thread.start_new_thread(self._watch, (end,))
        for number in answered:
            signal.signal(number, self._interrupt)

    @property
    def code(self) -> int:
        """The exit code of a process that was interrupted: 128 and the signal's number, as a shell has it."""
        return 128 + self._number

    @property
    def reason(self) -> str:
        """One word or two: which signal it was."""
        return _WORDS[self._number]

    def claim(self) -> None:
        """Whoever returns from here, the main thread or the watching one, is alone in ending the process."""
        self._telling.acquire()

    def settle(self, code: int) -> None:
        """The command is done and has said all: a signal now ends the process with its exit code."""
        for number in _WORDS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: os._exit(code))
        atexit.register(_ignore)

    def _interrupt(self, number: int, frame: FrameType | None) -> NoReturn:
        """The first signal. A second one does not disturb the clearing up, which has its time."""
        for each in _WORDS:
            signal.signal(each, signal.SIG_IGN)
        self._number = number
        sys.unraisablehook = lambda _: None  # where Python cannot raise it, in a destructor, it would show a traceback
        raise KeyboardInterrupt

    def _watch(self, end: int) -> None:
        while (number := os.read(end, 1)[0]) not in _WORDS or signal.getsignal(number) not in (
            self._interrupt,
            signal.SIG_IGN,
        ):
            pass  # a signal that a library has its own handler for
        from time import sleep  # is built in: no import that could wait for the main thread

        sleep(_PATIENCE)
        self.claim()
        self._number = number
        _end_children()
        temporary = sys.modules.get("oip_torch.base.temporary")  # an import could wait for the main thread
        try:
            if temporary is not None:
                temporary.remove_own()
            if os.isatty(2):
                os.write(2, b"\r\x1b[2K")  # the progress bar goes
            os.write(2, f"error: {self.reason}\n".encode())
            os.set_blocking(1, False)  # perhaps it is a reader that does not read who holds it up
            os.write(1, self._answer(self.reason).encode())
        finally:
            os._exit(self.code)


def _ignore() -> None:
    """Python takes its handlers away before it takes down what libraries hold; a signal would then end it silently."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def _is_default(number: int) -> bool:
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _end_children() -> None:
    """At once, since they would still write to the temporary folders."""
    try:
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:  # there is no /proc: they end with this process anyway
        return
    for name in numbers:
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = file.read().rpartition(b")")[2].split()[1]  # after the program's name, and the state
            if int(parent) == os.getpid():
                os.kill(int(name), signal.SIGKILL)
        except OSError:  # it has just ended
            pass
