"""The notebooks run from top to bottom, and are stored with pictures, without errors, and small."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks() -> None:
    assert [path.name[:2] for path in NOTEBOOKS][:4] == ["01", "02", "03", "04"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py"), "--check", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs, "run make notebooks"
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [
        o for o in outputs if "image/png" in o.get("data", {}) or "base64" in o.get("data", {}).get("text/html", "")
    ]
    assert pictures
    assert path.stat().st_size < 1_500_000
