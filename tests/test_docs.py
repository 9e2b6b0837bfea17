"""The site builds without a warning, shows every public name, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import oip_torch


def names_on_the_page() -> list[str]:
    return re.findall(
        r"^::: oip_torch\.([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_every_public_name_is_on_the_page_once() -> None:
    assert sorted(names_on_the_page()) == sorted(oip_torch.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


@pytest.mark.slow
def test_every_public_name_has_its_entry(site: Path) -> None:
    entries = set(re.findall(r'id="(oip_torch\.[\w.]+)"', (site / "api.html").read_text(encoding="utf-8")))
    plots = {f"oip_torch.plots.{name}" for name in oip_torch.plots.__all__}
    assert {f"oip_torch.{name}" for name in oip_torch.__all__} | plots <= entries
    assert "oip_torch.AscentSettings.article" in entries


@pytest.mark.slow
def test_pages_link_to_pages_and_to_nothing_outside_the_site(site: Path) -> None:
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "guide.html", "model.html", "contributing.html", "security.html"} < pages.keys()
    assert 'href="model.html"' in pages["index.html"]
    assert 'href="index.html"' in pages["contributing.html"]
    assert 'src="pictures/every_map_of_Conv2D_3.png"' in pages["index.html"]
    assert 'href="rivals.html"' in "".join(pages.values())
    for name, page in pages.items():
        targets = re.findall(r'(?:href|src)="(?!https?:|data:|mailto:)([^"#]+)', page)
        assert targets or name.startswith("gallery_of_")  # an atlas' page, which leads nowhere
        if name != "404.html":  # its paths begin at the site's root, wherever that is
            assert [target for target in targets if not (site / name).parent.joinpath(target).exists()] == []
    loaded = re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(https?:[^"]*)', "".join(pages.values()))
    assert loaded == []  # no font, style or script of another host


@pytest.mark.slow
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path) -> None:
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name in ("src", "models", "benchmarks", "scripts", "notebooks", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    for path in (ROOT / "docs").iterdir():
        (tmp_path / "docs" / path.name).symlink_to(path)
    (tmp_path / "docs" / "guide.md").unlink()
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    (tmp_path / "docs" / "guide.md").write_text(
        f"{guide}\n[a](nowhere.md) [b](runtimes.md#nothing)\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert "'nowhere.md'" in result.stderr
    assert "'runtimes.md#nothing'" in result.stderr
