"""Which arrays does an atlas hold of a layer, in which chunks? And how do the images of a cell get in and out?

A cell is a part of the maps with one start: the images that lie in one chunk, and that are made together.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from oip_torch.results.fields import Array
from oip_torch.results.oips import STATUSES, Oips

__all__ = [
    "CODES",
    "FIGURES",
    "LARGE",
    "MOST_CHUNK_BYTES",
    "NOT_FINITE",
    "NOT_MADE",
    "Layout",
    "Variable",
    "arrays_of_cell",
    "digest",
    "flags",
]

NOT_MADE, NOT_FINITE = -1, len(STATUSES)
FIGURES = ("scores", "max_preactivation", "status", "converged_at", "cell_steps", "cell_seconds")
"""The arrays with one number for each image, or for each cell: small ones."""
LARGE = ("images", "traces", "snapshots")
CODES = {status: code for code, status in enumerate(STATUSES)}
_MOST_CHUNK_BYTES = 64 << 20
MOST_CHUNK_BYTES = 1 << 30
"""Of an array that is read, packed or not: one map may take more than what several may."""


@dataclass(frozen=True)
class Variable:
    """One array: its dimensions, its kind of numbers, and what stands where nothing was made yet."""

    dimensions: tuple[str, ...]
    dtype: str
    fill: float | int


_OF_IMAGE = {
    "images": Variable(("map", "start", "y", "x", "channel"), "float32", np.nan),
    "scores": Variable(("map", "start"), "float32", np.nan),
    "max_preactivation": Variable(("map", "start"), "float32", np.nan),
    "traces": Variable(("map", "start", "step"), "float32", np.nan),
    "snapshots": Variable(("map", "start", "snapshot", "y", "x", "channel"), "float32", np.nan),
    "status": Variable(("map", "start"), "int8", NOT_MADE),
    "converged_at": Variable(("map", "start"), "int64", -1),
}
_OF_CELL = {
    "cell_steps": Variable(("cell", "start"), "int64", -1),
    "cell_seconds": Variable(("cell", "start"), "float64", np.nan),
    "cell_sha256": Variable(("cell", "start", "byte"), "uint8", 0),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How large everything is in a layer's group.

    Attributes:
        maps, starts, cell: how many there are, and how many maps lie in a cell.
        image: (height, width, channels).
        steps, snapshots: of each image.
    """

    maps: int
    starts: int
    cell: int
    image: tuple[int, int, int]
    steps: int
    snapshots: int

    @classmethod
    def cell_of(cls, maps: int, wanted: int, image: tuple[int, int, int], snapshots: int) -> int:
        """How many maps make a cell: so many as are wanted, if a chunk of their snapshots is not too large."""
        height, width, channels = image
        of_one = 4 * height * width * channels * max(1, snapshots)
        return max(1, min(maps, wanted, _MOST_CHUNK_BYTES // of_one))

    @property
    def variables(self) -> dict[str, Variable]:
        """All arrays, by name."""
        return _OF_IMAGE | _OF_CELL

    @property
    def cells(self) -> int:
        """How many cells each start has."""
        return -(-self.maps // self.cell)

    def sizes(self) -> dict[str, int]:
        """Of each dimension."""
        height, width, channels = self.image
        return {
            "map": self.maps,
            "start": self.starts,
            "cell": self.cells,
            "byte": 32,
            "step": self.steps,
            "snapshot": self.snapshots,
            "y": height,
            "x": width,
            "channel": channels,
        }

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one array."""
        sizes = self.sizes()
        return tuple(sizes[dimension] for dimension in self.variables[name].dimensions)

    def chunks(self, name: str) -> tuple[int, ...]:
        """Of one array: what belongs to one cell."""
        sizes = self.sizes() | {"map": self.cell, "start": 1, "cell": 1}
        return tuple(max(1, sizes[dimension]) for dimension in self.variables[name].dimensions)

    def rows(self, cell: int) -> slice:
        """The maps of a cell."""
        return slice(cell * self.cell, min(self.maps, (cell + 1) * self.cell))

    def place(self, name: str, cell: int, start: int) -> tuple[slice, ...]:
        """Where the numbers of one cell lie in an array."""
        own = {"map": self.rows(cell), "start": slice(start, start + 1), "cell": slice(cell, cell + 1)}
        return tuple(own.get(dimension, slice(None)) for dimension in self.variables[name].dimensions)

    def bytes_of(self, names: Collection[str]) -> int:
        """That these arrays take in memory."""
        return sum(math.prod(self.shape(name)) * np.dtype(self.variables[name].dtype).itemsize for name in names)

    @property
    def cell_bytes(self) -> int:
        """That the arrays of one cell take in memory."""
        return sum(math.prod(self.chunks(name)) * np.dtype(of.dtype).itemsize for name, of in self.variables.items())


def flags() -> dict[str, Any]:
    """What the codes of `status` mean, as the CF conventions have it."""
    named = {NOT_MADE: "not_made", **{code: status for status, code in CODES.items()}, NOT_FINITE: "not_finite"}
    return {"flag_values": list(named), "flag_meanings": " ".join(named.values())}


def arrays_of_cell(layout: Layout, maps: Sequence[int], start: int, oips: Oips) -> dict[str, Array]:
    """The images of one cell as they are kept: (maps, 1, …); those that are not among the OIPs were not finite."""
    place = {number: row for row, number in enumerate(maps)}
    rows = np.array([place[int(number)] for number in oips.maps], int)
    if set(oips.starts.tolist()) - {start}:
        raise ValueError(f"images of the starts {sorted(set(oips.starts.tolist()))}, where {start} was asked for")
    held = {
        "images": oips.images,
        "scores": oips.scores,
        "max_preactivation": oips.max_preactivation,
        "traces": oips.traces,
        "snapshots": oips.snapshots,
        "status": np.array([CODES[status] for status in oips.status.tolist()], np.int8),
        "converged_at": oips.converged_at,
    }
    found = {}
    for name, variable in _OF_IMAGE.items():
        shape = (len(maps), *layout.shape(name)[2:])
        values = np.full(shape, NOT_FINITE if name == "status" else variable.fill, variable.dtype)
        values[rows] = held[name]
        if values.dtype.kind == "f":
            values[np.isnan(values)] = np.nan  # there are many NaN, and what lies in the store is the fill value's
        found[name] = values[:, None]
    found["cell_steps"] = np.array([[oips.provenance.image_steps]], np.int64)
    return found


def digest(arrays: Mapping[str, Array], attributes: Mapping[str, Any] | None = None) -> bytes:
    """SHA-256 over names, types, shapes and bytes, and over what is said beside them."""
    total = hashlib.sha256(json.dumps(dict(attributes or {}), sort_keys=True).encode())
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {values.dtype.str} {values.shape}".encode())
        total.update(values.tobytes())
    return total.digest()
