"""Are these arguments what they have to be? Plain values come out, or an `InputError` that says what was expected.

Public functions ask here before they do any work, so that nothing of a wrong type gets deep inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from oip_torch.base.errors import InputError

__all__ = ["is_whole", "number", "plain", "shown", "whole", "whole_numbers"]


def is_whole(value: Any) -> bool:
    """An integer of Python or NumPy, and no bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A number of NumPy or torch as Python's own, and sequences of them as tuples: what JSON can hold."""
    if isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0:
        return tuple(plain(item) for item in value)
    return value.item() if hasattr(value, "item") else value


def whole(name: str, value: Any, least: int) -> int:
    """The value as an int; an `InputError` if it is none, or less than `least`."""
    value = plain(value)
    if not is_whole(value) or value < least:
        raise InputError(f"{name} is {shown(value)}: expected a whole number, {least} or more")
    return int(value)


def number(name: str, value: Any, expected: str = "a finite number") -> float:
    """The value as it is, if it is a finite number; `expected` says of which range."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{name} is {shown(value)}: expected {expected}")
    return value


def whole_numbers(what: str, values: Any, count: int | None = None) -> list[int]:
    """Whole numbers as a list of ints, in their order.

    Args:
        what: what they are, for the message.
        values: one of them, an iterable, or an array or tensor of one dimension.
        count: where so many things can be chosen, a mask of so many booleans says which.

    Raises:
        InputError: text, fractions, single booleans, other shapes.
    """
    given = values
    if hasattr(values, "detach"):  # a tensor, on any device
        values = values.detach().cpu().numpy()
    if is_whole(values):
        return [int(values)]
    if isinstance(values, Iterable) and not isinstance(values, (str, bytes, dict, np.ndarray)):
        values = list(values)
        if any(hasattr(value, "detach") for value in values):
            values = plain(values)
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty((0, 0))
    if count is not None and array.dtype == bool and array.shape == (count,):
        return np.flatnonzero(array).tolist()
    mixed = isinstance(values, (list, tuple)) and any(isinstance(value, (bool, np.bool_)) for value in values)
    empty = array.shape == (0,)
    if mixed or array.ndim > 1 or not (empty or array.dtype.kind in "iu"):
        mask = f", or a mask of {count} booleans" if count is not None else ""
        raise InputError(f"{what} are given as {shown(given)}: expected whole numbers, such as 3 or [3, 5]{mask}")
    return [int(value) for value in array.reshape(-1)]


def shown(value: Any) -> str:
    """A value as a message shows it: in one line, and short."""
    text = " ".join((repr(value) if isinstance(value, str) else str(value)).split())
    kind = "" if isinstance(value, (str, int, float, list, tuple, type(None))) else f"{type(value).__name__} "
    return kind + (text if len(text) <= 80 else f"{text[:77]}…")
