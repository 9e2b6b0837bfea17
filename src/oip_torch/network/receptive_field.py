"""Which part of the image does a unit of a map see?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oip_torch.base.checks import shown, whole
from oip_torch.base.errors import InputError
from oip_torch.network.model import FeatureModel
from oip_torch.network.needs import Needs
from oip_torch.network.onnx_file import Layer

__all__ = ["ReceptiveField", "receptive_field", "receptive_fields"]


@dataclass(frozen=True, kw_only=True)
class ReceptiveField:
    """The part of the image that one unit sees: rows top to bottom - 1, columns left to right - 1.

    Attributes:
        layer: its name.
        row, column: of the unit in its map; None where the layer's output is flat: the field is then that of all its
            units together.
        top, bottom, left, right: of the part inside the image, in pixels, `bottom` and `right` behind the last one;
            the part is empty where the unit sees padding alone.
        unclipped: the same four as if neither the image nor a map on the way had an end: with the padding that the
            unit sees.
        image: (height, width) of the image.
    """

    layer: str
    row: int | None
    column: int | None
    top: int
    bottom: int
    left: int
    right: int
    unclipped: tuple[int, int, int, int]
    image: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the part inside the image."""
        return self.bottom - self.top, self.right - self.left

    @property
    def unclipped_size(self) -> tuple[int, int]:
        """(height, width) as if the image had no end; the same for all units of a map, if it has no other limits."""
        top, bottom, left, right = self.unclipped
        return bottom - top, right - left

    @property
    def is_whole(self) -> bool:
        """Whether the unit sees all of the image."""
        return self.size == self.image

    @property
    def center(self) -> tuple[float, float]:
        """(y, x) of the middle of the unclipped field in pixels; (0.5, 0.5) is the middle of the first pixel."""
        top, bottom, left, right = self.unclipped
        return (top + bottom) / 2, (left + right) / 2

    @property
    def summary(self) -> str:
        """In words: "The unit of Conv2D_2 at (5, 5) sees 8×8 of 28×28 pixels: rows 10–17, columns 10–17."."""
        flat = self.row is None
        whose = (
            f"The units of {self.layer} see"
            if flat
            else f"The unit of {self.layer} at ({self.row}, {self.column}) sees"
        )
        if self.is_whole:
            return f"{whose} the whole image."
        if 0 in self.size:
            return f"{whose} no pixel of the image, but padding alone."
        (height, width), (full_height, full_width) = self.size, self.unclipped_size
        rest = (
            ""
            if flat or self.size == self.unclipped_size
            else f" The rest of its {full_height}×{full_width} is padding."
        )
        return (
            f"{whose} {height}×{width} of {self.image[0]}×{self.image[1]} pixels{' together' if flat else ''}: rows "
            f"{_range(self.top, self.bottom)}, columns {_range(self.left, self.right)}.{rest}"
        )


def receptive_field(
    model: FeatureModel,
    layer: str | Layer,
    row: int | None = None,
    column: int | None = None,
    *,
    pre_activation: bool = False,
) -> ReceptiveField:
    """Which part of the image one unit of a map sees.

        oip.receptive_field(model, "Conv2D_2").size             # (8, 8)
        oip.receptive_field(model, "Conv2D_2", 0, 0).summary

    It is exact for convolutions (also strided, dilated, padded, transposed), poolings, whatever works place by place,
    joins and sums of branches, dense layers along the channels and means; any other operation counts as one that needs
    all of its input. The maps of a layer have one field; where they differ, as after a concatenation, it is the
    smallest part that holds all of theirs. How much a unit gets from where in its field is another question: Luo et
    al., "Understanding the effective receptive field in deep convolutional neural networks", 2016.

    Args:
        model: from `load` or `convert`.
        layer: its name, or an entry of `model.layers`.
        row: of the unit in its map; None: the middle one. For a layer of a flat output it stays None.
        column: likewise.
        pre_activation: of what goes into the layer's activation.

    Raises:
        InputError: an argument of a wrong kind, unknown layer, or a unit that is not there.
    """
    if not isinstance(model, FeatureModel):
        raise InputError(f"model is {shown(model)}: expected what oip_torch.load or oip_torch.convert returns")
    name = model.layer(layer).name
    size = model.tap(name).size
    if not size:
        if row is not None or column is not None:
            raise InputError(
                f"row is {shown(row)}, column is {shown(column)}: {name} has no maps, so that its units have no place; "
                "leave them out"
            )
        return receptive_fields(model, name, [(None, None)], pre_activation=pre_activation)[0]
    place = []
    for what, value, count in (("row", row, size[0]), ("column", column, size[1])):
        index = count // 2 if value is None else whole(what, value, 0)
        if index >= count:
            raise InputError(
                f"{what} is {index}: the maps of {name} are {size[0]}×{size[1]}, expected 0 to {count - 1}"
            )
        place.append(index)
    return receptive_fields(model, name, [(place[0], place[1])], pre_activation=pre_activation)[0]


def receptive_fields(
    model: FeatureModel, layer: str, places: Sequence[tuple[int | None, int | None]], *, pre_activation: bool = False
) -> list[ReceptiveField]:
    """The fields of several units of a layer; their rows and columns are those of its maps."""
    needs = Needs(model.up_to(layer, pre_activation=pre_activation), model.input_shape)
    _, height, width = model.input_shape
    found = []
    for row, column in places:
        at = () if row is None or column is None else (row, column)
        top, bottom, left, right = needs.of(*at)
        found.append(
            ReceptiveField(
                layer=layer, row=row, column=column, top=top, bottom=bottom, left=left, right=right,
                unclipped=needs.of(*at, clip=False), image=(height, width),
            )
        )  # fmt: skip
    return found


def _range(first: int, end: int) -> str:
    return str(first) if end == first + 1 else f"{first}–{end - 1}"
