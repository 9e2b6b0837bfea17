"""JSON of others is counted before it is parsed."""

from __future__ import annotations

import pytest

from oip_torch.base.plain_json import parse_json


def test_what_is_sound_is_parsed() -> None:
    assert parse_json('{"a": [1, "[[[[\\"{{{", null]}') == {"a": [1, '[[[["{{{', None]}
    assert parse_json(b'"\xc3\xa9"') == "é"
    assert parse_json("[" * 200 + "]" * 200)
    assert parse_json('"' + "[" * 5000 + '"') == "[" * 5000


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[" + "[]," * 600_000 + "1]", r"1200001 values: expected at most 1000000"),
        ('"' + "x" * (17 << 20) + '"', r"17 MiB of text: expected at most 16"),
        ("[" * 30_000 + "]" * 30_000, "nested more than 200 levels deep"),
        ('{"a":' * 201 + "1" + "}" * 201, "nested more than 200 levels deep"),
        ('"' + "[" * 30_000, "Unterminated string|nested"),
        ('["a' + '"' + "[" * 30_000 + '"', "nested|Expecting"),
        (b"\xff", "codec can't decode"),
        ("{", "Expecting"),
        ("", "Expecting"),
        ("1" * 5000, "Exceeds the limit"),
    ],
)
def test_what_is_not_is_refused_in_one_line(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)
