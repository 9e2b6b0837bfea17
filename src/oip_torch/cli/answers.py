"""How does what a command has to say become its JSON object?"""

from __future__ import annotations

import json
from typing import Any

from oip_torch.base.errors import OipError

__all__ = ["failure_entry", "to_json"]


def failure_entry(error: OipError | None) -> dict[str, str]:
    """What it adds to the command's JSON object."""
    return {} if error is None else {"error": " ".join(str(error).split())}


def to_json(data: dict[str, Any]) -> str:
    """One line of JSON, without NaN."""
    return json.dumps(data, allow_nan=False)
