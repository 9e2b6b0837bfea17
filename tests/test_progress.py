"""Progress shows in a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from oip_torch.base.progress import bar, stages

RUN = """
import json, sys
import nbformat
from nbclient import NotebookClient

messages = []

class Client(NotebookClient):
    def process_message(self, message, cell, index):
        messages.append([message["msg_type"], message["content"]])
        return super().process_message(message, cell, index)

notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.argv[1])])
Client(notebook, timeout=300, kernel_name="python3", allow_errors=True).execute()
print(json.dumps([messages, notebook.cells[0].outputs]))
"""


def in_a_kernel(code: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the cell's line has shown, from first to last, and the outputs that a notebook stores of the cell."""
    result = subprocess.run([sys.executable, "-c", RUN, code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    messages, outputs = json.loads(result.stdout.splitlines()[-1])
    shown = [content["data"] for kind, content in messages if kind in ("display_data", "update_display_data")]
    assert not [content for kind, content in messages if kind == "stream"]
    return shown, outputs


ASCEND = """
import oip_torch as oip
model = oip.load({file!r}, device="cpu")
oips = oip.ascend(model, "Conv2D_3", range(16), starts=2{options})
"""


@pytest.mark.slow
def test_a_notebook_shows_how_far_an_ascent_is(mnist_onnx: Path) -> None:
    shown, outputs = in_a_kernel(ASCEND.format(file=str(mnist_onnx), options=""))
    texts = [data["text/plain"] for data in shown]
    assert len(texts) > 4
    assert texts[1].startswith("ascending Conv2D_3: 0 of 19200, 0 s")
    assert texts[3].endswith(" s left")
    assert '<progress value="0.' in shown[2]["text/html"]
    assert texts[-1] == shown[-1]["text/html"] == ""
    assert [(output["output_type"], output["data"]) for output in outputs] == [("display_data", shown[-1])]
    assert in_a_kernel(ASCEND.format(file=str(mnist_onnx), options=", progress=False")) == ([], [])


@pytest.mark.slow
def test_the_line_goes_when_the_work_fails() -> None:
    code = """
from oip_torch.base.progress import bar, stages
with stages() as say:
    say("a <stage>")
with bar("counting", 3) as advance:
    advance(1)
    raise ValueError("on purpose")
"""
    shown, outputs = in_a_kernel(code)
    texts = [data["text/plain"] for data in shown]
    assert texts == ["", "starting …", "a <stage> …", "", "", "counting: 0 of 3, 0 s", ""]
    assert shown[2]["text/html"] == "a &lt;stage&gt; …"
    assert [output["output_type"] for output in outputs] == ["display_data", "display_data", "error"]


def test_pipes_and_logs_stay_clean(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (None, False):
        with bar("counting", 3, show) as advance, stages(show) as say:
            advance(2)
            say("a stage")
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_is_asked_for_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("counting", 3, True) as advance:
        advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "counting" in err
    assert "2/3" in err
