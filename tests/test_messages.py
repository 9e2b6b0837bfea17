"""What is shown is printable, of one line, and not long, whatever it repeats of files and libraries."""

from __future__ import annotations

import pickle

import pytest

from oip_torch import InputError
from oip_torch.base.errors import VerificationError, unknown_name
from oip_torch.base.messages import MOST, one_line, printable, whole_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Conv2D_1, 26×26 – é 図 🙂", "Conv2D_1, 26×26 – é 図 🙂"),
        ("a\x1b[31mred\x1b[0m", r"a\x1b[31mred\x1b[0m"),
        ("\x9b31m \x7f \x00", r"\x9b31m \x7f \x00"),
        ("\u202etxt.exe \u2066x\u2069 \u200f", r"\u202etxt.exe \u2066x\u2069 \u200f"),
        ("half \ud800 of one", r"half \ud800 of one"),
        ("a\u2028b\ufeff", r"a\u2028b\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("two\nlines\tstay", "two\nlines\tstay"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_its_number(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_line_is_one_line_and_loses_its_middle() -> None:
    assert whole_line("a\r\nb\x0b\x0cc\x85d\u2028e\tf") == "a b c d e f"
    line = whole_line("begins " + "x" * 3_000_000 + " ends")
    assert len(line) == MOST == 500
    assert line.startswith("begins ")
    assert line.endswith(" ends")
    assert len(whole_line("\x1b" * 400)) == MOST  # what is shown in its place counts


def test_every_error_of_ours_is_such_a_line() -> None:
    name = "conv\x1b]0;title\x07\n\u202e\ud800" + "y" * 1000
    for error in (InputError(f"no layer {name}"), unknown_name("layer", name, ["a"]), VerificationError(name)):
        assert str(error).isprintable()
        assert len(str(error)) <= MOST
        str(error).encode()
    assert str(pickle.loads(pickle.dumps(InputError("a\nb")))) == "a b"  # noqa: S301 (as Ray sends them)


def test_configurations_lose_what_is_nested_in_them() -> None:
    config = {"class_name": "Dense", "config": {"units": [1] * 400}}
    assert (
        one_line(f"Could not find it. {config} (3, 3)")
        == "Could not find it. {'class_name': 'Dense', 'config': …} (3, 3)"
    )
    assert " … " in one_line("an open { [" + "x" * 1000)
