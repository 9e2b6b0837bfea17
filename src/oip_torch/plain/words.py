"""How are numbers, sizes and settings written as Python, and what is known of an operation that is to be written?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from oip_torch.base.errors import ConversionError

__all__ = ["Operation", "Writer", "number", "numbers", "setting", "sizes", "uncovered"]


class Own(Protocol):
    """Gives the module that is written an attribute, and its weights; returns how it is read: `self.NAME`."""

    def __call__(self, made_by: str, weights: Mapping[str, Tensor]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What is to be written.

    Attributes:
        part: the module that is called, or a function's or method's name.
        args: as they are written: a variable, a number, or `self.NAME` of a constant.
        values: of the arguments: the tensors or numbers of a run with two images.
        constants: of the arguments, whether they are the same whatever the image.
        output: of the run with two images.
        keywords: of functions and methods, as `args`.
        own: see `Own`.
    """

    part: nn.Module | str
    args: Sequence[str]
    values: Sequence[Any]
    constants: Sequence[bool]
    output: Any
    keywords: Mapping[str, str]
    own: Own

    @property
    def kind(self) -> str:
        """The name of what is called."""
        return self.part if isinstance(self.part, str) else type(self.part).__name__


Writer = Callable[[Operation, Any], str]
"""(operation, the module that is called) → the expression."""


def uncovered(what: str) -> ConversionError:
    """An error for what cannot be written."""
    return ConversionError(
        f"the operation {what} cannot be written as plain PyTorch yet: expected those of convolutional networks; use "
        "the network as oip_torch.load gives it"
    )


def number(value: Any) -> str:
    """A number as it is written; of float32 no more digits than it has."""
    if isinstance(value, Tensor):
        value = value.item() if value.dtype != torch.float32 else np.float32(value.item())
    if isinstance(value, np.floating):
        text = repr(float(value)) if not np.isfinite(value) else str(value)
    elif isinstance(value, (bool, int)) or value is None:
        return repr(value)
    else:
        short = str(np.float32(value))
        text = short if np.float32(value) == value or abs(float(short) - value) <= 1e-7 * abs(value) else repr(value)
    return f'float("{text}")' if text in ("inf", "-inf", "nan") else text


def sizes(values: Any) -> str:
    """Numbers of all axes: one where they are alike, else a tuple."""
    values = [values] if isinstance(values, int) else [int(value) for value in values]
    return str(values[0]) if len(set(values)) == 1 else f"({', '.join(map(str, values))})"


def numbers(values: Sequence[Any]) -> str:
    """A tuple."""
    return f"({', '.join(map(number, values))}{',' if len(values) == 1 else ''})"


def setting(template: str) -> Writer:
    """`{x}`, `{y}`: the arguments; `{part.NAME}`: a setting, which is a number."""

    def writer(op: Operation, part: Any) -> str:
        class Numbers:
            def __getattr__(self, name: str) -> str:
                value = getattr(part, name)
                return repr(value) if isinstance(value, str) else number(value)

        x, y = [*op.args, "", ""][:2]
        return template.format(x=x, y=y, part=Numbers(), all=", ".join(op.args), sum=" + ".join(op.args))

    return writer
