"""Write the tables of docs/dependencies.md: what the project needs, in which versions and under which licences.

    python scripts/dependency_tables.py [FILE]

All of it is read from pyproject.toml, requirements.lock and the metadata of what is installed. What is written by hand
stands before the mark in that file, and stays.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- what follows is written by scripts/dependency_tables.py -->\n"
SHORT = (  # of licences that are told as texts
    ("Apache", "Apache-2.0"),
    ("BSD 3", "BSD-3-Clause"),
    ("BSD-3", "BSD-3-Clause"),
    ("BSD 2", "BSD-2-Clause"),
    ("BSD", "BSD"),
    ("MIT", "MIT"),
    ("Mozilla", "MPL-2.0"),
    ("MPL", "MPL-2.0"),
    ("Lesser", "LGPL"),
    ("LGPL", "LGPL"),
    ("GPL", "GPL"),
    ("PSF", "PSF-2.0"),
    ("Python Software", "PSF-2.0"),
    ("ISC", "ISC"),
    ("Unlicense", "Unlicense"),
    ("NVIDIA", "NVIDIA (proprietary)"),
    ("Proprietary", "proprietary"),
    ("HPND", "HPND"),
    ("Zlib", "Zlib"),
    ("Public Domain", "public domain"),
)
COPYLEFT = re.compile("GPL|MPL|EPL|CC-BY-SA|proprietary|unknown", re.IGNORECASE)


def licence(name: str) -> str:
    """Of an installed package: its SPDX expression, or what its classifiers or its text say, in short."""
    data: Any = distribution(name).metadata
    if expression := data.get("License-Expression"):
        return str(expression)
    classes = [
        entry.rpartition(" :: ")[2] for entry in data.get_all("Classifier", []) if entry.startswith("License ::")
    ]
    told = [*classes, (data.get("License") or "").partition("\n")[0]]
    for text in told:
        for word, short in SHORT:
            if word in text:
                return short
    return next((text for text in told if text), "unknown")


def locked(path: Path) -> dict[str, str]:
    """The versions in a lock file; where several Pythons have their own, the first."""
    found: dict[str, str] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(canonicalize_name(name), version)
    return found


def direct() -> dict[str, list[Requirement]]:
    """Extra, or "run time", to what pyproject.toml asks for there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"run time": project["dependencies"], **project["optional-dependencies"]}
    return {
        group: [requirement for requirement in map(Requirement, texts) if requirement.name != project["name"]]
        for group, texts in groups.items()
    }


def tables() -> str:
    """Both tables, and what is to be looked at."""
    versions, lowest = locked(ROOT / "requirements.lock"), locked(ROOT / "requirements-lowest.lock")
    lines = [
        "## What is asked for",
        "",
        "| package | for | bound | lowest tested | locked | licence |",
        "|---|---|---|---|---|---|",
    ]
    for group, requirements in direct().items():
        for one in sorted(requirements, key=lambda requirement: requirement.name.lower()):
            name = canonicalize_name(one.name)
            try:
                own = licence(name)
            except PackageNotFoundError:
                own = "not installed here"
            bound = str(one.specifier) or "any"
            cells = [one.name, group, bound, lowest.get(name, ""), versions.get(name, ""), own]
            lines.append(f"| {' | '.join(cells)} |")
    licences = {
        canonicalize_name(each.metadata["Name"]): licence(each.metadata["Name"])
        for each in distributions()
        if canonicalize_name(each.metadata["Name"]) in versions
    }
    lines += ["", "## Licences of all that is installed with it", "", "| licence | packages |", "|---|---|"]
    lines += [
        f"| {name} | {count} |"
        for name, count in sorted(Counter(licences.values()).items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    lines += ["", "Of these are not plainly permissive, or do not say what they are:", ""]
    lines += [f"- {name}: {own}" for name, own in sorted(licences.items()) if COPYLEFT.search(own)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the tables into the file, after what is written by hand."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "dependencies.md"
    by_hand = path.read_text(encoding="utf-8").partition(MARK)[0]
    path.write_text(by_hand + MARK + "\n" + tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
