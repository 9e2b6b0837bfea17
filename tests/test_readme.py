"""The README's own lines run as they stand, and what they write goes to out/ alone."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the shipped models, as a reader's clone has them."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_lines_run_one_after_the_other(clone: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert (clone / "out" / "oips.nc").is_file()
    assert {path.name for path in clone.iterdir()} == {"models", "out"}


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(clone: Path) -> None:
    commands = re.findall(r"^\$ oip (.*)$", README, re.MULTILINE)
    assert commands
    for command in commands:
        call = [sys.executable, "-c", "import sys; from oip_torch.cli import main; sys.exit(main(sys.argv[1:]))"]
        result = subprocess.run([*call, *shlex.split(command)], capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, result.stderr
    assert {path.name for path in clone.iterdir()} == {"models", "out"}


def test_the_environment_is_made_active_before_its_commands_are_typed() -> None:
    assert README.index(". .venv/bin/activate") < README.index("$ oip ")
