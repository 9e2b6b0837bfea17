"""Which maps of which layers are meant?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from oip_torch.base.checks import shown, whole_numbers
from oip_torch.base.errors import InputError
from oip_torch.network.model import FeatureModel

__all__ = ["chosen_maps", "maps_of_each"]


def chosen_maps(model: FeatureModel, layer: str, maps: int | Iterable[int] | Tensor | None) -> list[int]:
    """The maps as a list; None stands for all. An `InputError` names the range, and what was named twice."""
    count, noun = model.layers[layer].maps, model.noun(layer)
    if maps is None:
        return list(range(count))
    numbers = whole_numbers(f"maps of layer {layer!r}", maps, count)
    if not numbers:
        raise InputError(
            f"no maps of layer {layer!r} were given: expected numbers from 0 to {count - 1}, or None for all"
        )
    for number in numbers:
        if not 0 <= number < count:
            raise InputError(f"layer {layer!r} has no {noun} {number}: expected a number from 0 to {count - 1}")
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise InputError(
            f"{noun} {twice} of layer {layer!r} is named more than once: expected each once; several images of one "
            "come from several starts (starts=3, --starts 3)"
        )
    return numbers


def maps_of_each(model: FeatureModel, layers: Any, maps: Any, *, of_maps: bool) -> dict[str, list[int]]:
    """The maps of each of several layers, or one image of each; an `InputError` before any work is done."""
    names = [model.layer(layer).name for layer in layers]
    if not names:
        raise InputError("no layers were given: expected names, such as ['Conv2D_1', 'Conv2D_2'], or one name")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"layer {twice[0]!r} is named more than once: expected each once")
    if maps is not None and not isinstance(maps, Mapping):
        raise InputError(
            f"maps are given as {shown(maps)} for {len(names)} layers: expected None, or a dict by layer, such as "
            f"{{{names[0]!r}: [0, 1]}}"
        )
    maps = maps or {}
    if unknown := [name for name in maps if name not in names]:
        raise InputError(f"maps are given for the layer {unknown[0]!r}: expected one of {', '.join(names)}")
    return {name: chosen_maps(model, name, maps.get(name, None if of_maps else 0)) for name in names}
