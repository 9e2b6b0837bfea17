"""The drawing of the rooms and the tables of modules in docs/architecture.md are those of the code."""

from __future__ import annotations

import re

import grimp
from conftest import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "oip_torch"


def rooms() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def arrows() -> set[tuple[str, str]]:
    """Which room imports which, without the arrows that follow from others."""
    graph = grimp.build_graph("oip_torch", cache_dir=None)
    direct = {
        (upper, lower)
        for upper in rooms()
        for lower in rooms() - {upper}
        if graph.find_shortest_chain(f"oip_torch.{upper}", f"oip_torch.{lower}", as_packages=True) is not None
    }
    return {
        (upper, lower)
        for upper, lower in direct
        if not any((upper, between) in direct and (between, lower) in direct for between in rooms())
    }


def test_the_drawing_shows_the_imports_between_rooms() -> None:
    (drawing,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    drawn = re.findall(r"^ *(\w+)(?:\[[^]]*\])? --> (\w+)", drawing, re.MULTILINE)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == arrows()
    assert set(re.findall(r"^ *(\w+)\[", drawing, re.MULTILINE)) == rooms()


def test_every_module_has_its_row() -> None:
    rows = re.findall(r"^\| (`[a-z0-9_`., ]+`) \|", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row)]
    modules = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__main__.py" and path.parent != PACKAGE
    }
    # The package's own file counts where it holds more than its docstring.
    plain = {name for name in modules if name.endswith("__init__") and _is_empty(name)}
    assert sorted(named) == sorted({name.removesuffix(".__init__") for name in modules - plain})


def _is_empty(name: str) -> bool:
    return len((PACKAGE / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines()) <= 1
