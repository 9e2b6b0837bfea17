"""How do dataclasses of arrays become xarray Datasets, and come back? By what each field says of itself.

    scores: Array = array("image")

is all that a new figure needs to be taken along by `take`, `to_dataset` and `from_dataset`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Array", "array", "arrays_of", "large_of", "rows_of", "variables_of"]

Array = npt.NDArray[Any]


def array(
    *dimensions: str, stored: str | None = None, kind: type | None = None, large: bool = False, default: Any = ...
) -> Any:
    """A dataclass' field that holds an array.

    Args:
        dimensions: their names, in order.
        stored: the variable's name in a file; None: the field's own.
        kind: of its numbers, where they are given one when they are read: np.int64, np.str_ and the like.
        large: whether a file keeps it compressed.
        default: for files and callers that have none; left out: it has to be there.
    """
    metadata = {"dimensions": dimensions, "stored": stored, "kind": kind, "large": large}
    return (
        dataclasses.field(metadata=metadata)
        if default is ...
        else dataclasses.field(default=default, metadata=metadata)
    )


def _fields(of: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(of) if "dimensions" in field.metadata]


def variables_of(value: Any) -> dict[str, tuple[tuple[str, ...], Array]]:
    """Name in a file → (dimensions, array), of a dataclass' arrays; those that are None are left out."""
    found = {}
    for field in _fields(value):
        held = getattr(value, field.name)
        if held is not None:
            text = held.astype(object) if held.dtype.kind == "U" else held  # NetCDF's text has any length
            found[field.metadata["stored"] or field.name] = field.metadata["dimensions"], text
    return found


def large_of(of: Any) -> list[str]:
    """Names in a file of the arrays that are kept compressed."""
    return [field.metadata["stored"] or field.name for field in _fields(of) if field.metadata["large"]]


def arrays_of(kind: type, dataset: xr.Dataset, old: Mapping[str, str] | None = None) -> dict[str, Array]:
    """Field → array, for a dataclass' constructor.

    Args:
        kind: the dataclass.
        dataset: with a variable or coordinate for each of its arrays.
        old: the names of fields in older files, field → variable.

    Raises:
        KeyError: one is missing that has no default.
        ValueError: it has other dimensions.
    """
    found: dict[str, Array] = {}
    for field in _fields(kind):
        name = field.metadata["stored"] or field.name
        if name not in dataset.variables and old and field.name in old:
            name = old[field.name]
        if name not in dataset.variables and field.default is not dataclasses.MISSING:
            continue
        variable = dataset[name]
        if variable.dims != field.metadata["dimensions"]:
            raise ValueError(f"{name} with the dimensions {variable.dims}")
        values = variable.to_numpy()
        found[field.name] = values if field.metadata["kind"] is None else values.astype(field.metadata["kind"])
    return found


def rows_of(value: Any, dimension: str, rows: Array) -> dict[str, Any]:
    """Field → the chosen rows of each array whose first dimension is that one, for `dataclasses.replace`."""
    return {
        field.name: getattr(value, field.name)[rows]
        for field in _fields(value)
        if field.metadata["dimensions"][0] == dimension and getattr(value, field.name) is not None
    }
