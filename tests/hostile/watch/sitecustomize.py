"""Is put on the path of every Python process of a case, and writes down what a file's code might do.

Python imports a module of this name when it starts, before any other code. An audit hook cannot be taken off again.
"""

import os
import sys

_LOG = os.environ.get("OIP_CORPUS_LOG", "")
_SECRET = os.environ.get("OIP_CORPUS_HIDDEN", "\0")
_CANARY = os.environ.get("OIP_CORPUS_CANARY", "\0")
_NEVER = frozenset(
    "os.system os.exec pty.spawn os.startfile socket.connect socket.getaddrinfo socket.gethostbyname "
    "urllib.Request webbrowser.open ftplib.connect http.client.connect smtplib.connect os.chmod os.chown".split()
)


def install(log: str, secret: str, canary: str) -> None:
    """Write a line into `log` for each event that a hostile file alone would cause."""

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        what = None
        if event in _NEVER:
            what = repr(arguments)
        elif event == "open":
            if secret in str(arguments[0]) or (canary in str(arguments[0])):
                what = str(arguments[0])
        elif event == "import":
            if str(arguments[0]).startswith(("canary_module", "antigravity")):
                what = str(arguments[0])
        elif event == "pickle.find_class":
            if str(arguments[0]) not in _OURS:
                what = repr(arguments)
        elif event == "exec":
            if canary in repr(getattr(arguments[0], "co_consts", ""))[:20000]:
                what = "the canary's code"
        elif event == "subprocess.Popen":
            words = arguments[1] if isinstance(arguments[1], (list, tuple)) else [arguments[1]]
            if os.fsdecode(words[0]) != sys.executable and os.path.basename(os.fsdecode(words[0])) not in _TOOLS:
                what = repr(arguments[:2])
        if what is not None:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, f"{event}: {what[:300]}\n".encode(errors="replace"))
            os.close(descriptor)

    sys.addaudithook(hook)


_OURS = frozenset()
_TOOLS = frozenset({"lscpu", "nvidia-smi", "uname", "ldconfig", "gcc", "cc", "ld"})  # of torch, ctypes and platform

if _LOG:
    install(_LOG, _SECRET, _CANARY)
