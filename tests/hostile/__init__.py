"""Hostile and broken files, made by code: what a stranger's file may try, in families.

A case makes a file in an empty folder and says with which words a user would open it. What has to come of it is held
by test_hostile.py: one line, exit code 2, nothing run, nothing left. Each family also has sound cases, made in the same
way without the fault, which must pass: else a refusal would show nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Case", "Cases", "Place", "all_cases"]


@dataclass(frozen=True)
class Place:
    """Where a case is made.

    Attributes:
        folder: empty, and the command's working folder.
        sound: holds the sound files of `sound.make`.
        canary: a path; code of a hostile file would make a file there.
        secret: a file outside of the folder that nobody is to read.
    """

    folder: Path
    sound: Path
    canary: Path
    secret: Path

    @property
    def code(self) -> str:
        """Python source that makes the canary."""
        return f"open({str(self.canary)!r}, 'w').close()"

    def write(self, name: str, content: bytes) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.write_bytes(content)
        return path


@dataclass(frozen=True)
class Case:
    """One file, or what goes with it.

    Attributes:
        family: of files.
        name: of the case in it.
        make: makes the files in a place, and returns the words after `oip`; of what no command opens,
            "Oips.load FILE" and "Calibration.load FILE", functions of the package.
        code: the exit code: 2 where it is refused, 0 where what is hostile is told to be without effect.
        match: a regular expression that the message has to match, so that it is refused for its own fault.
        aside: run in a process of its own by the real command line, not in a fork of one that has imported all.
    """

    family: str
    name: str
    make: Callable[[Place], list[str]]
    code: int = 2
    match: str = ""
    aside: bool = False

    @property
    def is_short(self) -> bool:
        """Whether it is run where the whole corpus would take too long: every third, and all that must pass."""
        return self.code == 0 or zlib.crc32(self.id.encode()) % 3 == 0

    @property
    def id(self) -> str:
        """For the test's name."""
        return f"{self.family}-{self.name}"


@dataclass
class Cases:
    """The cases of a family, collected by a decorator."""

    family: str
    found: list[Case] = field(default_factory=list)

    def add(
        self, name: str, make: Callable[[Place], list[str]], *, code: int = 2, match: str = "", aside: bool = False
    ) -> None:
        """One more case; names are told apart."""
        assert name not in {case.name for case in self.found}, f"two cases {self.family}-{name}"
        self.found.append(Case(self.family, name, make, code, match, aside))

    def __iter__(self) -> Iterator[Case]:
        return iter(self.found)


def all_cases() -> list[Case]:
    """Every case of every family."""
    from hostile import hdf5, keras_config, keras_zip, netcdf, npz, onnx_graph, onnx_metadata, reports, zarr_atlas

    families = (keras_config, keras_zip, hdf5, netcdf, npz, onnx_graph, onnx_metadata, reports, zarr_atlas)
    return [case for family in families for case in family.CASES]
