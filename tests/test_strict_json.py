"""JSON of strangers: what is not finite, too deep, or no text is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from oip_torch.base.strict_json import check_plain, strict_json


@pytest.mark.parametrize("value", [None, True, 3, -2.5, "é\u202e", [[[]]], {"a": [1, {"b": None}]}, 10**30])
def test_what_json_has_is_read(value: Any) -> None:
    assert strict_json(json.dumps(value)) == value
    assert strict_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN stands where"),
        ('{"a": [-Infinity]}', "-Infinity stands where"),
        ("1e999", "1e999 stands where"),
        ("[" * 17 + "]" * 17, "deeper than 16"),
        ("[" * 30_000 + "]" * 30_000, "more than 200 levels"),
        ('{"a":' * 30_000 + "1" + "}" * 30_000, "more than 200 levels"),
        ('"\\ud800"', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("[1,", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        ("9" * 5000, "digits"),
    ],
)
def test_what_it_has_not_is_a_value_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strict_json(text)


def test_values_that_another_reader_made_are_checked_alike() -> None:
    check_plain({"a": (1, 2.5)})
    with pytest.raises(ValueError, match="nan stands where"):
        check_plain({"a": [float("nan")]})
