"""Progress shows in a terminal and in a notebook, and nowhere else."""

from __future__ import annotations

import contextlib
import html
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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


def in_a_kernel(code: str) -> tuple[list[tuple[str, dict[str, Any]]], list[dict[str, Any]]]:
    """What the cell has sent, as kind and content, from first to last, and the outputs that a notebook stores of it."""
    result = subprocess.run([sys.executable, "-c", RUN, code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    messages, outputs = json.loads(result.stdout.splitlines()[-1])
    return messages, outputs


def texts(messages: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the widgets beside a bar have said."""
    states = [content["data"].get("state", {}) for kind, content in messages if kind in ("comm_open", "comm_msg")]
    values = [state["value"] for state in states if isinstance(state.get("value"), str)]
    return [html.unescape(value).replace("\u2007", " ").strip() for value in values if value]


def typed(messages: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What the lines below the cell have been, each in the place of the one before."""
    return "".join(content["text"] for kind, content in messages if kind == "stream").split("\r")


ASCEND = """
import oip_torch as oip
model = oip.load({file!r}, device="cpu")
oips = oip.ascend(model, "Conv2D_3", range(16), starts=2{options})
"""

FAIL = """
from oip_torch.base.progress import bar, stages
with stages() as say:
    say("a <stage>")
with bar("counting", 3) as advance:
    advance(1)
    raise ValueError("on purpose")
"""


@pytest.mark.slow
def test_a_notebook_shows_how_far_an_ascent_is(mnist_onnx: Path) -> None:
    messages, outputs = in_a_kernel(ASCEND.format(file=str(mnist_onnx), options=""))
    said = texts(messages)
    assert said[1] == "ascending Conv2D_3:   0%"
    assert any("/19200 [00:0" in text for text in said)
    assert len(said) > 6
    assert not [content for kind, content in messages if kind == "stream"]
    assert [output["output_type"] for output in outputs] == ["display_data"]
    assert "application/vnd.jupyter.widget-view+json" in outputs[0]["data"]
    assert "comm_close" in [kind for kind, _ in messages]  # which takes it from the page
    assert in_a_kernel(ASCEND.format(file=str(mnist_onnx), options=", progress=False"))[1] == []


@pytest.mark.slow
def test_the_bar_goes_when_the_work_fails() -> None:
    messages, outputs = in_a_kernel(FAIL)
    said = texts(messages)
    assert list(dict.fromkeys(said))[:4] == ["starting …", "a <stage> …", "counting", "counting:   0%"]
    assert [kind for kind, _ in messages].count("comm_close") == 2
    assert [output["output_type"] for output in outputs] == ["display_data", "display_data", "error"]


@pytest.mark.slow
def test_a_notebook_that_is_run_to_be_stored_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert [output["output_type"] for output in in_a_kernel(FAIL)[1]] == ["error"]


@pytest.mark.slow
def test_without_widgets_a_notebook_shows_a_line_and_no_warning() -> None:
    messages, outputs = in_a_kernel("import sys; sys.modules['ipywidgets'] = None\n" + FAIL)
    lines = typed(messages)
    assert [line.strip() for line in lines[:4]] == ["", "starting …", "a <stage> …", ""]
    assert "counting:   0%" in lines[5]
    assert lines[-1] == lines[-2].strip() == ""
    assert len(lines) == 8
    assert {output.get("name") for output in outputs[:-1]} == {"stderr"}
    assert outputs[-1]["output_type"] == "error"


def test_a_terminal_shows_it_and_it_goes_when_the_work_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with stages() as say:
        say("a stage")
    with contextlib.suppress(ValueError), bar("counting", 3) as advance:
        advance(2)
        raise ValueError("on purpose")
    out, err = capsys.readouterr()
    assert out == ""
    assert "starting …" in err
    assert "a stage …" in err
    assert "counting:   0%" in err
    assert err.split("\r")[-1] == err.split("\r")[-2].strip() == ""


def test_threads_lose_no_count(capsys: pytest.CaptureFixture[str]) -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with bar("counting", 4000, True) as advance, ThreadPoolExecutor(4) as pool:
            list(pool.map(advance, [1] * 4000))
    finally:
        sys.setswitchinterval(interval)
    assert "4000/4000" in capsys.readouterr().err


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
