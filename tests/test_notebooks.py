"""The notebooks run from top to bottom, and are stored with pictures, without errors, and small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from oip_torch import AscentSettings

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def test_there_are_notebooks() -> None:
    assert [path.name[:2] for path in NOTEBOOKS][:4] == ["01", "02", "03", "04"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_and_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    where = [f"BIN={Path(sys.executable).parent}", f"NOTEBOOKS={path}", f"EXECUTED={tmp_path}"]
    command = ["make", "--assume-old=install", "notebooks", *where]  # nothing is installed from a test
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    assert path.read_bytes() == before
    executed = nbformat.read(tmp_path / path.name, as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert executed.metadata.keys() == {"kernelspec"}  # no version and no time of this run
    assert not any(cell.metadata for cell in executed.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs, "run make notebooks STORE=1"
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [
        o for o in outputs if "image/png" in o.get("data", {}) or "base64" in o.get("data", {}).get("text/html", "")
    ]
    assert pictures
    assert path.stat().st_size < 1_500_000


def test_the_numbers_that_are_said_are_those_of_the_settings() -> None:
    """Wherever the texts count the starts and steps of the default or of the article's settings."""
    default, article = AscentSettings(), AscentSettings.article()
    screening, steps = default.screening, default.schedule.steps
    of_article = article.schedule
    sayings = {
        r"(\w+) starts are tried for each map": [WORDS[screening.candidates], "several"],
        r"starts are tried for each map in (\d+)\s+steps": [str(screening.steps)],
        r"(\w+) starts are screened": [WORDS[screening.candidates]],
        r"starts are screened for (\d+) steps each": [str(screening.steps)],
        r"the (\w+)\s+survivors\s+go on": [WORDS[screening.survivors]],
        r"go on with (\d+) steps": [str(steps)],
        r"at most (\d+) image-steps per image": [str(default.image_steps)],
        r"image-steps per image: (\d+ × \d+, then \d+ × \d+)": [
            f"{screening.candidates} × {screening.steps}, then {screening.survivors} × {steps}"
        ],
        r"AscentSettings\(\), the default, takes (\d+)": [str(default.image_steps)],
        r"the article(?: as the article)? has it: (\d+ steps of [\d.]+)": [
            f"{of_article.steps} steps of {of_article.epsilon}"
        ],
        r"a start made of (\w+) length scales": [WORDS[article.start.count]],
        r"does just that: (\d+ steps with epsilon [\d.]+)": [
            f"{of_article.steps} steps with epsilon {of_article.epsilon}"
        ],
    }
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    texts += ["\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells) for path in NOTEBOOKS]
    said = [(found, right) for saying, right in sayings.items() for text in texts for found in re.findall(saying, text)]
    assert len(said) >= 4
    assert [(found, right) for found, right in said if found.lower() not in right] == []
