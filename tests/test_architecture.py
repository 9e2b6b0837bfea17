"""The table of modules in docs/architecture.md is that of the code."""

from __future__ import annotations

import re

from conftest import ROOT


def test_every_module_has_its_row() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    package = ROOT / "src" / "oip_torch"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert sorted(named) == sorted(modules | folders)
