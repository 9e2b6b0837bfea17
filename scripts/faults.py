"""End commands by signals at random moments, and look at what they leave; docs/reliability.md has its counts.

    python scripts/faults.py --times 20 --seed 1 convert ascend

A process of `oip` is started, and SIGINT, SIGTERM or SIGKILL is sent to it alone at a moment within 10 seconds after it
has begun to answer signals; what comes before that is Python's own start. Then must hold: after SIGINT and SIGTERM it
ends within 2 seconds, with exit code 130 or 143 and one line `error: …` after its notes, no child of it is alive, and
its temporary folder is empty; after SIGKILL its children have ended within 10 seconds, and the next command removes
what is left in the temporary folder. Nothing half-written lies where the results go. tests/test_faults.py calls the
same code with a few moments.
"""

from __future__ import annotations

import argparse
import getpass
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
KERAS, ONNX = ROOT / "models" / "mnist_cnn.keras", ROOT / "models" / "mnist_cnn.onnx"
COMMANDS: dict[str, list[str | Path]] = {
    "convert": ["convert", KERAS, "-o", "out/x.onnx"],
    "ascend": ["ascend", ONNX, "Conv2D_3", "--starts", "50", "-o", "out"],
    "compare": ["compare", KERAS, ONNX, "--steps", "100000", "-o", "out"],
    "atlas": ["atlas", ONNX, "--starts", "20", "-o", "out/atlas.zarr"],
}
SIGNALS = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated"), signal.SIGKILL: (-9, "")}
LAST = 10.0  # seconds
SOON, LATE = 2.0, 10.0
OF_TORCH = f"torchinductor_{getpass.getuser()}"  # an empty folder that torch makes when torchvision is imported


@dataclass(frozen=True)
class Strike:
    """What came of a signal.

    Attributes:
        ended: seconds until the process had ended, its children after SIGKILL included; None: it was done before.
        problems: what does not hold.
    """

    ended: float | None
    problems: tuple[str, ...]


def strike(name: str, number: signal.Signals, moment: float, folder: Path) -> Strike:
    """Start a command of `COMMANDS` in an empty folder, send it the signal after so many seconds, and look."""
    temporary, work = folder / "tmp", folder / "work"
    for path in (temporary, work):
        path.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "oip_torch", *map(str, COMMANDS[name])]
    with subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None and not answers_signals(process.pid):
                time.sleep(0.002)
            try:
                process.wait(moment)  # neither stream holds enough to fill its pipe
            except subprocess.TimeoutExpired:
                began = time.monotonic()
                process.send_signal(number)
                out, err = process.communicate(timeout=120)
                ended = time.monotonic() - began
            else:
                return Strike(None, () if process.returncode == 0 else (f"it failed: {process.communicate()}",))
        finally:
            process.kill()
    problems = []
    code, word = SIGNALS[number]
    if word and process.returncode == 0 and out and "error: " not in err:
        return Strike(None, ())  # it had written its results, and told of them
    if process.returncode != code:
        problems.append(f"exit code {process.returncode}")
    told = [line for line in err.splitlines() if not line.startswith("note: ")]
    if told != ([f"error: {word}"] if word else []) or out:
        problems.append(f"it said {out!r} and {err!r}")
    if word:
        if ended > SOON:
            problems.append(f"it took {ended:.1f} s")
        if alive := living(folder, 0.5):
            problems.append(f"children live on: {alive}")
    else:
        if alive := living(folder, LATE):
            problems.append(f"children live on: {alive}")
        ended = time.monotonic() - began
        subprocess.run(
            [sys.executable, "-m", "oip_torch", "--version"], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    if left := set(os.listdir(temporary)) - ({OF_TORCH} if not word else set()):
        problems.append(f"in the temporary folder: {sorted(left)}")
    problems += [f"half-written: {path}" for path in half_written(name, work / "out", killed=not word)]
    return Strike(ended, tuple(problems))


def answers_signals(number: int) -> bool:
    """Whether the process of this number has a handler of its own for SIGTERM, as Python by itself has not."""
    status = Path(f"/proc/{number}/status").read_text()
    caught = int(status.split("SigCgt:")[1].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def living(folder: Path, seconds: float) -> list[str]:
    """Which processes that work in the folder, or did until it was removed, are alive after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        alive = []
        for process in psutil.process_iter(["cwd", "cmdline", "status"]):
            if (process.info["cwd"] or "").startswith(str(folder)) and process.info["status"] != psutil.STATUS_ZOMBIE:
                alive.append(" ".join(process.info["cmdline"] or [])[-200:])
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.05)


def half_written(name: str, out: Path, *, killed: bool) -> list[str]:
    """What lies where the results go, but for an atlas, of which what is whole stays.

    A hidden folder of a process that was killed is removed by whoever writes there next.
    """
    if not out.exists():
        return []
    whole = {"atlas.zarr"} if name == "atlas" else set()
    left = [path.name for path in out.iterdir() if path.name not in whole]
    return [each for each in left if not (killed and each.startswith((".oip-", "atlas.zarr")))]


def main() -> int:
    """Print a row for each command and signal; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=list(COMMANDS), metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--times", type=int, default=20, help="of each signal to each command (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background without it
    print(f"seed {options.seed}\ncommand  signal   sent  done before  slowest end  problems", flush=True)
    failed = False
    for name in options.commands:
        for number in SIGNALS:
            moments = random.Random(f"{options.seed} {name} {number.name}")
            found = []
            for _ in range(options.times):
                moment = moments.uniform(0, LAST)
                folder = Path(tempfile.mkdtemp(prefix="faults-"))
                found.append(strike(name, number, moment, folder))
                shutil.rmtree(folder)
                for problem in found[-1].problems:
                    print(f"  {name} {number.name} after {moment:.3f} s: {problem}", file=sys.stderr, flush=True)
            ends = [each.ended for each in found if each.ended is not None]
            wrong = sum(bool(each.problems) for each in found)
            print(
                f"{name:8} {number.name:8} {len(ends):4}  {len(found) - len(ends):11}  {max(ends, default=0):9.2f} s  "
                f"{wrong:8}",
                flush=True,
            )
            failed |= wrong > 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
