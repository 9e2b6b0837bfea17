"""Hostile and broken files, 900 of them: each is refused with one line and exit code 2, and nothing of it runs.

The files are made by the package `hostile`; each is given to the command that a user would open it with, in a process
of its own, which is watched from outside (see hostile/runner.py): its exit code, what it prints, the processor time and
the memory of all its processes, what it leaves, and whether anything of the file ran.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import Case, Place, all_cases, sound
from hostile.runner import CPU_SECONDS, MEMORY

ALL = all_cases()
CASES = ALL if os.environ.get("OIP_CORPUS") == "all" else [case for case in ALL if case.is_short]
"""`make hostile` runs all of them; the tests as a whole a third, so that they end in time."""
MOST_CHARACTERS = 500
Outcome = dict[str, Any]
Run = Callable[[Case], tuple[Outcome, Place]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A function that makes the files of a case and runs it."""
    own = tmp_path_factory.mktemp("hostile")
    sound_files = own / "sound"
    sound_files.mkdir()
    sound.make(sound_files)
    tests = Path(__file__).resolve().parent
    paths = [str(tests), str(tests.parent / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "hostile.runner"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        number = 0

        def run_case(case: Case) -> tuple[Outcome, Place]:
            nonlocal number
            number += 1
            place = _place(own / f"{number:04}", sound_files)
            words = case.make(place)
            os.utime(place.secret, (0, 1e9))  # so that reading it shows, where file systems note it
            before = _listing(place.folder)
            folder, temporary = place.folder, place.folder.parent / "tmp"
            names = {"LOG": folder.parent / "log", "HIDDEN": place.secret, "CANARY": place.canary}
            variables = {f"OIP_CORPUS_{name}": str(value) for name, value in names.items()}
            job = {"folder": str(folder), "words": words, "aside": case.aside}
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(job | {"environment": variables | {"TMPDIR": str(temporary)}}) + "\n")
            process.stdin.flush()
            outcome = json.loads(process.stdout.readline()) | {"words": words}
            outcome["left"] = sorted(_listing(folder).items() ^ before.items()) if case.code else []
            outcome["left"] += [str(path.name) for path in temporary.iterdir()]
            outcome["ran"] = [str(path) for path in (place.canary,) if path.exists()]
            if names["LOG"].exists():
                outcome["ran"] += names["LOG"].read_text(errors="replace").splitlines()
            if place.secret.stat().st_atime != 0:
                outcome["ran"].append("the secret file was read")
            shutil.rmtree(place.folder.parent)
            return outcome, place

        try:
            yield run_case
        finally:
            process.stdin.close()


def _place(folder: Path, sound_files: Path) -> Place:
    """The folder of a case, a temporary folder beside it, and a secret above."""
    for name in ("work", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "work" / "canary_module.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()\n")
    secret = folder / "secret"
    secret.write_bytes(b"SECRET" * 1000)
    return Place(folder=folder / "work", sound=sound_files, canary=folder / "canary", secret=secret)


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns if path.is_file() else 0)
        for path in folder.rglob("*")
    }


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with what came of a case; nothing where all is as promised."""
    found = []
    if outcome["code"] != case.code:
        found.append(f"exit code {outcome['code']}, expected {case.code}")
    if any(unicodedata.category(character) == "Cc" and character != "\n" for character in outcome["stdout"]):
        found.append(f"control characters on stdout: {outcome['stdout'][:200]!r}")
    if case.code == 2:
        *notes, message = outcome["stderr"].splitlines(keepends=True) or [""]
        found += [f"a line before the error: {line[:200]!r}" for line in notes if not line.startswith("note: ")]
        if not re.fullmatch(r"error: [^\n]+\n", message):
            found.append(f"no line with the error: {message[-600:]!r}")
        if len(message) > len("error: ") + MOST_CHARACTERS + 1:
            found.append(f"a message of {len(message)} characters")
        if any(unicodedata.category(character) in ("Cc", "Cf", "Cs") for character in message[:-1]):
            found.append(f"unprintable characters: {message[:200]!r}")
        if case.match and not re.search(case.match, message):
            found.append(f"refused for another reason than {case.match!r}: {message[:300]!r}")
        if outcome["stdout"] and "--json" not in outcome["words"]:
            found.append(f"something on stdout: {outcome['stdout'][:200]!r}")
    found += [f"ran: {what}" for what in outcome["ran"]]
    found += [f"left: {what}" for what in outcome["left"]]
    found += [f"orphan: {what}" for what in outcome["orphans"]]
    if outcome["cpu"] > CPU_SECONDS:
        found.append(f"{outcome['cpu']} s of processor time, at most {CPU_SECONDS}")
    if outcome["peak"] > MEMORY:
        found.append(f"{outcome['peak'] >> 20} MiB, at most {MEMORY >> 20}")
    return found


FOUND_OUT = {
    "secret": "ran: ",
    "child": "ran: ",
    "shell": "ran: os.system",
    "canary": "ran: ",
    "left": "left: ",
    "temporary": "left: ",
    "orphan": "orphan: ",
    "memory": "exit code MEMORY",
    "loop": "exit code HANG",
    "lines": "no line with the error",
    "code": "exit code 1",
    "pickle": "ran: pickle.find_class",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", FOUND_OUT)
def test_what_no_file_may_do_is_found_out(run: Run, how: str) -> None:
    """Else the tests below would show nothing."""
    case = Case("none", how, lambda place: ["misbehave", how])
    found = faults(case, run(case)[0])
    assert any(fault.startswith(FOUND_OUT[how]) for fault in found), found


def test_the_runner_finds_nothing_where_nothing_is_wrong(run: Run) -> None:
    case = Case("none", "nothing", lambda place: ["misbehave", "nothing"])
    assert faults(case, run(case)[0]) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_hostile_files(run: Run, case: Case) -> None:
    assert faults(case, run(case)[0]) == []


BY_COMMAND = [
    dataclasses.replace(case, aside=True)
    for family in sorted({case.family for case in ALL} - {"nc"})  # which no command opens
    for case in [case for case in ALL if case.family == family and case.code == 2 and not case.aside][:60:25]
]


@pytest.mark.slow
@pytest.mark.parametrize("case", BY_COMMAND, ids=lambda case: case.id)
def test_some_of_each_family_by_the_command_itself(run: Run, case: Case) -> None:
    """Not in a fork of a process that has imported all, as above."""
    outcome, _ = run(case)
    assert outcome["words"][0] in {"ascend", "convert", "gallery", "import", "layers"}
    assert faults(case, outcome) == []


def test_there_are_enough_and_of_every_family() -> None:
    refused = [case for case in CASES if case.code == 2]
    assert len(refused) >= 200
    assert len({case.id for case in CASES}) == len(CASES)
    assert {case.family for case in CASES if case.code == 0} == {case.family for case in CASES} - {"nc"}
